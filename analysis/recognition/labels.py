"""Image files with the outputs of a network that they belong to."""

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path

from analysis.images.files import IMAGE_SUFFIXES
from analysis.images.imagenet import are_imagenet, imagenet_classes
from analysis.images.labelled import DataError


@dataclass(frozen=True, kw_only=True)
class LabelledFiles:
    """Image files and the output of the network that each belongs to.

    Args:
        root: The folder.
        classes: Names of the network's outputs.
        files: The images.
        labels: Output of the network for each.
        rule: How the classes were matched, in words.
    """

    root: Path
    classes: tuple[str, ...] = field(repr=False)
    files: tuple[Path, ...] = field(repr=False)
    labels: tuple[int, ...] = field(repr=False)
    rule: str

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of names, sizes and labels."""
        digest = hashlib.sha256()
        for file, label in zip(self.files, self.labels, strict=True):
            digest.update(f"{file.relative_to(self.root)} {file.stat().st_size} {label}\n".encode())
        return digest.hexdigest()


def labelled_files(
    data: str | PathLike[str], classes: Sequence[str], *, labels: str | PathLike[str] | None = None
) -> LabelledFiles:
    """Image files with their labels.

    Args:
        data: A folder with a sub-folder for each class. Its name is one of `classes`, or, for ImageNet-1K, a WordNet id
            such as n01440764, or the number of the output. If no name is any of these and there are as many
            sub-folders as classes, they are taken in sorted order. A name that two classes have, such as ImageNet's
            "crane", is refused.
        classes: Names of the network's outputs.
        labels: A CSV without a header, `file,class`, for a folder without sub-folders; the class as above.

    Raises:
        FileNotFoundError: If `data` or `labels` does not exist.
        DataError: If a class is none of the network's or may be several, or there is no image.
    """
    root = Path(data)
    if not root.is_dir():
        raise FileNotFoundError(f"data={str(root)!r}: no such folder")
    if labels is not None:
        return _from_table(root, Path(labels), classes)
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise DataError(f"data={str(root)!r}: expected a sub-folder for each class, or a labels file")
    names = _outputs_by_name(classes)
    for folder in folders:
        if len(names.get(folder.name, ())) > 1:
            raise DataError(f"data={str(root)!r}: the folder {_several(folder.name, names, classes)}")
    unknown = [folder.name for folder in folders if folder.name not in names]
    if not unknown:
        outputs, rule = [names[folder.name][0] for folder in folders], "by the names of the folders"
    elif len(unknown) == len(folders) == len(classes):
        outputs, rule = list(range(len(classes))), "folders in sorted order: none is named like a class"
    else:
        raise DataError(
            f"data={str(root)!r}: the folder {unknown[0]!r} is no class of the model; expected names such as "
            f"{', '.join(list(names)[:3])}"
        )
    pairs = [
        (file, output)
        for folder, output in zip(folders, outputs, strict=True)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not pairs:
        raise DataError(f"data={str(root)!r}: no image in {len(folders)} folders")
    return LabelledFiles(
        root=root,
        classes=tuple(classes),
        files=tuple(file for file, _ in pairs),
        labels=tuple(output for _, output in pairs),
        rule=rule,
    )


def _from_table(root: Path, table: Path, classes: Sequence[str]) -> LabelledFiles:
    if not table.is_file():
        raise FileNotFoundError(f"labels={str(table)!r}: no such file")
    names = _outputs_by_name(classes)
    files, outputs = [], []
    with table.open(newline="") as lines:
        for number, row in enumerate(csv.reader(lines), 1):
            if not row:
                continue
            if len(row) != 2 or row[1].strip() not in names:
                raise DataError(
                    f"labels={str(table)!r}: line {number} is {','.join(row)!r}; expected file,class with a class such "
                    f"as {', '.join(list(names)[:3])}"
                )
            name = row[1].strip()
            if len(names[name]) > 1:
                raise DataError(f"labels={str(table)!r}: line {number}: the class {_several(name, names, classes)}")
            files.append(root / row[0].strip())
            outputs.append(names[name][0])
    absent = [file for file in files if not file.is_file()]
    if absent or not files:
        what = f"names {absent[0]}, which is not there" if absent else "names no file"
        raise DataError(f"labels={str(table)!r}: {what}")
    return LabelledFiles(
        root=root, classes=tuple(classes), files=tuple(files), labels=tuple(outputs), rule=f"by {table.name}"
    )


def _outputs_by_name(classes: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The outputs that each name may mean: in ImageNet-1K, "maillot" is also short for "maillot, tank suit"."""
    names: dict[str, tuple[int, ...]] = {}
    for index, name in enumerate(classes):
        names[name] = (*names.get(name, ()), index)
    if are_imagenet(classes):
        for index, (wordnet_id, name) in enumerate(imagenet_classes()):
            short = name.partition(",")[0]
            if index not in names.get(short, (index,)):
                names[short] = (*names[short], index)
            names[wordnet_id] = (index,)
    return names | {str(index): (index,) for index in range(len(classes)) if str(index) not in names}


def _several(name: str, names: Mapping[str, Sequence[int]], classes: Sequence[str]) -> str:
    """What to say of a name that several classes have."""
    ids = imagenet_classes() if are_imagenet(classes) else ()
    found = [f"{index} ({classes[index]}{f', {ids[index][0]}' if ids else ''})" for index in sorted(names[name])]
    remedy = "its WordNet id or the number of the output" if ids else "the number of the output"
    return f"{name!r} may be output {' or '.join(found)}; expected {remedy} instead"
