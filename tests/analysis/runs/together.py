"""What `test_distributed` does in one process and in two; under torchrun: together.py DATA OUT."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from analysis import effective_receptive_field, evaluate, evaluate_shape_bias
from analysis.images.labelled import FolderImages
from analysis.images.synthetic.drawing import SyntheticOptions
from analysis.images.synthetic.outlines import CLASSES
from analysis.images.synthetic.sets import SyntheticImages, stimulus_set
from analysis.models.loaded import LoadedModel
from analysis.runs.processes import by_first, in_turns, num_processes, process_group, rank
from analysis.shape_bias.categories import MAPPING
from analysis.training.loop import accuracy, train
from analysis.training.recipe import Recipe


class Smooth(nn.Module):
    """A classifier of twelve classes in float64, without batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(nn.Conv2d(3, 6, 5, 2, 2), nn.GELU(), nn.Conv2d(6, 12, 7, 2, 3), nn.GELU()).double()
        self.head = nn.Linear(12, 12).double()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.maps(x.double()).mean((2, 3)))
        return logits


def smooth() -> Smooth:
    torch.manual_seed(3)
    return Smooth()


RECIPES = {
    "plain": Recipe(steps=12, batch_size=12, augmentation="flip-crop", ema_decay=0.9),
    "photographs": Recipe(
        steps=6, batch_size=12, augmentation="imagenet", image_size=32, rand_augment="rand-m9-mstd0.5-inc1"
    ),
    "accumulated": Recipe(steps=6, batch_size=12, augmentation="flip", accumulate=3, layer_decay=0.9),
}


def measure(data: Path, scratch: Path) -> dict[str, Any]:
    """Everything that is to be the same in any number of processes."""
    found: dict[str, Any] = {}
    network = smooth()
    images = torch.rand(5, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    erf = effective_receptive_field(network, images, layer="maps", partial=scratch / "erf.npz")
    found |= {"erf": erf.mean_map, "rings": erf.ring_sums, "names": np.array(erf.images)}
    loaded = LoadedModel(name="smooth", module=network, classes=CLASSES, input_size=32, crop=1.0)
    stimuli = stimulus_set(SyntheticImages(kind="conflict", num_images=13, options=SyntheticOptions(size=32)))
    bias = evaluate_shape_bias(loaded, stimuli, mapping=MAPPING, batch_size=4, partial=scratch / "bias.npz")
    found |= {"logits": bias.logits, "responses": np.array(bias.responses), "bias_of": np.array(bias.stimuli)}
    result = evaluate(loaded, data / "damaged", batch_size=4, partial=scratch / "evaluation.npz")
    found |= {"best": result.best, "labels": result.labels, "files": np.array(result.images)}
    found["skipped"] = np.array(result.skipped)
    training, validation = FolderImages(data, "train", size=32), FolderImages(data, "val", size=32)
    found["accuracy"] = accuracy(network, validation, batch_size=4)
    for name, recipe in RECIPES.items():
        trained = smooth()
        curve = train(trained, training, validation, recipe, record_every=2, evaluate_every=6).curve
        found[f"{name}_loss"] = np.array(curve.train_loss)
        found[f"{name}_accuracy"] = np.array(curve.val_accuracy)
        found[f"{name}_weights"] = torch.cat([p.detach().flatten() for p in trained.parameters()]).numpy()
    return found


def fails_in_one(item: int) -> int:
    if item == 3:
        raise ValueError("item 3 is bad")
    return item


if __name__ == "__main__":
    data, out = map(Path, sys.argv[1:])
    with process_group():
        assert num_processes() == 2
        content = measure(data, out.parent)
        # What one process raises is raised in all; what the first one reads is everybody's.
        with contextlib.suppress(ValueError):
            list(in_turns(5, fails_in_one))
            raise AssertionError("process did not learn of the failure")
        content["shared"] = by_first(lambda: rank() + 10)
        if rank() == 1:
            np.savez(out, **content)
