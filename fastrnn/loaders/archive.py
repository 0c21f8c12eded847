"""The directory of a zip file, read strictly.

``zipfile`` accepts much that no writer of model files produces: data before or between the members, names cut at a NUL,
two members of one name, sizes that differ between the two headers.  Each of these has been used to show one file to a
scanner and another to the reader, so here they are errors.  Members are read as they are; nothing is inflated.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise

from ..errors import FormatError, UnsupportedError
from .files import Data, short
from .limits import MAX_DIRECTORY_SIZE, MAX_MEMBERS

MAGIC = b"PK\x03\x04"
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_LOCATOR64 = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")

_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13
_SIZES_FOLLOW = 1 << 3  # the local header leaves crc and sizes to a record after the data


@dataclass(frozen=True)
class Member:
    """One file of the archive; ``start`` is where its data begins."""

    name: str
    flags: int
    method: int
    crc: int
    packed_size: int
    size: int
    start: int


def read_directory(file: Data) -> dict[str, Member]:
    """Read and check the whole directory of a zip file.

    Raises
    ------
    FormatError
        The directory is damaged, lies about the members, or names a path outside of the archive.
    """
    begin, size, count = _find_directory(file)
    members: dict[str, Member] = {}
    spans: list[tuple[int, int]] = []
    directory = bytes(file[begin : begin + size])
    position = 0
    for _ in range(count):
        if size - position < _CENTRAL.size:
            raise _damaged(f"its directory ends before its {count} members do")
        fields = _CENTRAL.unpack_from(directory, position)
        name_size, extra_size, comment_size = fields[10:13]
        name_at = position + _CENTRAL.size
        position = name_at + name_size + extra_size + comment_size
        if fields[0] != b"PK\x01\x02" or position > size:
            raise _damaged("its directory is broken")
        raw_name = directory[name_at : name_at + name_size]
        extra = directory[name_at + name_size : name_at + name_size + extra_size]
        sizes = _sizes64(extra, (fields[9], fields[8], fields[16]))
        member, header_at = _check_member(file, raw_name, fields[3], fields[4], fields[7], *sizes)
        if member.name in members:
            raise _damaged(f"two members are called {short(member.name)}")
        members[member.name] = member
        spans.append((header_at, member.start + member.packed_size))
    if position != size:
        raise _damaged(f"its directory has {size - position} bytes too many")
    spans.sort()
    if any(left[1] > right[0] for left, right in pairwise([*spans, (begin, begin + size)])):
        raise _damaged("members overlap")
    return members


def stored(file: Data, member: Member) -> bytes | memoryview:
    """The data of an uncompressed member, its checksum checked (0 stands for none: PyTorch can leave it out)."""
    where = f"member {short(member.name)}"
    if member.flags & _ENCRYPTED:
        raise UnsupportedError(f"{where} is encrypted; decrypt the archive first")
    if member.method != 0:
        raise UnsupportedError(
            f"{where} is compressed (method {member.method}), torch.save never does that;"
            " load the file and save it again with PyTorch"
        )
    if member.packed_size != member.size:
        raise _damaged(f"{where} claims {member.size} bytes and holds {member.packed_size}")
    data = file[member.start : member.start + member.size]
    if member.crc and zlib.crc32(data) != member.crc:
        raise _damaged(f"{where} does not match its checksum")
    return data


def _find_directory(file: Data) -> tuple[int, int, int]:
    """Offset, size and number of members of the directory, from the record(s) at the end of the file."""
    end_at = len(file) - _END.size
    record = bytes(file[max(end_at, 0) :])
    if end_at < 0 or record[:4] != b"PK\x05\x06":
        raise _damaged("it does not end in a zip directory (truncated, or something was appended)")
    _, disk, first_disk, here, count, size, begin, comment = _END.unpack(record)
    if disk or first_disk or comment or here != count:
        raise _damaged("its last record is not one of a single archive without a comment")
    locator_at = end_at - _LOCATOR64.size
    if locator_at >= 0 and bytes(file[locator_at : locator_at + 4]) == b"PK\x06\x07":
        end_at = _LOCATOR64.unpack(file[locator_at : locator_at + _LOCATOR64.size])[2]
        if end_at + _END64.size != locator_at or bytes(file[end_at : end_at + 4]) != b"PK\x06\x06":
            raise _damaged("its 64-bit directory record is not where it should be")
        *_, disk, first_disk, here64, count64, size64, begin64 = _END64.unpack(file[end_at:locator_at])
        pairs = ((count, count64, 0xFFFF), (size, size64, 0xFFFFFFFF), (begin, begin64, 0xFFFFFFFF))
        if disk or first_disk or here64 != count64 or any(a not in (b, limit) for a, b, limit in pairs):
            raise _damaged("its two directory records differ")
        count, size, begin = count64, size64, begin64
    if count > MAX_MEMBERS or size > MAX_DIRECTORY_SIZE:
        raise FormatError(
            f"the archive lists {count} members in {size} bytes, at most {MAX_MEMBERS} in {MAX_DIRECTORY_SIZE}"
            " are read; save only the state_dict"
        )
    if begin + size != end_at:
        raise _damaged("its directory is not where its last record says")
    return begin, size, count


def _sizes64(extra: bytes, values: tuple[int, int, int]) -> tuple[int, int, int]:
    """Size, packed size and header offset; those that do not fit 32 bits stand in the extra field 1."""
    wide: list[int] = []
    position = 0
    while position + 4 <= len(extra):
        tag, size = struct.unpack_from("<2H", extra, position)
        if tag == 1 and position + 4 + size <= len(extra):
            wide = list(struct.unpack_from(f"<{size // 8}Q", extra, position + 4))
        position += 4 + size
    result = []
    for value in values:
        if value == 0xFFFFFFFF and not wide:
            raise _damaged("a 64-bit size is missing")
        result.append(wide.pop(0) if value == 0xFFFFFFFF else value)
    return result[0], result[1], result[2]


def _check_member(
    file: Data, raw_name: bytes, flags: int, method: int, crc: int, size: int, packed_size: int, header_at: int
) -> tuple[Member, int]:
    """Check the name, and the local header against the directory."""
    try:
        name = raw_name.decode("utf-8")
    except UnicodeDecodeError:
        raise _damaged(f"the member name {short(raw_name)} is not UTF-8") from None
    if not name or name[0] == "/" or name[1:2] == ":" or ".." in name.split("/") or "\\" in name or "\0" in name:
        raise _damaged(f"the member name {short(name)} is not a path inside of the archive")
    if header_at + _LOCAL.size > len(file):
        raise _damaged(f"member {short(name)} lies outside of the file")
    header = bytes(file[header_at : header_at + _LOCAL.size + len(raw_name)])
    local = _LOCAL.unpack_from(header)
    name_size, extra_size = local[9:]
    start = header_at + _LOCAL.size + name_size + extra_size
    agrees = (local[0], local[2], local[3]) == (MAGIC, flags, method)
    agrees &= name_size == len(raw_name) and header[_LOCAL.size :] == raw_name
    if not flags & _SIZES_FOLLOW:
        agrees &= local[6] == crc and local[7] in (packed_size, 0xFFFFFFFF) and local[8] in (size, 0xFFFFFFFF)
    if not agrees:
        raise _damaged(f"the two headers of member {short(name)} differ")
    if start + packed_size > len(file):
        raise _damaged(f"member {short(name)} lies outside of the file")
    return Member(name, flags, method, crc, packed_size, size, start), header_at


def _damaged(what: str) -> FormatError:
    return FormatError(f"the zip archive is damaged or was tampered with: {what}; get a fresh copy of the file")
