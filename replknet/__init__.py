"""RepLKNet: large-kernel convolutional networks, their re-parameterisation and everyone's checkpoints."""

from replknet.blocks import ReparamLargeKernelConv
from replknet.checkpoints import CheckpointError, convert_state_dict, load_state_dict
from replknet.config import PRESETS, RepLKNetConfig
from replknet.conversion import CheckpointInfo, Conversion, convert_checkpoint, inspect_checkpoint
from replknet.depthwise import DepthwiseConv2d, depthwise_conv2d
from replknet.model import SHIPPED, RepLKNet, create_model, load_checkpoint, shipped_weights
from replknet.registration import register_with_timm
from replknet.reparam import reparameterize
from replknet.zoo import PUBLISHED, DownloadError, PublishedWeights, download_weights

__all__ = [
    "PRESETS",
    "PUBLISHED",
    "SHIPPED",
    "CheckpointError",
    "CheckpointInfo",
    "Conversion",
    "DepthwiseConv2d",
    "DownloadError",
    "PublishedWeights",
    "RepLKNet",
    "RepLKNetConfig",
    "ReparamLargeKernelConv",
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

register_with_timm()
