"""RepLKNet: large-kernel convolutional networks, their re-parameterisation and everyone's checkpoints."""

from replknet.blocks import ReparamLargeKernelConv
from replknet.checkpoints import CheckpointError, convert_state_dict, load_state_dict
from replknet.config import PRESETS, RepLKNetConfig
from replknet.depthwise import DepthwiseConv2d, depthwise_conv2d
from replknet.model import SHIPPED, RepLKNet, create_model, shipped_weights
from replknet.reparam import reparameterize

__all__ = [
    "PRESETS",
    "SHIPPED",
    "CheckpointError",
    "DepthwiseConv2d",
    "RepLKNet",
    "RepLKNetConfig",
    "ReparamLargeKernelConv",
    "convert_state_dict",
    "create_model",
    "depthwise_conv2d",
    "load_state_dict",
    "reparameterize",
    "shipped_weights",
]
