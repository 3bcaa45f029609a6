"""Shape bias in the words of a methods section."""

from collections.abc import Sequence

from analysis.runs.methods import Methods, counted, joined, with_interval
from analysis.runs.texts import few
from analysis.shape_bias.categories import IMAGENET
from analysis.shape_bias.comparing import human_reference
from analysis.shape_bias.result import LOW_CONGRUENT_ACCURACY, Cluster, ShapeBiasResult

LOW_COVERAGE = 0.5
"""Share of images answered with either cue, below which a shape bias is warned of."""

_AGGREGATIONS = {
    "mean-probability": "the mean softmax probability of its classes",
    "sum-probability": "the sum of the softmax probabilities of its classes",
    "max-probability": "the largest softmax probability of its classes",
    "mean-logit": "the mean logit of its classes",
}
_ESTIMATORS = {
    "pooled": "over all of these images",
    "category-mean": "as the mean of the ratios of the shape categories",
    "category-median": "as the median of the ratios of the shape categories",
}
_DRAWN = {
    "image": "images",
    "shape": "shape exemplars with all their images",
    "texture": "texture exemplars with all their images",
    "two-way": "shape and texture exemplars, each on their own",
}


def shape_bias_methods(
    results: Sequence[ShapeBiasResult],
    people: Sequence[ShapeBiasResult] = (),
    cluster: Cluster = "two-way",
    *,
    num_resamples: int = 10_000,
) -> Methods:
    """How shape biases were measured, and what came out.

    Args:
        results: On the images that all have seen.
        people: The same of people.
        cluster: What the bootstrap draws.
        num_resamples: How often.
    """
    first = results[0]
    options = first.options
    drawn = first.drawn_over(cluster)
    works = ["geirhos2019texture", "efron1993bootstrap"] + ["owen2007pigeonhole"] * (drawn == "two-way")
    source = joined(dict.fromkeys(result.source for result in results if result.source and result.logits is not None))
    left_out = "left out" if options.congruent == "exclude" else "counted as shape decisions where they were right"
    two_ways = "; Owen, 2007" if drawn == "two-way" else ""
    alone = ", which share no object and no texture" if drawn == "image" != cluster else ""
    conflicts = int(first.columns["conflict"].sum())
    others = f"; the others were {left_out}" if conflicts < len(first.stimuli) else ""
    if not conflicts:
        right = "; ".join(f"{result.observer} {100 * result.congruent_accuracy:.2f} %" for result in results)
        text = (
            f"{counted(len(results), 'observer')} answered {counted(len(first.stimuli), 'image')}"
            f"{f' of {source}' if source else ''}, none of which shows the shape of one category and the texture of "
            f"another (Geirhos et al., 2019): there is no shape bias. Answered with their category were {right}."
        )
        return Methods((text,), ("geirhos2019texture",))
    text = (
        f"{counted(len(results), 'observer')} ({joined(result.observer for result in results)}) answered "
        f"{counted(len(first.stimuli), 'image')}{f' of {source}' if source else ''}, of which {conflicts} show the "
        "shape "
        f"of one category and the texture of another (Geirhos et al., 2019){others}."
    )
    decided = [result for result in results if result.logits is not None]
    recorded = [result.observer for result in results if result.logits is None]
    if recorded:
        text += f" The answers of {joined(recorded)} were recorded elsewhere and read from a file."
    if decided:
        score = _AGGREGATIONS[options.aggregation]
        whose = f"The answer of {joined(own.observer for own in decided)}" if recorded else "A network's answer"
        first_or_none = "the first" if options.tie == "first" else "none"
        text += f" {whose} is the one of {_these(decided[0])} with the largest score, {score}; of equal scores "
        text += f"{first_or_none} counts."
        text += _outputs(decided) + _sizes(decided, named=bool(recorded))
    text += (
        " Shape bias is the number of shape decisions divided by that of shape and of texture decisions, "
        f"{_ESTIMATORS[options.estimator]}. Brackets are 95 % percentile intervals of {num_resamples} bootstrap draws "
        "of "
        f"{_DRAWN[drawn]}{alone} (Efron and Tibshirani, 1993{two_ways})."
    )
    outside = f", also outside of {'these categories' if decided else _these(first)}," if recorded else ""
    text += f" Any other answer{outside} counts as neither."
    paragraphs = [text, " ".join(_found(result, cluster) for result in results)]
    if len(people) > 1:
        known = human_reference(people)
        low, high = known.shape_bias_range
        neither = sum(person.num_neither for person in people)
        paragraphs.append(
            f"{len(people)} people answered the same images (for such comparisons see Geirhos et al., 2021); of their "
            f"answers to the {conflicts} of two cues, {neither} were neither: shape "
            f"bias {known.shape_bias:.3f} pooled, {low:.3f} to {high:.3f} one by one; the mean error consistency "
            f"(Cohen's kappa of who is right on which of all "
            f"{len(first.stimuli)} images; Geirhos et al., 2020) of two of them is {known.kappa:.3f}."
        )
        works += ["geirhos2020consistency", "geirhos2021partial"]
    return Methods(tuple(paragraphs), tuple(works))


