"""Tables and recipes that people write: responses, mappings, labels, names of classes, recipes."""

import csv
import io
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

import analysis
from analysis import CATEGORIES
from analysis.training.recipe import parse_changes
from tests.fuzz.engine import Case, WrongError, family
from tests.fuzz.mutating import INTERESTING, TEXTS, mutated_bytes

_ODD = (*TEXTS, *map(str, INTERESTING), '"', '"a', "a;b", "a\tb", "a\r\nb", "x" * 200_000, "٣", "²", "cat1-dog1.png")


def _table(rows: list[list[str]]) -> bytes:
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue().encode("utf-8", "surrogatepass")


def _mutated_table(random: Random, rows: list[list[str]]) -> tuple[bytes, str]:
    """Other cells, rows, columns, separators or bytes."""
    kind = random.randrange(9)
    rows = [list(row) for row in rows]
    row, column = random.randrange(len(rows)), random.randrange(len(rows[0]))
    if kind <= 3:
        rows[row][column] = random.choice(_ODD)
        return _table(rows), f"cell {row},{column} {rows[row][column][:20]!r}"
    if kind == 4:
        del rows[row]
        return _table(rows), f"without row {row}"
    if kind == 5:
        rows.insert(row, rows[random.randrange(len(rows))])
        return _table(rows), "a row twice"
    if kind == 6:
        for own in rows:
            del own[column]
        return _table(rows), f"without column {column}"
    if kind == 7:
        separator, encoding, end = (
            random.choice(own) for own in ((",", ";", "\t"), ("utf-8-sig", "utf-16", "latin-1"), ("\n", "\r\n", "\r"))
        )
        text = _table(rows).decode("utf-8", "replace").replace(",", separator).replace("\n", end)
        return text.encode(encoding, "replace"), f"separated by {separator!r}, in {encoding}, ends {end!r}"
    return mutated_bytes(random, _table(rows)), "bytes"


@family()
def responses(random: Random, folder: Path) -> Case:
    """Every response is one that the observer could give, and every line with an image counts."""
    header = ["subj", "session", "trial", "rt", "object_response", "category", "condition", "imagename"]
    images = [f"{a}{i}-{b}{i}.png" for i in range(1, 4) for a, b in (("cat", "dog"), ("bear", "car"), ("dog", "dog"))]
    rows = [header]
    for trial, image in enumerate(images, 1):
        shape = re.split(r"\d", image)[0]
        answer = random.choice((shape, "na", "car", "dog"))
        rows.append(
            ["observer", "1", str(trial), "NaN", answer, shape, "0", f"{trial:04d}_cue_dnn_0_{shape}_00_{image}"]
        )
    content, what = _mutated_table(random, rows)
    path = folder / "o.csv"
    path.write_bytes(content)
    categories = random.choice((CATEGORIES, None))

    def run() -> None:
        found = analysis.read_responses(path, categories=categories)
        if not set(found.responses) <= {*(categories or found.responses), "na"}:
            raise WrongError(f"responses {sorted(set(found.responses))[:5]}")
        lines = [line for line in content.decode("utf-8-sig").splitlines() if line.strip()]
        if len(found.stimuli) != len(lines) - 1 and '"' not in content.decode("utf-8-sig"):
            raise WrongError(f"{len(found.stimuli)} stimuli of {len(lines) - 1} lines")
        repr(found)
        analysis.write_responses(found, folder / "again.csv")
        again = analysis.read_responses(folder / "again.csv", categories=categories)
        if (again.stimuli, again.responses, again.observer) != (found.stimuli, found.responses, found.observer):
            raise WrongError("what is written is read back otherwise")

    return Case(f"read_responses, {what}", run)


@family()
def mappings(random: Random, folder: Path) -> Case:
    rows = [["class_index", "category"], *([str(index), random.choice(("cat", "dog", "owl"))] for index in range(6))]
    content, what = _mutated_table(random, rows)
    path = folder / "m.csv"
    path.write_bytes(content)

    def run() -> None:
        mapping = analysis.LabelMapping.from_csv(path)
        num = sum(len(own) for _, own in mapping.indices)
        lines = sum(bool(line.strip().strip(",")) for line in re.split("[\r\n]", content.decode("utf-8-sig")))
        if num != lines - 1 and b'"' not in content:
            raise WrongError(f"{num} indices of {lines - 1} lines")

    return Case(f"LabelMapping.from_csv, {what}", run)


@family()
def labels(random: Random, folder: Path) -> Case:
    files = [f"{name}.png" for name in "abcd"]
    for file in files:
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / file)
    rows = [["file", "class"], *([file, random.choice(("cat", "dog"))] for file in files)]
    content, what = _mutated_table(random, rows)
    (folder / "l.csv").write_bytes(content)

    def run() -> None:
        found = analysis.labelled_files(folder, ("cat", "dog"), labels=folder / "l.csv")
        if len(found.files) != len(found.labels) or not set(found.labels) <= {0, 1}:
            raise WrongError(f"labels {found.labels}")
        if any(not file.is_file() for file in found.files) or len(found.fingerprint) != 64:
            raise WrongError("names files that are not there")

    return Case(f"labelled_files, {what}", run)


