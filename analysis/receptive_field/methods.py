"""Effective receptive fields in the words of a methods section."""

import math
from collections.abc import Sequence

from analysis.images.sets import GENERATED
from analysis.models.layouts import LAST
from analysis.receptive_field.options import ErfOptions
from analysis.receptive_field.result import ErfResult
from analysis.runs.methods import Methods, counted, fitting_digits, joined, with_interval
from analysis.runs.texts import few

_THRESHOLDS = (0.5, 0.99)
_ASIDE = 0.5
"""Distance of the centroid from the unit, in RMS radii, above which it is told."""
UNTOLD = ("tensors", "prepared for the model")
"""How images came that a user's own code has made."""
_OUTPUTS = {"relu": "rectified outputs", "identity": "outputs"}
_GRADIENTS = {
    "relu": "its positive part was",
    "abs": "its absolute values were",
    "square": "its squares were",
    "signed": "its values, with their signs, were",
}


def erf_methods(results: Sequence[ErfResult], *, of: str = "") -> Methods:
    """How effective receptive fields were measured, and what came out.

    Args:
        results: Of one run: alike but for network and layer.
        of: What the networks are, where the areas of each are told elsewhere.
    """
    first = results[0]
    models = list(dict.fromkeys(result.model for result in results))
    each = {model: _layers([result for result in results if result.model == model]) for model in models}
    layers = each[models[0]]
    if len(set(each.values())) > 1:
        owners = {layer: [own.model for own in results if own.layer == layer] for layer in [r.layer for r in results]}
        layers = joined(f"{_layer(layer)} ({'; '.join(dict.fromkeys(own))})" for layer, own in owners.items())
    whose = of or f"{counted(len(models), 'network')} ({'; '.join(models)})"
    size = joined(dict.fromkeys(" x ".join(map(str, result.map_size)) for result in results))
    works = ["luo2016erf", "ding2022replknet"]
    told = [] if first.image_source in UNTOLD else [first.image_source]
    if first.image_source == GENERATED:
        told, works = [f"{GENERATED}, Lee et al., 2001", f"seed {first.seed}"], [*works, "lee2001deadleaves"]
    elif first.seed is not None and told:
        told.append(f"drawn with seed {first.seed}")
    source = f" ({'; '.join(told)})" if told else ""
    text = (
        f"Effective receptive fields (Luo et al., 2016; Ding et al., 2022) of {whose} were measured on "
        f"{counted(len(first.images), 'image')}{source} of {size} pixels. "
        f"{measured_text(first.options, layers)}"
    )
    signed = first.options.gradient_rule == "signed"
    if not signed:
        around = "the unit's centre" if first.options.square_center == "unit" else "the centre of the image"
        text += (
            f" The map is raw, neither normalised nor logarithmic; its area is the part of the image that the smallest "
            f"square round {around} takes which holds a given share of the gradient."
        )
    if not of and not signed and any(len(result.images) > 1 for result in results):
        text += " Brackets are 95 % bootstrap intervals over images (Efron and Tibshirani, 1993)."
        works.append("efron1993bootstrap")
    initial = {result.model: result.initial for result in results if result.initial}
    text += "".join(f" {model} is not trained: {words}." for model, words in initial.items())
    skipped = {len(result.skipped) for result in results} - {0}
    text += f" {counted(max(skipped), 'file')} could not be used." if skipped else ""
    paragraphs = [text]
    if not of and not signed:
        paragraphs.append(
            " ".join(_found(result, several=len({own.layer for own in results}) > 1) for result in results)
        )
    return Methods(tuple(paragraphs), tuple(works))


def area_text(result: ErfResult, threshold: float, *, unit: str = "", undefined: str = "-") -> str:
    """An area in per cent with its interval, such as "12.3 [11.0, 13.4]"; as many digits of one below 1 %."""
    area = result.area_ratio(threshold)
    if math.isnan(area):
        return undefined
    ends, digits = result.area_ratio_interval(threshold), fitting_digits(100 * area)
    return with_interval(area, ends, scale=100, digits=digits, unit=unit)


def theory_text(result: ErfResult) -> str:
    """The sides of the theoretical field in pixels, one if they are equal."""
    if result.theoretical is None:
        return "not traced"
    if math.inf in result.theoretical:
        return "whole image"
    return " x ".join(dict.fromkeys(f"{side:g}" for side in result.theoretical))


def field_warnings(results: Sequence[ErfResult]) -> list[str]:
    """What weakens the numbers: units that do not react, fields that the image cuts off.

    Args:
        results: Named by their models, and by their layers where these differ.
    """
    several = len({result.layer for result in results}) > 1

    def named(found: Sequence[ErfResult]) -> str:
        return few([f"{own.layer} of {own.model}" if several else own.model for own in found], 6, between="; ")

    silent = [result for result in results if not result.mean_map.any()]
    full = [result for result in results if result.fills_image()]
    texts = []
    if silent:
        texts.append(
            f"The unit does not react to any image, its ReLU is off ({named(silent)}): no measure of it is defined."
        )
    if full:
        texts.append(border_text(named(full)))
    aside = [
        result
        for result in results
        if result.options.gradient_rule != "signed" and result.centroid_distance() > _ASIDE * result.rms_radius()
    ]
    if aside:
        texts.append(
            f"The gradient lies to one side of the unit ({named(aside)}): squares are round the unit, so that these "
            "areas are not those round the gradient's own centroid, of which the RMS radius is; many are larger."
        )
    return texts


def border_text(named: str) -> str:
    """What an area with 99 % of the gradient of nine tenths of the image or more says, of the networks of this name."""
    return (
        f"The square with 99 % of the gradient takes nine tenths of the image or more ({named}): gradient beyond the "
        "border is cut off, so that this area can hardly grow. Smaller shares, too, are of the gradient inside "
        "the image alone, so that their areas hold for images of this size: larger ones may give more pixels, and "
        "other percentages."
    )


def _layers(results: Sequence[ErfResult]) -> str:
    return joined(_layer(name) for name in dict.fromkeys(result.layer for result in results))


def _layer(name: str) -> str:
    return f"the {LAST}" if name == LAST else name


def measured_text(options: ErfOptions, layers: str) -> str:
    """Which gradient a map shows, as a sentence."""
    unit = {
        "center": f"the unit of {layers} whose centre is nearest to the centre of the image",
        "feature-center": f"the unit of {layers} in row h // 2 and column w // 2",
    }.get(str(options.unit), f"the unit of {layers} in row and column {options.unit}")
    colors = "summed over the colours" if options.sum_colors == "after" else "taken of the sum over the colours"
    return (
        f"In each image the gradient of the sum over channels of the {_OUTPUTS[options.output_rule]} of {unit} "
        f"was taken with respect to the input; {_GRADIENTS[options.gradient_rule]} {colors} and averaged over "
        "the images."
    )


def _found(result: ErfResult, *, several: bool) -> str:
    name = f"{result.model}, {result.layer}" if several else result.model
    parts = []
    for threshold in _THRESHOLDS:
        area = area_text(result, threshold, unit=" %", undefined="an undefined part")
        parts.append(f"{100 * threshold:g} % of the gradient in {area} of the image")
    return f"{name}: {joined(parts)}."
