"""Files of `torch.save`, read without taking more memory than they have bytes.

A zip file has a checksum of each of its members, which is verified of all that is read; the format before version 1.6
of PyTorch has none.
"""

import io
import mmap
import struct
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from replknet.checkpoints.unpickling import StoredTensor, Unpickler

OLD_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"
"""In the first bytes of what `torch.save` wrote before version 1.6."""
_OLD_PROTOCOL = 1001
_CHUNK = 1 << 20


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """What a file holds: its tensors as `StoredTensor`, to be read as long as it is open; of other objects their names.

    Raises:
        Exception: Of any kind, if the file is damaged.
    """
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            source = _Zip(archive, path.stat().st_size)
            yield Unpickler(io.BytesIO(source.pickle()), source).load()
    else:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield _read_old(content)


def data_names(names: list[str]) -> list[str]:
    """Of the members of a zip file, those that hold what was saved."""
    return [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]


class _Zip:
    """The storages in a zip file."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        members = archive.infolist()
        if len({member.filename for member in members}) < len(members):
            raise ValueError("two members of the archive have the same name")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("a compressed archive; PyTorch stores its members as they are")
        if sum(member.file_size for member in members) > size:
            raise ValueError("the members of the archive are larger than itself")
        data = data_names(archive.namelist())
        if len(data) != 1:
            raise ValueError(f"an archive of {len(data)} saved objects; expected one")
        # `torch.serialization.set_crc32_options(False)` leaves all checksums out.
        self._unchecked = all(member.CRC == 0 for member in members)
        self._archive, self._prefix = archive, data[0].removesuffix("data.pkl")
        self._storages: dict[str, Tensor] = {}
        order = f"{self._prefix}byteorder"
        if order in archive.namelist() and bytes(self._member(order).tolist()) != sys.byteorder.encode():
            raise ValueError("written on a machine with the other order of bytes")

    def pickle(self) -> bytes:
        return self._member(f"{self._prefix}data.pkl").numpy().tobytes()

    def read(self, key: str, size: int) -> Tensor:
        if key not in self._storages:
            self._storages[key] = self._member(f"{self._prefix}data/{key}")
        found = self._storages[key]
        if len(found) != size:
            raise ValueError(f"a storage has {len(found)} bytes and should have {size}")
        return found

    def _member(self, name: str) -> Tensor:
        """All bytes of one."""
        member = self._archive.getinfo(name)
        if self._unchecked:
            del member.CRC
        with self._archive.open(member) as file:
            found = _filled(member.file_size, file)
            file.read(1)  # compares the checksums, if the end was not seen yet
        return found


def _filled(size: int, file: Any) -> Tensor:
    """The next bytes of a file."""
    found = torch.empty(size, dtype=torch.uint8, device="cpu")
    place: Any = found.numpy()
    done = 0
    while done < size:
        chunk = file.read(min(_CHUNK, size - done))
        if not chunk:
            raise EOFError(f"a storage ends after {done} of {size} bytes")
        place[done : done + len(chunk)] = memoryview(chunk)
        done += len(chunk)
    return found


class _Old:
    """The storages at the end of a file in the older format."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._places: dict[str, int] = {}
        self._storages: dict[str, Tensor] = {}

    def place(self, key: str, length: int, size: int) -> None:
        """Find the next storage, of `length` numbers and `size` bytes."""
        (found,) = struct.unpack("<q", self._content.read(8))
        if found != length:
            raise ValueError(f"a storage has {found} numbers and should have {length}")
        self._places[key] = self._content.tell()
        if self._places[key] + size > len(self._content):
            raise EOFError("the file ends in its weights")
        self._content.seek(size, io.SEEK_CUR)

    def read(self, key: str, size: int) -> Tensor:
        if key not in self._storages:
            self._content.seek(self._places[key])
            self._storages[key] = _filled(size, self._content)
        return self._storages[key]


def _read_old(content: mmap.mmap) -> Any:
    source = _Old(content)
    magic, protocol, _ = (Unpickler(content, source).load() for _ in range(3))
    if magic != int.from_bytes(OLD_MAGIC, "little") or protocol != _OLD_PROTOCOL:
        raise ValueError("neither a zip file nor one of PyTorch before version 1.6")
    if sys.byteorder != "little":
        raise ValueError("its bytes have the other order than this machine's")
    data = Unpickler(content, source)
    held = data.load()
    keys = Unpickler(content, source).load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("its storages have no names")
    if sorted(keys) != sorted(data.storages):
        raise ValueError("its storages are not those of its tensors")
    for key in keys:
        storage = data.storages[key]
        if storage.dtype is None:
            raise ValueError("a storage is of an unknown type")
        source.place(key, storage.length, storage.length * storage.dtype.itemsize)
    return held


def with_tensors(content: Any) -> Any:
    """A copy of what an open file holds, with its tensors, in plain dictionaries, lists and tuples."""
    return _with_tensors(content, {})


def _with_tensors(value: Any, made: dict[int, Any]) -> Any:
    """A copy with tensors, where what is the same stays so; `made` is what there is of it by `id`."""
    if id(value) in made:
        return made[id(value)]
    found: Any = value
    if isinstance(value, StoredTensor):
        found = value.read()
    elif isinstance(value, dict):
        found = made[id(value)] = {}
        found.update((key, _with_tensors(item, made)) for key, item in value.items())
    elif isinstance(value, list):
        found = made[id(value)] = []
        found.extend(_with_tensors(item, made) for item in value)
    elif isinstance(value, tuple):
        found = tuple(_with_tensors(item, made) for item in value)
    made[id(value)] = found
    return found
