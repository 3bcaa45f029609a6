"""Weight files on disk: what one holds, and the same weights in another form, naming or format."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from replknet.checkpoints.describing import architecture_of, find_config
from replknet.checkpoints.naming import Naming, convert_state_dict
from replknet.checkpoints.published import sha256_of
from replknet.checkpoints.reading import CheckpointError, load_state_dict, read_metadata, read_weights
from replknet.checkpoints.writing import clear_leftovers, replacing, write_pickled, write_safetensors
from replknet.creating import load_checkpoint
from replknet.networks import ANY_FAMILY, PUBLISHED, weight_form
from replknet.networks.family import Configuration, Network
from replknet.networks.reparameterize import Form, reparameterize

SAFETENSORS = ".safetensors"
SUFFIXES = (SAFETENSORS, ".pth", ".pt")
_SIZE = 64
_TOLERANCE = 1e-3
"""Largest difference of float32 outputs, relative to the largest output, after the batch norms were folded."""


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What a weight file holds.

    Args:
        config: The architecture that its shapes say; None if it is of no family.
        architecture: Its name or a description, in words.
        form: "training", "merged" (large kernels) or "folded" (every batch norm).
        naming: Whose key names.
        format: "safetensors" or "torch".
        wrapper: The key under which the file keeps the weights; empty if they are at the top.
        beside: The key of the last weights, where those under `wrapper` are averaged ones beside them; else empty.
        num_parameters: Without the statistics of batch norms.
        dtypes: Of the weights.
        sha256: Of the file, in hexadecimal.
        published: The name of the published checkpoint that this file is; None if it is none.
        problems: What keeps it from being loaded, or makes its outputs worthless.
    """

    config: Configuration | None
    architecture: str
    form: Form
    naming: Naming
    format: Literal["safetensors", "torch"]
    wrapper: str
    beside: str
    num_parameters: int
    dtypes: tuple[str, ...]
    sha256: str
    published: str | None
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Conversion:
    """What `convert_checkpoint` did.

    Args:
        num_parameters_before: Of the source.
        num_parameters: Of the new file.
        difference: The largest difference of the outputs, relative to the largest output; 0 without
            re-parameterisation.
    """

    num_parameters_before: int
    num_parameters: int
    difference: float


def inspect_checkpoint(path: str | PathLike[str]) -> CheckpointInfo:
    """What a weight file holds, and what is wrong with it.

    Example:
        >>> from replknet import shipped_weights
        >>> with shipped_weights("replknet_nano_k3") as file:
        ...     info = inspect_checkpoint(file)
        >>> info.architecture, info.form, info.num_parameters, info.problems
        ('replknet_nano_k3', 'training', 287292, ())

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it is not a weight file.
    """
    path = Path(path)
    state, found = read_weights(path)
    problems = _worthless_numbers(state)
    config = None
    try:
        config = find_config(path, state)
        if config is None:
            problems.append(f"not {ANY_FAMILY}: its architecture cannot be read from the keys and shapes")
        else:
            load_checkpoint(path)
    except CheckpointError as error:
        problems.append(str(error).partition(" does not fit the model: ")[2] or str(error))
    digest = sha256_of(path)
    published = [name for name, weights in PUBLISHED.items() if weights.sha256 and digest.startswith(weights.sha256)]
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return CheckpointInfo(
        config=config,
        architecture=architecture_of(config) if config is not None else "unknown",
        form=weight_form(state),
        naming=found.naming,
        format=found.format,
        wrapper=found.wrapper,
        beside=found.beside,
        num_parameters=sum(value.numel() for key, value in state.items() if not key.endswith(statistics)),
        dtypes=tuple(sorted({str(value.dtype).removeprefix("torch.") for value in state.values()})),
        sha256=digest,
        published=published[0] if published else None,
        problems=tuple(problems),
    )


