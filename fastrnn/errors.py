"""The exceptions of fastrnn; every one says what was found, what was expected and what to do."""


class FastrnnError(Exception):
    """Base class of all errors that fastrnn raises on purpose."""


class FormatError(FastrnnError):
    """A file is damaged, hostile, or not of the format it claims to be."""


class UnsupportedError(FastrnnError):
    """The input is valid, but uses something that fastrnn does not run."""


class ShapeError(FastrnnError, ValueError):
    """An array has the wrong shape, dtype or layout for what it is used as."""


class ConcurrentUseError(FastrnnError):
    """An object with a single owner was used by two threads at once."""
