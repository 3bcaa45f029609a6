"""What every family of networks says of itself: the one interface by which all other code deals with networks.

A family is a file in this folder, which defines a `Configuration`, a `Network` and a `Family`, and a line in the
registry.
"""

import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]
from torch.utils.checkpoint import checkpoint as recompute_in_backward

from replknet.networks.parts import Classifier, LargeKernel
from replknet.networks.reparameterize import Form, reparameterize

COMMON = (
    *("drop_path_rate", "in_channels", "num_classes"),
    *("out_indices", "norm_intermediate_features", "gradient_checkpointing"),
)
"""Fields of every configuration that are no part of the architecture."""
_STAGE = re.compile(r"stages\.(0|[1-9][0-9]?)\.")
_HASH = re.compile(r"-([0-9a-f]{8})\.pth")


class Configuration:
    """Architecture of a network; a subclass is a frozen dataclass that has these fields and those of its family."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    layers: tuple[int, ...]
    channels: tuple[int, ...]
    kernel_sizes: tuple[Any, ...]
    drop_path_rate: float
    in_channels: int
    num_classes: int
    out_indices: tuple[int, ...] | None
    norm_intermediate_features: bool
    gradient_checkpointing: bool

    @abstractmethod
    def kernels(self, *, merged: bool) -> dict[str, str]:
        """In words, by a name: the large kernels, then what is beside them, merged or not."""

    @abstractmethod
    def with_kernels(self, kernel_sizes: Sequence[int] | None, small_kernel: int | None) -> tuple[Self, str]:
        """With another kernel for each stage and another parallel kernel (0 for none; None leaves it, if it fits).

        Returns:
            The configuration, and what of its kernels had to be left out, in words; empty for nothing.

        Raises:
            ValueError: If the family has no such choice.
        """

    @classmethod
    def of_kernels(cls, kernel_sizes: Sequence[int], **fields: Any) -> Self:
        """With one kernel a stage, of 3 or more; what else there is of kernels is made to fit.

        Args:
            kernel_sizes: One of the family's `sides` for each stage.
            **fields: Other fields of the configuration.
        """
        make: Any = cls
        made: Self = make(kernel_sizes=tuple(kernel_sizes), **fields)
        return made

    @abstractmethod
    def least_size(self) -> tuple[int, float]:
        """Fewer tensors and numbers than the weights have in any form, by a short calculation from the fields."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage's maps."""
        return self.channels

    def drop_path_of(self, position: int, number: int) -> float:
        """The drop-path probability at one of so many positions, from 0 to `drop_path_rate`."""
        return self.drop_path_rate * position / max(number - 1, 1)

    def is_like(self, other: "Configuration") -> bool:
        """Whether both are of one family and have the same stages and large kernels."""
        own, others = ((type(c), c.layers, c.widths, c.kernel_sizes) for c in (self, other))
        return own == others

    def check_stages(self, *, per_stage: tuple[str, ...]) -> None:
        """Make tuples of integers, `per_stage` and `out_indices`, and check them.

        Raises:
            ValueError: If one is not; the message names the argument.
        """
        for name in (*per_stage, "out_indices"):
            value = getattr(self, name)
            if value is None and name == "out_indices":
                continue
            object.__setattr__(self, name, integers(name, value))
        if not self.layers:
            raise ValueError(f"layers={self.layers}: expected at least one stage")
        for name in per_stage[1:]:
            self.check_length(name)
        for name in ("layers", "channels"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected positive integers")

    def check_length(self, name: str) -> None:
        """Refuse a field that has not one value for each stage."""
        if len(getattr(self, name)) != len(self.layers):
            raise ValueError(
                f"{name}={getattr(self, name)}: expected {len(self.layers)} values, one per stage of "
                f"layers={self.layers}"
            )

    def check_common(self, *flags: str) -> None:
        """Check what all families have, and that fields are True or False.

        Raises:
            ValueError: If one is out of range; the message names the argument.
        """
        for name in (*flags, "norm_intermediate_features", "gradient_checkpointing"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected True or False")
        if not isinstance(self.drop_path_rate, (int, float)) or not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate={self.drop_path_rate!r}: expected a number in [0, 1)")
        if not is_int(self.in_channels) or self.in_channels < 1:
            raise ValueError(f"in_channels={self.in_channels!r}: expected a positive integer")
        if not is_int(self.num_classes) or self.num_classes < 0:
            raise ValueError(f"num_classes={self.num_classes!r}: expected a non-negative integer (0: no head)")
        indices, stages = self.out_indices, len(self.layers)
        if indices is not None and (
            not indices or list(indices) != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= stages
        ):
            raise ValueError(
                f"out_indices={indices}: expected distinct increasing stage numbers from 0 to {stages - 1}, "
                "or None for logits"
            )


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def integers(name: str, value: Any) -> tuple[int, ...]:
    """A field that is a sequence of integers, as a tuple."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"{name}={value!r}: expected a sequence of integers")
    items = tuple(value)
    if not all(is_int(item) for item in items):
        raise ValueError(f"{name}={value!r}: expected a sequence of integers")
    return items


class Network(Classifier):
    """A network of a family.

    Its input is a normalised image batch of shape (N, in_channels, H, W). `stages` holds a module for each stage, which
    is the layer that a stage's receptive field is measured at; stage s has stride 4 * 2**s.
    """

    if TYPE_CHECKING:  # TorchScript would take them for attributes of its own types
        config: Any
        stages: nn.ModuleList

    @classmethod
    @abstractmethod
    def owns(cls, state: Mapping[str, Tensor]) -> bool:
        """Whether official-named weights have keys that this family has and no other."""

    @classmethod
    @abstractmethod
    def infer_config(cls, state: Mapping[str, Tensor]) -> Configuration | None:
        """The architecture of official-named weights, from their shapes; None if they are not this family's.

        It need not be compared with the size of the weights.
        """

    @classmethod
    @abstractmethod
    def form_of(cls, state: Mapping[str, Tensor]) -> Form:
        """Of official-named weights of this family: which level of `reparameterize` gives their keys."""

    @abstractmethod
    def forward_stem(self, x: Tensor) -> Tensor:
        """What enters the first stage, or is given to the layer before it."""

    @abstractmethod
    def forward_stage(self, x: Tensor, stage: int) -> Tensor:
        """A stage's map from that of the stage before it, or from the stem."""

    @abstractmethod
    def normed_map(self, x: Tensor, stage: int) -> Tensor:
        """A stage's map after its own norm, where `config.norm_intermediate_features` asks for one."""

    @abstractmethod
    def keep_stages(self, count: int) -> None:
        """Remove the stages after the first ones, with the layers that lead to them."""

    def set_gradient_checkpointing(self, enable: bool) -> None:
        """Recompute the blocks' activations in the backward pass, or not; a stage has this as an attribute."""
        for stage in self.stages:
            vars(stage)["gradient_checkpointing"] = enable

    @abstractmethod
    def layer_groups(self, coarse: bool) -> dict[str, Any]:
        """As of timm's `group_matcher`: which parameters belong together, in the order of depth.

        Args:
            coarse: One group for a stage; otherwise a few blocks.
        """

    def large_kernels(self) -> list[list[LargeKernel]]:
        """The layers with large kernels of each stage."""
        return [[part for part in stage.modules() if isinstance(part, LargeKernel)] for stage in self.stages]

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """The last stage's map before any norm, shape (N, widths[-1], H/32, W/32) with four stages."""

    def forward_intermediates(self, x: Tensor, indices: Sequence[int] | None = None) -> list[Tensor]:
        """Stage maps, before the transition to the next stage.

        Args:
            x: Normalised images, shape (N, in_channels, H, W).
            indices: Stage numbers, increasing; None for all stages.

        Returns:
            One map per index, shape (N, widths[i], H / stride, W / stride), after the stage's own norm where the
            configuration asks for normalised intermediate features.

        Raises:
            ValueError: If `indices` names a stage that does not exist, or is empty.
        """
        wanted = range(len(self.stages)) if indices is None else indices
        if len(wanted) == 0 or not set(wanted) <= set(range(len(self.stages))):
            raise ValueError(f"indices={indices}: expected stage numbers from 0 to {len(self.stages) - 1}")
        maps = []
        x = self.forward_stem(x)
        for stage in range(max(wanted) + 1):
            x = self.forward_stage(x, stage)
            if stage in wanted:
                maps.append(self.normed_map(x, stage))
        return maps

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits, or the list of stage maps named by `config.out_indices`."""
        if self.config.out_indices is not None:
            return self.forward_intermediates(x, self.config.out_indices)
        return self.forward_head(self.forward_features(x))

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a new one, freshly initialised; 0 removes it.

        Raises:
            ValueError: If `num_classes` is negative, or the final norm was already folded into the old head.
        """
        config = replace(self.config, num_classes=num_classes)
        if num_classes > 0 and isinstance(self.norm, nn.Identity):
            raise ValueError(
                f"num_classes={num_classes}: this network has no final norm of its own any more (folded into its old "
                "head, or built without one); reset the classifier before re-parameterising"
            )
        self.config = config
        reference = next(self.parameters())
        self.head = nn.Identity().train(self.training)
        if num_classes > 0:
            head = nn.Linear(self.config.widths[-1], num_classes, device=reference.device, dtype=reference.dtype)
            self.head = head.train(self.training)

    def switch_to_deploy(self) -> None:
        """Merge the parallel kernels and fold every batch norm, in place (`reparameterize(self, inplace=True)`)."""
        reparameterize(self, inplace=True)


def run_block(block: nn.Module, x: Tensor, recompute: bool) -> Tensor:
    """A block's output; with `recompute` its activations are computed again in the backward pass, to save memory."""
    if not is_scripting():
        recompute = recompute and torch.is_grad_enabled()
    out: Tensor = recompute_in_backward(block, x, use_reentrant=False) if recompute else block(x)
    return out


def stage_of(key: str) -> int | None:
    """The stage that an official-named weight belongs to, if it is one's."""
    found = _STAGE.match(key)
    return int(found[1]) if found else None


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """One published checkpoint.

    Args:
        architecture: A key of `PRESETS`.
        file: Its name; where a hash is published, it ends in the start of its SHA-256. This project's own name where
            none is published.
        training_data: What it was trained on, in order.
        image_size: Side in pixels of the images that the accuracies belong to.
        top1: Accuracy on ImageNet-1K in percent, as its source reports it; None if it has other classes.
        top5: The same within five guesses; None if it is not reported.
        mean: Per channel, subtracted from images in [0, 1].
        std: Per channel, divided by.
        num_classes: Outputs of its head.
        license: Of the code it was published with.
        source: Who published it, and where.
        folder: Address of the folder that the file is in; empty where there is none.
        page: Address of a page that lets a person fetch the file, where it has no address of its own.
    """

    architecture: str
    file: str
    training_data: str
    image_size: int
    top1: float | None
    top5: float | None = None
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    num_classes: int = 1000
    license: str = "MIT"
    source: str
    folder: str = ""
    page: str = ""

    @property
    def sha256(self) -> str:
        """The first eight hexadecimal digits; empty if no hash is published."""
        found = _HASH.search(self.file)
        return found[1] if found else ""

    @property
    def url(self) -> str:
        return self.page or self.folder + self.file

    @property
    def crop(self) -> float:
        """Part of the short side that the centre crop keeps: below 384 pixels 0.875, from there on all of a square."""
        return 0.875 if self.image_size < 384 else 1.0

    @property
    def accuracies(self) -> dict[str, float]:
        """Those that are reported."""
        found = {"top1": self.top1, "top5": self.top5}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of networks.

    Args:
        name: Of one of its networks, such as "RepLKNet".
        network: The class of its networks.
        config: The class of their configurations.
        presets: Architectures by name.
        published: Published checkpoints by "architecture.tag", of each architecture the best known first.
        authors: With the year.
        paper: Its number at arXiv.
        origin: Where the official code is.
        license: Of that code, as timm writes it.
        first_layer: Name of the convolution that takes the image.
        sides: Of its large kernels; empty where they may be any odd number.
    """

    name: str
    network: type[Network]
    config: type[Any]
    presets: Mapping[str, Any]
    published: Mapping[str, PublishedWeights]
    authors: str
    paper: str
    origin: str
    license: str
    first_layer: str
    sides: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """Its name as it is typed, which the names of its architectures begin with."""
        return self.name.lower()

    @property
    def architecture_fields(self) -> tuple[str, ...]:
        """Of its configuration."""
        return tuple(name for name in self.config.__dataclass_fields__ if name not in COMMON)
