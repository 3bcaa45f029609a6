"""What the networks of a study answer to stimuli of others."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import replknet
from analysis.images.stimuli import StimulusSet
from analysis.models.loading import load_model
from analysis.runs.identity import hash_weights, identify
from analysis.runs.processes import by_first
from analysis.shape_bias.measuring import evaluate_shape_bias
from analysis.shape_bias.result import ShapeBiasResult
from analysis.study.images import StudyImages
from analysis.study.result import CellResult


def unanswered(result: CellResult, images: StudyImages) -> list[str]:
    """The stimuli of a study that a cell has not answered, all of them, as the same images in the same categories."""

    def is_known(name: str, stimuli: StimulusSet) -> bool:
        answers: ShapeBiasResult | None = getattr(result, name)
        if answers is None or answers.mapping != images.mapping:
            return False
        return (answers.stimuli, answers.image_hashes) == (stimuli.names, stimuli.hashes)

    return [name for name, stimuli in images.stimuli.items() if not is_known(name, stimuli)]


def with_answers(
    result: CellResult, images: StudyImages, target: Path, num_workers: int, device: torch.device
) -> CellResult:
    """With the answers to all stimuli of the study.

    Args:
        result: Of a cell that is trained and measured.
        images: Of the study.
        target: Folder of the cell, which gets those answers that it does not have.
        num_workers: Processes that read stimuli.
        device: Where the network answers.

    Raises:
        ValueError: If the folder holds another network than the one that was measured, or a stimulus cannot be used.
        FileNotFoundError: If it holds none.
    """
    names = unanswered(result, images)
    if not names:
        return result
    path = target / "network.safetensors"
    loaded = load_model(str(path)).to(device)
    if hash_weights(loaded.module) != result.weights_hash:
        raise ValueError(f"directory={str(path)!r}: holds other weights than those that were measured")
    fast = replknet.reparameterize(loaded.module)
    shown = replace(loaded, module=fast, name=result.cell.name)
    answers: dict[str, Any] = {
        name: evaluate_shape_bias(
            shown,
            images.stimuli[name],
            mapping=images.mapping,
            batch_size=64,
            num_workers=num_workers,
            identity=identify(fast),
        )
        for name in names
    }
    for name, own in answers.items():
        by_first(lambda name=name, own=own: own.save(target / name, overwrite=True))  # type: ignore[misc]
    by_first(lambda: (target / "error.txt").unlink(missing_ok=True))
    return replace(result, **answers)
