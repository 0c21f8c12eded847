"""``out=``: which arrays results may be written to."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cases import Case, assert_bits, flat, misaligned, out_for, parts, read_only, strided

import fastrnn


def test_out_that_is_refused():
    case = Case.of("lstm", direction="bidirectional concat")
    layer = case.layer()
    names = ("y", "h", "c")
    good = out_for(case)

    def refused(k: int, array, *texts: str) -> None:
        arrays = list(good)
        arrays[k] = array
        with pytest.raises(fastrnn.ShapeError) as caught:
            layer(case.x, case.initial, out=(arrays[0], tuple(arrays[1:])))
        for text in texts:
            assert text in str(caught.value), f"{text!r} in {str(caught.value)!r}"

    for k, (name, array) in enumerate(zip(names, good, strict=True)):
        refused(k, array[:-1], f"out {name} must be float32 of shape {array.shape}", f"{array[:-1].shape}")
        refused(k, array[..., :-1].copy(), f"out {name}", str(array.shape))
        refused(k, array[None], f"out {name}", str(array.shape))
        refused(k, array.astype(np.float64), f"out {name}", "float32", "float64")
        refused(k, array.astype(">f4"), f"out {name}", "float32", ">f4")
        refused(k, np.asfortranarray(array), f"out {name}", "C-contiguous")
        refused(k, strided(array), f"out {name}", "C-contiguous")
        refused(k, misaligned(array), f"out {name}", "aligned")
        refused(k, read_only(array), f"out {name}", "writable")
        refused(k, array.tolist(), f"out {name} must be a NumPy array", "list")
    for wrong in (good[0], (good[0],), (good[0], good[1]), (good[0], None), (good[0], (good[1],)), (*good,), "ab", {}):
        with pytest.raises(fastrnn.ShapeError, match=r"tuple \((y, state|h, c)\)|out [yhc] must"):
            layer(case.x, case.initial, out=wrong)
    for array in good:
        assert (array == 7).all(), "a refused call writes nothing"


def test_out_that_overlaps():
    """With an input or with itself; nothing is written."""
    case = Case.of("lstm", input_size=5, batch=2, seq_len=4)
    layer = case.layer()
    x, h, c = case.x.copy(), *(part.copy() for part in case.initial)
    y, h_n, c_n = out_for(case)
    room = np.zeros(2 * y.size, np.float32)
    x_in_room = room[: x.size].reshape(x.shape)
    x_in_room[...] = x
    shifted = room[3 : 3 + y.size].reshape(y.shape)
    begin_of_y = y.ravel()[: h.size].reshape(h.shape)
    pairs = [
        (x, (h, c), (x, (h_n, c_n))),
        (x, (h, c), (y, (h, c_n))),
        (x, (h, c), (y, (h_n, c))),
        (x, (h, c), (y, (c, h_n))),
        (x, (h, c), (y, (h_n, h_n))),
        (x, (h, c), (y, (begin_of_y, c_n))),
        (x, (h, h_n), (y, (h_n, c_n))),
        (x_in_room, (h, c), (shifted, (h_n, c_n))),
    ]
    for given_x, state, out in pairs:
        with pytest.raises(fastrnn.ShapeError, match="share no memory"):
            layer(given_x, state, out=out)
    assert np.array_equal(x, case.x)
    assert_bits([h, c], parts(case.initial), "states")
    beside = room[x.size :].reshape(y.shape)
    assert_bits(
        [layer(x_in_room, (h, c), out=(beside, (h_n, c_n)))[0]],
        [layer(x, (h, c))[0]],
        "neighbours in one buffer are fine",
    )


def test_out_without_batch_or_time():
    for batch, seq_len in itertools.product((0, 1), (0, 1)):
        case = Case.of("lstm", batch=batch, seq_len=seq_len)
        y, h, c = out_for(case)
        case.layer()(case.x, case.initial, out=(y, (h, c)))
        assert_bits([y, h, c], flat(case.layer()(case.x, case.initial)), case)
