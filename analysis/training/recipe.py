"""How a network is trained: every hyper-parameter, and the published ones as TOML files."""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from analysis.runs.settings import BATCHES, COUNTS, Range, check_fields, check_number
from analysis.runs.texts import parse_toml, read_text

Augmentation = Literal["none", "flip", "flip-crop", "imagenet"]
STEPS: Range = (1, 100_000_000, "1 to 100000000 steps")
_BELOW_ONE = math.nextafter(1, 0)
_ADAPTED = ("batch_size", "steps", "image_size")
_MULTIPLE = 32
"""Of pixels; the networks halve their maps five times."""
_ENOUGH_STEPS = {False: 300, True: 50}
"""Of a network from random weights, and of a trained one."""
_BY_EPOCHS = {"steps": "epochs", "warmup": "warmup_epochs"}
"""Fields of a recipe, and what a file that counts in epochs has in their place."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything about a training but the network, the images and the seed.

    Args:
        steps: Updates of the weights.
        batch_size: Images in a step, of all processes together.
        learning_rate: Peak rate of AdamW.
        minimum_rate: What the rate falls to.
        weight_decay: Of AdamW: of the weights of convolutions and of the head; norms and biases have none.
        layer_decay: Factor on the learning rate from each group of layers to the one before it; see `group_matcher` of
            the model.
        warmup: Part of the steps in which the rate rises linearly from 0; it then falls along a cosine.
        label_smoothing: Probability that the target gives to all classes together.
        drop_path_rate: Drop-path rate of the last pair of blocks; see `RepLKNetConfig`. A property of the network:
            whoever makes it heeds this.
        augmentation: "none", "flip" (left and right, half of the time), "flip-crop" (also moved by up to an eighth of
            the side, with mirrored borders), or "imagenet" (a random part of the image, flipped, with RandAugment, or
            else with colour jitter).
        image_size: Side in pixels that "imagenet" resizes to.
        rand_augment: For "imagenet", in timm's notation, such as "rand-m9-mstd0.5-inc1"; empty for none.
        random_erasing: Probability that a rectangle of an image is replaced by noise.
        mixup: Parameter of the beta distribution of the weights of two images; 0 for none.
        cutmix: Parameter of the beta distribution of the area that one image gives to another; where both are above 0,
            a batch has either.
        ema_decay: Use the exponential moving average of the weights with this decay at the end, after t updates at most
            (1 + t) / (10 + t), so that the first weights are soon forgotten; None for the last weights.
        max_gradient_norm: A gradient that is longer is scaled down to it; infinite for never.
        autocast: "bfloat16" for mixed precision, or "".
        accumulate: Parts that each process makes of its share of a batch, one after the other, to save memory. Batch
            norms see one part at a time.
        gradient_checkpointing: Recompute activations in the backward pass, to save memory. A property of the network:
            whoever makes it heeds this.
        sync_batch_norm: Statistics of batch norms over all processes; PyTorch has this on GPUs only.

    Raises:
        ValueError: If a value is out of range.

    References:
        Mixing, erasing and RandAugment are timm's: Zhang et al. 2018, arXiv:1710.09412; Yun et al. 2019,
        arXiv:1905.04899; Zhong et al. 2020, arXiv:1708.04896; Cubuk et al. 2020, arXiv:1909.13719.
    """

    steps: int = 450
    batch_size: int = 64
    learning_rate: float = 8e-3
    minimum_rate: float = 0.0
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    warmup: float = 0.1
    label_smoothing: float = 0.1
    drop_path_rate: float = 0.0
    augmentation: Augmentation = "flip"
    image_size: int = 224
    rand_augment: str = ""
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema_decay: float | None = None
    max_gradient_norm: float = 5.0
    autocast: str = ""
    accumulate: int = 1
    gradient_checkpointing: bool = False
    sync_batch_norm: bool = False

    def __post_init__(self) -> None:
        check_fields(
            self,
            learning_rate=(1e-12, 1e6, "a number from 1e-12 to 1e6"),
            steps=STEPS,
            batch_size=(2, BATCHES[1], f"2 (batch norm) to {BATCHES[1]} images"),
            weight_decay=(0.0, 1e6, "a number from 0 to 1e6"),
            layer_decay=(1e-6, 1.0, "a number in (0, 1]"),
            warmup=(0.0, 0.999, "a part below 1"),
            label_smoothing=(0.0, 0.999, "a number in [0, 1)"),
            drop_path_rate=(0.0, 0.999, "a number in [0, 1)"),
            image_size=(16, 4096, "16 to 4096 pixels"),
            random_erasing=(0.0, 1.0, "a probability"),
            mixup=(0.0, 1e6, "a number from 0 to 1e6"),
            cutmix=(0.0, 1e6, "a number from 0 to 1e6"),
            ema_decay=(0.0, _BELOW_ONE, "a number in [0, 1), or none"),
            max_gradient_norm=(1e-12, math.inf, "a positive number"),
        )
        check_number("minimum_rate", self.minimum_rate, (0.0, self.learning_rate, "a number from 0 to learning_rate"))
        check_number("accumulate", self.accumulate, (1, self.batch_size, "1 to batch_size"))
        if self.autocast not in ("", "bfloat16"):
            raise ValueError(f"autocast={self.autocast!r}: expected 'bfloat16' or ''")
        if self.rand_augment and self.augmentation != "imagenet":
            raise ValueError(f"rand_augment={self.rand_augment!r}: goes with augmentation 'imagenet' only")
        if self.rand_augment:
            _check_rand_augment(self.rand_augment)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with each other."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True, kw_only=True)