def _worthless_numbers(state: Mapping[str, Tensor]) -> list[str]:
    """What in weights makes the outputs of a network, which is in float32, worthless."""
    problems = []
    numbers = [key for key, value in state.items() if value.is_floating_point()]
    for kind, test in (("NaN", torch.isnan), ("infinite values", torch.isinf)):
        bad = [key for key in numbers if bool(test(state[key].float()).any())]
        if bad:
            problems.append(f"{kind} in {len(bad)} of {len(state)} tensors, the first is {bad[0]}")
    variances = [key for key in numbers if key.endswith("running_var")]
    negative = [key for key in variances if bool((state[key].float() < 0).any())]
    if negative:
        problems.append(f"negative variances in {len(negative)} batch norms, the first is {negative[0]}")
    return problems


def convert_checkpoint(
    source: str | PathLike[str],
    destination: str | PathLike[str],
    *,
    to: Naming = "official",
    level: Literal["kernels", "full"] | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Write the weights of a file under other key names, in another format, or re-parameterised.

    The new file is written beside its place, read again, and compared with the source by the outputs of both networks
    for a random image, before it gets its name.

    Args:
        source: A weight file in any format that `load_state_dict` reads.
        destination: Ends in .safetensors, .pth or .pt, which fixes the format. What a study's network file says of
            itself is kept where both are safetensors with official names.
        to: Whose key names.
        level: Re-parameterise, as `reparameterize` does; None leaves the form as it is.
        overwrite: Replace a file that is there.

    Returns:
        How large both networks are, and how far their outputs differ.

    Raises:
        FileNotFoundError: If there is no such source.
        FileExistsError: If the destination is there and `overwrite` is false.
        CheckpointError: If the source does not hold a network of a family, or the new file does not give its outputs.
        ValueError: If an argument is out of range, or mmpretrain's code has no place for such weights.
    """
    source, destination = Path(source), Path(destination)
    if destination.suffix not in SUFFIXES:
        raise ValueError(f"destination={str(destination)!r}: expected a name that ends in {', '.join(SUFFIXES)}")
    if destination.exists() and not overwrite:
        raise FileExistsError(f"destination={str(destination)!r}: exists already; overwrite (--overwrite) replaces it")
    if destination.exists() and destination.samefile(source):
        raise ValueError(f"destination={str(destination)!r}: is the source itself; choose another name")
    before = load_checkpoint(source).eval()
    after = before if level is None else reparameterize(before, level=level)
    state = after.state_dict()
    if level is None:  # the file's own dtypes, and only the keys that it has
        state = load_state_dict(source)
    if to == "mmpretrain" and weight_form(state) == "folded":
        raise ValueError(
            "to='mmpretrain': its code has no place for folded batch norms; re-parameterise the kernels only"
        )
    clear_leftovers(destination.parent, of=destination.name)
    converted = convert_state_dict(state, to=to)
    with replacing(destination) as temporary:
        _write(converted, temporary, to, read_metadata(source))
        difference = _largest_difference(before, load_checkpoint(temporary).eval())
        if not difference <= (0.0 if level is None else _TOLERANCE):  # NaN is refused, too
            raise CheckpointError(
                f"source={str(source)!r}: the converted network differs by {difference:.1e} of the largest output; an "
                f"architecture that the shapes do not tell is kept by {SAFETENSORS} files with official names only"
            )
    old, new = (sum(parameter.numel() for parameter in model.parameters()) for model in (before, after))
    return Conversion(num_parameters_before=old, num_parameters=new, difference=difference)


def _write(state: Mapping[str, Tensor], path: Path, naming: Naming, metadata: Mapping[str, str]) -> None:
    if path.suffix == SAFETENSORS:
        write_safetensors(path, state, metadata if naming == "official" else None)
        return
    tensors = {key: value.detach().contiguous() for key, value in state.items()}
    write_pickled(path, {"meta": {}, "state_dict": tensors} if naming == "mmpretrain" else tensors)


@torch.no_grad()
def _largest_difference(before: Network, after: Network) -> float:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, before.config.in_channels, _SIZE, _SIZE, generator=generator)
    expected, found = (model.float().forward_head(model.forward_features(image)) for model in (before, after))
    if not bool(expected.isfinite().all()):
        reason = "; ".join(_worthless_numbers(before.state_dict())) or "its numbers are too large"
        raise CheckpointError(f"source: its own outputs for a random image are not finite ({reason})")
    if expected.shape != found.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny))
