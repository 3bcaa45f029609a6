"""Image files with the outputs of a network that they belong to."""

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path

from analysis.images.files import folders_in, images_beside, images_in
from analysis.images.imagenet import NUM_IMAGENET_CLASSES, imagenet_classes
from analysis.images.labelled import DataError
from analysis.runs.texts import few, printable, read_text

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


def labelled_files(
    data: str | PathLike[str], classes: Sequence[str], *, labels: str | PathLike[str] | None = None
) -> LabelledFiles:
    """Image files with their labels.

    Args:
        data: A folder with a sub-folder for each class, with its images (`files_in`). Its name is one of `classes`, or
            one of the synonyms in it that no other has ("robin" of "robin, American robin, Turdus migratorius"), or,
            for ImageNet-1K, a WordNet id such as n01440764, or the number of the output. If no name is any of these and
            there are as many sub-folders as classes, they are taken in sorted order.
        classes: Names of the network's outputs.
        labels: A CSV of `file,class` in UTF-8, with a header or without, for a folder of any layout; the class as
            above.

    Raises:
        FileNotFoundError: If `data` or `labels` does not exist.
        DataError: If a class is none of the network's, or there is no image.
    """
    root = Path(data)
    if not root.is_dir():
        raise FileNotFoundError(f"data={str(root)!r}: no such folder")
    if labels is not None:
        return _from_table(root, Path(labels), classes)
    folders = folders_in(root)
    if not folders:
        raise DataError(f"data={str(root)!r}: expected a sub-folder for each class, or {_WAY_OUT}")
    names = _outputs_by_name(classes)
    unknown = [folder.name for folder in folders if folder.name not in names]
    if not unknown:
        outputs, rule = [names[folder.name] for folder in folders], "by the names of the folders"
    elif len(unknown) == len(folders) == len(classes):
        outputs, rule = list(range(len(classes))), "folders in sorted order: none is named like a class"
    else:
        raise DataError(
            f"data={str(root)!r}: the folder {unknown[0]!r} is no class of the model; expected names such as "
            f"{few(classes)}, or {_WAY_OUT}"
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
    where = f"labels={str(table)!r}"
    names = _outputs_by_name(classes)
    found: dict[Path, int] = {}
    rows = csv.reader(io.StringIO(read_text(table, "labels"), newline=""), skipinitialspace=True)
    try:
        for number, row in enumerate(rows, 1):
            cells = [cell.strip() for cell in row]
            if not any(cells) or (number == 1 and _is_header(cells, root, names)):
                continue
            if len(cells) != 2 or cells[1] not in names:
                raise DataError(
                    f"{where}: line {rows.line_num} is {','.join(row)!r}; expected file,class with a class such as "
                    f"{few(classes)}"
                )
            file = root / cells[0]
            if not file.is_file():
                raise DataError(f"{where}: line {rows.line_num} names {file}, which is not there")
            if file in found:
                raise DataError(f"{where}: line {rows.line_num} names {cells[0]!r}, which was named before")
            found[file] = names[cells[1]]
    except csv.Error as error:
        raise DataError(f"{where}: line {rows.line_num} is no CSV ({error}); expected file,class") from None
    if not found:
        raise DataError(f"{where}: names no file")
    return LabelledFiles(
        root=root,
        classes=tuple(classes),
        files=tuple(found),
        labels=tuple(found.values()),
        rule=f"by {printable(table.name)}",
    )


def _is_header(cells: Sequence[str], root: Path, names: Mapping[str, int]) -> bool:
    """Two words of which neither is a file, or looks like one, or a class."""
    if len(cells) != 2 or cells[1] in names:
        return False
    return not Path(cells[0]).suffix and not (root / cells[0]).is_file()


def _outputs_by_name(classes: Sequence[str]) -> dict[str, int]:
    names = {name: index for index, name in enumerate(classes)}
    if len(classes) == NUM_IMAGENET_CLASSES:
        names |= {wordnet_id: index for index, (wordnet_id, _) in enumerate(imagenet_classes())}
    names |= {str(index): index for index in range(len(classes)) if str(index) not in names}
    return {name: index for name, index in _synonyms(classes).items() if name not in names} | names


def _synonyms(classes: Sequence[str]) -> dict[str, int]:
    """Words for one class alone, of names that hold several."""
    owners: dict[str, set[int]] = {}
    for index, name in enumerate(classes):
        for synonym in name.split(", "):
            owners.setdefault(synonym, set()).add(index)
    return {synonym: index for synonym, (index, *others) in owners.items() if not others}
