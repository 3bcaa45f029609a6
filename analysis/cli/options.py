"""Options of commands, made from the dataclasses that they fill."""

import dataclasses
import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from analysis.images.preparing import MEANS, STANDARD_DEVIATIONS
from analysis.runs.settings import BATCHES, WORKERS

MOST_WORKERS = 12
SPELLING: dict[str, list[str]] = {
    "layer": ["--layers", "--stages"],
    "num_workers": ["--workers"],
    "input_size": ["--size"],
    "repeats": ["--rounds"],
    "directory": ["--to"],
    "path": ["--out"],
}
"""Options of an argument or field that are called otherwise, for messages."""


class Fields:
    """The fields of a dataclass as options.

    Types and names are those of the fields, the help is the first sentence of each in the class's docstring.

    Args:
        kind: The dataclass.
        only: Fields that become options; all by default.
        without: Fields that do not.
        called: Names of options that differ from those of their fields.
        parsed: How the text of an option becomes a value, where the type of the field does not say.
        helps: Of those options.
        changes: Every option may be left out, and the command gets a dictionary of those that are given; otherwise it
            gets an instance of the class.
        tell_defaults: Say in the help what holds where an option is left out.
    """

    def __init__(
        self,
        kind: type,
        *,
        only: Collection[str] = (),
        without: Collection[str] = (),
        called: Mapping[str, str] | None = None,
        parsed: Mapping[str, Callable[[str], Any]] | None = None,
        helps: Mapping[str, str] | None = None,
        changes: bool = False,
        tell_defaults: bool = False,
    ) -> None:
        self._kind, self._changes, self._parsed = kind, changes, parsed or {}
        own = _helps(kind)
        self._helps = own | dict(helps or {})
        self._told = set(own) - set(helps or {}) if tell_defaults else set[str]()
        self._hints = typing.get_type_hints(kind)
        self._called = dict(called or {})
        self._fields = [
            item for item in dataclasses.fields(kind) if item.name not in without and (not only or item.name in only)
        ]
        for field, option in self._called.items():
            SPELLING.setdefault(field, []).append(_dashed(option))

    def parameters(self) -> list[inspect.Parameter]:
        """Of a command's signature."""
        found = []
        for item in self._fields:
            option = self._called.get(item.name, item.name)
            default = None if self._changes else item.default
            kind = str if item.name in self._parsed else _option_type(self._hints[item.name])
            if isinstance(default, tuple):
                default = ",".join(map(str, default))
            help_text = self._helps[item.name]
            hint = _plain(self._hints[item.name])
            if typing.get_origin(hint) is Literal:
                help_text += f" One of {', '.join(typing.get_args(hint))}."
            elif typing.get_origin(hint) is tuple and item.name not in self._parsed:
                help_text += f" E.g. {','.join(map(str, item.default))}."  # type: ignore[arg-type]
            if item.name in self._told and isinstance(item.default, int | str):
                help_text += f" By default {item.default}."
            shown = typer.Option(_spelled(option, kind), help=help_text)
            annotation: Any = Annotated[kind | None if default is None else kind, shown]
            found.append(
                inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            )
        return found

    def made(self, values: dict[str, Any]) -> Any:
        """Take the values of the options out of those of a command."""
        given = {}
        for item in self._fields:
            option = self._called.get(item.name, item.name)
            value = values.pop(option)
            if value is None and (self._changes or item.default is None):
                continue
            given[item.name] = self._value(item.name, option, value)
        return given if self._changes else self._kind(**given)

    def _value(self, name: str, option: str, value: Any) -> Any:
        if name in self._parsed:
            return self._parsed[name](value)
        hint = _plain(self._hints[name])
        if typing.get_origin(hint) is tuple and isinstance(value, str):
            return parse_numbers(_dashed(option), value, typing.get_args(hint)[0])
        if _is_mapping(hint):
            return _pairs(_dashed(option), value)
        return value


def takes(**groups: Fields) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of dataclasses in place of the parameters of these names."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            own = groups[parameter.name].parameters() if parameter.name in groups else [parameter]
            parameters += [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in own]

        @functools.wraps(command)
        def run(**values: Any) -> Any:
            made = {name: group.made(values) for name, group in groups.items()}
            return command(**values, **made)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {item.name: item.annotation for item in parameters}
        return run

    return decorate


