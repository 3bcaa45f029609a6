"""Options of commands that say which networks are meant, and which of their layers."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis.cli.console import told_if_slow
from analysis.cli.options import MOST_WORKERS, parse_names, parse_numbers
from analysis.images.inputs import Images
from analysis.models.layouts import LAST
from analysis.models.libraries import LIBRARIES, names_library
from analysis.models.loaded import LoadedModel, resolve_device
from analysis.models.loading import has_weights, load_model
from analysis.models.replknets import is_own
from analysis.models.specs import distinct, split_name
from analysis.models.untrained import UNTRAINED, calibrated, signs_of_no_training, untrained_copy
from analysis.runs.identity import describe_device
from analysis.runs.settings import LARGEST_KERNEL, SEEDS, check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which network, with which weights, and where it computes.

    Args:
        checkpoint: Weight file of a network by name or of your own function; NAME=FILE where several are named.
        kernel_sizes: Kernels of a network of replknet, one a stage, e.g. 31,29,27,13; may be given several times.
        small_kernel: Parallel kernel of such a network; 0 for none.
        pretrained: Published weights, where no file is given; otherwise the network's own initialisation, its batch
            norms calibrated on the images.
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
            name, path = _owner("checkpoint", text, named)
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
        published = [is_own(spec) or names_library(spec) for spec in bare]
        if not self.pretrained and not any(published):
            raise ValueError("pretrained=False: applies to networks by name only; none was named")
        if not self.pretrained and not any(
            by_name and file is None for by_name, file in zip(published, checkpoints, strict=True)
        ):
            raise ValueError(f"checkpoint={', '.join(self.checkpoint or ())}: expected none with pretrained=False")
        loaded: list[LoadedModel] = []
        typed: list[str] = []
        for own, spec, checkpoint, by_name in zip(given, bare, checkpoints, published, strict=True):
            ours = is_own(spec)
            for sizes in self.kernels() if ours else [None]:
                fetches = by_name and self.pretrained and checkpoint is None
                what = "; weights that are not kept here yet are fetched" if fetches else ""
                with told_if_slow(f"{spec}: still loading{what}"), self._whose(checkpoint, spec, specs):
                    item = load_model(
                        spec,
                        checkpoint=checkpoint,
                        kernel_sizes=sizes,
                        small_kernel=self.small_kernel if ours else None,
                        pretrained=self.pretrained or checkpoint is not None or not by_name,
                        trust=self.trust,
                        seed=self.seed,
                    )
                item = self._placed(item)
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

    @contextmanager
    def _whose(self, checkpoint: Path | None, spec: str, specs: Sequence[str]) -> Iterator[None]:
        """Say of a file that was given without a name, and does not fit, on which network it was tried."""
        try:
            yield
        except ValueError as error:
            if len(specs) < 2 or str(checkpoint) not in (self.checkpoint or ()):
                raise
            raise ValueError(f"{error}; it was tried on {spec}: NAME={checkpoint} gives it to another") from error

    def on_images(self, loaded: LoadedModel, images: Images, size: int | None = None) -> LoadedModel:
        """As it is measured: a network that is not trained with its batch norms calibrated on these images."""
        if not loaded.initial:
            return replace(loaded, notes=(*loaded.notes, *signs_of_no_training(loaded)))
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
    return max(0, min(MOST_WORKERS, cores - 1))


def _owner(option: str, text: str, owners: Sequence[Sequence[str]]) -> tuple[str, str]:
    """Of NAME=... the name of a network, empty for none, and what it is given; `owners` has the names of each."""
    known = [name for names in owners for name in names if name]
    name = max((name for name in known if text.startswith(f"{name}=")), key=len, default="")
    value = text.removeprefix(f"{name}=") if name else text
    if "=" not in text:
        return "", text
    if Path(text).exists():
        if name and Path(value).exists():
            raise ValueError(f"{option}={text!r}: may be that file, or {value!r} for {name}; rename it")
        return "", text
    if not name:
        firsts = dict.fromkeys(next(filter(None, names)) for names in owners if any(names))
        raise ValueError(
            f"{option}={text!r}: no network is called {text.partition('=')[0]!r}; expected the value alone"
            + (f", or NAME=... with one of {', '.join(firsts)}" if firsts else "")
        )
    return name, value


def owned(option: str, texts: Sequence[str] | None, loaded: Sequence[LoadedModel]) -> list[str | None]:
    """Of an option that may be given several times, what each network has: by NAME=..., or what is for all others.

    Args:
        option: For messages.
        texts: As typed.
        loaded: The networks, called by their names or as they were typed; an untrained copy has what its original has.
            Without one, the only element of the result is what is for all.

    Raises:
        ValueError: If a name is that of none, or one has two.
    """
    owners = [(item.name.removesuffix(UNTRAINED), item.source.partition(", ")[0]) for item in loaded]
    found: dict[int | None, str] = {}
    for text in texts or ():
        owner, value = _owner(option, text, owners)
        for number in [number for number, own in enumerate(owners) if owner in own] if owner else [None]:
            if number in found:
                raise ValueError(f"{option}={text!r}: {owner or 'all networks'} have another one already")
            found[number] = value
    return [found.get(number, found.get(None)) for number in range(max(1, len(owners)))]


def layers_of(texts: Sequence[str] | None, loaded: Sequence[LoadedModel]) -> list[tuple[str, ...] | None]:
    """Names of layers for each network (`owned`), `LAST` where `LAST_HELP` says so; None where none is given."""
    found = owned("--layers", texts, loaded)
    return [
        None if text is None else tuple(_layer(name, item) for name in parse_names("--layers", text))
        for text, item in zip(found, loaded, strict=True)
    ]


def _layer(name: str, loaded: LoadedModel) -> str:
    return LAST if name == "last" and name not in dict(loaded.module.named_modules()) else name


LAST_HELP = "'last' is the last feature map, unless a layer is called so."
MODEL_HELP = (
    "replknet_31b and siblings, replknet_31b.in1k_224 and other published weights (replknet models), timm:NAME, "
    "torchvision:NAME, hf:NAME, package.module:callable, a file (weights, TorchScript or an exported program, with "
    "--trust), or the folder of a training; NAME=... calls it so."
)
