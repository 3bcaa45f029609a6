"""What was measured on one network, and the table of several."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from analysis.receptive_field.measures import THRESHOLDS
from analysis.receptive_field.result import ErfResult
from analysis.recognition.evaluation import EvaluationResult
from analysis.runs.results import Result, ResultError
from analysis.shape_bias.comparing import HumanReference, common_images, human_reference
from analysis.shape_bias.people import MeanConsistency, mean_consistency
from analysis.shape_bias.result import ShapeBiasResult
from analysis.study.measures import MEASURES, Measure

Ends = tuple[float, float]
_NOTHING = float("nan")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class NetworkResult(Result):
    """What was measured on one network that is trained already; None, and NaN, where there is no measurement."""

    KIND: ClassVar[str] = "compared network"

    name: str
    architecture: str
    """Name of the network's class: networks that share it are relatives."""
    input_size: int
    """Side in pixels of the image that costs are of."""
    settings: dict[str, Any]
    """By the name of a measurement all that it depends on: of two with the same, one is a repeat of the other."""
    environment: dict[str, str]
    missing: dict[str, str] = field(default_factory=dict)
    """By the name of a measurement why there is none."""
    parameters: float = _NOTHING
    """With the kernels merged, where the network is one of `replknet`; as the next."""
    macs: float = _NOTHING
    """Multiply-accumulates for one image."""
    inference_ms: float = _NOTHING
    """For one image alone, re-parameterised, median."""
    erf: ErfResult | None = None
    shape_bias: ShapeBiasResult | None = None
    evaluation: EvaluationResult | None = None

    def __post_init__(self) -> None:
        if self.input_size < 1:
            raise ResultError(f"input_size={self.input_size}: expected at least a pixel")
        for name in ("parameters", "macs", "inference_ms"):
            if getattr(self, name) < 0:
                raise ResultError(f"{name}={getattr(self, name)}: expected a number of at least 0, or NaN")

    def headline(self) -> dict[str, Any]:
        """Name, the two quantities that a comparison asks for, and the accuracy."""
        return {
            "name": self.name,
            "erf_area_0.5": self.erf.area_ratio(0.5) if self.erf else _NOTHING,
            "shape_bias": self.shape_bias.shape_bias if self.shape_bias else _NOTHING,
            "accuracy": self.evaluation.accuracy() if self.evaluation else _NOTHING,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Networks beside each other, and people.

    Args:
        networks: In the order in which they were given.
        people: On the images that all of them and the stimuli share; empty where there are none.
    """

    networks: tuple[NetworkResult, ...]
    people: tuple[ShapeBiasResult, ...] = ()

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row for each network: every measure with its interval, and what is missing."""
        return comparison_table(self.networks, self.people)

    @cached_property
    def reference(self) -> HumanReference | None:
        """What people do; None with fewer than two."""
        return human_reference(self.people) if len(self.people) > 1 else None

    def without(self, measurement: str) -> list[NetworkResult]:
        """The networks that lack a measurement."""
        return [network for network in self.networks if getattr(network, measurement) is None]


def people_on(stimuli: Iterable[str], people: Sequence[ShapeBiasResult]) -> tuple[ShapeBiasResult, ...]:
    """Several people on the images that all of them have seen and that are among the stimuli.

    Raises:
        ValueError: If there is none.
    """
    if not people:
        return ()
    shown = set(stimuli)
    everyone = common_images(people)
    names = [name for name in everyone[0].stimuli if name in shown]
    if not names:
        raise ValueError(f"people: {', '.join(person.observer for person in people)} have seen none of the stimuli")
    return tuple(person.restricted(names) for person in everyone)


@dataclass(frozen=True, eq=False)
class _Seen:
    """A network and what people answered, of which the measures are."""

    network: NetworkResult
    people: Sequence[ShapeBiasResult]

    @cached_property
    def consistency(self) -> MeanConsistency | None:
        network = self.network.shape_bias
        return mean_consistency(network, self.people) if network is not None and self.people else None

    def of(self, part: str, take: Callable[[Any], Any]) -> Any:
        """Something of a measurement, None where there is no such measurement."""
        found = getattr(self if part in ("network", "consistency") else self.network, part)
        return None if found is None else take(found)


def _measure(
    name: str, part: str, take: Callable[[Any], Any], like: str = "", heading: str = "", **options: Any
) -> Measure:
    """Of a measurement; with the words and the scale of one of a study where it is the same."""
    if like:
        known = MEASURES[like]
        options = {
            "label": known.label,
            "scale": known.scale,
            "limits": known.limits,
            "possible": known.possible,
            **options,
        }
        options["typical"] = known.typical
    return Measure(
        name, lambda seen: seen.of(part, take), heading or (MEASURES[like].heading if like else ""), **options
    )


def _with_ends(measure: Measure, part: str, ends: Callable[[Any], Ends]) -> list[Measure]:
    """A measure and, as two columns of the table alone, its 95 % interval."""
    return [
        measure,
        *(
            _measure(f"{measure.name}_{end}", part, lambda found, index=index: ends(found)[index])  # type: ignore[misc]
            for index, end in enumerate(("low", "high"))
        ),
    ]


def _area(threshold: float) -> list[Measure]:
    name = f"erf_area_{threshold}"
    measure = _measure(
        name,
        "erf",
        lambda erf: erf.area_ratio(threshold),
        heading=f"ERF {100 * threshold:g} % area (%)",
        label=MEASURES["erf_area_0.5"].label if threshold == 0.5 else "",
        scale=100,
        possible=MEASURES["erf_area_0.5"].possible,
    )
    return _with_ends(measure, "erf", lambda erf: erf.area_ratio_interval(threshold))


_ALL = (
    *(measure for threshold in THRESHOLDS for measure in _area(threshold)),
    _measure("erf_rms_radius", "erf", lambda erf: erf.rms_radius()),
    _measure("erf_images", "erf", lambda erf: len(erf.images)),
    *_with_ends(
        _measure("shape_bias", "shape_bias", lambda bias: bias.shape_bias, "shape_bias"),
        "shape_bias",
        lambda bias: bias.confidence_interval(),
    ),
    _measure("coverage", "shape_bias", lambda bias: bias.coverage, "coverage"),
    _measure("num_shape", "shape_bias", lambda bias: bias.num_shape),
    _measure("num_texture", "shape_bias", lambda bias: bias.num_texture),
    _measure("num_neither", "shape_bias", lambda bias: bias.num_neither),
    _measure("congruent_accuracy", "shape_bias", lambda bias: bias.congruent_accuracy),
    *_with_ends(
        _measure(
            "consistency",
            "consistency",
            lambda found: found.kappa,
            heading="error consistency with people",
            limits=(None, 1),
            possible=(-1.0, 1.0),
        ),
        "consistency",
        lambda found: (found.low, found.high),
    ),
    _measure("people", "consistency", lambda found: found.num_people),
    *_with_ends(
        _measure("accuracy", "evaluation", lambda found: found.accuracy(), "accuracy"),
        "evaluation",
        lambda found: found.interval(),
    ),
    _measure("top5_accuracy", "evaluation", lambda found: found.accuracy(5) if 5 in found.tops else _NOTHING),
    _measure("accuracy_images", "evaluation", lambda found: len(found.images)),
    _measure(
        "parameters", "network", lambda network: network.parameters, heading="million parameters", scale=1e-6,
        typical=lambda value: f"{value / 1e6:.2f}" if value >= 1e5 else f"{value / 1e6:.2g}",
    ),
    _measure(
        "macs", "network", lambda network: network.macs, heading="GMAC", scale=1e-9,
        typical=lambda value: f"{value / 1e9:.2f}" if value >= 1e8 else f"{value / 1e9:.2g}",
    ),
    _measure("inference_ms", "network", lambda network: network.inference_ms, "inference_ms"),
)  # fmt: skip
COMPARED: dict[str, Measure] = {measure.name: measure for measure in _ALL}
"""By name, in the order of the columns of `compare.csv`."""
REPORTED = (
    *(f"erf_area_{threshold}" for threshold in THRESHOLDS),
    "shape_bias", "coverage", "consistency", "accuracy", "parameters", "macs", "inference_ms",
)  # fmt: skip
"""Columns of the table of the report, in order."""
BRIEF = ("erf_area_0.5", "erf_area_0.99", "shape_bias", "coverage", "consistency", "accuracy", "parameters", "macs")
"""Columns of the table in the terminal."""


def comparison_table(networks: Sequence[NetworkResult], people: Sequence[ShapeBiasResult] = ()) -> pd.DataFrame:
    """One row for each network, in their order; a measure without its measurement is empty."""
    rows = []
    for network in networks:
        seen = _Seen(network, people)
        row: dict[str, Any] = {
            "network": network.name,
            "architecture": network.architecture,
            "input_size": network.input_size,
        }
        row |= {name: measure.of(seen) for name, measure in COMPARED.items()}
        row["missing"] = "; ".join(f"{name}: {why}" for name, why in network.missing.items())
        rows.append({name: np.nan if value is None else value for name, value in row.items()})
    return pd.DataFrame(rows)
