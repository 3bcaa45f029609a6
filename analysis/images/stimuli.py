"""Cue-conflict stimuli: files, or images in memory, named by the shape and the texture that they show."""

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.images.files import IMAGE_SUFFIXES, read_rgb

MANIFEST = "cue_conflict.sha256"


_NAME = re.compile(r"(?P<shape>[A-Za-z]+)(?P<i>\d+)(?:-(?P<texture>[A-Za-z]+)(?P<j>\d+))?")


class StimulusError(ValueError):
    """Stimuli that cannot be what is meant."""


@dataclass(frozen=True, kw_only=True)
class StimulusSet(Sequence[str]):
    """Stimuli named `<shape><i>-<texture><j>.<ext>`, or `<shape><i>.<ext>` without a texture; in order of their names.

    Tuples are parallel; `stimuli[k]` is the file name of one.
    """

    source: str
    names: tuple[str, ...]
    shapes: tuple[str, ...]
    textures: tuple[str, ...]
    shape_exemplars: tuple[str, ...]
    texture_exemplars: tuple[str, ...]
    hashes: tuple[str, ...]
    """SHA-256 of each file, or of the pixels where there is none, in hexadecimal."""
    paths: tuple[Path, ...] = field(default=(), repr=False)
    arrays: tuple[NDArray[np.uint8], ...] = field(default=(), repr=False)
    """Pixels of stimuli that are in memory, in place of `paths`."""
    skipped: tuple[tuple[str, str], ...] = ()
    """Files of the tree that are no stimulus, with the reason."""
    notes: tuple[str, ...] = ()
    """What a user should know about the set, such as files that are missing from the published one."""

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        return self.names[index]

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """One stimulus, shape (H, W, 3).

        Raises:
            ImageError: If the file is missing or corrupt.
        """
        return self.arrays[index] if self.arrays else np.asarray(read_rgb(self.paths[index]))


def load_stimuli(directory: str | PathLike[str]) -> StimulusSet:
    """Find the stimuli in a folder and all its sub-folders, whatever these are called.

    Files that are no image, or not named like a stimulus, are skipped by name. If all stimuli belong to the 1280
    published ones, `notes` tells which of those are missing and which differ from the published file.

    Raises:
        FileNotFoundError: If there is no such folder.
        StimulusError: If a stimulus is there twice, by name or by content, or there is none.

    References:
        Geirhos et al. 2019, arXiv:1811.12231.
    """
    root = Path(directory)
    if not root.is_dir():
        raise FileNotFoundError(f"stimuli={str(root)!r}: no such folder")
    found: dict[str, Path] = {}
    hashes: dict[str, str] = {}
    skipped = []
    for path in sorted(root.rglob("*")):
        relative = str(path.relative_to(root))
        if not path.is_file():
            continue
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            skipped.append((relative, "not an image"))
        elif not _NAME.fullmatch(path.stem):
            skipped.append((relative, "not named <shape><i>-<texture><j>"))
        elif path.name in found:
            raise StimulusError(f"stimuli={str(root)!r}: {path.name} is there twice, also in {found[path.name].parent}")
        else:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if digest in hashes:
                raise StimulusError(
                    f"stimuli={str(root)!r}: {path.name} and {hashes[digest]} are the same image under two names"
                )
            hashes[digest] = path.name
            found[path.name] = path
    if not found:
        detail = f"; {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise StimulusError(f"stimuli={str(root)!r}: no file named <shape><i>-<texture><j>.<ext>{detail}")
    names = sorted(found)
    digests = {name: digest for digest, name in hashes.items()}
    parts = [parse_stimulus(name) for name in names]
    return StimulusSet(
        source=str(root),
        names=tuple(names),
        shapes=tuple(part[0] for part in parts),
        shape_exemplars=tuple(part[1] for part in parts),
        textures=tuple(part[2] for part in parts),
        texture_exemplars=tuple(part[3] for part in parts),
        hashes=tuple(digests[name] for name in names),
        paths=tuple(found[name] for name in names),
        skipped=tuple(skipped),
        notes=_compare_with_published(digests),
    )


def parse_stimulus(name: str) -> tuple[str, str, str, str]:
    """Shape category and exemplar, texture category and exemplar: "cat", "cat7", "elephant", "elephant1".

    The last two are empty for a name without a texture.

    Raises:
        StimulusError: If the name has another form.
    """
    match = _NAME.fullmatch(Path(name).stem)
    if match is None or Path(name).suffix.lower() not in IMAGE_SUFFIXES:
        raise StimulusError(f"stimulus {name!r}: expected a name such as cat7-elephant1.png")
    shape, i, texture, j = match["shape"], match["i"], match["texture"] or "", match["j"] or ""
    return shape, shape + i, texture, texture + j


@cache
def published_stimuli() -> Mapping[str, tuple[str, str]]:
    """The 1280 published stimuli: name to folder and SHA-256."""
    lines = (resources.files("analysis.images") / "published" / MANIFEST).read_text().splitlines()
    pairs = [line.split() for line in lines if line and not line.startswith("#")]
    return {Path(path).name: (str(Path(path).parent), digest) for digest, path in pairs}


def missing_stimuli(names: Collection[str]) -> str:
    """What to tell about those of the published stimuli that are not among `names`; empty for another set or none."""
    published = published_stimuli()
    missing = sorted(set(published) - set(names))
    if not missing or not set(names) <= set(published):
        return ""
    return f"{len(missing)} of the {len(published)} published stimuli are missing: {_some(missing)}"


def _compare_with_published(digests: Mapping[str, str]) -> tuple[str, ...]:
    published = published_stimuli()
    known = set(digests) & set(published)
    if len(known) < len(digests):
        return ()
    notes = [note for note in [missing_stimuli(digests)] if note]
    changed = sorted(name for name in known if digests[name] != published[name][1])
    if changed:
        notes.append(f"{len(changed)} stimuli differ from the published files: {_some(changed)}")
    return tuple(notes)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
