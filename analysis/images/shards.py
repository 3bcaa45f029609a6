"""Labelled images in tar shards."""

import hashlib
import io
import re
import tarfile
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Self

import numpy as np
from numpy.typing import NDArray

from analysis.images.files import ImageError, is_hidden, read_rgb
from analysis.images.labelled import SPLITS, DataError, Preparation, Split
from analysis.runs.processes import by_first
from analysis.runs.settings import named_path
from analysis.runs.texts import parse_json, read_text, short, why_no_file

_IMAGE_MEMBERS = (".jpg", ".jpeg", ".png", ".webp", ".ppm")
_SHARDS_IN_A_WINDOW = 16
_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_LONGEST_HEADER = 1 << 20
"""Bytes."""
_DIGITS = 6
"""Of the number of a class: whatever names the classes has to have as many names."""


class TarShards:
    """The images of one part of a data set in WebDataset's layout, read at random places.

    A shard is a plain tar file. Members with the same name up to the first dot are one sample: an image (.jpg, .jpeg,
    .png, .webp or .ppm) and its class as a number, in text (.cls) or under "label" in a .json. The shards of a part are
    `<part>/*.tar`, or else all `*<part>*.tar`; names of the classes are in `classes.txt`, a line each, or else their
    numbers.

    The headers of all shards are read once, by the first process of a run.

    Args:
        directory: Holds the shards.
        split: "train" or "val" (or "validation" or "test" in their names).
        prepare: Done to each image.

    Raises:
        FileNotFoundError: If there is no shard, or one is missing from a numbered series.
        DataError: If a shard is damaged, or a sample lacks its image or its class.

    References:
        https://github.com/webdataset/webdataset
    """

    def __init__(self, directory: str | PathLike[str], split: Split, *, prepare: Preparation | None = None) -> None:
        self._directory = named_path(directory, "data")
        self._prepare = prepare
        self.shards, self._samples, self.classes = by_first(lambda: self._read_headers(split))

    def _read_headers(self, split: Split) -> tuple[tuple[Path, ...], NDArray[np.int64], tuple[str, ...]]:
        """The shards; for each image the number of its shard, its first byte, its length, its class; the names."""
        shards = _find_shards(self._directory, split)
        rows = [(number, *sample) for number, shard in enumerate(shards) for sample in _samples_of(shard)]
        samples = np.array(rows, np.int64)
        names = self._directory / "classes.txt"
        num_classes = int(samples[:, 3].max()) + 1
        classes = tuple(map(str, range(num_classes)))
        if names.is_file():
            classes = tuple(line.strip() for line in read_text(names, "data").splitlines() if line.strip())
        if len(classes) < num_classes or samples[:, 3].min() < 0:
            raise DataError(f"data={str(names)!r}: names {len(classes)} classes; the shards have {num_classes}")
        return shards, samples, classes

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        shard, start, length, label = map(int, self._samples[index])
        path = self.shards[shard]
        try:
            with path.open("rb") as file:
                file.seek(start)
                image = read_rgb(io.BytesIO(file.read(length)))
        except (OSError, ImageError) as error:
            raise DataError(f"data: {path}: the image at byte {start} cannot be read ({error})") from None
        return np.array(image if self._prepare is None else self._prepare(image)), label

    def order(self, generator: np.random.Generator) -> NDArray[np.intp]:
        """A random order that stays within a few shards at a time, for discs that dislike jumps."""
        windows = np.array_split(generator.permutation(len(self.shards)), -(-len(self.shards) // _SHARDS_IN_A_WINDOW))
        parts = [generator.permutation(np.flatnonzero(np.isin(self._samples[:, 0], window))) for window in windows]
        return np.concatenate(parts)

    def fingerprint(self) -> str:
        """SHA-256 of the names of the shards and of all places in them, in hexadecimal."""
        names = "\n".join(path.name for path in self.shards)
        return hashlib.sha256(names.encode() + self._samples.tobytes()).hexdigest()


def _find_shards(directory: Path, split: Split) -> tuple[Path, ...]:
    if not directory.is_dir():
        raise FileNotFoundError(f"data={str(directory)!r}: no such folder")
    found: list[Path] = []
    for name in SPLITS[split]:
        for pattern in (f"{name}/*.tar", f"*{name}*.tar"):
            found = found or sorted(path for path in directory.glob(pattern) if not is_hidden(path.name))
    if not found:
        raise FileNotFoundError(f"data={str(directory)!r}: holds no shards {split}/*.tar or *{split}*.tar")
    numbers = [re.search(r"(\d+)\.tar$", path.name) for path in found]
    if all(numbers):
        present = [int(match[1]) for match in numbers if match]
        missing = sorted(set(range(min(0, *present), max(present) + 1)) - set(present))
        if missing and min(present) == 1:
            missing = missing[1:]  # a series may begin with 1
        if missing:
            raise FileNotFoundError(
                f"data={str(found[0].parent)!r}: shard {missing[0]} is missing ({len(missing)} of {max(present) + 1}); "
                f"expected an unbroken series such as {found[0].name}"
            )
    return tuple(found)


class _Member(tarfile.TarInfo):
    """Refuses sizes that Python's reader believes: of a negative one it would go back to where it came from, for ever,
    and for a header of names and the like it would make room unseen.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        found = super().frombuf(buf, encoding, errors)
        if found.size < 0 or (found.size > _LONGEST_HEADER and found.type in _HEADERS):
            raise ValueError(f"{found.name!r}: {found.size} bytes")
        return found


def _label(text: str, kind: str) -> int:
    """The class of a sample, from the text of its .cls or .json."""
    if kind == ".json":
        content = parse_json(text)
        text = str(content.get("label")) if isinstance(content, dict) else ""
    text = text.strip()
    if not text.isascii() or not text.isdecimal() or len(text) > _DIGITS:
        raise ValueError(f"class {short(text)}: expected a whole number of up to {_DIGITS} digits")
    return int(text)


def _samples_of(shard: Path) -> list[tuple[int, int, int]]:
    """First byte, length and class of every image of a shard."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    reason = why_no_file(shard)
    if reason:
        raise DataError(f"data: {shard}: {reason}")
    size = shard.stat().st_size
    try:
        with tarfile.open(shard, "r:", tarinfo=_Member) as archive:
            for member in archive:
                if member.size < 0 or member.offset_data + member.size > size:
                    raise ValueError(f"{member.name!r}: {member.size} bytes; the file has {size}")
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                key, kind = f"{folder}/{stem}", f".{suffix.lower()}"
                if not member.isfile() or any(map(is_hidden, PurePosixPath(member.name).parts)):
                    continue
                if member.issparse():
                    raise ValueError(f"{member.name!r}: a sparse file")
                if kind in _IMAGE_MEMBERS:
                    images[key] = (member.offset_data, member.size)
                elif kind in (".cls", ".json"):
                    content = archive.extractfile(member)
                    assert content is not None
                    labels[key] = _label(content.read().decode(), kind)
    except (OSError, EOFError, OverflowError, RecursionError, tarfile.TarError, ValueError) as error:
        raise DataError(f"data: {shard}: not a shard that can be read ({error})") from None
    alone = sorted(set(images) ^ set(labels))
    if alone or not images:
        what = f"the sample {alone[0]!r} lacks its image or its class" if alone else "holds no image"
        raise DataError(f"data: {shard}: {what}; expected an image and .cls or .json of each")
    return [(*images[key], labels[key]) for key in images]
