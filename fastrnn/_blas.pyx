# cython: language_level=3
"""The address of SciPy's sgemm.

A module of its own because importing it may fail: Cython compares the signatures that SciPy exports with those of
the build, and they have changed before.  Imported only when a layer with backend="blas" is built.
"""

from libc.stdint cimport uintptr_t
from scipy.linalg.cython_blas cimport sgemm


def sgemm_address():
    """Address of SciPy's single-precision general matrix product, with Fortran's calling convention."""
    return <uintptr_t> <void *> sgemm
