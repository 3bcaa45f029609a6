"""Image files with the outputs of a network that they belong to."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path

from analysis.images.files import folders_in, images_beside, images_in
from analysis.images.imagenet import are_imagenet, imagenet_classes
from analysis.images.labelled import SPLITS, DataError
from analysis.runs.settings import named_path
from analysis.runs.tables import read_lines
from analysis.runs.texts import few, printable, short, why_no_file

SORTED = "by the sorted order of the folders, none of which is named like a class"
"""The rule of last resort."""
_WAY_OUT = "labels=FILE, a CSV of file,class"


@dataclass(frozen=True, kw_only=True)
class LabelledFiles:
    """Image files and the output of the network that each belongs to.

    Args:
        root: The folder.
        classes: Names of the network's outputs.
        files: The images.
        labels: Output of the network for each.
        rule: How the classes were matched, in words.
        skipped: Names of other files, with the reason: in no folder of a class, or no images by their names.
    """

    root: Path
    classes: tuple[str, ...] = field(repr=False)
    files: tuple[Path, ...] = field(repr=False)
    labels: tuple[int, ...] = field(repr=False)
    rule: str
    skipped: tuple[tuple[str, str], ...] = ()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the files, relative to the folder where they are in it."""
        return tuple(
            printable(file.relative_to(self.root) if file.is_relative_to(self.root) else file) for file in self.files
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of names, sizes and labels."""
        digest = hashlib.sha256()
        for file, name, label in zip(self.files, self.names, self.labels, strict=True):
            digest.update(f"{name} {file.stat().st_size if file.exists() else None} {label}\n".encode())
        return digest.hexdigest()


def numbered(num_outputs: int) -> tuple[str, ...]:
    """Names of the outputs of a classifier that names none."""
    return tuple(f"class {index}" for index in range(num_outputs))


def labelled_files(
    data: str | PathLike[str], classes: Sequence[str], *, labels: str | PathLike[str] | None = None
) -> LabelledFiles:
    """Image files with their labels.

    Args:
        data: A folder with a sub-folder for each class, with its images (`files_in`). Its name is one of `classes`, or
            one of the synonyms in it ("robin" of "robin, American robin, Turdus migratorius"), or, for ImageNet-1K, a
            WordNet id such as n01440764, or the number of the output. If no name is any of these and there are as many
            sub-folders as classes, they are taken in sorted order, and name outputs that have none. A name that two
            classes have, such as ImageNet's "crane", is refused.
        classes: Names of the network's outputs.
        labels: A CSV of `file,class` in UTF-8, with a header or without, for a folder of any layout; the class as
            above.

    Raises:
        FileNotFoundError: If `data` or `labels` does not exist.
        DataError: If a class is none of the network's or may be several, or there is no image.
    """
    root = named_path(data, "data")
    if not root.is_dir():
        raise FileNotFoundError(f"data={str(root)!r}: no such folder")
    if labels is not None:
        return _from_table(root, named_path(labels, "labels"), classes)
    folders = folders_in(root)
    if not folders:
        raise DataError(f"data={str(root)!r}: expected a sub-folder for each class, or {_WAY_OUT}")
    names = _outputs_by_name(classes)
    for folder in folders:
        if len(names.get(folder.name, ())) > 1:
            raise DataError(f"data={str(root)!r}: the folder {_several(folder.name, names, classes)}")
    unknown = [folder.name for folder in folders if folder.name not in names]
    if not unknown:
        outputs, rule = [names[folder.name][0] for folder in folders], "by the names of the folders"
    elif len(unknown) == len(folders) == len(classes):
        outputs, rule = list(range(len(classes))), SORTED
        if tuple(classes) == numbered(len(classes)):
            classes = tuple(folder.name for folder in folders)
    else:
        parts = [
            name
            for name in SPLITS["val"]
            if name in unknown and any(folder.name in names for folder in folders_in(root / name))
        ]
        inner = f"; {str(root / parts[0])!r} has them" if parts else ""
        raise DataError(
            f"data={str(root)!r}: the folder {unknown[0]!r} is no class of the model; expected names such as "
            f"{few(classes, between='; ')}; or {_WAY_OUT}{inner}"
        )
    pairs: list[tuple[Path, int]] = []
    skipped = images_beside(root)
    for folder, output in zip(folders, outputs, strict=True):
        images, others = images_in(folder)
        pairs += [(file, output) for file in images]
        skipped += [(printable(file.relative_to(root)), "not an image") for file in others]
    if not pairs:
        raise DataError(f"data={str(root)!r}: no image in {len(folders)} folders")
    return LabelledFiles(
        root=root,
        classes=tuple(classes),
        files=tuple(file for file, _ in pairs),
        labels=tuple(output for _, output in pairs),
        rule=rule,
        skipped=tuple(skipped),
    )


def _from_table(root: Path, table: Path, classes: Sequence[str]) -> LabelledFiles:
    names = _outputs_by_name(classes)
    found: dict[Path, int] = {}
    for number, line in enumerate(read_lines(table, "labels")):
        if number == 0 and _is_header(line.cells, root, names):
            continue
        if len(line.cells) != 2 or line.cells[1] not in names:
            raise DataError(
                f"{line.where} is {short(','.join(line.cells))}; expected file,class with a class such as "
                f"{few(classes)}"
            )
        name, file = line.cells[1], root / line.cells[0]
        if len(names[name]) > 1:
            raise DataError(f"{line.where}: the class {_several(name, names, classes)}")
        reason = why_no_file(file)
        if reason:
            raise DataError(f"{line.where} names {printable(file)}: {reason}")
        if file in found:
            raise DataError(f"{line.where} names {line.cells[0]!r}, which was named before")
        found[file] = names[name][0]
    if not found:
        raise DataError(f"labels={str(table)!r}: names no file")
    return LabelledFiles(
        root=root,
        classes=tuple(classes),
        files=tuple(found),
        labels=tuple(found.values()),
        rule=f"by {printable(table.name)}",
    )


def _is_header(cells: Sequence[str], root: Path, names: Mapping[str, Sequence[int]]) -> bool:
    """Two words of which neither is a file, or looks like one, or a class."""
    if len(cells) != 2 or cells[1] in names:
        return False
    return not Path(cells[0]).suffix and bool(why_no_file(root / cells[0]))


def _outputs_by_name(classes: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The outputs that each name may mean: in ImageNet-1K, "maillot" is also short for "maillot, tank suit"."""
    names: dict[str, tuple[int, ...]] = {}
    for index, name in enumerate(classes):
        names[name] = (*names.get(name, ()), index)
    imagenet = are_imagenet(classes)
    synonyms: dict[str, tuple[int, ...]] = {}
    for index, name in enumerate(classes):
        first, *others = name.split(", ")
        for synonym in (first, *others):
            synonyms[synonym] = (*synonyms.get(synonym, ()), index)
        if imagenet and index not in names.get(first, (index,)):
            names[first] = (*names[first], index)
    if imagenet:
        names |= {wordnet_id: (index,) for index, (wordnet_id, _) in enumerate(imagenet_classes())}
    numbers = {str(index): (index,) for index in range(len(classes))}
    return synonyms | numbers | names


def _several(name: str, names: Mapping[str, Sequence[int]], classes: Sequence[str]) -> str:
    """What to say of a name that several classes have."""
    ids = imagenet_classes() if are_imagenet(classes) else ()
    found = [f"{index} ({classes[index]}{f', {ids[index][0]}' if ids else ''})" for index in sorted(names[name])]
    remedy = "its WordNet id or the number of the output" if ids else "the number of the output"
    return f"{name!r} may be output {' or '.join(found)}; expected {remedy} instead"
