"""Stimuli with a shape, a texture or both: files, or images in memory, named by what they show."""

import hashlib
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import resources
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from analysis.images.files import IMAGE_SUFFIXES, files_in, is_hidden, read_rgb
from analysis.runs.results import Shown
from analysis.runs.settings import named_path
from analysis.runs.texts import few, printable, why_no_file

_NAME = re.compile(r"(?P<shape>[A-Za-z]+)(?P<i>\d+)(?:-(?P<texture>[A-Za-z]+)(?P<j>\d+))?")
CUES = ("shape", "texture")
_BEFORE_CUE = "refined_bias_"
"""What the published folders of single cues have before the name of the cue."""


class StimulusError(ValueError):
    """Stimuli that cannot be what is meant."""


@dataclass(frozen=True, kw_only=True)
class SingleCues:
    """What is asked of stimuli that show one cue each: which outputs are right, and how an image goes in.

    Args:
        groups: For each cue the names of its classes, and of each the WordNet ids that are right.
        size: Side of the input in pixels.
        crop: Part of the short side that the central crop keeps.
        interpolation: Of the resizing before.
        num_images: Images that were published.
    """

    groups: Mapping[str, Mapping[str, Sequence[str]]] = field(repr=False)
    size: int
    crop: float
    interpolation: str
    num_images: int

    @cached_property
    def wordnet_ids(self) -> dict[str, Sequence[str]]:
        """Those of each class, of either cue."""
        return {name: ids for own in self.groups.values() for name, ids in own.items()}


@dataclass(frozen=True, kw_only=True, repr=False)
class StimulusSet(Shown, Sequence[str]):
    """Stimuli named `<shape><i>-<texture><j>.<ext>`, or `<shape><i>.<ext>` without a texture; in order of their names.

    Tuples are parallel; `stimuli[k]` is the file name of one. Stimuli of single cues are named
    `shape/<class>/<file>` or `texture/<class>/<file>`, and the class stands for the exemplar, too.
    """

    source: str
    names: tuple[str, ...]
    shapes: tuple[str, ...]
    textures: tuple[str, ...]
    shape_exemplars: tuple[str, ...]
    texture_exemplars: tuple[str, ...]
    hashes: tuple[str, ...]
    """SHA-256 of each file, or of the pixels where there is none, in hexadecimal."""
    paths: tuple[Path, ...] = ()
    arrays: tuple[NDArray[np.uint8], ...] = ()
    """Pixels of stimuli that are in memory, in place of `paths`."""
    skipped: tuple[tuple[str, str], ...] = ()
    """Files of the tree that are no stimulus, with the reason."""
    notes: tuple[str, ...] = ()
    """What a user should know about the set, such as files that are missing from the published one."""
    single_cues: SingleCues | None = None
    """Of stimuli that show a shape or a texture alone; None of all others."""

    def headline(self) -> dict[str, Any]:
        """Where they are from, how many there are, and of which categories."""
        return {"source": self.source, "stimuli": len(self), "shapes": len(set(self.shapes)), "notes": self.notes}

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

    def of_categories(self, categories: Collection[str]) -> Self:
        """Only the stimuli of which the shape, and the texture if there is one, are among these categories.

        Raises:
            StimulusError: If there is none.
        """
        wanted = {*categories, ""}
        kept = [
            index for index, pair in enumerate(zip(self.shapes, self.textures, strict=True)) if wanted.issuperset(pair)
        ]
        if not kept:
            raise StimulusError(f"stimuli={self.source!r}: none has shape and texture among {', '.join(categories)}")
        parallel = ("names", "shapes", "textures", "shape_exemplars", "texture_exemplars", "hashes", "paths", "arrays")
        columns = {name: getattr(self, name) for name in parallel}
        changes: dict[str, Any] = {name: tuple(own[i] for i in kept) if own else () for name, own in columns.items()}
        return replace(self, **changes)


def load_stimuli(directory: str | PathLike[str]) -> StimulusSet:
    """Find the stimuli in a folder and all its sub-folders, whatever these are called.

    Files that are no image, or not named like a stimulus, are skipped by name. If all stimuli belong to a
    published set, `notes` tells which of its files are missing and which differ.

    A folder with `shape/<class>/` or `texture/<class>/` (or `refined_bias_shape/` and `refined_bias_texture/`, as they
    are published), in which no file is named like a stimulus with a conflict, holds stimuli of single cues.

    Raises:
        FileNotFoundError: If there is no such folder.
        StimulusError: If a stimulus is there twice, by name or by content, or there is none; of single cues, if a class
            is unknown.

    References:
        Geirhos et al. 2019, arXiv:1811.12231; Kim et al. 2026, arXiv:2603.10834 (single cues).
    """
    root = named_path(directory, "stimuli")
    if not root.is_dir():
        raise FileNotFoundError(f"stimuli={str(root)!r}: no such folder")
    folders = _folders_of_cues(root)
    if folders:
        return _single_cues(root, folders)
    found: dict[str, Path] = {}
    hashes: dict[str, str] = {}
    skipped = []
    for path in files_in(root):
        relative = printable(path.relative_to(root))
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            skipped.append((relative, "not an image"))
        elif not _NAME.fullmatch(path.stem):
            skipped.append((relative, "not named <shape><i>-<texture><j>"))
        elif why_no_file(path):
            skipped.append((relative, why_no_file(path)))
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
        source=printable(root),
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


