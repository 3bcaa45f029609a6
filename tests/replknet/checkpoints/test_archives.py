"""Damaged and hostile files of `torch.save`: one line, in little time and memory."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import replknet
from replknet import CheckpointError
from tests.networks import same, tiny_model

NAME = "stages.0.blocks.0.large_kernel.lkb_origin.conv.weight"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(tiny_model().state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def refused(path: Path) -> str:
    """What every reader says of a file, without its name."""
    said = set()
    for read in (replknet.load_state_dict, replknet.load_checkpoint, replknet.inspect_checkpoint):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        said.add(str(caught.value).removeprefix(f"checkpoint={str(path)!r}: "))
    (message,) = said
    assert "\n" not in message
    assert len(message) < 1000
    return message


def rewritten(path: Path, change: Callable[[str, bytes], bytes], **options: Any) -> None:
    """Change members of a zip file; their checksums are right again."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))


def place_of(path: Path, member: str) -> int:
    """Where the bytes of a member of a zip file begin, by the lengths in its local header."""
    with zipfile.ZipFile(path) as archive:
        header = next(info.header_offset for info in archive.infolist() if info.filename.endswith(member))
    content = path.read_bytes()
    return header + 30 + sum(int.from_bytes(content[header + at : header + at + 2], "little") for at in (26, 28))


@pytest.mark.parametrize("member", ["/data/0", "/data/7", "/data.pkl"])
def test_one_flipped_bit_does_not_pass(path: Path, member: str) -> None:
    content = bytearray(path.read_bytes())
    content[place_of(path, member) + 9] ^= 1
    path.write_bytes(content)
    assert "Bad CRC-32" in refused(path)


def test_checksums_that_were_left_out_are_not_missed(tmp_path: Path) -> None:
    state = dict(tiny_model().state_dict())
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "weights.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert same(replknet.load_state_dict(tmp_path / "weights.pth"), state)


def test_weights_that_are_not_taken_are_not_read(tmp_path: Path) -> None:
    """A bit of an optimizer's state is none of ours."""
    path, state = tmp_path / "weights.pth", dict(tiny_model().state_dict())
    torch.save({"model": state, "optimizer": {"momentum": torch.full((5,), 7.0)}}, path)
    content = path.read_bytes()
    assert content.count(torch.full((5,), 7.0).numpy().tobytes()) == 1
    path.write_bytes(content.replace(torch.full((5,), 7.0).numpy().tobytes(), b"\xff" * 20))
    assert same(replknet.load_state_dict(path), state)


def test_the_order_of_bytes(path: Path) -> None:
    rewritten(path, lambda name, content: b"big" if name.endswith("byteorder") else content)
    assert "other order of bytes" in refused(path)


def test_archives_that_are_none_of_torch(path: Path) -> None:
    original = path.read_bytes()
    rewritten(path, lambda _, content: content, compression=zipfile.ZIP_DEFLATED)
    assert "a compressed archive" in refused(path)
    path.write_bytes(original)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(archive.namelist()[-1], b"1")
    assert "the same name" in refused(path)
    path.write_bytes(original)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("another/data.pkl", b"1")
    assert "2 saved objects" in refused(path)
    encrypted = bytearray(original)
    header = original.rfind(b"PK\x01\x02", 0, original.rfind(b"/data.pkl"))
    encrypted[header + 8] |= 1
    path.write_bytes(encrypted)
    assert "encrypted" in refused(path)


def test_members_larger_than_the_file(path: Path) -> None:
    """In the directory, as a bomb of overlapping members or a flipped bit has it."""
    content = bytearray(path.read_bytes())
    header = content.rfind(b"PK\x01\x02", 0, content.rfind(b"/data/0"))
    for at in (20, 24):  # stored and real size
        content[header + at : header + at + 4] = (0x7FFFFFFF).to_bytes(4, "little")
    path.write_bytes(content)
    assert "larger than itself" in refused(path)