def sensitivity_methods(results: Sequence[ShapeBiasResult]) -> Methods:
    """How sensitivities to either cue were measured, on stimuli of one cue or of both; the values are in a table."""
    first = results[0]
    conflicts = int(first.columns["conflict"].sum())
    shown, number = ("two different cues", conflicts) if conflicts else ("one of the two cues", len(first.stimuli))
    text = (
        f"Sensitivities to shape and to texture (Kim et al., 2026) of {counted(len(results), 'network')} "
        f"({joined(result.observer for result in results)}) are mean reciprocal ranks of the right class among all "
        "outputs, "
        f"on {counted(number, 'stimulus', 'stimuli')} of {first.source} that show {shown}; "
        "they are "
        "in sensitivity.csv with their 95 % bootstrap intervals (Efron and Tibshirani, 1993)."
        f"{_sizes(results)}"
    )
    return Methods((text,), ("kim2026refinedbias", "efron1993bootstrap"))


def bias_warnings(results: Sequence[ShapeBiasResult]) -> list[str]:
    """What weakens the numbers: images without conflict that are not recognised, few answers with either cue.

    Args:
        results: Of networks, or of others as they are.
    """
    low = LOW_CONGRUENT_ACCURACY
    blind = []
    for result in results:
        chance = 0.0 if result.mapping is None else 1 / len(result.categories)
        if result.congruent_accuracy < min(max(low, 1.5 * chance), 1.0):
            guessing = f"; guessing gives {100 * chance:.1f} %" if chance else ""
            blind.append(f"{result.observer} {100 * result.congruent_accuracy:.1f} %{guessing}")
    seldom = [
        f"{result.observer} {100 * result.coverage:.1f} %"
        for result in results
        if result.coverage < LOW_COVERAGE and result.num_images
    ]
    texts = []
    if blind:
        texts.append(
            f"Too few of the images without conflict are named correctly ({few(blind, 6)}): that shape bias means "
            "little."
        )
    if seldom:
        texts.append(
            f"Fewer than half of the conflict images were answered with either cue ({few(seldom, 6)}): that shape bias "
            "rests on the others."
        )
    return texts


def _these(result: ShapeBiasResult) -> str:
    return f"the {counted(len(result.categories), 'category', 'categories')} ({joined(result.categories)})"


def _outputs(results: Sequence[ShapeBiasResult]) -> str:
    """Which outputs stand for which category, where these are not ImageNet's."""
    owners: dict[str, list[str]] = {}
    for result in results:
        if result.mapping is not None and not set(result.mapping.indices) <= set(IMAGENET.indices):
            pairs = [f"{', '.join(map(str, own))} for {category}" for category, own in result.mapping.indices]
            owners.setdefault(joined(pairs), []).append(result.observer)
    return "".join(
        f" The classes of the categories are, of {joined(names)}, the outputs {pairs}."
        for pairs, names in owners.items()
    )


def _sizes(results: Sequence[ShapeBiasResult], *, named: bool = False) -> str:
    """The sizes at which networks saw the images, as each recorded it; with their names where sizes differ."""
    seen: dict[str, list[str]] = {}
    for result in results:
        if result.preprocessing:
            size = result.preprocessing["input_size"]
            seen.setdefault("their own size" if size is None else f"{size} pixels", []).append(result.observer)
    each = [f"{size}{f' ({joined(names)})' if named or len(seen) > 1 else ''}" for size, names in seen.items()]
    return f" The images went in at {joined(each)}." if each else ""


def _found(result: ShapeBiasResult, cluster: Cluster) -> str:
    counts = f"{result.num_shape} shape, {result.num_texture} texture, {result.num_neither} neither"
    if not result.num_shape + result.num_texture:
        return f"{result.observer}: undefined ({counts})."
    bias = with_interval(result.shape_bias, result.confidence_interval(cluster), digits=3)
    return f"{result.observer}: shape bias {bias} ({counts})."
