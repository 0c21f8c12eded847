"""What a run of a model may take and keep: the one table of such limits.  Those of files: ``loaders/limits.py``."""

from __future__ import annotations

MIB = 1 << 20

# Plans that a model keeps, those behind stops and in bodies of control flow included, least recently used out first
MAX_PLANS = 256
MAX_PLAN_BYTES = 64 * MIB  # all that they hold

# What may be planned for
MAX_VALUES = 1024  # elements of a tensor that a plan may depend on
MAX_CHOICES = 8  # values of an input for each of which there may be a plan; with more, it is an input like others

# Turns that one loop of a graph makes in a run, with those of all loops and scans inside it; a file may ask for a loop
# without an end.  A scan that stands in no loop makes as many as its input has steps.  A larger number may be set here.
MAX_TURNS = 1_000_000

# Blocks of intermediate results that wait for the next run; there is one for each run at the same time, and one waits
# whatever its size
MAX_IDLE_BYTES = 64 * MIB

# Operators of the onnx package that are ready to run, those of all models together
MAX_OPERATOR_BYTES = 16 * MIB