EXPANDED: dict[str, Callable[[], Tensor]] = {
    "400 TB": lambda: torch.zeros(1).expand(10**7, 10**7, 1, 1),
    "overlapping": lambda: torch.zeros(10).unfold(0, 5, 1),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", EXPANDED)
def test_tensors_larger_than_their_numbers(tmp_path: Path, kind: str, zipped: bool) -> None:
    state = tiny_model().state_dict()
    state[NAME] = EXPANDED[kind]()
    torch.save(state, tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
    message = refused(tmp_path / "weights.pth")
    assert f"the entry {NAME!r}: a tensor of the shape" in message
    assert "does not lie in its" in message


def test_many_tensors_in_the_same_numbers(tmp_path: Path) -> None:
    whole = torch.zeros(100_000)
    torch.save({f"a{index}": whole for index in range(100)}, tmp_path / "weights.pth")
    message = refused(tmp_path / "weights.pth")
    assert message.startswith("its weights take 40,000,000 bytes, and it has 4")
    assert "share memory (the largest, 'a0', is of the shape [100000])" in message


def write_pickle(path: Path, tensor: bytes) -> None:
    """A file with one tensor of eight float32 numbers, as the opcodes say it."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x08tQ"
    content = b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n(" + storage + tensor + b"\x89NtRs."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", np.arange(8, dtype="<f4").tobytes())


PLACES = {  # offset, size, stride
    "right": (b"K\x01K\x02K\x03\x86K\x03K\x01\x86", [[1, 2, 3], [4, 5, 6]]),
    "up to the last number": (b"K\x02K\x02K\x03\x86K\x03K\x01\x86", [[2, 3, 4], [5, 6, 7]]),
    "one too far": (b"K\x03K\x02K\x03\x86K\x03K\x01\x86", "does not lie in its 8 numbers"),
    "a negative offset": (b"J\xff\xff\xff\xffK\x02K\x03\x86K\x03K\x01\x86", "no natural numbers"),
    "a negative stride": (b"K\x07K\x02\x85J\xff\xff\xff\xff\x85", "no natural numbers"),
    "a size of 2**63": (b"K\x00\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x80\x00\x85K\x01\x85", "no natural numbers"),
    "a size of 2**62": (b"K\x00\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x40\x85K\x01\x85", "does not lie in its 8 numbers"),
    "a bool": (b"K\x00\x88\x85K\x01\x85", "no natural numbers"),
    "a float": (b"K\x00G@\x00\x00\x00\x00\x00\x00\x00\x85K\x01\x85", "no natural numbers"),
    "fewer strides": (b"K\x00K\x02K\x03\x86K\x01\x85", "that belong together"),
    "no tuple": (b"K\x00K\x02K\x01", "no natural numbers"),
}


@pytest.mark.parametrize("place", PLACES)
def test_where_a_tensor_lies(tmp_path: Path, place: str) -> None:
    code, expected = PLACES[place]
    path = tmp_path / "weights.pth"
    write_pickle(path, code)
    if isinstance(expected, str):
        assert expected in refused(path)
    else:
        assert replknet.load_state_dict(path)["a"].tolist() == expected


def test_a_storage_shorter_than_it_is_said_to_be(path: Path) -> None:
    """PyTorch's own reader gives what lies behind it in memory."""
    rewritten(path, lambda name, content: content[:-4] if name.endswith("/data/0") else content)
    assert "bytes and should have" in refused(path)


def test_the_older_format_is_compared_with_its_end(tmp_path: Path) -> None:
    path, state = tmp_path / "weights.pth", tiny_model().state_dict()
    torch.save(state, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    size = state[NAME].numel().to_bytes(8, "little") + state[NAME].numpy().tobytes()
    assert content.count(size) == 1
    path.write_bytes(content.replace(size[:16], (2**40).to_bytes(8, "little") + size[8:16]))
    assert f"a storage has {2**40} numbers and should have" in refused(path)
    path.write_bytes(content[:-1])
    assert "ends in its weights" in refused(path)


BOMBS = {
    # A memo of 2**31 entries, for which the unpickler in C makes room at once.
    "memo": b"\x80\x02}r\xff\xff\xff\x7f.",
    # Room for bytes that are not there.
    "bytes": b"\x80\x05\x8e" + (2**36).to_bytes(8, "little") + b".",
    "array of bytes": b"\x80\x05\x96" + (2**36).to_bytes(8, "little") + b".",
    "text": b"\x80\x04\x8d" + (2**36).to_bytes(8, "little") + b".",
    # A key whose hash takes 2**70 steps: a tuple of the tuple before, twice.
    "hash": b"\x80\x02}K\x01" + b"2\x86" * 70 + b"K\x02s.",
    "hash, in a set": b"\x80\x04\x8f(K\x01" + b"2\x86" * 70 + b"\x90.",
    "hash, in a frozen set": b"\x80\x04(K\x01" + b"2\x86" * 70 + b"\x91.",
    "hash, in one go": b"\x80\x02(K\x01" + b"2\x86" * 70 + b"K\x02d.",
    # A name whose text takes as many: lists in lists.
    "text of lists": b"\x80\x02}](K\x01K\x02e" + b"2\x86" * 70 + b"K\x02s.",
}


def test_bombs(tmp_path: Path) -> None:
    """In a process of its own, which may take 1 GB more than PyTorch, and little of the processor's time."""
    for name, content in BOMBS.items():
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("archive/data.pkl", content)
    program = """
import json, pathlib, resource, sys
import replknet
lines = pathlib.Path("/proc/self/status").read_text().splitlines()
used = 1024 * int(next(line for line in lines if line.startswith("VmSize")).split()[1])
resource.setrlimit(resource.RLIMIT_AS, (used + 10**9, used + 10**9))
resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
said = {}
for path in pathlib.Path(sys.argv[1]).iterdir():
    try:
        replknet.load_state_dict(path)
    except replknet.CheckpointError as error:
        said[path.name] = str(error)
print(json.dumps(said))
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said.keys() == BOMBS.keys()
    assert all(message.startswith("checkpoint=") and "\n" not in message for message in said.values())
