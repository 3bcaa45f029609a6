"""Files of arrays: NumPy's own come back, and no claim of another is believed."""

import os
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest

from analysis.runs.arrays import read_arrays

ARRAYS = {
    "numbers": np.arange(6.0).reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "small": np.float32(0.5),
    "flags": np.array([True, False]),
    "text": np.array("é{}"),
    "names": np.array(["a", "bc"]),
    "nothing": np.zeros((0, 4), np.int16),
    "big": np.arange(3, dtype=">i4"),
}


def header(descr: str = "'<f8'", shape: str = "(1,)", order: str = "False") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()


def member(head: bytes = header(), content: bytes = bytes(8), start: bytes = b"\x93NUMPY\x01\x00") -> bytes:
    return start + len(head).to_bytes(2, "little") + head + content


def write(path: Path, *members: bytes, name: str = "a{}.npy", **options: int) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:  # type: ignore[call-overload]
        for number, content in enumerate(members):
            archive.writestr(name.format(number), content)
    return path


def test_what_numpy_writes_comes_back_as_numpy_reads_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **ARRAYS)  # type: ignore[arg-type]
    found = read_arrays(tmp_path / "a.npz", "path")
    with np.load(tmp_path / "a.npz") as expected:
        assert list(found) == list(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, strict=True)
    found["numbers"][0, 0] = 7.0  # memory of its own
    assert read_arrays(write(tmp_path / "b.npz", member()), "path")["a0"].tolist() == [0.0]


@pytest.mark.parametrize(
    "content",
    [
        member(header(shape="(1000000000000,)")),
        member(header(shape="(1000000000000, 0)"), bytes(8)),
        member(header(shape="(-1,)")),
        member(header(shape="(True,)")),
        member(header(shape=f"({'1, ' * 65})")),
        member(header(shape="()"), bytes(16)),
        member(header("'|O'")),
        member(header("'<U0'", "(1000000000000,)"), b""),
        member(header("'<f7'"), bytes(7)),
        member(header("[('a', '<f8')]")),
        member(header("__import__('os').abort()")),
        member(b"{" * 9000),
        member(b"-" * 9000 + b"1"),
        member(start=b"\x93NUMPY\x03\x00"),
        member()[:-1],
        member()[:20],
        b"raw bytes, which numpy.load would hand on",
        b"",
    ],
)
def test_no_header_is_believed(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^partial='.*a\.npz': no arrays that can be read \(") as raised:
        read_arrays(write(tmp_path / "a.npz", content), "partial")
    assert len(str(raised.value)) < 500
    assert "\n" not in str(raised.value)


def test_neither_is_anything_around_the_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **ARRAYS)  # type: ignore[arg-type]
    whole = path.read_bytes()
    place = whole.index(np.arange(6.0).tobytes())
    cases = {
        "a wrong checksum": whole[:place] + b"\x01" + whole[place + 1 :],
        "cut off": whole[:-30],
        "no archive": b"PK damaged",
        "empty": b"",
        "one array": member(),
    }
    for content in cases.values():
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no arrays that can be read"):
            read_arrays(path, "path")
    bomb = member(header(shape="(1000000,)"), bytes(8_000_000))
    with pytest.raises(ValueError, match="its parts are larger than the file"):
        read_arrays(write(path, bomb, compression=zipfile.ZIP_DEFLATED), "path")
    with pytest.raises(ValueError, match="expected different arrays that are not compressed"):
        read_arrays(write(path, os.urandom(1000), compression=zipfile.ZIP_BZIP2), "path")
    with pytest.raises(ValueError, match="expected different arrays that are not compressed"):
        read_arrays(write(path, member(), name="a.txt"), "path")
    with pytest.warns(UserWarning, match="Duplicate name"):
        write(path, member(), member(), name="a.npy")
    with pytest.raises(ValueError, match="expected different arrays"):
        read_arrays(path, "path")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FileNotFoundError, match="a pipe, a socket or a device, not a file"):
        read_arrays(path, "path")


def test_parts_that_share_their_bytes_take_no_more_memory_than_the_file(tmp_path: Path) -> None:
    """A central directory that names one part of 8 MB a thousand times."""
    path = write(tmp_path / "a.npz", member(header(shape="(1000000,)"), bytes(8_000_000)), name="a0000.npy")
    whole = path.read_bytes()
    start = whole.rindex(b"PK\x01\x02")
    end = whole.rindex(b"PK\x05\x06")
    entry = whole[start:end]
    entries = b"".join(entry.replace(b"a0000", f"a{number:04}".encode()) for number in range(1000))
    tail = bytearray(whole[end:])
    tail[8:12] = (1000).to_bytes(2, "little") * 2
    tail[12:16] = len(entries).to_bytes(4, "little")
    path.write_bytes(whole[:start] + entries + tail)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="its parts are larger than the file"):
        read_arrays(path, "path")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB, of 8 000 000
