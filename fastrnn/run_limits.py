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

# Elements that the turns of a loop give to be stacked, and WORK_EACH more for each element that the loop reads
STACKED = 1 << 26

# Blocks of intermediate results that wait for the next run; there is one for each run at the same time, and one waits
# whatever its size
MAX_IDLE_BYTES = 64 * MIB

# Operators of the onnx package that are ready to run, those of all models together
MAX_OPERATOR_BYTES = 16 * MIB

# Work of a plan, in elements that its steps read and write: so much for any model, and more for each element of the
# inputs, weights and constants, and for each node; a step costs something whatever its size.  Layers may use each
# weight FLOPS_EACH times for each element of the inputs, and for as many ROWS more.
WORK = 1 << 24
WORK_EACH = 1 << 12
WORK_NODE = 1 << 14
WORK_STEP = 1 << 11
FLOPS_EACH = 1 << 6
ROWS = 1 << 16

# A stream: bytes of the states of one
MAX_STATE_BYTES = 256 * MIB

# Inputs that verify and explain make up: elements of one
MADE_UP = 1 << 28

# An operator of the onnx package, in Python for the most part: elements that it makes, each as often as its attributes
# say, and more for each element of its inputs
OPERATOR_WORK = 1 << 18
OPERATOR_EACH = 1 << 8
