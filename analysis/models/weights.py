"""Somebody's weights for any network, strictly."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path

from torch import Tensor, nn

from analysis.models.loaded import RANDOM, LoadedModel
from analysis.runs.texts import printable
from replknet.checkpoints.naming import named_as
from replknet.checkpoints.reading import CheckpointError, read_tensors
from replknet.creating import Misfit


def with_weights(
    make: Callable[[int | None], LoadedModel], checkpoint: str | PathLike[str], *, heads: bool = True
) -> LoadedModel:
    """A network with the weights of a file, and a head of as many classes as these have.

    Args:
        make: Makes the network, with another number of classes than its own where it is given one.
        checkpoint: A weight file of any layout that `replknet.load_state_dict` knows, under the network's own keys;
            prefixes of what it was trained in do not count.
        heads: Whether `make` can do that.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it is no weight file, or any key is missing, unexpected or of another shape.
        ValueError: If weights do not tell how the network takes its input.
    """
    state, layout = read_tensors(Path(checkpoint))
    loaded = make(None)
    if hasattr(loaded.module, "transform_input"):  # torchvision's GoogLeNet and Inception
        raise ValueError(
            f"checkpoint={str(checkpoint)!r}: expected none for {loaded.name.removesuffix(RANDOM)}, as no file tells "
            "whether its weights want transform_input; name a function that makes the network as it was trained"
        )
    fitting = _named(loaded.module, state)
    classes = _classes(loaded.module, fitting) if heads else None
    if classes is not None:
        loaded = make(classes)
    name, file = loaded.name.removesuffix(RANDOM), printable(Path(checkpoint).name)
    misfit = str(Misfit.of(loaded.module, fitting))
    if misfit:
        raise CheckpointError(f"checkpoint={str(checkpoint)!r}: does not fit {name}: {misfit}")
    put(loaded.module, fitting)
    notes = (*loaded.notes, f"{file}: images get the preparation of {name}, which the file does not tell")
    if layout.beside:
        notes = (*notes, f"{file}: the averaged weights ({layout.wrapper}) are used, not the last ({layout.beside})")
    own_classes = loaded.classes if classes is None else ()
    return replace(loaded, name=name, initial="", published={}, classes=own_classes, notes=notes)


def put(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load weights that fit; a counter of batches that is missing, on which no output depends, stays."""
    module.load_state_dict({key: state.get(key, value) for key, value in module.state_dict().items()})


def fitted(
    module: nn.Module, weights: str | PathLike[str] | Mapping[str, Tensor], name: str
) -> tuple[dict[str, Tensor], bool]:
    """Weights, or those of a file, for a network that keeps its own head, and whether theirs is another.

    Raises:
        CheckpointError: If anything else than the head does not fit.
    """
    given = weights if isinstance(weights, Mapping) else read_tensors(Path(weights))[0]
    source = "published weights" if isinstance(weights, Mapping) else f"checkpoint={str(weights)!r}"
    state, own = _named(module, given), module.state_dict()
    head = _head(module, state)
    state |= {key: own[key] for key in head}
    misfit = str(Misfit.of(module, state))
    if misfit:
        raise CheckpointError(f"{source}: does not fit {name}: {misfit}")
    return state, bool(head)


def _named(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = named_as(module.state_dict().keys(), state.keys())
    return {name: state[key] for key, name in names.items()}


def _head(module: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Weights of which the file has another number of outputs, all the same, of all that do not fit; else none."""
    own = module.state_dict()
    misfit = Misfit.of(module, state)
    keys = list(misfit.misshaped)
    if not keys or misfit.missing or misfit.unexpected:
        return []
    alike = all(state[key].ndim > 0 and state[key].shape[1:] == own[key].shape[1:] for key in keys)
    numbers = {(own[key].shape[0], state[key].shape[0]) for key in keys if alike}
    return keys if len(numbers) == 1 else []


def _classes(module: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    head = _head(module, state)
    return state[head[0]].shape[0] if head else None
