"""Large-kernel networks, a family a file; this is their registry.

`family` is what all other code knows of a family; `parts`, `blocks`, `folding` and `reparameterize` are what families
are built from and re-parameterised by.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from replknet.networks import replknet, slak, unireplknet
from replknet.networks.family import Configuration, Family, Network, PublishedWeights
from replknet.networks.reparameterize import Form

FAMILIES: tuple[Family, ...] = (replknet.FAMILY, unireplknet.FAMILY, slak.FAMILY)
"""All families; one more is a line here."""
PRESETS: Mapping[str, Any] = MappingProxyType({k: v for family in FAMILIES for k, v in family.presets.items()})
"""The configurations of all families by name."""
PUBLISHED: Mapping[str, PublishedWeights] = MappingProxyType(
    {k: v for family in FAMILIES for k, v in family.published.items()}
)
"""Published checkpoints of all families by "architecture.tag", each with its preprocessing."""
ANY_FAMILY = " or ".join(", ".join(f"a {family.name}" for family in FAMILIES).rsplit(", ", 1))
"""For messages."""


def family_of(config: Configuration) -> Family:
    """The family that a configuration belongs to."""
    return next(family for family in FAMILIES if type(config) is family.config)


def family_named(name: str) -> Family:
    """The family of this name.

    Raises:
        ValueError: If there is none.
    """
    for family in FAMILIES:
        if name in (family.name, family.key):
            return family
    raise ValueError(f"family={name!r}: expected one of {', '.join(family.name for family in FAMILIES)}")


def family_in(state: Mapping[str, Tensor]) -> Family:
    """The family whose keys official-named weights have; the first one where it cannot be told."""
    return next((family for family in FAMILIES if family.network.owns(state)), FAMILIES[0])


def weight_form(state: Mapping[str, Tensor]) -> Form:
    """Whether official-named weights are in training form, have merged kernels, or have every batch norm folded."""
    return family_in(state).network.form_of(state)


def build(config: Configuration) -> Network:
    """The network of a configuration, with random weights."""
    return family_of(config).network(config)