class RecipeFile:
    """A recipe that counts in epochs, from a TOML file: `about`, `source`, `epochs`, `warmup_epochs` and `[recipe]`.

    One that has `[adapt]`, too, follows the size of the set and of its images: a batch is a tenth of the images, and
    these get the middle one of their shorter sides, rounded up to a multiple of 32. Both and the steps stay within the
    bounds that stand there.

    Args:
        name: Of the file, without its ending.
        about: What it is for.
        source: Where the numbers are from.
        epochs: Passes over all images.
        warmup_epochs: The first of them, in which the learning rate rises.
        settings: Fields of `Recipe`.
        adapt: Lowest and highest value of fields that follow the images.
    """

    name: str
    about: str
    source: str
    epochs: float
    warmup_epochs: float
    settings: Mapping[str, Any]
    adapt: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        for name, bounds in self.adapt.items():
            if name not in _ADAPTED or name in self.settings:
                raise ValueError(f"{name}={bounds!r}: expected one of {', '.join(_ADAPTED)}, and it under [adapt] only")
            numbers = isinstance(bounds, list) and len(bounds) == 2 and all(type(value) is int for value in bounds)
            if not numbers or not 0 < bounds[0] <= bounds[1]:
                raise ValueError(f"{name}={bounds!r}: expected the lowest and the highest whole number")
        for name in _BY_EPOCHS.keys() & self.settings:
            raise ValueError(f"{name}={self.settings[name]!r}: a file tells {_BY_EPOCHS[name]} in its place")

    def for_images(
        self, num_images: int, changes: Mapping[str, Any] | None = None, *, sides: Sequence[int] = ()
    ) -> Recipe:
        """The recipe for a set of so many images; `changes` may name any field of `Recipe`, `epochs` and
        `warmup_epochs`.

        Args:
            num_images: To train on.
            changes: In place of what the recipe says.
            sides: Shorter sides in pixels of some of the images, for a recipe that adapts.

        Raises:
            ValueError: If a field is unknown, out of range, or contradicts another, or a batch is larger than the set.
        """
        changes = changes or {}
        check_number("num_images", num_images, COUNTS)
        known = sorted({item.name for item in fields(Recipe)} | set(_BY_EPOCHS.values()))
        for name, value in {**self.settings, **changes}.items():
            if name not in known:
                close = [own for own in known if name == "".join(word[0] for word in own.split("_"))]
                close = close or difflib.get_close_matches(name, known, n=1)
                meant = f" (did you mean {close[0]}?)" if close else ""
                raise ValueError(f"{name}={value!r}: no field of a recipe{meant}; expected {', '.join(known)}")
        for name, by_epochs in (*_BY_EPOCHS.items(), ("steps", "warmup_epochs")):
            if name in changes and by_epochs in changes:
                raise ValueError(f"{by_epochs}={changes[by_epochs]!r}: expected {name} or {by_epochs}, not both")
        adapted = self._adapted(num_images, sides)
        settings = {"epochs": self.epochs, "warmup_epochs": self.warmup_epochs, **self.settings, **adapted, **changes}
        epochs, warmup = settings.pop("epochs"), settings.pop("warmup_epochs")
        check_number("epochs", epochs, (1e-6, 1e6, "a number from 1e-6 to 1e6"))
        check_number("warmup_epochs", warmup, (0.0, 1e6, "a number from 0 to 1e6"))
        if not warmup < epochs:
            raise ValueError(
                f"epochs={epochs}, warmup_epochs={warmup}: expected 0 <= warmup_epochs < epochs; set both of them"
            )
        size = Recipe(**settings).batch_size
        if size > num_images:
            raise ValueError(f"batch_size={size}: there are only {num_images} training images")
        steps = max(1, round(epochs * num_images / size))
        if "steps" in self.adapt and "epochs" not in changes:
            steps = _within(steps, self.adapt["steps"])
        return Recipe(**{"steps": steps, "warmup": warmup / epochs} | settings)

    def _adapted(self, num_images: int, sides: Sequence[int]) -> dict[str, int]:
        found = {}
        if "batch_size" in self.adapt:
            found["batch_size"] = min(num_images, _within(num_images // 10, self.adapt["batch_size"])) // 2 * 2
        if "image_size" in self.adapt and sides:
            middle = sorted(sides)[len(sides) // 2]
            found["image_size"] = _within(_MULTIPLE * -(-middle // _MULTIPLE), self.adapt["image_size"])
        return found


def _within(value: int, bounds: Sequence[int]) -> int:
    return max(bounds[0], min(value, bounds[1]))


def why_too_little(recipe: Recipe, *, trained: bool) -> str:
    """Why a network can hardly learn by a recipe, in words; empty if nothing says so.

    Args:
        recipe: The recipe.
        trained: Whether the network begins with trained weights.
    """
    enough = _ENOUGH_STEPS[trained]
    if recipe.layer_decay < 1 and not trained:
        return (
            f"layer_decay={recipe.layer_decay:g} is for trained weights; the first layers of a new network hardly learn"
        )
    if recipe.steps < enough:
        kind = "trained" if trained else "random"
        return f"{recipe.steps} steps are few from {kind} weights; expected {enough} or more: set epochs or steps"
    return ""


def _check_rand_augment(text: str) -> None:
    from timm.data.auto_augment import rand_augment_transform  # not loaded for recipes without it

    try:
        rand_augment_transform(text, {})
    except (AssertionError, ValueError, IndexError, KeyError) as error:
        raise ValueError(f"rand_augment={text!r}: expected timm's notation, such as 'rand-m9-mstd0.5-inc1'") from error


def recipe_names() -> list[str]:
    """Of the recipes that come with the package."""
    folder = resources.files("analysis.training") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name: str) -> RecipeFile:
    """A recipe that comes with the package, by name, or any TOML file in the same form.

    Raises:
        ValueError: If there is none of this name, or a field is missing or unknown.
    """
    if name in recipe_names():
        text = (resources.files("analysis.training") / "recipes" / f"{name}.toml").read_text()
    elif name.endswith(".toml") and Path(name).is_file():
        text = read_text(name, "recipe")
    else:
        raise ValueError(f"recipe={name!r}: expected a .toml file or one of {', '.join(recipe_names())}")
    try:
        content = parse_toml(text)
        expected = {item.name for item in fields(RecipeFile)} - {"name", "settings", "adapt"} | {"recipe"}
        more = sorted(content.keys() - expected - {"adapt"})
        if expected - content.keys() or more:
            missing = sorted(expected - content.keys())
            raise ValueError(f"it lacks {', '.join(missing)}" if missing else f"{', '.join(more)}: no entry of one")
        found = RecipeFile(name=Path(name).stem, settings=content.pop("recipe"), **content)
        found.for_images(int(COUNTS[1]))
    except ValueError as error:
        raise ValueError(f"recipe={name!r}: not a recipe ({error})") from error
    return found


def parse_changes(texts: list[str]) -> dict[str, Any]:
    """Fields of a recipe from texts such as "batch_size=64".

    A value is a number, true, false or a text; "none" or nothing where the field may be None is that.

    Raises:
        ValueError: If a text is not of this form, or two change one field.
    """
    changes: dict[str, Any] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name:
            raise ValueError(f"set={text!r}: expected name=value, such as batch_size=64")
        if name in changes:
            raise ValueError(f"set={text!r}: {name} is given twice")
        nothing = value in ("", "none") and getattr(Recipe, name, "") is None
        changes[name] = None if nothing else _value(value)
    return changes


def _value(text: str) -> int | float | bool | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else {"true": True, "false": False}.get(text, text)
