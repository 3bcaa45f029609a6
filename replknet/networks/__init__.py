"""Large-kernel networks, a family a file; this is their registry.

`blocks`, `folding` and `reparameterize` are what families are built from and re-parameterised by.
"""

from collections.abc import Mapping
from types import MappingProxyType

from replknet.networks.replknet import PRESETS as REPLKNETS
from replknet.networks.replknet import RepLKNet, RepLKNetConfig

PRESETS: Mapping[str, RepLKNetConfig] = MappingProxyType({**REPLKNETS})
"""The configurations of all families by name."""


def build(config: RepLKNetConfig) -> RepLKNet:
    """The network of a configuration, with random weights."""
    return RepLKNet(config)
