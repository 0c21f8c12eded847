"""From a graph to a program in C: lowered node by node, planned for each set of shapes, and run."""

from .convolution import Convolution
from .executable import Executable

__all__ = ["Convolution", "Executable"]