def _folders_of_cues(root: Path) -> dict[Path, str]:
    """The folders of single cues in one, each with its cue; none in a folder of other stimuli."""
    named = {root / f"{before}{cue}": cue for cue in CUES for before in ("", _BEFORE_CUE)}
    found = {
        folder: cue
        for folder, cue in named.items()
        if folder.is_dir() and any(child.is_dir() and not is_hidden(child.name) for child in folder.iterdir())
    }
    return {} if any(_NAME.fullmatch(path.stem) for folder in found for path in files_in(folder)) else found


def _single_cues(root: Path, folders: Mapping[Path, str]) -> StimulusSet:
    (about,) = (own.single_cues for own in published_sets().values() if own.single_cues is not None)
    if len(set(folders.values())) < len(folders):
        first, second, *_ = sorted(folder.name for folder in folders)
        raise StimulusError(f"stimuli={str(root)!r}: expected {first} or {second}, found both")
    inside = {path: path.relative_to(root) for folder in folders for path in files_in(folder)}
    skipped = [(printable(path.relative_to(root)), "of no cue") for path in files_in(root) if path not in inside]
    found: dict[str, tuple[str, str, Path, str]] = {}
    for path, relative in sorted(inside.items()):
        shown, cue = printable(relative), folders[root / relative.parts[0]]
        name = relative.parts[1]
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            skipped.append((shown, "not an image"))
        elif len(relative.parts) != 3:
            skipped.append((shown, f"not in {cue}/<class>/"))
        elif name not in about.groups[cue]:
            raise StimulusError(f"stimuli: {shown}: unknown class {name!r}; expected one of {few(about.groups[cue])}")
        elif why_no_file(path):
            skipped.append((shown, why_no_file(path)))
        else:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[f"{cue}/{name}/{printable(path.name)}"] = (cue, name, path, digest)
    if not found:
        raise StimulusError(f"stimuli={str(root)!r}: no image in shape/<class>/ or texture/<class>/")
    rows = tuple(found.values())
    shapes, textures = (tuple(name if cue == own else "" for cue, name, _, _ in rows) for own in CUES)
    notes = [f"no image shows a {cue} alone" for cue in CUES if cue not in folders.values()]
    if len(rows) != about.num_images:
        notes.append(f"{len(rows)} images of single cues; {about.num_images} are published")
    copies = len(rows) - len({digest for *_, digest in rows})
    if copies:
        notes.append(f"{copies} images of single cues are copies of others")
    return StimulusSet(
        source=printable(root),
        names=tuple(found),
        shapes=shapes,
        textures=textures,
        shape_exemplars=shapes,
        texture_exemplars=textures,
        hashes=tuple(digest for *_, digest in rows),
        paths=tuple(path for _, _, path, _ in rows),
        skipped=tuple(skipped),
        notes=tuple(notes),
        single_cues=about,
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


@dataclass(frozen=True)
class PublishedSet:
    """Stimuli that somebody has published: a file in `analysis/images/published`.

    Args:
        name: Of the file.
        about: What they are.
        url: Of the folder that holds the files.
        licence: Of the stimuli.
        citation: Who asks to be cited.
        files: Path below `url` and SHA-256, in hexadecimal, of each; none where a commit lists them.
        commit: Of a git repository, which lists the files, or its first digits; `{commit}` in `url` stands for all.
        repository: Address of that repository in GitHub's API.
        folder: Of the files in it, with a slash at the end.
        single_cues: Of stimuli that show one cue each.
    """

    name: str
    about: str
    url: str
    licence: str
    citation: str
    files: Mapping[str, str] = field(default_factory=dict, repr=False)
    commit: str = ""
    repository: str = ""
    folder: str = ""
    single_cues: SingleCues | None = None

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 by the name of the file alone."""
        return {PurePosixPath(path).name: digest for path, digest in self.files.items()}

    @cached_property
    def class_folders(self) -> tuple[str, ...]:
        """Of single cues, below `folder`."""
        groups = {} if self.single_cues is None else self.single_cues.groups
        return tuple(f"{_BEFORE_CUE}{cue}/{name}" for cue, own in groups.items() for name in own)


@cache
def published_sets() -> Mapping[str, PublishedSet]:
    """All of them, by name."""
    found = {}
    for entry in sorted((resources.files("analysis.images") / "published").iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".toml"):
            name, content = entry.name.removesuffix(".toml"), tomllib.loads(entry.read_text())
            cues = content.pop("single_cues", None)
            found[name] = PublishedSet(name=name, single_cues=SingleCues(**cues) if cues else None, **content)
    return found


def missing_stimuli(names: Collection[str]) -> str:
    """What to tell about those of a published set that are not among `names`; empty for another set or none."""
    for published in published_sets().values():
        if set(names) <= set(published.digests):
            missing = sorted(set(published.digests) - set(names))
            if not missing:
                return ""
            return f"{len(missing)} of the {len(published.files)} published stimuli are missing: {few(missing)}"
    return ""


def _compare_with_published(digests: Mapping[str, str]) -> tuple[str, ...]:
    published = next((own for own in published_sets().values() if set(digests) <= set(own.digests)), None)
    if published is None:
        return ()
    notes = [note for note in [missing_stimuli(digests)] if note]
    changed = sorted(name for name, digest in digests.items() if digest != published.digests[name])
    if changed:
        notes.append(f"{len(changed)} stimuli differ from the published files: {few(changed)}")
    return tuple(notes)
