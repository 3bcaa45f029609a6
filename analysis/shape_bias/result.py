"""Shape bias: whether an observer names the shape or the texture of cue-conflict images, with intervals."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.runs.results import Result, ResultError
from analysis.runs.settings import check_fields
from analysis.shape_bias.categories import (
    NO_RESPONSE,
    Aggregation,
    LabelMapping,
    Tie,
    select_categories,
)
from analysis.shape_bias.ranks import FloatArray, first_ranks
from analysis.statistics import cluster_weights, percentile_interval

Estimator = Literal["pooled", "category-mean", "category-median"]
Congruent = Literal["exclude", "include"]
Cluster = Literal["image", "shape", "texture", "two-way"]
CLUSTERS: tuple[Cluster, ...] = ("image", "shape", "texture", "two-way")
LOW_CONGRUENT_ACCURACY = 0.5
"""Below it an observer names even images without conflict badly, and its shape bias means little."""


@dataclass(frozen=True, kw_only=True)
class ShapeBiasOptions:
    """Every choice between saved logits and the number.

    Args:
        aggregation: How class outputs become category scores (`LabelMapping.scores`); without effect on observers
            without logits.
        tie: "first" takes the first of equal categories in alphabetical order, "none" counts a tie as no response.
        estimator: "pooled" over all images, or the mean or median of the ratios of the shape categories.
        congruent: "exclude" leaves images with shape == texture out of every count; "include" counts their correct
            answers as shape decisions.
    """

    aggregation: Aggregation = "mean-probability"
    tie: Tie = "first"
    estimator: Estimator = "pooled"
    congruent: Congruent = "exclude"

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ShapeBiasResult(Result):
    """The responses of one observer, a network or a person, to stimuli with a shape and a texture.

    Tuples and arrays are parallel: one entry for each stimulus.
    """

    KIND: ClassVar[str] = "shape bias"
    PLOTS: ClassVar[Mapping[str, str]] = {
        "shape-bias": "analysis.shape_bias.plots:plot_shape_bias",
        "categories": "analysis.shape_bias.plots:plot_category_box",
        "pairs": "analysis.shape_bias.plots:plot_pair_map",
        "confusion": "analysis.shape_bias.plots:plot_confusion",
    }

    observer: str
    stimuli: tuple[str, ...]
    """File names."""
    shapes: tuple[str, ...]
    """Shape category of each stimulus; empty for stimuli that show a texture alone."""
    textures: tuple[str, ...]
    """Texture category; empty for stimuli without one (edges, silhouettes)."""
    shape_exemplars: tuple[str, ...]
    """The object whose shape it shows, such as "cat7"."""
    texture_exemplars: tuple[str, ...]
    responses: tuple[str, ...]
    """Category named by the observer, "na" for none."""
    categories: tuple[str, ...]
    """What the observer could choose from, in alphabetical order."""
    options: ShapeBiasOptions = field(default_factory=ShapeBiasOptions)
    logits: NDArray[np.float32] | None = None
    """Shape (N, classes); None for an observer of whom only responses are known."""
    mapping: LabelMapping | None = None
    image_hashes: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    source: str = ""
    preprocessing: dict[str, Any] = field(default_factory=dict)
    weights_hash: str = ""
    fingerprint: str = ""
    """Of weights, preprocessing and stimuli: two results that share it share their logits."""
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parallel = (self.shapes, self.textures, self.shape_exemplars, self.texture_exemplars, self.responses)
        if {len(values) for values in parallel} != {len(self.stimuli)}:
            raise ResultError(f"{len(self.stimuli)} stimuli of {self.observer}: the other columns have another length")
        if len(set(self.stimuli)) < len(self.stimuli) or len(self.image_hashes) not in (0, len(self.stimuli)):
            raise ResultError(f"stimuli of {self.observer}: one is there twice, or their hashes differ in number")
        if self.mapping is not None and self.mapping.categories != self.categories:
            raise ResultError(f"categories={', '.join(self.categories)}: those of the mapping are others")
        if self.logits is not None:
            if self.logits.ndim != 2 or len(self.logits) != len(self.stimuli):
                raise ResultError(f"logits of shape {self.logits.shape} for {len(self.stimuli)} stimuli")
            if not np.isfinite(self.logits).all():
                raise ResultError(f"logits of {self.observer}: some are not finite")
            if self.mapping is not None:
                self.mapping.check_outputs(self.logits.shape[1])
            self.logits.flags.writeable = False

    def headline(self) -> dict[str, Any]:
        """Observer, shape bias, the counts behind it, and how it was decided."""
        counts = f"S {self.num_shape}, T {self.num_texture}, neither {self.num_neither}"
        return {
            "observer": self.observer,
            "shape_bias": self.shape_bias,
            "counts": counts,
            "coverage": self.coverage,
            "options": f"{self.options.aggregation}, {self.options.estimator}, congruent {self.options.congruent}d",
        }

    # What was decided -------------------------------------------------------------------------------------------

    @cached_property
    def columns(self) -> dict[str, NDArray[np.bool_]]:
        """Per stimulus: whether it counts, and whether it was answered with its shape or its texture."""
        shapes, textures, responses = (np.array(v, dtype=str) for v in (self.shapes, self.textures, self.responses))
        both = (shapes != "") & (textures != "")
        conflict = both & (shapes != textures)
        counted = conflict if self.options.congruent == "exclude" else both
        return {
            "conflict": conflict,
            "counted": counted,
            "congruent": both & ~conflict,
            "correct": responses == shapes,
            "shape": counted & (responses == shapes),
            "texture": counted & conflict & (responses == textures),
        }

    @property
    def num_images(self) -> int:
        """Images that count in the ratio: those with a conflict, unless congruent ones are included."""
        return int(self.columns["counted"].sum())

    @property
    def num_shape(self) -> int:
        """Of these, answered with the shape."""
        return int(self.columns["shape"].sum())

    @property
    def num_texture(self) -> int:
        """Of these, answered with the texture."""
        return int(self.columns["texture"].sum())

    @property
    def num_neither(self) -> int:
        """Of these, answered with neither, or not at all."""
        return self.num_images - self.num_shape - self.num_texture

    @property
    def coverage(self) -> float:
        """(S + T) / n: the part of the images that the ratio rests on; NaN without images."""
        return (self.num_shape + self.num_texture) / self.num_images if self.num_images else float("nan")

    @property
    def shape_bias(self) -> float:
        """S / (S + T) by the estimator of `options`; NaN where no image was answered with its shape or texture.

        References:
            Geirhos et al. 2019, arXiv:1811.12231.
        """
        return float(self.estimate(np.ones((1, len(self.stimuli))))[0])

    @property
    def congruent_accuracy(self) -> float:
        """Share of the images without conflict that are named correctly; NaN without such images."""
        congruent = self.columns["congruent"]
        return float(self.columns["correct"][congruent].mean()) if congruent.any() else float("nan")

    @property
    def accuracy(self) -> float:
        """Share of all images with a shape answered with it: on edges and silhouettes, the accuracy."""
        shown = np.array(self.shapes, dtype=str) != ""
        return float(self.columns["correct"][shown].mean()) if shown.any() else float("nan")

    @cached_property
    def ranks(self) -> dict[str, FloatArray]:
        """Of "shape" and "texture": for each stimulus the rank of its best class among all outputs (`first_ranks`).

        NaN where the stimulus does not show it, and for an observer without logits. `sensitivity` is the mean.
        """
        shown = {"shape": self.shapes, "texture": self.textures}
        if self.logits is None or self.mapping is None:
            return dict.fromkeys(shown, np.full(len(self.stimuli), np.nan))
        outputs = dict(self.mapping.indices)
        return {
            cue: first_ranks(self.logits, [outputs.get(name, ()) for name in names]) for cue, names in shown.items()
        }

    def with_options(self, **changes: Any) -> "ShapeBiasResult":
        """The same run under other options; decisions are made anew from the logits.

        Raises:
            ValueError: If an option is unknown or out of range.
        """
        unknown = set(changes) - {item.name for item in fields(ShapeBiasOptions)}
        if unknown:
            raise ValueError(f"{min(unknown)}={changes[min(unknown)]!r}: no such option")
        return replace(self, options=replace(self.options, **changes))._decided()

    def with_mapping(self, mapping: LabelMapping) -> "ShapeBiasResult":
        """The same run under other labels.

        Raises:
            ValueError: If there are no logits, they do not fit, or a stimulus belongs to no category of the mapping.
        """
        if self.logits is None:
            raise ValueError(f"mapping: only the responses of {self.observer} are known, not its logits")
        mapping.check_stimuli(self.stimuli, self.shapes, self.textures)
        return replace(self, mapping=mapping, categories=mapping.categories)._decided()

    def with_categories(self, categories: Sequence[str]) -> "ShapeBiasResult":
        """The same run with no other categories than these.

        Only images with shape and texture among them are left. A network decides anew between them; what anybody else
        answered stays, and an answer outside of them is neither shape nor texture.

        Raises:
            ValueError: If a category is unknown or given twice, or no image is left.
        """
        wanted = select_categories(categories, self.categories)
        allowed = {*wanted, ""}
        pairs = zip(self.stimuli, self.shapes, self.textures, strict=True)
        kept = self.restricted([name for name, *pair in pairs if allowed.issuperset(pair)])
        if not kept.stimuli:
            raise ValueError(
                f"categories={','.join(wanted)}: no image of {self.observer} has shape and texture among them"
            )
        mapping = None if self.mapping is None else self.mapping.of_categories(wanted)
        return replace(kept, mapping=mapping, categories=wanted)._decided()

    def _decided(self) -> "ShapeBiasResult":
        if self.logits is None or self.mapping is None:
            return self
        return replace(self, responses=self.mapping.decide(self.logits, self.options.aggregation, self.options.tie))

    def responses_hash(self) -> str:
        """SHA-256 of stimuli and responses, in hexadecimal."""
        pairs = sorted(zip(self.stimuli, self.responses, strict=True))
        return hashlib.sha256(repr(pairs).encode()).hexdigest()

    # Views --------------------------------------------------------------------------------------------------------

    def decisions(self) -> pd.DataFrame:
        """One row per stimulus: categories, exemplars, the response, what that was, and the ranks of both cues."""
        shapes, textures, responses = (np.array(v, dtype=str) for v in (self.shapes, self.textures, self.responses))
        conflict = self.columns["conflict"]
        names = np.where(conflict, "neither", "wrong").astype(object)
        names[conflict & (responses == textures)] = "texture"
        names[conflict & (responses == shapes)] = "shape"
        names[~conflict & (responses == np.where(shapes == "", textures, shapes))] = "correct"
        return pd.DataFrame(
            {
                "observer": self.observer,
                "stimulus": self.stimuli,
                "shape": self.shapes,
                "texture": self.textures,
                "shape_exemplar": self.shape_exemplars,
                "texture_exemplar": self.texture_exemplars,
                "conflict": conflict,
                "response": self.responses,
                "decision": names,
                **{f"{cue}_rank": pd.Series(ranks).astype("Int64") for cue, ranks in self.ranks.items()},
            }
        )

    def by_category(self, by: Literal["shape", "texture"] = "shape") -> pd.DataFrame:
        """One row per shape (or texture) category: counts, shape bias and coverage of the images that count."""
        if by not in ("shape", "texture"):
            raise ValueError(f"by={by!r}: expected 'shape' or 'texture'")
        return self._counts([by])

    def pair_map(self) -> pd.DataFrame:
        """One row per pair of shape and texture category that has images: counts, shape bias and coverage."""
        return self._counts(["shape", "texture"])

    def confusion(self) -> pd.DataFrame:
        """How often each response (column) was given to each shape category (row), all images.

        Responses outside the categories come after them, "na" is last.
        """
        outside = sorted({*self.responses} - {*self.categories, NO_RESPONSE})
        table = pd.crosstab(pd.Series(self.shapes, name="shape"), pd.Series(self.responses, name="response"))
        rows = [category for category in self.categories if category in set(self.shapes)]
        return table.reindex(index=rows, columns=[*self.categories, *outside, NO_RESPONSE], fill_value=0)

    def _counts(self, by: list[str]) -> pd.DataFrame:
        table = pd.DataFrame(
            {
                "shape": self.shapes,
                "texture": self.textures,
                "num_images": self.columns["counted"].astype(int),
                "num_shape": self.columns["shape"].astype(int),
                "num_texture": self.columns["texture"].astype(int),
            }
        )
        table = table[table["num_images"] == 1].groupby(by)[["num_images", "num_shape", "num_texture"]].sum()
        table["num_neither"] = table["num_images"] - table["num_shape"] - table["num_texture"]
        decided = table["num_shape"] + table["num_texture"]
        table["shape_bias"] = table["num_shape"] / decided.where(decided > 0)
        table["coverage"] = decided / table["num_images"]
        return table.reset_index()

    def summary(self, cluster: Cluster = "two-way", confidence: float = 0.95) -> dict[str, Any]:
        """One row of a table; the ratio never without its counts and coverage."""
        low, high = self.confidence_interval(cluster, confidence=confidence)
        return {
            "observer": self.observer,
            "shape_bias": self.shape_bias,
            "low": low,
            "high": high,
            "cluster": self.drawn_over(cluster),
            "confidence": confidence,
            **asdict(self.options),
            "num_images": self.num_images,
            "num_shape": self.num_shape,
            "num_texture": self.num_texture,
            "num_neither": self.num_neither,
            "coverage": self.coverage,
            "congruent_accuracy": self.congruent_accuracy,
            "accuracy": self.accuracy,
            "num_skipped": len(self.skipped),
        }

    # Intervals ----------------------------------------------------------------------------------------------------

    def confidence_interval(
        self,
        cluster: Cluster = "two-way",
        *,
        confidence: float = 0.95,
        num_resamples: int = 10_000,
        seed: int = 0,
    ) -> tuple[float, float]:
        """Percentile bootstrap interval of `shape_bias`.

        Stimuli made of the same object or the same texture are not independent: an interval over images is too narrow.
        Where no two images share either, "two-way" is "image" (see `drawn_over`).

        Args:
            cluster: What is drawn with replacement: each "image", the "shape" exemplars with all their images, the
                "texture" exemplars, or both on their own ("two-way").
            confidence: Coverage.
            num_resamples: Number of draws.
            seed: Of the draws.

        Returns:
            Both ends, NaN where the ratio is undefined or there is only one cluster.

        Raises:
            ValueError: If the cluster is unknown or `confidence` is out of range.
        """
        draws = self.resample(lambda weights: self.estimate(weights), cluster, num_resamples, seed)
        return percentile_interval(draws, confidence)

    def estimate(self, weights: FloatArray) -> FloatArray:
        """`shape_bias` when stimulus i counts weights[r, i] times: shape (R,)."""
        shape, texture = (self.columns[name].astype(float) for name in ("shape", "texture"))
        if self.options.estimator == "pooled":
            groups = np.ones((len(self.stimuli), 1))
        else:
            names = sorted(set(self.shapes))
            groups = (np.array(self.shapes)[:, None] == np.array(names)).astype(float)
        num_shape, num_texture = weights @ (shape[:, None] * groups), weights @ (texture[:, None] * groups)
        decided = num_shape + num_texture
        ratios = np.divide(num_shape, decided, out=np.full_like(decided, np.nan), where=decided > 0)
        if self.options.estimator == "pooled":
            return ratios[:, 0]
        # A category without a decision has no ratio; where no category has one, there is none at all.
        undefined = np.isnan(ratios).all(1)
        ratios[undefined] = 0.0
        combine: Callable[..., Any] = np.nanmean if self.options.estimator == "category-mean" else np.nanmedian
        return np.where(undefined, np.nan, combine(ratios, axis=1))

    def resample(
        self, statistic: Callable[[FloatArray], FloatArray], cluster: str, num_resamples: int, seed: int
    ) -> FloatArray:
        """The statistic of weighted stimuli for each draw, shape (num_resamples,)."""
        if cluster not in CLUSTERS:
            raise ValueError(f"cluster={cluster!r}: expected one of {', '.join(CLUSTERS)}")
        if num_resamples < 1:
            raise ValueError(f"num_resamples={num_resamples}: expected at least 1")
        numbers = list(self._ways(cluster).values())
        if not numbers or min(int(number.max()) for number in numbers) < 1:
            return np.full(1, np.nan)  # a single cluster says nothing about how clusters differ
        return np.concatenate([statistic(weights) for weights in cluster_weights(numbers, num_resamples, seed)])

    def drawn_over(self, cluster: Cluster) -> Cluster:
        """What a bootstrap over these clusters really draws: "image" for "two-way" where images share no exemplars."""
        ways = self._ways(cluster)
        if len(ways) != 1:
            return cluster
        ((name, numbers),) = ways.items()
        return "image" if int(numbers.max()) + 1 == len(self.stimuli) else name

    def _ways(self, cluster: str) -> dict[Cluster, NDArray[np.intp]]:
        """How the stimuli fall into clusters, each way by its name; none of a cue that no image shows.

        A way whose clusters lie inside those of another is left out: it would draw the same differences again.
        """
        exemplars: dict[Cluster, Sequence[str]] = {
            "image": self.stimuli,
            "shape": self.shape_exemplars,
            "texture": self.texture_exemplars,
        }
        wanted = ("shape", "texture") if cluster == "two-way" else (cluster,)
        found: dict[Cluster, NDArray[np.intp]] = {
            name: np.unique(names, return_inverse=True)[1]
            for name, names in exemplars.items()
            if name in wanted and any(names)
        }
        for name, own in list(found.items()):
            if any(_inside(own, other) for outer, other in found.items() if outer != name):
                del found[name]
        return found

    def restricted(self, keep: Sequence[str]) -> "ShapeBiasResult":
        """Only these stimuli, in this order; the result itself where that changes nothing."""
        if tuple(keep) == self.stimuli:
            return self
        position = {name: index for index, name in enumerate(self.stimuli)}
        indices = [position[name] for name in keep]
        columns: dict[str, Any] = {
            name: tuple(getattr(self, name)[i] for i in indices)
            for name in ("stimuli", "shapes", "textures", "shape_exemplars", "texture_exemplars", "responses")
        }
        columns["image_hashes"] = tuple(self.image_hashes[i] for i in indices) if self.image_hashes else ()
        logits = None if self.logits is None else self.logits[indices]
        # Without the fingerprint: it stands for the logits of all the stimuli.
        return replace(self, logits=logits, fingerprint="", **columns)


def _inside(clusters: NDArray[np.intp], others: NDArray[np.intp]) -> bool:
    """Whether each of these clusters lies in one of the others."""
    return int(np.unique(np.stack([clusters, others]), axis=1).shape[1]) == int(clusters.max()) + 1
