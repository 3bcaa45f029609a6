"""Measure networks that are trained already, all alike."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from torch import nn

import replknet
from analysis.images.sets import ImageSet
from analysis.images.stimuli import StimulusSet
from analysis.models.complexity import inference_ms, num_macs, num_parameters
from analysis.models.loaded import DEFAULT_SIZE, LoadedModel, place_of
from analysis.models.loading import as_loaded
from analysis.receptive_field.measuring import effective_receptive_field
from analysis.recognition.evaluation import check_files, evaluate, num_outputs
from analysis.recognition.labels import LabelledFiles, labelled_files, numbered
from analysis.recognition.prediction import class_names
from analysis.runs.folder import folder_names
from analysis.runs.identity import NetworkIdentity, describe_environment, identify
from analysis.runs.results import ResultError
from analysis.runs.settings import named_path
from analysis.runs.texts import few
from analysis.runs.writing import clear_leftovers, plain, remove
from analysis.shape_bias.categories import LabelMapping
from analysis.shape_bias.mapping import own_mapping
from analysis.shape_bias.measuring import check_model, evaluate_shape_bias, preprocessing_of
from analysis.shape_bias.result import ShapeBiasResult
from analysis.study.compared.result import Comparison, NetworkResult, people_on

Progress = Callable[[int, int, str], None]
_FOLDERS = ("erf", "shape_bias", "evaluation")
NETWORKS = "networks"
"""Folder, in that of a comparison, with one for each network."""
NOT_GIVEN = {"shape_bias": "no stimuli were given", "evaluation": "no labelled images were given"}


def compare_networks(
    models: Sequence[LoadedModel | nn.Module | str],
    directory: str | PathLike[str],
    *,
    images: ImageSet,
    stimuli: StimulusSet | None = None,
    people: Sequence[ShapeBiasResult] = (),
    data: str | PathLike[str] | None = None,
    mapping: LabelMapping | Mapping[str, LabelMapping] | None = None,
    batch_size: int = 16,
    erf_batch_size: int | None = None,
    num_workers: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Receptive field, shape bias, agreement with people, accuracy and cost of networks that are trained already.

    A measurement that cannot be made, as the shape bias of a network that does not name the categories of the stimuli,
    is missing with its reason; the others are made. Finished ones are read from `directory`, interrupted ones go on.

    Args:
        models: What `load_model` returns or takes, or any modules; of different names.
        directory: Gets `networks/`, with a folder for each.
        images: For receptive fields (`load_images`); all networks at their size.
        stimuli: For the shape bias.
        people: Raw responses of people to these stimuli, as `read_observers` gives them.
        data: Image folder for the accuracy, see `labelled_files`.
        mapping: From outputs to categories, of all networks or of some by their names; by default each network's own:
            ImageNet's, or that of the classes it names. It names the classes of a network that does not, too.
        batch_size: Images in one forward pass.
        erf_batch_size: See `effective_receptive_field`.
        num_workers: Processes that read images; without effect on the results.
        overwrite: Replace measurements of a network of the same name, but with other weights or on other images.
        progress: Called with the images done, their number, and what is at work.

    Raises:
        ValueError: If two networks share a name, one is not trained, a folder holds measurements of something else and
            `overwrite` is false, the people have seen none of the stimuli, or no measurement of any network was
            possible.
        FileNotFoundError: If `data` does not exist.
    """
    loaded = [as_loaded(model) for model in models]
    shown = check_comparable(loaded, stimuli=stimuli, people=people, data=data)
    run = _Run(images, stimuli, data, mapping, batch_size, erf_batch_size, num_workers, progress)
    root = Path(directory) / NETWORKS
    planned = [
        _Network.planned(item, root / folder, run, overwrite)
        for item, folder in zip(loaded, folder_names([item.name for item in loaded]), strict=True)
    ]
    results = tuple(network.measured(run) for network in planned)
    if all(set(network.missing) >= {"erf", "shape_bias", "evaluation"} for network in results):
        raise ValueError(f"model: nothing could be measured; {results[0].name}: {results[0].missing['erf']}")
    return Comparison(networks=results, people=shown)


def check_comparable(
    loaded: Sequence[LoadedModel],
    *,
    stimuli: StimulusSet | None = None,
    people: Sequence[ShapeBiasResult] = (),
    data: str | PathLike[str] | None = None,
) -> tuple[ShapeBiasResult, ...]:
    """Refuse what `compare_networks` would; returns the people on the images that all of them and the stimuli share."""
    names = [item.name for item in loaded]
    if not loaded or len(set(names)) < len(names):
        raise ValueError(f"model: expected one or more networks of different names, not {', '.join(names) or 'none'}")
    for item in loaded:
        if item.initial:
            raise ValueError(f"model: {item.name} is not trained ({item.initial}); expected trained networks")
    if people and stimuli is None:
        raise ValueError("people: go with stimuli only; there are none")
    if data is not None and not named_path(data, "data").is_dir():
        raise FileNotFoundError(f"data={str(data)!r}: no such folder")
    return () if stimuli is None else people_on(stimuli.names, people)


