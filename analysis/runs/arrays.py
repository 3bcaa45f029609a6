"""Arrays by name, as `numpy.savez` writes them, read without trust in what a file says of itself."""

import math
import re
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from analysis.runs.texts import check_file

_SUFFIX = ".npy"
_START = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': '([<>|][biufcU]\d{1,9})', 'fortran_order': (True|False), 'shape': \(([\d, ]{0,200})\), \} *\n"
)
"""As NumPy writes it; its own reader evaluates whatever stands there as Python."""


def read_arrays(path: Path, argument: str) -> dict[str, NDArray[Any]]:
    """The arrays of an uncompressed .npz file, which take no more memory than the file.

    Each array's size follows from the bytes that are there, and its header has to agree before anything is made of it;
    `numpy.load` makes room for whatever a header claims. Nothing is unpickled.

    Raises:
        FileNotFoundError: If there is no such file; the message begins with `argument`.
        ValueError: If it is damaged, or holds anything but arrays of numbers and text.
    """
    check_file(path, argument)
    found: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise ValueError("its parts are larger than the file")
            for member in members:
                name = member.filename.removesuffix(_SUFFIX)
                if name == member.filename or name in found or member.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{member.filename!r}: expected different arrays that are not compressed")
                with archive.open(member) as file:
                    found[name] = _array(file, member.file_size, name)
    except (  # RuntimeError: a password, or a way to compress that is not known
        TypeError, ValueError, OSError, EOFError, RuntimeError, OverflowError, struct.error, zipfile.BadZipFile
    ) as error:  # fmt: skip
        raise ValueError(f"{argument}={str(path)!r}: no arrays that can be read ({error})") from error
    return found


def _array(file: IO[bytes], size: int, name: str) -> NDArray[Any]:
    start = file.read(10)
    length = int.from_bytes(start[8:], "little")
    header = _HEADER.fullmatch(file.read(length))
    if not start.startswith(_START) or header is None:
        raise ValueError(f"{name!r}: no array of numbers or text")
    dtype, shape = np.dtype(header[1].decode()), tuple(int(side) for side in re.findall(rb"\d+", header[3]))
    values = bytearray(size - len(start) - length)
    if math.prod(shape) * dtype.itemsize != len(values) or not dtype.itemsize:
        raise ValueError(f"{name!r}: {len(values)} bytes for an array of {dtype} of shape {shape}")
    if file.readinto(values) != len(values):  # type: ignore[attr-defined]
        raise ValueError(f"{name!r}: cut off")
    return np.frombuffer(values, dtype).reshape(shape, order="F" if header[2] == b"True" else "C")
