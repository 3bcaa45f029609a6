"""Large-kernel networks, their re-parameterisation, everyone's checkpoints, and a fast large-kernel convolution."""

from replknet import starting  # noqa: F401  first: it decides where the others are looked for
from replknet.checkpoints.naming import convert_state_dict
from replknet.checkpoints.published import DownloadError, download_weights
from replknet.checkpoints.reading import CheckpointError, load_state_dict
from replknet.converting import CheckpointInfo, Conversion, convert_checkpoint, inspect_checkpoint
from replknet.convolution.depthwise import DepthwiseConv2d, depthwise_conv2d
from replknet.creating import SHIPPED, create_model, load_checkpoint, shipped_weights
from replknet.networks import PRESETS, PUBLISHED
from replknet.networks.blocks import ReparamLargeKernelConv
from replknet.networks.family import Network, PublishedWeights
from replknet.networks.reparameterize import reparameterize
from replknet.networks.replknet import RepLKNet, RepLKNetConfig
from replknet.networks.slak import SLaK, SLaKConfig
from replknet.networks.unireplknet import UniRepLKNet, UniRepLKNetConfig

__all__ = [
    "PRESETS",
    "PUBLISHED",
    "SHIPPED",
    "CheckpointError",
    "CheckpointInfo",
    "Conversion",
    "DepthwiseConv2d",
    "DownloadError",
    "Network",
    "PublishedWeights",
    "RepLKNet",
    "RepLKNetConfig",
    "ReparamLargeKernelConv",
    "SLaK",
    "SLaKConfig",
    "UniRepLKNet",
    "UniRepLKNetConfig",
    "convert_checkpoint",
    "convert_state_dict",
    "create_model",
    "depthwise_conv2d",
    "download_weights",
    "inspect_checkpoint",
    "load_checkpoint",
    "load_state_dict",
    "reparameterize",
    "shipped_weights",
]

CODE_VERSION = 1
"""Of what the networks compute. Records of a measurement name it in place of the code: it is raised by every change of
the outputs that is more than their rounding, and by nothing else."""
