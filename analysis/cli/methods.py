"""What commands write of their networks for a methods section."""

from collections.abc import Sequence

from torch import nn

import replknet
from analysis.models.complexity import num_parameters
from analysis.models.loaded import DEFAULT_SIZE, LoadedModel
from analysis.models.specs import split_name
from analysis.models.untrained import UNTRAINED, signs_of_no_training
from analysis.runs.methods import Methods, networks_of

_SHIPPED = "trained by this project on generated images of two cues; the weights come with it"


def networks_told(
    specs: Sequence[str],
    loaded: Sequence[LoadedModel],
    *,
    initial: bool = True,
    prepared: Sequence[str] = (),
    size: int | None = None,
) -> Methods:
    """What the networks are and where they are from, and the works that they are to be cited by.

    Args:
        specs: As they were typed.
        loaded: The same, loaded.
        initial: Tell how those that are not trained were initialised, where nothing else does.
        prepared: Names of those of which to tell for which size they prepared images.
        size: Of the option that replaces the networks' own.
    """
    texts = []
    for item in loaded:
        if item.name.endswith(UNTRAINED):
            continue
        told = [item.source] if item.source not in ("", item.name) else []
        told += [_SHIPPED] if item.source in replknet.SHIPPED and not item.initial else []
        told += [f"not trained: {item.initial}"] if initial and item.initial else []
        told += [note.removeprefix(f"{item.name}: ") for note in signs_of_no_training(item)]
        told += (
            [f"images prepared at {size or item.input_size or DEFAULT_SIZE} pixels"] if item.name in prepared else []
        )
        where = f" ({'; '.join(told)})" if told else ""
        number, merged = num_parameters(item.module), _merged_parameters(item.module)
        form = f" ({merged:,} with kernels merged)" if merged != number else ""
        texts.append(f"{item.name}: {item.architecture}, {number:,} parameters{form}{where}.")
    works = networks_of([split_name(spec)[1] for spec in specs], [item.architecture for item in loaded])
    return Methods((" ".join(texts),) if texts else (), works)


def _merged_parameters(module: nn.Module) -> int:
    if isinstance(module, replknet.Network):
        module = replknet.reparameterize(module, level="kernels")
    return num_parameters(module)
