"""Zip archives that hold programs, not weights alone: what they are, and what torch would unpickle in them."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

Program = Literal["", "TorchScript program", "program of torch.export"]
_FORMER = "serialized_exported_program.json"
"""Member of programs of torch.export from before version 2.8."""
_COMPILED = "data/aotinductor/"


def program_in(path: Path) -> Program:
    """Which kind of program a file is, by its content; empty for any other file."""
    if not zipfile.is_zipfile(path):
        return ""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    # PyTorch names members without the folder that all are in, and finds one by a name that differs in case.
    members = {name.partition("/")[2].lower() for name in names} | {name.lower() for name in _records(path)}
    if "constants.pkl" in members or any(name.startswith("code/") for name in members):
        return "TorchScript program"
    if "archive_format" in members or any(name.startswith(_COMPILED) for name in members) or _FORMER in names:
        return "program of torch.export"
    return ""


def _records(path: Path) -> list[str]:
    """Members as PyTorch's own reader sees them, which need not agree with Python's on a file that is made for it."""
    try:
        found: list[str] = torch._C.PyTorchFileReader(str(path)).get_all_records()
    except RuntimeError:  # not an archive of PyTorch
        return []
    return found


def check_exported(path: Path) -> None:
    """Refuse a program of torch.export that holds compiled code, or pickles of more than tensors.

    `torch.export.load` would run the one, and import and call what the other names.

    Raises:
        ValueError: The message names the member.
    """
    for name, content in _unpickled(path):
        try:
            torch.load(io.BytesIO(content), "cpu", weights_only=True)
        except Exception as error:  # a damaged pickle raises anything
            raise ValueError(f"its member {name!r} is a pickle that holds more than tensors, or is damaged") from error


def _unpickled(path: Path) -> Iterator[tuple[str, bytes]]:
    """The members that `torch.export.load` unpickles, each as read by the reader that it uses."""
    with zipfile.ZipFile(path) as archive:
        for item in archive.infolist():  # of former versions
            if item.filename.startswith("serialized_") and item.filename != _FORMER:
                yield item.filename, archive.read(item)
    reader: Any = torch._C.PyTorchFileReader(str(path))
    for name in reader.get_all_records():
        if name.startswith(_COMPILED):
            raise ValueError(f"its member {name!r} is compiled code (AOTInductor), which is not loaded")
        if name.startswith("data/") and name.endswith(".pt"):
            yield name, reader.get_record(name)
        elif name.endswith("_config.json"):
            for entry in json.loads(reader.get_record(name))["config"].values():
                raw = entry["path_name"].startswith(("weight_", "tensor_")) and not entry["use_pickle"]
                if not raw:
                    member = f"{name.rpartition('/')[0]}/{entry['path_name']}"
                    yield member, reader.get_record(member)