def _helps(kind: type) -> dict[str, str]:
    """First sentence of each argument in the docstring of a class."""
    text = (inspect.getdoc(kind) or "").partition("Args:\n")[2]
    entries = re.findall(r"^ {4}(\w+): (.*?)(?=^ {0,4}\w|\Z)", text, re.MULTILINE | re.DOTALL)
    return {name: re.split(r"(?<=\.)\s(?=[A-Z])", " ".join(entry.split()), maxsplit=1)[0] for name, entry in entries}


def _plain(hint: Any) -> Any:
    """The type without None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (option for option in typing.get_args(hint) if option is not type(None))
    return hint


def _option_type(hint: Any) -> Any:
    hint = _plain(hint)
    if _is_mapping(hint) or hint == list[str]:
        return list[str]
    return hint if hint in (bool, int, float, Path) else str


def _is_mapping(hint: Any) -> bool:
    return typing.get_origin(hint) in (dict, Mapping)


def _spelled(option: str, kind: Any) -> str:
    return f"{_dashed(option)}/--no-{_dashed(option)[2:]}" if kind is bool else _dashed(option)


def _dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    pairs = {name.strip(): value for name, _, value in (text.partition("=") for text in texts)}
    if not all("=" in text for text in texts) or "" in pairs or len(pairs) < len(texts):
        raise ValueError(f"{option}={', '.join(texts)}: expected name=value, such as account=vision, each name once")
    return pairs


def parse_numbers(
    option: str,
    text: str,
    kind: Callable[[str], Any] = int,
    *,
    count: int | None = None,
    within: tuple[float, float] | None = None,
) -> tuple[Any, ...]:
    """Numbers separated by commas.

    Raises:
        ValueError: Naming the option, if there is none, one is not finite or not `within` these, or there are not
            `count` of them.
    """
    try:
        numbers = tuple(kind(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    lowest, highest = within or (-sys.float_info.max, sys.float_info.max)
    usable = all(lowest <= number <= highest for number in numbers)
    if not numbers or not usable or count not in (None, len(numbers)):
        kinds = f"{'whole ' * (kind is int)}number"
        what = f"a {kinds}" if count == 1 else f"{count or ''} {kinds}s".strip()
        bound = "" if within is None else f" from {lowest:g} to {highest:g}"
        raise ValueError(f"{option}={text!r}: expected {what}{bound}{', separated by commas' * (count != 1)}")
    return numbers


def parse_three(option: str, text: str | None) -> tuple[float, ...] | None:
    """Three numbers, positive ones for a standard deviation."""
    low, high, _ = STANDARD_DEVIATIONS if option == "--std" else MEANS
    return None if text is None else parse_numbers(option, text, float, count=3, within=(low, high))


def parse_names(option: str, text: str) -> tuple[str, ...]:
    """Different names separated by commas.

    Raises:
        ValueError: Naming the option, if one is empty or given twice.
    """
    names = tuple(part.strip() for part in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"{option}={text!r}: expected different names, separated by commas")
    return names


BatchSize = Annotated[int, typer.Option(help="Images in one forward pass.", min=BATCHES[0], max=BATCHES[1])]
ErfBatch = Annotated[
    int | None,
    typer.Option(
        help="Images that give receptive fields together; by default what is fast at this size.",
        min=BATCHES[0],
        max=BATCHES[1],
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Processes that prepare images, without effect on the results; by default 0 on a CPU, on a GPU one for "
        f"each core but one, at most {MOST_WORKERS}.",
        min=WORKERS[0],
        max=WORKERS[1],
    ),
]
InputSize = Annotated[
    int | None,
    typer.Option(help="Side of the input in pixels, with RepLKNet's resizing; else the model's own.", min=8, max=4096),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what another run has written there.")]
Out = Annotated[Path, typer.Option(help="Folder for everything; the same command again resumes.")]
LabelsOfEach = Annotated[
    list[str] | None,
    typer.Option(
        help="CSV with class_index and category, for models with other classes; NAME=FILE for one network alone; "
        "may be given several times."
    ),
]
Labels = Annotated[Path | None, typer.Option(help="CSV with class_index and category, for models with other classes.")]
