"""Receptive fields of vision networks, measured on any `torch.nn.Module`."""

from analysis.erf import ErfOptions, ErfResult, effective_receptive_field
from analysis.features import LayerError
from analysis.images import ImageSet, load_images
from analysis.models import LoadedModel, load_model, untrained_copy
from analysis.receptive_field import TheoreticalReceptiveField, theoretical_receptive_field
from analysis.results import ResultError

__all__ = [
    "ErfOptions",
    "ErfResult",
    "ImageSet",
    "LayerError",
    "LoadedModel",
    "ResultError",
    "TheoreticalReceptiveField",
    "effective_receptive_field",
    "load_images",
    "load_model",
    "theoretical_receptive_field",
    "untrained_copy",
]