@dataclass(frozen=True)
class _Run:
    """What all networks are measured on, and how."""

    images: ImageSet
    stimuli: StimulusSet | None
    data: str | PathLike[str] | None
    mapping: LabelMapping | Mapping[str, LabelMapping] | None
    batch_size: int
    erf_batch_size: int | None
    num_workers: int
    progress: Progress | None

    def mapping_of(self, network: LoadedModel) -> LabelMapping:
        """Which outputs are which categories.

        Raises:
            ValueError: If one name stands for several outputs.
        """
        given = self.mapping.get(network.name) if isinstance(self.mapping, Mapping) else self.mapping
        return given or own_mapping([network])

    def classes_of(self, network: LoadedModel) -> tuple[str, ...]:
        """Names of the outputs: where the network has none, those that a mapping for it gives."""
        number = num_outputs(network)
        names = class_names(network, number)
        if names != numbered(number) or self.mapping is None:
            return names
        known = {own[0]: category for category, own in self.mapping_of(network).indices if len(own) == 1}
        return tuple(known.get(index, name) for index, name in enumerate(names))

    def told(self, what: str) -> Callable[[int, int], None] | None:
        """For the progress of one measurement."""
        progress = self.progress
        return None if progress is None else lambda done, total: progress(done, total, what)


@dataclass
class _Network:
    """A network with what is known of it so far."""

    loaded: LoadedModel
    folder: Path
    identity: NetworkIdentity
    found: NetworkResult
    mapping: LabelMapping | None = None
    files: LabelledFiles | None = None
    missing: dict[str, str] = field(default_factory=dict)
    stored: NetworkResult | None = None
    """As it lies in the folder."""

    @classmethod
    def planned(cls, loaded: LoadedModel, folder: Path, run: _Run, overwrite: bool) -> "_Network":
        """What is to be measured, and what lies in the folder of it; nothing is written or removed without need.

        Raises:
            ValueError: If the folder holds other measurements and `overwrite` is false.
        """
        identity = identify(loaded.module)
        size = loaded.input_size or DEFAULT_SIZE
        environment = describe_environment(place_of(loaded.module))
        new = NetworkResult(
            name=loaded.name,
            architecture=loaded.architecture,
            input_size=size,
            settings={},
            environment=environment,
        )
        planned = cls(loaded, folder, identity, new)
        common = {
            "weights": identity.weights,
            "code": identity.code,
            "preprocessing": preprocessing_of(loaded),
            "device": environment["device"],
            "dtype": environment["dtype"],
        }
        wanted: dict[str, Any] = {
            "cost": {"size": size},
            "erf": {"images": _hash(*run.images.hashes), "size": run.images.size},
        }
        if run.stimuli is not None:
            planned.attempt("shape_bias", lambda: planned.choose_mapping(run))
            indices = None if planned.mapping is None else planned.mapping.indices
            wanted["shape_bias"] = {"stimuli": _hash(*run.stimuli.names, *run.stimuli.hashes), "labels": indices}
        if run.data is not None:
            planned.attempt("evaluation", lambda: planned.choose_files(run))
            files = planned.files
            wanted["evaluation"] = {
                "images": files.fingerprint if files else None,
                "classes": [files.rule, *files.classes] if files else None,
                # A function of one's own is known by its name: where it lies in memory differs in each run.
                "preparation": re.sub(r" at 0x[0-9a-f]+", "", str(loaded.preparation())),
            }
        settings = plain({name: common | own for name, own in wanted.items()})
        planned.found = planned.kept(replace(new, settings=settings), overwrite)
        planned.missing |= {name: why for name, why in NOT_GIVEN.items() if name not in wanted}
        return planned

    def choose_mapping(self, run: _Run) -> None:
        """Decide which outputs are which categories.

        Raises:
            ValueError: If the network cannot answer the stimuli.
        """
        stimuli = run.stimuli
        if stimuli is None:
            return
        mapping = run.mapping_of(self.loaded)
        if not self.loaded.classes:
            mapping.check_outputs(num_outputs(self.loaded), self.loaded.name)
        lacking = sorted({*stimuli.shapes, *stimuli.textures} - {*mapping.categories, ""})
        if lacking:
            known = sorted({*stimuli.shapes}.intersection(mapping.categories) - {""})
            way = f"; a folder with those of {few(known)} alone can be answered" if len(known) > 1 else ""
            raise ValueError(
                f"the classes are {few(mapping.categories)}; the stimuli also show others, {few(lacking)}{way}"
            )
        check_model(self.loaded, stimuli, mapping, preprocessing_of(self.loaded))
        self.mapping = mapping

    def choose_files(self, run: _Run) -> None:
        """Find the images that the network is to name.

        Raises:
            ValueError: If its classes are others, or it is no classifier.
        """
        files = labelled_files(run.data or "", run.classes_of(self.loaded))
        check_files(self.loaded, files)
        self.files = files

    def kept(self, new: NetworkResult, overwrite: bool) -> NetworkResult:
        """The new result with those saved measurements that are the same; others are removed where that is allowed.

        Raises:
            ValueError: If it is not.
        """
        clear_leftovers(self.folder)
        saved: NetworkResult | None = None
        with suppress(OSError, ResultError):
            saved = NetworkResult.load(self.folder)
        known = {} if saved is None else saved.settings
        same = [name for name in new.settings if known.get(name) == new.settings[name]]
        changed = [name for name in known if name not in same]
        if changed and not overwrite:
            old, now = known[changed[0]], new.settings.get(changed[0], {})
            differing = [key for key in {**old, **now} if old.get(key) != now.get(key)]
            raise ValueError(
                f"out={str(self.folder)!r}: holds another measurement ({changed[0].replace('_', ' ')}), which differs "
                f"in {', '.join(differing)}; choose another folder, or overwrite=True replaces it"
            )
        for name in _FOLDERS:
            if saved is None or name not in same:
                remove(self.folder / name)
        if saved is None:
            return new
        self.stored = saved
        kept: dict[str, Any] = {name: getattr(saved, name) for name in _FOLDERS if name in same}
        if "cost" in same:
            kept |= {name: getattr(saved, name) for name in ("parameters", "macs", "inference_ms")}
        return replace(new, **kept)

    def measured(self, run: _Run) -> NetworkResult:
        """Everything that can be measured; each measurement is saved when it is done."""
        works: dict[str, Callable[[], dict[str, Any]]] = {
            "cost": self._cost,
            "erf": lambda: {"erf": self._erf(run)},
            "shape_bias": lambda: {"shape_bias": self._shape_bias(run)},
            "evaluation": lambda: {"evaluation": self._evaluation(run)},
        }
        for name, work in works.items():
            done = getattr(self.found, "macs" if name == "cost" else name)
            if name in self.missing or not (done is None or done != done):
                continue
            self.attempt(name, lambda work=work: self._add(**work()))  # type: ignore[misc]
        self.found = replace(self.found, missing=self.missing)
        stored = self.stored
        if stored is None or (stored.settings, stored.missing) != (self.found.settings, self.found.missing):
            self._save()
        return self.found

    def _add(self, **values: Any) -> None:
        self.found = replace(self.found, **values)
        self._save()

    def _save(self) -> None:
        self.found.save(self.folder, overwrite=True)
        self.stored = self.found

    def attempt(self, measurement: str, work: Callable[[], None]) -> None:
        """Do something for a measurement; if it fails, the reason says so and the others go on."""
        try:
            work()
        except OSError:  # of the disk, not of the network
            raise
        except Exception as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            self.missing[measurement] = f"{kind}{' '.join(str(error).split())}"

    def _cost(self) -> dict[str, float]:
        size = self.found.input_size
        merged = _merged(self.loaded, "kernels")
        return {
            "parameters": float(num_parameters(merged)),
            "macs": float(num_macs(merged, (size, size))),
            "inference_ms": inference_ms(_merged(self.loaded), size),
        }

    def _erf(self, run: _Run) -> Any:
        return effective_receptive_field(
            _merged(self.loaded),  # the same map in less time
            run.images,
            batch_size=run.erf_batch_size,
            num_workers=run.num_workers,
            partial=self.folder / "erf.partial.npz",
            progress=run.told(f"{self.loaded.name}, receptive field"),
        )

    def _shape_bias(self, run: _Run) -> Any:
        if run.stimuli is None or self.mapping is None:
            raise ValueError(NOT_GIVEN["shape_bias"])
        return evaluate_shape_bias(
            self.loaded,
            run.stimuli,
            mapping=self.mapping,
            batch_size=run.batch_size,
            num_workers=run.num_workers,
            identity=self.identity,
            partial=self.folder / "shape_bias.partial.npz",
            progress=run.told(f"{self.loaded.name}, shape bias"),
        )

    def _evaluation(self, run: _Run) -> Any:
        if self.files is None:
            raise ValueError(NOT_GIVEN["evaluation"])
        return evaluate(
            self.loaded,
            self.files,
            batch_size=run.batch_size,
            num_workers=run.num_workers,
            identity=self.identity,
            partial=self.folder / "evaluation.partial.npz",
            progress=run.told(f"{self.loaded.name}, accuracy"),
        )


def _merged(loaded: LoadedModel, level: Literal["kernels", "full"] = "full") -> LoadedModel:
    """A network of `replknet` with its kernels, or with all that can be, merged; any other network as it is."""
    if not isinstance(loaded.module, replknet.Network):
        return loaded
    return replace(loaded, module=replknet.reparameterize(loaded.module, level=level))


def _hash(*texts: str) -> str:
    return hashlib.sha256(" ".join(texts).encode()).hexdigest()
