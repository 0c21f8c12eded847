"""The exceptions of fastrnn; every one says what was found, what was expected and what to do."""


class FastrnnError(Exception):
    """Base class of all errors that fastrnn raises on purpose."""


class FormatError(FastrnnError):
    """A file is damaged, hostile, or not of the format it claims to be."""


class UnsupportedError(FastrnnError):
    """The input is valid, but uses something that fastrnn does not run."""


class ShapeError(FastrnnError, ValueError):
    """An array has the wrong shape, dtype or layout for what it is used as."""


class ArgumentError(FastrnnError, TypeError, ValueError):
    """A call has an option that does not exist, or a value of a kind or size that it does not take.

    A TypeError and a ValueError, as Python's own functions raise either for that.
    """


class ConcurrentUseError(FastrnnError):
    """An object with a single owner was used by two threads at once."""


class PoolFullError(FastrnnError):
    """A pool has no room for another stream."""


class UnknownStreamError(FastrnnError, KeyError):
    """A handle is of no stream of this pool, or of one that was closed."""

    __str__ = Exception.__str__  # KeyError's shows the message in quotes


class QueueFullError(FastrnnError):
    """A batcher has as many requests as it may hold; what it refused may be sent again later."""


class DeadlineError(FastrnnError, TimeoutError):
    """A request was not answered by its deadline."""


class ClosedError(FastrnnError):
    """A batcher or session was closed, or lost what the request needs."""
