"""Options of commands, made from the dataclasses that they fill."""

import dataclasses
import functools
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from analysis.images.inputs import Images
from analysis.images.preparing import MEANS, STANDARD_DEVIATIONS
from analysis.models.libraries import LIBRARIES, names_library
from analysis.models.loaded import LoadedModel, resolve_device
from analysis.models.loading import has_weights, load_model
from analysis.models.replknets import is_own
from analysis.models.specs import distinct, split_name
from analysis.models.untrained import calibrated, untrained_copy
from analysis.runs.identity import describe_device
from analysis.runs.settings import BATCHES, LARGEST_KERNEL, SEEDS, WORKERS, check_fields

_MOST_WORKERS = 12
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
        what = f"{count or ''} {'whole ' * (kind is int)}numbers".strip()
        bound = "" if within is None else f" from {lowest:g} to {highest:g}"
        raise ValueError(f"{option}={text!r}: expected {what}{bound}, separated by commas")
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which network, with which weights, and where it computes.

    Args:
        checkpoint: Weight file of a network by name or of your own function; NAME=FILE where several are named.
        kernel_sizes: Kernels of a network of replknet, one a stage, e.g. 31,29,27,13; may be given several times.
        small_kernel: Parallel kernel of such a network; 0 for none.
        pretrained: Published weights; otherwise the network's own initialisation, its batch norms calibrated on the
            images.
        trust: Open TorchScript files and exported programs (.pt2), which may run code and write files.
        unit_scales: Set the norms and layer scales of untrained networks that begin near zero to one.
        device: Where to compute: cpu, cuda, cuda:1, mps, ..., or auto, which is cuda where there is a GPU for it, else
            mps, else cpu.
        dtype: Of weights and images: float32, float64, bfloat16, float16.
        seed: Of random weights, and of drawn images.
    """

    checkpoint: list[str] | None = None
    kernel_sizes: list[str] | None = None
    small_kernel: int | None = None
    pretrained: bool = True
    trust: bool = False
    unit_scales: bool = False
    device: str = "auto"
    dtype: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, seed=SEEDS, small_kernel=(0, LARGEST_KERNEL, f"an odd number up to {LARGEST_KERNEL}, or 0"))
        if self.checkpoint is not None and not self.pretrained:
            raise ValueError(f"checkpoint={', '.join(self.checkpoint)}: expected none with pretrained=False")

    def kernels(self) -> list[tuple[int, ...] | None]:
        """Those of `kernel_sizes`, or None once."""
        allowed = (1, LARGEST_KERNEL)
        return [parse_numbers("--kernel-sizes", text, within=allowed) for text in self.kernel_sizes or ()] or [None]

    def given(self) -> dict[str, Any]:
        """What differs from the defaults."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value != getattr(type(self), name)}

    def checkpoints(self, specs: Sequence[str]) -> list[Path | None]:
        """The weight file of each of these networks.

        A file without a name is that of the RepLKNets by name, or of the only network that takes one.

        Raises:
            ValueError: If a name is that of no network or of two, or two files are given to one.
        """
        named = [split_name(spec) for spec in specs]
        found: list[Path | None] = [None] * len(specs)
        for text in self.checkpoint or ():
            name, path = self._owner(text, named)
            if name:
                own = [number for number, names in enumerate(named) if name in names]
            else:
                own = [number for number, (_, spec) in enumerate(named) if is_own(spec)]
                own = own or [number for number, (_, spec) in enumerate(named) if not has_weights(spec)]
                if not own:
                    raise ValueError(f"checkpoint={text}: applies to networks by name only; none was named")
                if len(own) > 1 and not is_own(named[own[0]][1]):
                    raise ValueError(f"checkpoint={text!r}: expected NAME=FILE, as several networks are named")
            for number in own:
                if found[number] is not None:
                    raise ValueError(f"checkpoint={text!r}: {specs[number]} has another weight file already")
                found[number] = Path(path)
        return found

    @staticmethod
    def _owner(text: str, named: Sequence[tuple[str, str]]) -> tuple[str, str]:
        """The name of a network, empty for none, and the file that it is given."""
        for name in (name for names in named for name in names if name and text.startswith(f"{name}=")):
            path = text.removeprefix(f"{name}=")
            if not Path(text).exists():
                return name, path
            if Path(path).exists():
                raise ValueError(f"checkpoint={text!r}: may be that file, or {path!r} for {name}; rename it")
        if "=" in text and not Path(text).exists():
            known = ", ".join(name or spec for name, spec in named)
            raise ValueError(
                f"checkpoint={text!r}: no such file, and no network is called {text.partition('=')[0]!r}; expected "
                f"NAME=FILE with one of {known}"
            )
        return "", text

    def load(self, specs: Sequence[str], *, untrained: bool = False) -> list[LoadedModel]:
        """The networks of these names, one of replknet once for each of the kernel sizes.

        Args:
            specs: The names.
            untrained: Add an untrained copy of each that is trained.

        Raises:
            ValueError: If one cannot be had, an option applies to none, or two have one name.
        """
        checkpoints = self.checkpoints(specs)
        given, bare = zip(*map(split_name, specs), strict=True)
        if not any(map(is_own, bare)):
            for name in ("kernel_sizes", "small_kernel"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name}={getattr(self, name)}: applies to networks of replknet by name only; none was named"
                    )
        if not self.pretrained and not any(is_own(spec) or names_library(spec) for spec in bare):
            raise ValueError("pretrained=False: applies to networks by name only; none was named")
        loaded: list[LoadedModel] = []
        typed: list[str] = []
        for own, spec, checkpoint in zip(given, bare, checkpoints, strict=True):
            ours = is_own(spec)
            for sizes in self.kernels() if ours else [None]:
                item = self._placed(
                    load_model(
                        spec,
                        checkpoint=checkpoint,
                        kernel_sizes=sizes,
                        small_kernel=self.small_kernel if ours else None,
                        pretrained=self.pretrained or not (ours or names_library(spec)),
                        trust=self.trust,
                        seed=self.seed,
                    )
                )
                if own:
                    several = f" {'-'.join(map(str, sizes))}" if sizes is not None and len(self.kernels()) > 1 else ""
                    item = replace(item, name=f"{own}{several}")
                loaded.append(item)
                typed.append("" if own else spec)
        if self.unit_scales and not any(item.initial for item in loaded) and not untrained:
            raise ValueError("unit_scales=True: applies to untrained networks only; there is none")
        names = distinct([item.name for item in loaded], typed, LIBRARIES)
        if len(set(names)) < len(names):
            raise ValueError(f"model: {', '.join(names)} are not all different; NAME=SPEC gives a network another name")
        loaded = [replace(item, name=name) for item, name in zip(loaded, names, strict=True)]
        if untrained:
            pairs = [[item, *([] if item.initial else [untrained_copy(item, seed=self.seed)])] for item in loaded]
            loaded = [item for pair in pairs for item in pair]
        return [replace(loaded[0], notes=(*self.device_notes(), *loaded[0].notes)), *loaded[1:]]

    def on_images(self, loaded: LoadedModel, images: Images, size: int | None = None) -> LoadedModel:
        """As it is measured: a network that is not trained with its batch norms calibrated on these images."""
        if not loaded.initial:
            return loaded
        made = calibrated(loaded, images, size=size, unit_scales=self.unit_scales)
        return replace(made, notes=tuple(note.replace("unit_scales=True", "--unit-scales") for note in made.notes))

    def _placed(self, loaded: LoadedModel) -> LoadedModel:
        """As it is, or where and as what the options say."""
        return loaded.to(self.device, self.dtype) if self.computed_on() else loaded

    def computed_on(self) -> dict[str, str]:
        """What a run's settings say of device and dtype: what is not the default."""
        device = resolve_device(self.device).type if self.device == "auto" else self.device
        chosen = {"device": device, "dtype": self.dtype}
        return {key: value for key, value in chosen.items() if value not in ("cpu", "float32")}

    def device_notes(self) -> list[str]:
        """What to tell of a device that was not named."""
        told = ", ".join(describe_device(resolve_device(self.device)).values())
        return [f"computed on {told}"] if self.device == "auto" else []

    def workers(self, given: int | None) -> int:
        """Processes that prepare images: by default one for each core but one on a GPU, none on a CPU, which is busy
        with the network.
        """
        if given is not None:
            return given
        if resolve_device(self.device).type != "cuda":
            return 0
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return default_workers(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def default_workers(cores: int) -> int:
    """Processes that feed one GPU, where its own process has so many cores."""
    return max(0, min(_MOST_WORKERS, cores - 1))


MODEL_HELP = (
    "replknet_31b and siblings, replknet_31b.in1k_224 and other published weights (replknet models), timm:NAME, "
    "torchvision:NAME, hf:NAME, package.module:callable, a file (weights, TorchScript or an exported program, with "
    "--trust), or the folder of a training; NAME=... calls it so."
)
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
        f"each core but one, at most {_MOST_WORKERS}.",
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
Labels = Annotated[Path | None, typer.Option(help="CSV with class_index and category, for models with other classes.")]