@family()
def recipes(random: Random, folder: Path) -> Case:
    """Recipes as TOML, and single settings as texts: none is taken for another one."""
    names = sorted(analysis.Recipe.__dataclass_fields__)
    if random.random() < 0.5:
        text = f"{random.choice([*names, *names, 'epochs', 'warmup_epochs', *TEXTS])}={random.choice(_ODD)}"
        if random.random() < 0.3:
            text = random.choice(
                (
                    f"{random.choice(names)}=.5",
                    f"{random.choice(names)} = 1",
                    f"{random.choice(names)}=1_0",
                    "ema_decay=none",
                )
            )
        file = (
            analysis.load_recipe("imagenet-1k") if "imagenet-1k" in _recipes() else analysis.load_recipe(_recipes()[0])
        )

        def change() -> None:
            changes = parse_changes([text])
            recipe = file.for_images(1000, changes)
            name, _, value = text.partition("=")
            found = getattr(recipe, name.strip(), value)
            if found is None and value.strip() not in ("", "none", "None"):
                raise WrongError(f"{text[:60]!r} becomes None")
            if isinstance(found, float) and float(value) != found:
                raise WrongError(f"{text[:60]!r} becomes {found}")

        return Case(f"set {text[:60]!r}", change)
    name = random.choice(_recipes())
    content = (resources.files("analysis.training") / "recipes" / f"{name}.toml").read_bytes()
    lines = content.decode().splitlines()
    index = random.randrange(len(lines))
    kind = random.randrange(4)
    if kind == 0:
        lines[index] = lines[index].partition("=")[0] + f"= {random.choice(_ODD)}"
    elif kind == 1:
        del lines[index]
    elif kind == 2:
        lines.insert(index, random.choice(lines))
    changed = "\n".join(lines).encode("utf-8", "surrogatepass") if kind < 3 else mutated_bytes(random, content)
    path = folder / "r.toml"
    path.write_bytes(changed)
    tried = f"line {index} {lines[min(index, len(lines) - 1)][:60]!r}" if kind < 3 else "bytes"
    return Case(f"load_recipe {name}, {tried}", lambda: analysis.load_recipe(str(path)).for_images(1000))


def _recipes() -> list[str]:
    from analysis.training.recipe import recipe_names

    return recipe_names()


@family()
def folders(random: Random, folder: Path) -> Case:
    """A pipe, a link to itself, a folder or nothing where a file is expected, and the reverse."""
    path = folder / random.choice(
        ("x.csv", "x.toml", "x.png", "x", "é.csv", "x.pth", "x.safetensors", "x.pt2", "x.onnx")
    )
    kind = random.choice(("missing", "folder", "pipe", "link to itself", "empty file", "device", "link to nothing"))
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        import os

        os.mkfifo(path)
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "empty file":
        path.write_bytes(b"")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "link to nothing":
        path.symlink_to(folder / "nothing")
    readers: dict[str, Callable[[], object]] = {
        "read_responses": lambda: analysis.read_responses(path),
        "read_observers": lambda: analysis.read_observers(path),
        "read_observers of its folder": lambda: analysis.read_observers(folder),
        "LabelMapping.from_csv": lambda: analysis.LabelMapping.from_csv(path),
        "labelled_files": lambda: analysis.labelled_files(folder, ("a", "b"), labels=path),
        "labelled_files of it": lambda: analysis.labelled_files(path, ("a", "b")),
        "load_recipe": lambda: analysis.load_recipe(str(path)),
        "load_images": lambda: analysis.load_images(path, size=8),
        "load_images of its folder": lambda: analysis.load_images(folder, size=8),
        "load_images of a list": lambda: analysis.load_images([path], size=8),
        "load_stimuli": lambda: analysis.load_stimuli(path),
        "load_stimuli of its folder": lambda: analysis.load_stimuli(folder),
        "FolderImages": lambda: analysis.FolderImages(path, "val"),
        "TarShards": lambda: analysis.TarShards(path, "val"),
        "find_images": lambda: analysis.find_images(path),
        "load_model": lambda: analysis.load_model(str(path)),
        "ErfResult.load": lambda: analysis.ErfResult.load(path),
        "load_study": lambda: analysis.load_study(path),
        "predict": lambda: analysis.predict("replknet_nano_k3", path),
        "predict of its folder": lambda: analysis.predict("replknet_nano_k3", folder),
    }
    name = random.choice(list(readers))
    return Case(f"{name}, {path.name} {kind}", readers[name])
