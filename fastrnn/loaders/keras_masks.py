"""Which masks a call of a Keras layer reads, and which mask its output gets: the rules of every version.

Keras attaches a mask to a tensor.  A layer reads the masks of its tensors, or those that it is called with, and
attaches one to its first output; most layers that do not work step by step attach none.  Between versions this changed:

=========  ===========================================================================================================
version    rule
=========  ===========================================================================================================
2          a layer reads masks whatever else it is called with; Identity, Normalization and Rescaling attach none
3.0        a layer that is called with initial states does not read the mask; it attaches it all the same
3.0 - 3.3  layers that are called with a list of tensors (merges, attention) attach none
3.4        merges attach the union of the masks, if all tensors have one; in Keras 2 it is the intersection
3.8        MultiHeadAttention takes the masks off the tensors that it is called with: who comes later finds none
3.11       a mask that a layer is called with is attached to its output; before it was that of the tensor
=========  ===========================================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import UnsupportedError
from .keras_config import MODELS, Value
from .keras_file import Version

_KEEPING = (
    "Dense", "Activation", "ReLU", "LeakyReLU", "ThresholdedReLU", "ELU", "PReLU", "Softmax", "LayerNormalization",
    "BatchNormalization", "GroupNormalization", "UnitNormalization", "Dropout", "SpatialDropout1D", "SpatialDropout2D",
    "SpatialDropout3D", "GaussianNoise", "GaussianDropout", "AlphaDropout", "ActivityRegularization",
)  # fmt: skip
_KEEPING_SINCE_3 = ("Identity", "Normalization", "Rescaling")

SAME_TENSOR = ("Cast", "ConvertToTensor")
"""Operations that give back the tensor that they got, with its mask, if there is nothing to do."""

Masks = tuple[Value | None, ...]


def keeps_mask(class_name: str, version: Version) -> bool:
    """Whether the output of such a layer has the mask of its input, and no rule of its own."""
    return class_name in _KEEPING or (version.major >= 3 and class_name in _KEEPING_SINCE_3)


def returns_its_input(class_name: str, version: Version) -> bool:
    """Whether Keras gives back the very tensor that it got, where there is nothing to do."""
    return keeps_mask(class_name, version) or class_name.rpartition(">")[2] in SAME_TENSOR


def unmasks(class_name: str, version: Version) -> bool:
    """Whether a call of such a layer takes the masks off its tensors."""
    return class_name == "MultiHeadAttention" and version >= (3, 8)


def masks_of_call(
    class_name: str, version: Version, attached: Sequence[Value | None], given: Sequence[Value | None], states: bool
) -> tuple[Masks, Masks]:
    """The masks that a call reads, and those that the masks of its outputs are made of; one for each tensor.

    Parameters
    ----------
    attached : list of Value or None
        The masks of the tensors.
    given : list of Value or None
        Those that the call names, empty if it names none.
    states : bool
        The call has initial states, too.
    """
    named: Masks = (*given, *[None] * (len(attached) - len(given)))[: len(attached)] if given else ()
    if class_name in ("MultiHeadAttention", *MODELS):  # a mask that is not named is that of its tensor
        read = tuple(mask or other for mask, other in zip(named or attached, attached, strict=True))
        return (*attached[:1], *read[1:]) if unmasks(class_name, version) else read, tuple(attached)
    if version.major < 3:
        return (named or tuple(attached),) * 2
    read = named or ((None,) * len(attached) if states else tuple(attached))
    if named and version >= (3, 11):
        return read, named
    lost = len(attached) > 1 and version < (3, 4)
    return read, (None,) * len(attached) if lost else tuple(attached)


def check_mask(mask: Value | None, axes: int) -> None:
    """Raise ``UnsupportedError`` unless a mask has so many axes; Keras itself fails there, or broadcasts by chance."""
    if mask is not None and mask.shape is not None and len(mask.shape) != axes:
        raise UnsupportedError(
            f"its mask has shape {mask.shape}, expected {axes} axes; drop the mask before it, or pass one of steps"
        )
