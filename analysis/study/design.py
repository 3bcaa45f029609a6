"""What a study is made of: its settings, its cells, its presets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from analysis.images.synthetic.drawing import SyntheticOptions
from analysis.runs.settings import COUNTS, LARGEST_KERNEL, SIDES, check_fields
from analysis.study.budget import BUDGETS, of_equal_cost
from analysis.training.recipe import Recipe
from replknet.networks import FAMILIES, family_named

GENERATED = ("num_train", "num_val", "train_balance", "texture_region", "texture_scale", "balances", "num_conflict")
"""Fields of a study that say something of generated images alone."""
ADDED = (
    *("families", "budget", "kernels", "small_kernels", "shortcuts"),
    *("num_seeds", "until_width", "stimuli", "humans"),
)
"""Fields of which a later command may have others: cells, and answers to stimuli, are added to what is there."""
REFERENCE = "replknet"
"""The family whose networks have the widths of the study; those of others are made as costly."""
CAP = (
    "capped at twice the side of the stage's map in training minus 1, or 3 if that is more: further taps would lie "
    "beside that map wherever the kernel stands"
)
"""Of kernels in stages with small maps."""
_STRIDE = 4
"""Of the first stage; each further stage doubles it."""
_MOST_CELLS = 10_000


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that a study is made of.

    Args:
        families: Families of networks to compare, of replknet, unireplknet and slak.
        budget: What a network of another family has as much of as the RepLKNet of the same kernel, within 3 %, by a
            factor on its widths: parameters, or macs of one image; both with kernels merged.
        kernels: Kernel sizes to compare, each at every stage; where a stage's map is smaller, the size is capped at
            what can meet it in training (twice its side minus 1, at least 3). A family has those that it can have.
        small_kernels: Parallel kernels, 0 for none; of families that have them.
        shortcuts: With and without the identity shortcut of the RepLK blocks.
        num_seeds: Trainings of each setting; they differ in the first weights and in the order of the images.
        until_width: With it, seeds are added only until the always-valid 95 % interval of the difference in shape bias
            between the largest and the smallest kernel is no wider, `num_seeds` at most.
        data: A folder with `train` and `val` (or `test`); None for generated images with both cues.
        stimuli: Folders of stimuli of others, on which networks of an image folder are tested: one with cue-conflict
            images, and those without a texture, whose names tell that they hold "edges" or "silhouettes".
        humans: A folder of raw responses of people to the cue-conflict images.
        size: Side of the images in pixels.
        layers: Blocks of each stage; of a RepLKNet pairs of blocks.
        channels: Width of each stage of a RepLKNet.
        recipe: The training of every cell.
        num_train: Generated images to train on.
        num_val: Generated images to measure the accuracy on.
        train_balance: Which cue of a generated training image is weakened (`SyntheticImages`): None draws it anew for
            each image; 0 leaves both cues full in all.
        texture_region: Where the texture is, the whole "image" or the "figure" only; see `SyntheticOptions`.
        texture_scale: Factor on the period of every texture.
        balances: Of the conflict images, from -1 (no texture) to 1 (no shape).
        num_conflict: Images at each balance; the same scenes at all.
        erf_size: Side in pixels of the images on which receptive fields are measured; about four times `size`.
        num_erf: How many of them, validation images resized to it.

    Raises:
        ValueError: If a value is out of range.
    """

    families: tuple[str, ...] = (REFERENCE,)
    budget: str = "parameters"
    kernels: tuple[int, ...] = (3, 7, 13, 31)
    small_kernels: tuple[int, ...] = (3,)
    shortcuts: tuple[bool, ...] = (True,)
    num_seeds: int = 3
    until_width: float | None = None
    data: str | None = None
    stimuli: tuple[str, ...] = ()
    humans: str | None = None
    size: int = 64
    layers: tuple[int, ...] = (1, 1, 2, 1)
    channels: tuple[int, ...] = (16, 32, 64, 128)
    recipe: Recipe = field(default_factory=Recipe)
    num_train: int = 9600
    num_val: int = 600
    train_balance: float | None = None
    texture_region: str = "image"
    texture_scale: float = 1.0
    balances: tuple[float, ...] = (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)
    num_conflict: int = 264
    erf_size: int = 256
    num_erf: int = 12

    def __post_init__(self) -> None:
        check_fields(
            self,
            kernels=(3, LARGEST_KERNEL, f"odd numbers from 3 to {LARGEST_KERNEL}"),
            small_kernels=(0, LARGEST_KERNEL, f"odd numbers up to {LARGEST_KERNEL}, or 0 for none"),
            num_seeds=(1, 10_000, "1 to 10000"),
            until_width=(0.001, 2.0, "a width from 0.001 to 2"),
            size=(16, 4096, "16 to 4096 pixels"),
            layers=(1, 1000, "1 to 1000 pairs of blocks in each stage"),
            channels=(1, 16_384, "1 to 16384 channels in each stage"),
            num_train=COUNTS,
            num_val=COUNTS,
            num_conflict=COUNTS,
            num_erf=COUNTS,
            train_balance=(-1.0, 1.0, "a number from -1 to 1, or none"),
            balances=(-1.0, 1.0, "numbers from -1 to 1"),
            erf_size=SIDES,
        )
        self._check_families()
        for name in ("kernels", "small_kernels", "shortcuts", "balances"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}={values}: expected one or more different values")
        factors = (self.families, self.kernels, self.small_kernels, self.shortcuts)
        num_cells = math.prod(map(len, factors)) * self.num_seeds
        if num_cells > _MOST_CELLS:
            raise ValueError(f"num_seeds={self.num_seeds}: expected at most {_MOST_CELLS} trainings, not {num_cells}")
        if self.until_width is not None and (len(self.kernels) < 2 or (self.data is not None and not self.stimuli)):
            raise ValueError(
                f"until_width={self.until_width}: goes with two or more kernels and a shape bias, so with generated "
                "images or stimuli"
            )
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise ValueError(f"kernels={self.kernels}: expected odd numbers of at least 3")
        if any(kernel and kernel % 2 == 0 for kernel in self.small_kernels):
            raise ValueError(f"small_kernels={self.small_kernels}: expected odd numbers, or 0 for none")
        if not 1 <= len(self.layers) <= 8 or len(self.layers) != len(self.channels):
            raise ValueError(
                f"layers={self.layers}, channels={self.channels}: expected a number for each of 1 to 8 stages in both"
            )
        if self.stimuli and self.data is None:
            raise ValueError(f"stimuli={', '.join(self.stimuli)}: goes with networks of an image folder only (data)")
        if self.humans is not None and not self.stimuli:
            raise ValueError(f"humans={self.humans}: goes with the stimuli that these people saw")
        if 0.0 not in self.balances:
            raise ValueError(f"balances={self.balances}: expected 0, both cues full, among them")
        self.synthetic_options  # noqa: B018  refuses what it cannot be
        stride = _STRIDE * 2 ** (len(self.layers) - 1)
        for name in ("size", "erf_size"):
            if getattr(self, name) < stride:
                raise ValueError(
                    f"{name}={getattr(self, name)}: expected at least {stride} pixels, the stride of the last stage"
                )
        if self.recipe.augmentation == "imagenet" and self.recipe.image_size != self.size:
            raise ValueError(
                f"image_size={self.recipe.image_size}: expected {self.size}, the size of the study's images"
            )
        self._check_kernels()
        for cell in self.cells():
            self._config(cell, num_classes=2)

    def _check_families(self) -> None:
        known = [family.key for family in FAMILIES]
        if not self.families or len(set(self.families)) < len(self.families) or set(self.families) - set(known):
            raise ValueError(f"families={self.families}: expected one or more different of {', '.join(known)}")
        if self.budget not in BUDGETS:
            raise ValueError(f"budget={self.budget!r}: expected one of {', '.join(BUDGETS)}")

    def _check_kernels(self) -> None:
        """Refuse a kernel that no family has, and a family that has too few of the kernels."""
        own = {name: self.kernels_of(name) for name in self.families}
        least = 1 if self.until_width is None else 2
        left_out = set(self.kernels).difference(*own.values())
        for name, kernels in own.items():
            family = family_named(name)
            if len(kernels) < least or (left_out and family.sides):
                raise ValueError(
                    f"kernels={self.kernels}: a {family.name} has kernels of {', '.join(map(str, family.sides))}; "
                    f"expected {'such kernels' if left_out else f'{least} or more of them'}"
                )

    def kernels_of(self, family: str) -> tuple[int, ...]:
        """Those of the study's kernels that a family has."""
        sides = family_named(family).sides
        return tuple(kernel for kernel in self.kernels if not sides or kernel in sides)

    def cells(self) -> list["Cell"]:
        """All cells, one seed after the other, so that an unfinished study has all kernels alike.

        A family without parallel kernels or without the choice of a shortcut has one cell in place of several.
        """
        return [
            Cell(kernel=kernel, small_kernel=small, shortcut=shortcut, seed=seed, family=name)
            for seed in range(self.num_seeds)
            for name in self.families
            for shortcut in (self.shortcuts if has_choice(name, "shortcut") else (True,))
            for small in (self.small_kernels if has_choice(name, "small_kernel") else (0,))
            for kernel in self.kernels_of(name)
        ]

    def kernel_sizes(self, kernel: int) -> tuple[int, ...]:
        """The kernel of each stage after capping."""
        maps = [-(-self.size // (_STRIDE * 2**stage)) for stage in range(len(self.layers))]
        return tuple(min(kernel, max(2 * side - 1, 3)) for side in maps)

    def capped_kernels(self, kernels: Sequence[int]) -> list[int]:
        """Those of some kernels that are smaller in some stages; `CAP` says why."""
        return [kernel for kernel in kernels if any(side != kernel for side in self.kernel_sizes(kernel))]

    def sizes_text(self, kernels: Sequence[int]) -> str:
        """The sides of kernels in each stage, such as "13: 13-7-3-3"."""
        return "; ".join(f"{kernel}: {'-'.join(map(str, self.kernel_sizes(kernel)))}" for kernel in kernels)

    def config(self, cell: "Cell", num_classes: int) -> Any:
        """The architecture of a cell's network.

        Raises:
            ValueError: If no network of the cell's family has the budget.
        """
        own = self._config(cell, num_classes)
        if cell.family == REFERENCE:
            return own
        reference = self._config(replace(cell, family=REFERENCE), num_classes)
        return of_equal_cost(own, reference, budget=self.budget, size=self.size)

    def _config(self, cell: "Cell", num_classes: int) -> Any:
        """With the widths of the study."""
        choices = {"small_kernel": cell.small_kernel or None, "shortcut": cell.shortcut}
        return family_named(cell.family).config.of_kernels(
            self.kernel_sizes(cell.kernel),
            layers=self.layers,
            channels=self.channels,
            drop_path_rate=self.recipe.drop_path_rate,
            gradient_checkpointing=self.recipe.gradient_checkpointing,
            num_classes=num_classes,
            **{name: value for name, value in choices.items() if has_choice(cell.family, name)},
        )

    @property
    def synthetic_options(self) -> SyntheticOptions:
        """Of the generated images."""
        return SyntheticOptions(
            size=self.size,
            texture_region=self.texture_region,  # type: ignore[arg-type]
            texture_scale=self.texture_scale,
        )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One setting of the kernels of one family with one seed."""

    kernel: int
    small_kernel: int
    shortcut: bool
    seed: int
    family: str = REFERENCE

    @property
    def name(self) -> str:
        """Of its folder."""
        family = "" if self.family == REFERENCE else f"{self.family}_"
        small = f"_small{self.small_kernel}" if has_choice(self.family, "small_kernel") else ""
        shortcut = "" if self.shortcut else "_noshortcut"
        return f"{family}k{self.kernel}{small}{shortcut}_seed{self.seed}"


def has_choice(family: str, name: str) -> bool:
    """Whether networks of a family differ in such a field of their configurations."""
    return name in family_named(family).architecture_fields


PRESETS: Mapping[str, Study] = {
    "quick": Study(
        kernels=(3, 13),
        num_seeds=2,
        size=32,
        layers=(1, 1, 1, 1),
        channels=(8, 16, 24, 32),
        recipe=Recipe(steps=30, batch_size=32),
        num_train=480,
        num_val=96,
        balances=(-1.0, -0.5, 0.0, 0.5, 1.0),
        num_conflict=132,
        erf_size=128,
        num_erf=3,
    ),
    "standard": Study(),
    "full": Study(num_seeds=5, small_kernels=(3, 0), shortcuts=(True, False), recipe=Recipe(steps=2000)),
}
"""Seconds, some minutes, and some hours on two cores; "quick" shows what comes out and means nothing."""


def preset(name: str, data: str | None = None) -> Study:
    """A study by name; on an image folder it trains longer and moves the images about.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in PRESETS:
        raise ValueError(f"preset={name!r}: expected one of {', '.join(PRESETS)}")
    study = PRESETS[name]
    if data is None:
        return study
    longer = {"quick": 1, "standard": 5, "full": 5}[name]
    recipe = replace(study.recipe, steps=longer * study.recipe.steps, augmentation="flip-crop")
    return replace(study, data=data, recipe=recipe)
