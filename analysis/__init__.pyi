"""Receptive fields and shape bias of vision networks, measured on any `torch.nn.Module`."""

from .categories import IMAGENET, LabelMapping
from .cue_conflict import StimulusError, StimulusSet, evaluate_shape_bias, load_stimuli
from .erf import ErfOptions, ErfResult, effective_receptive_field
from .evaluation import EvaluationResult, LabelledFiles, evaluate, labelled_files
from .feature_extraction import Features, extract_features
from .features import LayerError
from .images import ImageSet, find_images, load_images
from .loaded_model import LoadedModel
from .models import load_model, untrained_copy
from .prediction import Prediction, Predictions, predict
from .receptive_field import TheoreticalReceptiveField, theoretical_receptive_field
from .responses import read_observers, read_responses, write_responses
from .results import ResultError
from .shape_bias import (
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
    "EvaluationResult",
    "Features",
    "HumanReference",
    "ImageSet",
    "LabelMapping",
    "LabelledFiles",
    "LayerError",
    "LoadedModel",
    "Prediction",
    "Predictions",
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
    "evaluate",
    "evaluate_shape_bias",
    "extract_features",
    "find_images",
    "human_reference",
    "labelled_files",
    "load_images",
    "load_model",
    "load_stimuli",
    "predict",
    "read_observers",
    "read_responses",
    "theoretical_receptive_field",
    "untrained_copy",
    "write_responses",
]
