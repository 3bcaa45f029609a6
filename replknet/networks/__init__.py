"""Large-kernel networks, a family a file; this is their registry.

`blocks`, `folding` and `reparameterize` are what families are built from and re-parameterised by.
"""

from collections.abc import Mapping
from types import MappingProxyType

from replknet.networks.replknet import PRESETS as REPLKNETS
from replknet.networks.replknet import RepLKNet, RepLKNetConfig

FAMILIES = ((RepLKNet, REPLKNETS),)
"""Network and configurations by name of each family."""
PRESETS: Mapping[str, RepLKNetConfig] = MappingProxyType({k: v for _, presets in FAMILIES for k, v in presets.items()})
"""The configurations of all families by name."""
_NETWORKS = {type(config): network for network, presets in FAMILIES for config in presets.values()}


def build(config: RepLKNetConfig) -> RepLKNet:
    """The network of a configuration, with random weights."""
    return _NETWORKS[type(config)](config)
