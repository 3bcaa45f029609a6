"""Receptive fields and shape bias of vision networks, measured on any `torch.nn.Module`."""

from analysis.categories import IMAGENET, LabelMapping
from analysis.cue_conflict import StimulusError, StimulusSet, evaluate_shape_bias, load_stimuli
from analysis.erf import ErfOptions, ErfResult, effective_receptive_field
from analysis.features import LayerError
from analysis.images import ImageSet, load_images
from analysis.models import LoadedModel, load_model, untrained_copy
from analysis.receptive_field import TheoreticalReceptiveField, theoretical_receptive_field
from analysis.responses import read_observers, read_responses, write_responses
from analysis.results import ResultError
from analysis.shape_bias import (
    ErrorConsistency,
    HumanReference,
    ShapeBiasDifference,
    ShapeBiasOptions,
    ShapeBiasResult,
    compare_shape_bias,
    consistency_table,
    error_consistency,
    human_reference,
)

__all__ = [
    "IMAGENET",
    "ErfOptions",
    "ErfResult",
    "ErrorConsistency",
    "HumanReference",
    "ImageSet",
    "LabelMapping",
    "LayerError",
    "LoadedModel",
    "ResultError",
    "ShapeBiasDifference",
    "ShapeBiasOptions",
    "ShapeBiasResult",
    "StimulusError",
    "StimulusSet",
    "TheoreticalReceptiveField",
    "compare_shape_bias",
    "consistency_table",
    "effective_receptive_field",
    "error_consistency",
    "evaluate_shape_bias",
    "human_reference",
    "load_images",
    "load_model",
    "load_stimuli",
    "read_observers",
    "read_responses",
    "theoretical_receptive_field",
    "untrained_copy",
    "write_responses",
]
