"""The images that all cells of a study share."""

import hashlib
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from analysis.images.labelled import FolderImages, InMemory, different_classes, keep_all
from analysis.images.preparing import normalize
from analysis.images.stimuli import StimulusSet, load_stimuli
from analysis.images.synthetic.sets import SyntheticImages, stimulus_set
from analysis.shape_bias.categories import LabelMapping, mapping_of_classes
from analysis.shape_bias.responses import read_observers
from analysis.shape_bias.result import ShapeBiasResult
from analysis.study.design import Study

_WITHOUT_TEXTURE = {"edge": "edges", "silhouette": "silhouettes"}
"""What the name of a folder of stimuli without textures says, and the field of a cell that has the answers."""


class StudyImages:
    """The images that all cells share; each is made when it is first asked for, or all in advance."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._conflict: dict[float, StimulusSet] = {}

    def make(self, num_workers: int) -> None:
        """Make all that fit into memory, in so many processes; with 0, nothing is made in advance."""
        keep_all(self._in_memory, num_workers)

    def store(self, directory: Path) -> None:
        """Write what was made, for `restore` of other processes."""
        for number, images in enumerate(self._in_memory):
            images.store(directory / str(number))

    def restore(self, directory: Path) -> None:
        """Have what another process has stored."""
        for number, images in enumerate(self._in_memory):
            images.restore(directory / str(number))

    @property
    def _in_memory(self) -> list[InMemory]:
        generated = [*self.single.values(), *self._conflicting.values()] if self.study.data is None else []
        return [self.train, self.val, *generated]

    def _folder(self, split: Any) -> FolderImages:
        assert self.study.data is not None
        return FolderImages(self.study.data, split, size=self.study.size)

    def _generated(self, **settings: Any) -> SyntheticImages:
        return SyntheticImages(options=self.study.synthetic_options, **settings)

    @cached_property
    def train(self) -> InMemory:
        study = self.study
        if study.data is not None:
            return InMemory(self._folder("train"))
        return InMemory(self._generated(num_images=study.num_train, balance=study.train_balance, seed=1))

    @cached_property
    def val(self) -> InMemory:
        study = self.study
        if study.data is not None:
            return InMemory(self._folder("val"))
        return InMemory(self._generated(num_images=study.num_val, balance=study.train_balance, seed=2))

    def conflict(self, balance: float) -> StimulusSet:
        """The scenes of the conflict images at one balance."""
        if balance not in self._conflict:
            self._conflict[balance] = stimulus_set(self._scenes(balance), self._conflicting.get(balance))
        return self._conflict[balance]

    def _scenes(self, balance: float) -> SyntheticImages:
        return self._generated(kind="conflict", num_images=self.study.num_conflict, balance=balance, seed=3)

    @cached_property
    def _conflicting(self) -> dict[float, InMemory]:
        return {balance: InMemory(self._scenes(balance)) for balance in self.study.balances}

    @cached_property
    def single(self) -> dict[str, InMemory]:
        """Images with one cue only."""
        return {
            kind: InMemory(self._generated(kind=kind, num_images=self.study.num_val, seed=4))
            for kind in ("shape-only", "texture-only")
        }

    @cached_property
    def mapping(self) -> LabelMapping:
        """From the classes of the image folder to the categories of the stimuli."""
        try:
            return mapping_of_classes(self.train.classes)
        except ValueError as error:
            raise ValueError(f"data={self.study.data!r}: {error}") from None

    @cached_property
    def stimuli(self) -> dict[str, StimulusSet]:
        """Those of the stimuli that show categories which networks of the image folder can name.

        The key is the field of a `CellResult` that has the answers.
        """
        found: dict[str, StimulusSet] = {}
        for directory in self.study.stimuli:
            own = load_stimuli(directory).of_categories(self.mapping.categories)
            name = _field_of(own)
            if name in found:
                kind = name.replace("_", "-")
                raise ValueError(f"stimuli={directory!r}: holds {kind} images, as {found[name].source!r} does")
            found[name] = own
        return found

    @cached_property
    def people(self) -> list[ShapeBiasResult]:
        """All answers of the people."""
        study = self.study
        if study.humans is None:
            return []
        people = read_observers(study.humans, categories=None)
        seen = set(self.stimuli["cue_conflict"].names) if "cue_conflict" in self.stimuli else set()
        blind = [person.observer for person in people if not seen.intersection(person.stimuli)]
        if blind:
            raise ValueError(f"humans={study.humans!r}: {blind[0]} has seen none of the cue-conflict images of stimuli")
        return people

    @cached_property
    def erf(self) -> Tensor:
        """Validation images spread over the set, resized bicubically: shape (N, 3, erf_size, erf_size), normalised."""
        count = min(self.study.num_erf, len(self.val))
        chosen = np.linspace(0, len(self.val) - 1, count).round().astype(int)
        side = self.study.erf_size
        pixels = [Image.fromarray(self.val[int(i)][0]).resize((side, side), Image.Resampling.BICUBIC) for i in chosen]
        stacked = torch.from_numpy(np.stack([np.asarray(image) for image in pixels]))
        return normalize(stacked.permute(0, 3, 1, 2)).contiguous()

    @cached_property
    def fingerprint(self) -> str:
        """Of everything that the images depend on."""
        study = self.study
        if study.data is not None:
            return self._folder("train").fingerprint() + self._folder("val").fingerprint()
        sets = [self._generated(num_images=12, balance=study.train_balance, seed=seed) for seed in (1, 2)]
        sets.append(self._generated(kind="conflict", num_images=12, seed=3))
        pixels = [images[index][0].tobytes() for images in sets for index in range(12)]
        return hashlib.sha256(b"".join(pixels)).hexdigest()

    def check(self) -> None:
        """Refuse images that cannot be studied.

        Raises:
            ValueError: If training and validation have different classes, there is only one, or there are fewer images
                than a batch takes; or if stimuli are of no use for these classes.
            FileNotFoundError: If the image folder is missing or incomplete, or that of stimuli or people is missing.
        """
        study = self.study
        difference = different_classes(self.train, self.val)
        if difference:
            raise ValueError(f"data={study.data!r}: train and val have different classes ({difference})")
        if len(self.train.classes) < 2:
            raise ValueError(f"data={study.data!r}: expected two or more classes, not {self.train.classes}")
        if study.recipe.batch_size > len(self.train):
            raise ValueError(f"batch_size={study.recipe.batch_size}: there are only {len(self.train)} training images")
        _ = self.stimuli, self.people


def _field_of(stimuli: StimulusSet) -> str:
    """The field of a cell that has the answers to a set.

    Raises:
        ValueError: If no image has a conflict of shape and texture, and the folder is not called edges or silhouettes.
    """
    pairs = zip(stimuli.shapes, stimuli.textures, strict=True)
    if any(texture not in ("", shape) for shape, texture in pairs):
        return "cue_conflict"
    name = PurePath(stimuli.source).name
    told = [field for word, field in _WITHOUT_TEXTURE.items() if word in name.casefold()]
    if any(stimuli.textures) or len(told) != 1:
        raise ValueError(
            f"stimuli={stimuli.source!r}: expected images whose shape and texture are of different ones of the "
            f"categories {', '.join(sorted({*stimuli.shapes}))}, or without a texture in a folder called "
            f"{' or '.join(_WITHOUT_TEXTURE.values())}"
        )
    return told[0]
