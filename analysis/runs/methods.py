"""What a run leaves for a paper: a paragraph on its methods, and the works that it rests on."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from analysis.runs.identity import versions

METHODS, REFERENCES = "methods.txt", "references.bib"
PAPER = (METHODS, REFERENCES)
"""Both, of the folder of a run."""
LIBRARIES = {"timm": "wightman2019timm", "torchvision": "torchvision2016", "hf": "wolf2020transformers"}
"""Works to cite for networks of other libraries."""
FAMILIES = {"RepLKNet": "ding2022replknet", "UniRepLKNet": "ding2024unireplknet", "SLaK": "liu2023slak"}
"""The same for the families of this project, by class."""


@dataclass(frozen=True)
class Methods:
    """How something was measured.

    Args:
        paragraphs: In order, of whole sentences.
        works: Keys in `references.bib` of what is named in them.
    """

    paragraphs: tuple[str, ...]
    works: tuple[str, ...]

    def __add__(self, other: "Methods") -> "Methods":
        """Both, what they share once."""
        return Methods(
            tuple(dict.fromkeys((*self.paragraphs, *other.paragraphs))),
            tuple(dict.fromkeys((*self.works, *other.works))),
        )


def warned(warnings: Sequence[str]) -> Methods:
    """What weakens the numbers, as a paragraph of its own where there is anything."""
    return Methods((" ".join(warnings),) if warnings else (), ())


@cache
def works() -> Mapping[str, str]:
    """Every entry of the bibliography, by its key."""
    text = (resources.files("analysis.runs") / REFERENCES).read_text(encoding="utf-8")
    entries = re.split(r"\n+(?=@)", text.strip())
    return {entry.partition("{")[2].partition(",")[0]: entry for entry in entries}


def write_methods(methods: Methods, place: Callable[[str], AbstractContextManager[Path]]) -> None:
    """Write `methods.txt` and `references.bib`, at the paths that `place` gives for the names."""
    known = works()
    contents = {
        METHODS: "\n\n".join(methods.paragraphs),
        REFERENCES: "\n\n".join(known[key] for key in sorted(methods.works)),
    }
    for name, text in contents.items():
        with place(name) as path:
            path.write_text(text + "\n", encoding="utf-8")


def software(environments: Iterable[Mapping[str, str]]) -> Methods:
    """What computed the results, by their own records."""
    told = []
    for own in environments:
        if "torch" not in own:
            continue
        place = own.get("gpu", own.get("device", ""))
        kind = own.get("dtype", "").removeprefix("torch.")
        how = " ".join(part for part in (f"on {place}" if place else "", f"in {kind}" if kind else "") if part)
        python = f" and Python {own['python']}" if "python" in own else ""
        numpy = f", NumPy {own['numpy']}" if "numpy" in own else ""
        told.append(f"PyTorch {own['torch']} (Paszke et al., 2019){numpy}{python}{f', {how}' if how else ''}")
    here = f"replknet {versions(['replknet'])['replknet']}"
    text = f"The networks were run with {joined(dict.fromkeys(told))}. " if told else ""
    return Methods(
        (f"{text}The figures, tables and this text were made by {here}.",), ("paszke2019pytorch",) * bool(told)
    )


def networks_of(specs: Iterable[str], families: Iterable[str]) -> tuple[str, ...]:
    """Works to cite for networks.

    Args:
        specs: As they were asked for, without names of a user's own, such as "timm:resnet50".
        families: Names of their classes.
    """
    found = [LIBRARIES[spec.partition(":")[0]] for spec in specs if spec.partition(":")[0] in LIBRARIES]
    return tuple(dict.fromkeys([*found, *(FAMILIES[name] for name in families if name in FAMILIES)]))


def joined(words: Iterable[str]) -> str:
    """As a sentence lists them."""
    given = list(words)
    return given[0] if len(given) == 1 else f"{', '.join(given[:-1])} and {given[-1]}" if given else ""


def counted(number: int, what: str, several: str = "") -> str:
    """A number with its noun, such as "1 network" and "2 networks"."""
    return f"{number} {what if number == 1 else several or what + 's'}"


def fitting_digits(value: float, digits: int = 1) -> int:
    """Decimals that tell as much of a value below 1 as these tell of others, three more at most."""
    return digits if not 0 < abs(value) < 1 else digits - max(math.floor(math.log10(abs(value))), -3)


def with_interval(value: float, ends: Sequence[float], *, scale: float = 1.0, digits: int = 1, unit: str = "") -> str:
    """Such as "12.3 % [11.0, 13.4]" of something; without the interval where there is none."""
    if value != value:
        return "an undefined part"
    text = f"{scale * value:.{digits}f}{unit}"
    if any(end != end for end in ends):
        return text
    return f"{text} [{', '.join(f'{scale * end:.{digits}f}' for end in ends)}]"
