"""Other people's names for the same weights: the only module that knows them."""

from collections.abc import Collection, Iterable, Mapping
from functools import reduce
from itertools import product
from typing import Any, Literal

from torch import Tensor

from replknet.networks import FAMILIES, family_in
from replknet.networks.family import stage_of

Naming = Literal["official", "mmpretrain"]

# Keys under which training codes keep averaged weights (the last is this project's own), and the last ones.
EMA_WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "average")
WRAPPERS = ("model", "state_dict", "model_state_dict")
BOOKKEEPING = ("steps", "n_averaged")
"""Of averaged models: entries that are no weights."""
_PARALLEL_PREFIXES = ("module.", "_orig_mod.")
_HOLDERS = ("backbone.", "model.", "network.", "net.", "encoder.")
"""Prefixes of a network inside one that trains it."""
_MOST_HOLDERS = 2
_HEAD_OF_MMPRETRAIN = "head.fc."


def naming_of(state: Mapping[str, Tensor]) -> Naming:
    """Whose names these are: mmpretrain's begin like those of dense prediction with other families' own code."""
    theirs = any(key.startswith(("backbone.", "head.fc.")) for key in state)
    return "mmpretrain" if theirs and family_in(_to_official(state)) is FAMILIES[0] else "official"


def strip_parallel(key: str) -> str:
    """A key without the prefixes of wrapped modules."""
    while key.startswith(_PARALLEL_PREFIXES):
        key = key.partition(".")[2]
    return key


def named_as(own: Collection[str], given: Collection[str]) -> dict[str, str]:
    """From the given keys of weights to those of a network, without the prefixes of what the network was trained in.

    Of the ways to leave prefixes out, none among them, the one after which most keys are the network's own.
    """
    for holder in _HOLDERS:
        if own and all(key.startswith(holder) for key in own):
            inner = named_as([key.removeprefix(holder) for key in own], given)
            return {key: f"{holder}{name}" for key, name in inner.items()}
    ways = []
    for number in range(_MOST_HOLDERS + 1):
        for holders in product(_HOLDERS, repeat=number):
            ways.append({key: reduce(str.removeprefix, holders, key) for key in given})
    if any(key.startswith("fc.") for key in own):
        head = {key: key.replace(_HEAD_OF_MMPRETRAIN, "fc.", 1) for key in given if key.startswith(_HEAD_OF_MMPRETRAIN)}
        ways += [way | head for way in list(ways)]
    unique = [way for way in ways if len(set(way.values())) == len(given)]
    return max(unique, key=lambda way: len(set(own).intersection(way.values())))


def weight_keys(content: Mapping[str, Any]) -> tuple[str, str]:
    """The keys of a file's averaged weights and of its last ones; empty for those that it does not have.

    `EMAHook` of mmengine swaps both when it saves. Its marks are the counter of its averaged model, and what mmengine
    writes beside the weights.
    """
    averaged, last = (
        next((key for key in keys if isinstance(content.get(key), Mapping)), "") for keys in (EMA_WRAPPERS, WRAPPERS)
    )
    if averaged == "ema_state_dict" and last:
        meta = content.get("meta")
        by_mmengine = "message_hub" in content or (isinstance(meta, Mapping) and "mmengine_version" in meta)
        if by_mmengine or "steps" in content[averaged]:
            return last, averaged
    return averaged, last


def convert_state_dict(state: Mapping[str, Tensor], to: Naming) -> dict[str, Tensor]:
    """The same tensors under another code base's key names.

    Args:
        state: Weights of a network in either naming, training or merged form; mmpretrain has RepLKNets only.
        to: "official" or "mmpretrain". Converting there and back gives the same keys in the same order.

    Raises:
        ValueError: If `to` is unknown, two weights would get the same name, or mmpretrain has no such network or no
            names for its norms: it has one place for the norm on the last stage's map and the norm before the head.

    Example:
        >>> import torch
        >>> list(convert_state_dict({"head.weight": torch.ones(2, 3)}, to="mmpretrain"))
        ['head.fc.weight']
    """
    if to not in ("official", "mmpretrain"):
        raise ValueError(f"to={to!r}: expected 'official' or 'mmpretrain'")
    official = _to_official(state)
    if to == "official":
        return official
    family = family_in(official)
    if family is not FAMILIES[0]:
        raise ValueError(f"to='mmpretrain': its code has no {family.name}; expected 'official'")
    last = _last_stage(official)
    if any(key.startswith("norm.") for key in official) and any(key.startswith(f"{last}.norm.") for key in official):
        raise ValueError(f"to='mmpretrain': it calls both 'norm' and '{last}.norm' '{last}.norm'; drop one of them")
    renamed = {}
    for key, value in official.items():
        if key.startswith("head."):
            renamed["head.fc." + key.removeprefix("head.")] = value
        elif key.startswith("norm."):
            renamed[f"backbone.{last}.{key}"] = value
        else:
            renamed["backbone." + key] = value
    return renamed


def _to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    has_head = any(key.startswith("head.") for key in state)
    bare = [key.removeprefix("backbone.") for key in state]
    last = _last_stage(bare)
    norms = {key.split(".norm.")[0] for key in bare if key.startswith("stages.") and ".norm." in key}
    # mmpretrain keeps the norm before the head on the last stage; norms on several stages are intermediate ones.
    final_norm = not any(key.startswith("norm.") for key in bare) and (norms == {last} or (has_head and last in norms))
    sources: dict[str, str] = {}
    for given, key in zip(state, bare, strict=True):
        if key.startswith(("head.fc.", "head.cls_22k.")):
            key = "head." + key.rsplit(".", 1)[1]
        elif final_norm and key.startswith(f"{last}.norm."):
            key = key.removeprefix(f"{last}.")
        if key in sources:
            raise ValueError(f"state: {sources[key]!r} and {given!r} are both {key!r}; expected one of them")
        sources[key] = given
    return {key: state[given] for key, given in sources.items()}


def _last_stage(state: Iterable[str]) -> str:
    return f"stages.{max((stage for stage in map(stage_of, state) if stage is not None), default=0)}"
