"""The one way in which the package writes a file: whole or not at all, and only where a regular file is or will be."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from .errors import FormatError


def write_file(path: str | os.PathLike[str], fill: Callable[[BinaryIO], object]) -> None:
    """Let ``fill`` write a new file beside the old one, then rename it: readers see the old contents or the new ones.

    That holds after a crash too: contents are flushed to the disk before the name changes, the name after it.  A
    symbolic link stays, and the file that it leads to is replaced; other hard links keep the old contents.  A file
    that was there gives its mode, owner, and extended attributes (access lists are some) to the new one, as far as the
    process may; a group that it may not give loses what only that group was allowed.  Without one, the umask decides.
    Whatever fails, the temporary file is removed and the old file stays.

    Raises
    ------
    FormatError
        There is something at ``path`` that is no regular file; see :func:`check_target`.
    OSError
        The folder is missing or may not be written, the file may not, or the disk is full.
    """
    target, old = check_target(path)
    temporary = target.with_name(f".fastrnn-{secrets.token_hex(8)}.tmp")
    try:
        # Nobody else may look into a file that replaces one of theirs before it has the mode of that.
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if old else 0o666)
        with open(handle, "wb") as file:
            fill(file)
            file.flush()
            if old:
                _keep_attributes(file.fileno(), target, old)
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # the name that the user knows, not ours
            text = f"{error.strerror or error}; nothing was written"  # NumPy's have no number
            raise OSError(error.errno or errno.EIO, text, os.fsdecode(path)) from error
        raise
    finally:
        with suppress(OSError):  # it has been renamed, or could not be made
            temporary.unlink()
    with suppress(OSError):  # a folder that cannot be flushed: the file is there all the same
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def check_target(path: str | os.PathLike[str]) -> tuple[Path, os.stat_result | None]:
    """The file that writing to ``path`` replaces, links followed, and its status; None where there is none yet.

    Raises
    ------
    FormatError
        ``path`` is no path, or names a directory, a device, a pipe, a socket, or a file without a name.
    OSError
        The file may not be written, the folder is not there, or links go in a circle.
    """
    try:
        name = os.fsdecode(path)
        found = None if name.endswith(os.sep) else os.stat(name)  # noqa: PTH116 (Path drops a slash at the end)
    except FileNotFoundError:
        found = None
    except (TypeError, ValueError) as error:
        raise FormatError(f"{path!r} is not a path: {error}; pass the name of the file to write") from None
    if not name or name.endswith(os.sep) or (found and stat.S_ISDIR(found.st_mode)):
        raise FormatError(f"{name!r} is a directory, expected a file; add the name of the file to write")
    target = Path(os.path.realpath(name))
    if found is None:
        if not target.parent.is_dir():
            raise FileNotFoundError(
                errno.ENOENT, "no such folder; make it first, or check the name", str(target.parent)
            )
        return target, None
    if not stat.S_ISREG(found.st_mode):
        raise FormatError(
            f"{name!r} is {_kind(found.st_mode)}, which a file must not replace; write to a regular file, and copy that"
        )
    if not target.exists():  # as of a file in /proc that was removed while it was open
        raise FormatError(f"{name!r} leads to a file that has no name any more; write to another path")
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "the file is write-protected; nothing was written", name)
    return target, found


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "no regular file")


def _keep_attributes(handle: int, target: Path, old: os.stat_result) -> None:
    """Give an open file the owner, extended attributes and mode of an old one; what may not be given is left."""
    mode = stat.S_IMODE(old.st_mode)
    new = os.fstat(handle)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        try:
            os.fchown(handle, old.st_uid, old.st_gid)
        except OSError:
            with suppress(OSError):
                os.fchown(handle, -1, old.st_gid)
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
            if os.fstat(handle).st_gid != old.st_gid:
                mode &= ~0o070 | (mode & 0o007) << 3
    if hasattr(os, "listxattr"):
        with suppress(OSError):  # not on this file system
            for name in os.listxattr(target):
                with suppress(OSError):  # only the system may set some
                    os.setxattr(handle, name, os.getxattr(target, name))
    os.fchmod(handle, mode)
