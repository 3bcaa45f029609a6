"""Tar shards by archives as nobody should write them."""

import io
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from analysis.images.labelled import DataError
from analysis.images.shards import TarShards


def image() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


def shard(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                entry = tarfile.TarInfo(member[0])
                entry.size = len(member[1])
                archive.addfile(entry, io.BytesIO(member[1]))
    return path


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("a.cls", b"1099511627776"),
        ("a.cls", b"9" * 5000),
        ("a.cls", b"-1"),
        ("a.cls", b"1.5"),
        ("a.cls", b"nan"),
        ("a.cls", b""),
        ("a.cls", b"\xff"),
        ("a.json", b"[]"),
        ("a.json", b"null"),
        ("a.json", b"{}"),
        ("a.json", b"[" * 100_000),
        ("a.json", b'{"label": true}'),
        ("a.json", b'{"label": 2.7}'),
        ("a.json", b'{"label": null}'),
        ("a.json", b'{"label": 1e400}'),
        ("a.json", b'{"label": 1, "label": 2}'),
    ],
)
def test_a_class_is_a_small_whole_number(name: str, label: bytes, tmp_path: Path) -> None:
    shard(tmp_path / "train-0.tar", ("a.png", image()), (name, label))
    with pytest.raises(DataError, match=r"train-0\.tar: not a shard that can be read") as raised:
        TarShards(tmp_path, "train")
    assert len(str(raised.value)) < 400


def test_what_is_no_file_in_a_shard_is_no_image_and_a_shard_is_a_file(tmp_path: Path) -> None:
    path, odd = tmp_path / "train-0.tar", []
    for kind in (tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE):
        entry = tarfile.TarInfo(f"odd{ord(kind)}.png")
        entry.type, entry.linkname = kind, "a.png"
        odd.append(entry)
    shard(path, ("a.png", image()), ("a.cls", b" 2\n"), *odd)
    images = TarShards(tmp_path, "train")
    assert (len(images), images[0][1], images.classes) == (1, 2, ("0", "1", "2"))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="a pipe, a socket or a device, not a file"):
        TarShards(tmp_path, "train")


@pytest.mark.parametrize("size", [10**12, 2**80, -512, -1024, -(2**60)])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE])
def test_no_claimed_size_is_believed(size: int, kind: bytes, tmp_path: Path) -> None:
    """A negative one led Python's own reader back to where it came from (CVE-2025-8194)."""
    entry = tarfile.TarInfo("b.png")
    entry.type = kind
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % 256**11).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = shard(tmp_path / "train-0.tar", ("a.png", image()), ("a.cls", b"0"))
    whole = path.read_bytes()
    end = 4 * 512  # a header and a block for each of two
    path.write_bytes(whole[:end] + header + whole[end:])
    with pytest.raises(DataError, match=r"train-0\.tar: (not a shard that can be read|the sample)"):
        TarShards(tmp_path, "train")
