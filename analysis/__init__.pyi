"""Receptive fields and shape bias of vision networks, measured on any `torch.nn.Module`."""

from .benchmark.plots import plot_benchmark, plot_ratios
from .correlation import RankCorrelation, rank_correlation
from .figures import axes_or_new, paper_style, save_figure
from .images.downloads import download_stimuli
from .images.files import find_images
from .images.labelled import DataError, FolderImages, InMemory
from .images.plots import balance_strip, contact_sheet
from .images.sets import ImageSet, load_images
from .images.shards import TarShards
from .images.stimuli import PublishedSet, StimulusError, StimulusSet, load_stimuli, published_sets
from .images.synthetic.drawing import SyntheticOptions
from .images.synthetic.outlines import CLASSES
from .images.synthetic.sets import SyntheticImages, save_stimuli, stimulus_set
from .models.complexity import num_macs, num_parameters
from .models.exporting import ExportReport, export_model, format_of
from .models.files import save_network
from .models.layers import ForwardError, LayerError
from .models.loaded import LoadedModel
from .models.loading import load_model
from .models.untrained import calibrated, untrained_copy
from .receptive_field.measuring import effective_receptive_field
from .receptive_field.options import ErfOptions
from .receptive_field.plots import erf_figure, erf_row, plot_contribution, plot_erf, plot_growth
from .receptive_field.result import ErfResult
from .receptive_field.theoretical import TheoreticalReceptiveField, theoretical_receptive_field
from .recognition.evaluation import EvaluationResult, evaluate
from .recognition.features import Features, extract_features
from .recognition.labels import LabelledFiles, labelled_files
from .recognition.prediction import Prediction, Predictions, predict
from .runs.identity import NetworkIdentity, identify
from .runs.memory import keep_freed_memory
from .runs.processes import num_processes, process_group, rank
from .runs.results import ResultError
from .shape_bias.categories import CATEGORIES, IMAGENET, MAPPING, LabelMapping
from .shape_bias.comparing import (
    ErrorConsistency,
    HumanReference,
    ShapeBiasDifference,
    common_images,
    compare_shape_bias,
    consistency_table,
    error_consistency,
    human_reference,
)
from .shape_bias.glyphs import category_glyph
from .shape_bias.measuring import evaluate_shape_bias
from .shape_bias.people import MeanConsistency, mean_consistency
from .shape_bias.plots import (
    plot_category_box,
    plot_confusion,
    plot_consistency,
    plot_pair_map,
    plot_sensitivity,
    plot_shape_bias,
    shape_bias_figure,
)
from .shape_bias.psychometric import PsychometricFit, fit_psychometric
from .shape_bias.responses import read_observers, read_responses, write_responses
from .shape_bias.result import ShapeBiasOptions, ShapeBiasResult
from .shape_bias.sensitivity import (
    Sensitivity,
    rank_table,
    sensitivity,
    sensitivity_row,
)
from .statistics import (
    Trend,
    bootstrap_interval,
    bootstrap_p_value,
    cluster_weights,
    mean_interval,
    percentile_interval,
    trend,
)
from .study.compared.measuring import compare_networks
from .study.compared.report import write_comparison
from .study.compared.result import Comparison, NetworkResult, comparison_table
from .study.design import Cell, Study, preset
from .study.families import family_differences
from .study.images import StudyImages
from .study.jobs import CellState, JobOptions, cell_states
from .study.measures import Measure
from .study.plots import (
    plot_by_kernel,
    plot_curves,
    plot_energy,
    plot_erf_against_bias,
    plot_networks,
    plot_posthoc,
    plot_psychometric,
    posthoc_figure,
)
from .study.posthoc import (
    Variant,
    VariantResult,
    apply_variant,
    default_variants,
    kernel_energy,
    large_kernels,
    measure_variants,
    posthoc_table,
)
from .study.record import load_study, save_study
from .study.report import write_report
from .study.result import CellResult, psychometric_curves, study_table
from .study.sweeping import run_study
from .study.verdict import findings
from .training.loop import Training, accuracy, train
from .training.parallel import TrainingError
from .training.progress import Curve
from .training.recipe import Recipe, load_recipe

__all__ = [
    "CATEGORIES",
    "CLASSES",
    "IMAGENET",
    "MAPPING",
    "Cell",
    "CellResult",
    "CellState",
    "Comparison",
    "Curve",
    "DataError",
    "ErfOptions",
    "ErfResult",
    "ErrorConsistency",
    "EvaluationResult",
    "ExportReport",
    "Features",
    "FolderImages",
    "ForwardError",
    "HumanReference",
    "ImageSet",
    "InMemory",
    "JobOptions",
    "LabelMapping",
    "LabelledFiles",
    "LayerError",
    "LoadedModel",
    "MeanConsistency",
    "Measure",
    "NetworkIdentity",
    "NetworkResult",
    "Prediction",
    "Predictions",
    "PsychometricFit",
    "PublishedSet",
    "RankCorrelation",
    "Recipe",
    "ResultError",
    "Sensitivity",
    "ShapeBiasDifference",
    "ShapeBiasOptions",
    "ShapeBiasResult",
    "StimulusError",
    "StimulusSet",
    "Study",
    "StudyImages",
    "SyntheticImages",
    "SyntheticOptions",
    "TarShards",
    "TheoreticalReceptiveField",
    "Training",
    "TrainingError",
    "Trend",
    "Variant",
    "VariantResult",
    "accuracy",
    "apply_variant",
    "axes_or_new",
    "balance_strip",
    "bootstrap_interval",
    "bootstrap_p_value",
    "calibrated",
    "category_glyph",
    "cell_states",
    "cluster_weights",
    "common_images",
    "compare_networks",
    "compare_shape_bias",
    "comparison_table",
    "consistency_table",
    "contact_sheet",
    "default_variants",
    "download_stimuli",
    "effective_receptive_field",
    "erf_figure",
    "erf_row",
    "error_consistency",
    "evaluate",
    "evaluate_shape_bias",
    "export_model",
    "extract_features",
    "family_differences",
    "find_images",
    "findings",
    "fit_psychometric",
    "format_of",
    "human_reference",
    "identify",
    "keep_freed_memory",
    "kernel_energy",
    "labelled_files",
    "large_kernels",
    "load_images",
    "load_model",
    "load_recipe",
    "load_stimuli",
    "load_study",
    "mean_consistency",
    "mean_interval",
    "measure_variants",
    "num_macs",
    "num_parameters",
    "num_processes",
    "paper_style",
    "percentile_interval",
    "plot_benchmark",
    "plot_by_kernel",
    "plot_category_box",
    "plot_confusion",
    "plot_consistency",
    "plot_contribution",
    "plot_curves",
    "plot_energy",
    "plot_erf",
    "plot_erf_against_bias",
    "plot_growth",
    "plot_networks",
    "plot_pair_map",
    "plot_posthoc",
    "plot_psychometric",
    "plot_ratios",
    "plot_sensitivity",
    "plot_shape_bias",
    "posthoc_figure",
    "posthoc_table",
    "predict",
    "preset",
    "process_group",
    "psychometric_curves",
    "published_sets",
    "rank",
    "rank_correlation",
    "rank_table",
    "read_observers",
    "read_responses",
    "run_study",
    "save_figure",
    "save_network",
    "save_stimuli",
    "save_study",
    "sensitivity",
    "sensitivity_row",
    "shape_bias_figure",
    "stimulus_set",
    "study_table",
    "theoretical_receptive_field",
    "train",
    "trend",
    "untrained_copy",
    "write_comparison",
    "write_report",
    "write_responses",
]
