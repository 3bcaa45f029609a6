"""RepLKNet: its configuration, its layers and the published sizes (Ding et al. 2022, arXiv:2203.06717)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]

from replknet.convolution.depthwise import DepthwiseConv2d
from replknet.convolution.layouts import inference_layout
from replknet.convolution.pointwise import PointwiseConv2d, in_parts, takes_fast_path
from replknet.networks.blocks import ConvBN, ConvFFN, RepLKBlock
from replknet.networks.family import Configuration, Family, Network, PublishedWeights, is_int, run_block, stage_of
from replknet.networks.reparameterize import Form

torch.fx.wrap("inference_layout")  # one node of a symbolic trace, which has no devices
_TENSORS_OF_A_PAIR = 8
"""At least; with every batch norm folded it has ten, weight and bias of five convolutions."""
_BLOCKS_IN_A_GROUP = 4
_MERGE_WITH_PREVIOUS = 99999
"""timm's mark for a group of parameters that joins the one before it."""
_HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class RepLKNetConfig(Configuration):
    """Architecture of a RepLKNet, validated when it is made.

    Args:
        layers: Pairs of one RepLK block and one ConvFFN in each stage.
        channels: Width of each stage.
        kernel_sizes: Side of the large depthwise kernel of each stage, in pixels of that stage's map; odd.
        small_kernel: Side of the parallel depthwise kernel that is merged after training; odd, not larger than any
            of `kernel_sizes`. None leaves the branch out.
        shortcut: Add the input of a RepLK block to its output, as published. False is for the ablation of that
            (guideline 2 of the paper); such a block has no drop path.
        dw_ratio: Width of the large depthwise convolution relative to its stage.
        ffn_ratio: Hidden width of a ConvFFN relative to its stage.
        drop_path_rate: Probability of skipping the last residual branch; it grows linearly from 0 over the pairs.
        in_channels: Channels of the input image.
        num_classes: Outputs of the linear head; 0 builds no head, and `forward` returns pooled features.
        out_indices: Stages whose maps `forward` returns as a list; None returns logits.
        norm_intermediate_features: Give every stage a batch norm that is applied to the maps of `out_indices`.
        gradient_checkpointing: Recompute block activations in the backward pass to save memory.

    Raises:
        ValueError: If a value is out of range or the lengths differ; the message names the argument.

    References:
        Ding et al. 2022, arXiv:2203.06717.
    """

    layers: tuple[int, ...]
    channels: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    small_kernel: int | None = 5
    shortcut: bool = True
    dw_ratio: float = 1.0
    ffn_ratio: float = 4.0
    drop_path_rate: float = 0.0
    in_channels: int = 3
    num_classes: int = 1000
    out_indices: tuple[int, ...] | None = None
    norm_intermediate_features: bool = False
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        self.check_stages(per_stage=("layers", "channels", "kernel_sizes"))
        if any(size < 1 or size % 2 == 0 for size in self.kernel_sizes):
            raise ValueError(f"kernel_sizes={self.kernel_sizes}: expected odd positive integers")
        self._validate_small_kernel()
        for name in ("dw_ratio", "ffn_ratio"):
            ratio = getattr(self, name)
            if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < float("inf"):
                raise ValueError(f"{name}={ratio!r}: expected a positive number")
            if int(min(self.channels) * ratio) < 1:
                raise ValueError(f"{name}={ratio!r}: leaves no channel of a stage of width {min(self.channels)}")
        self.check_common("shortcut")

    def _validate_small_kernel(self) -> None:
        small = self.small_kernel
        if small is None:
            return
        if not is_int(small) or small < 1 or small % 2 == 0:
            raise ValueError(f"small_kernel={small!r}: expected an odd positive integer or None")
        if small > min(self.kernel_sizes):
            raise ValueError(
                f"small_kernel={small}: expected at most the smallest of kernel_sizes={self.kernel_sizes}, "
                "or None for no parallel kernel"
            )

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """Drop-path probability of each pair, from 0 to `drop_path_rate`."""
        pairs = sum(self.layers)
        return tuple(self.drop_path_of(pair, pairs) for pair in range(pairs))

    def kernels(self, *, merged: bool) -> dict[str, str]:
        small = "merged or none" if merged else str(self.small_kernel)
        return {"large kernels": "-".join(map(str, self.kernel_sizes)), "small kernel": small}

    def with_kernels(
        self, kernel_sizes: Sequence[int] | None, small_kernel: int | None
    ) -> tuple["RepLKNetConfig", str]:
        sizes = self.kernel_sizes if kernel_sizes is None else tuple(kernel_sizes)
        own, left_out = self.small_kernel, ""
        if small_kernel is not None:
            own = small_kernel or None
        elif kernel_sizes is not None and own and min(sizes, default=own) < own:
            own, left_out = None, f"the parallel {own}x{own} kernel does not fit, left out"
        return replace(self, kernel_sizes=sizes, small_kernel=own), left_out

    def least_size(self) -> tuple[int, float]:
        first, last = self.channels[0], self.channels[-1]
        numbers: float = 9 * self.in_channels * first + last * self.num_classes
        for layers, width, size in zip(self.layers, self.channels, self.kernel_sizes, strict=True):
            large, hidden = int(width * self.dw_ratio), int(width * self.ffn_ratio)
            numbers += layers * (2 * width * (large + hidden) + large * size**2)
        return _TENSORS_OF_A_PAIR * sum(self.layers), numbers


class Stage(nn.Module):
    """A sequence of RepLK blocks and ConvFFNs of one width and one kernel size."""

    def __init__(self, config: RepLKNetConfig, stage: int) -> None:
        super().__init__()
        channels = config.channels[stage]
        first_pair = sum(config.layers[:stage])
        rates = config.drop_path_rates[first_pair : first_pair + config.layers[stage]]
        blocks: list[nn.Module] = []
        for rate in rates:
            blocks.append(
                RepLKBlock(
                    channels,
                    int(channels * config.dw_ratio),
                    config.kernel_sizes[stage],
                    config.small_kernel,
                    drop_path=rate,
                    shortcut=config.shortcut,
                )
            )
            blocks.append(ConvFFN(channels, int(channels * config.ffn_ratio), drop_path=rate))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.BatchNorm2d(channels) if config.norm_intermediate_features else nn.Identity()
        """For the maps of `forward_intermediates` only; the next stage gets the map without it."""
        self.gradient_checkpointing = config.gradient_checkpointing

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if is_scripting():  # noqa: SIM108  TorchScript leaves such a branch out
                x = block(x)
            else:
                x = run_block(block, x, self.gradient_checkpointing)
        return x


_FOLDED_STEM = (
    nn.ModuleList,
    *(ConvBN, nn.Conv2d, nn.Identity, nn.ReLU),
    *(ConvBN, DepthwiseConv2d, nn.Identity, nn.ReLU),
    *(ConvBN, PointwiseConv2d, nn.Identity, nn.ReLU),
    *(ConvBN, nn.Conv2d, nn.Identity, nn.ReLU),
)


class RepLKNet(Network):
    """RepLKNet: a convolutional network with a few very large depthwise kernels.

    Args:
        config: The architecture.

    The input is a normalised image batch of shape (N, in_channels, H, W); stage s has stride 4 * 2**s. Weights carry
    PyTorch's default initialisation, as in the official implementation.

    References:
        Ding et al. 2022, arXiv:2203.06717.
    """

    def __init__(self, config: RepLKNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.channels[0]
        self.stem = nn.ModuleList(
            [
                ConvBN(config.in_channels, width, 3, stride=2, activation=nn.ReLU()),
                ConvBN(width, width, 3, groups=width, activation=nn.ReLU()),
                ConvBN(width, width, 1, activation=nn.ReLU()),
                ConvBN(width, width, 3, stride=2, groups=width, activation=nn.ReLU()),
            ]
        )
        self.stages = nn.ModuleList(Stage(config, stage) for stage in range(len(config.layers)))
        self.transitions = nn.ModuleList(
            nn.Sequential(
                ConvBN(narrow, wide, 1, activation=nn.ReLU()),
                ConvBN(wide, wide, 3, stride=2, groups=wide, activation=nn.ReLU()),
            )
            for narrow, wide in zip(config.channels, config.channels[1:], strict=False)
        )
        # A backbone (maps and no head) has no final norm either: nothing would use it.
        self.norm = nn.Identity()
        if config.num_classes > 0 or config.out_indices is None:
            self.norm = nn.BatchNorm2d(config.channels[-1])
        self.head = nn.Identity()
        if config.num_classes > 0:
            self.head = nn.Linear(config.channels[-1], config.num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map before the final norm, shape (N, channels[-1], H/32, W/32) with four stages."""
        x = self.forward_stem(x)
        for index, stage in enumerate(self.stages):
            for before, transition in enumerate(self.transitions):  # TorchScript finds no module by a variable's value
                if before + 1 == index:
                    x = transition(x)
            x = stage(x)
        return x

    def forward_stem(self, x: Tensor) -> Tensor:
        x = inference_layout(x, self.training)
        if not is_scripting():  # noqa: SIM102
            if takes_fast_path(self.stem, x, _FOLDED_STEM):
                return self._fast_stem(x)
        return self._stem_of(x)

    def _fast_stem(self, x: Tensor) -> Tensor:
        # A channel of the largest maps has a quarter of the image's pixels, of four bytes each.
        return in_parts(self._stem_of, x, self.config.channels[0] * x.shape[2] * x.shape[3])

    def _stem_of(self, x: Tensor) -> Tensor:
        for layer in self.stem:
            x = layer(x)
        return x

    def forward_stage(self, x: Tensor, stage: int) -> Tensor:
        if stage > 0:
            x = self.transitions[stage - 1](x)
        out: Tensor = self.stages[stage](x)
        return out

    def normed_map(self, x: Tensor, stage: int) -> Tensor:
        out: Tensor = self.stages[stage].get_submodule("norm")(x)
        return out

    def keep_stages(self, count: int) -> None:
        self.stages = self.stages[:count]
        self.transitions = self.transitions[: count - 1]

    def layer_groups(self, coarse: bool) -> dict[str, Any]:
        """By stage, or else, as in the official training code, by two pairs of blocks, which makes twelve groups of the
        published networks beside stem and head; a transition joins the group before it.
        """
        blocks: list[tuple[str, tuple[int, ...] | None]] = [(r"^stages\.(\d+)", None)]
        if not coarse:
            blocks = []
            for stage, layers in enumerate(self.config.layers):
                for group, first in enumerate(range(0, 2 * layers, _BLOCKS_IN_A_GROUP)):
                    own = "|".join(map(str, range(first, min(first + _BLOCKS_IN_A_GROUP, 2 * layers))))
                    blocks.append((rf"^stages\.{stage}\.blocks\.(?:{own})\.", (stage, group)))
        return {"stem": r"^stem", "blocks": [*blocks, (r"^transitions\.(\d+)", (_MERGE_WITH_PREVIOUS,))]}

    @classmethod
    def owns(cls, state: Mapping[str, Tensor]) -> bool:
        return "stem.0.conv.weight" in state or any(".large_kernel.lkb_" in key and ".blocks." in key for key in state)

    @classmethod
    def form_of(cls, state: Mapping[str, Tensor]) -> Form:
        if not any(".lkb_reparam." in key for key in state):
            return "training"
        return "folded" if "stem.0.conv.bias" in state else "merged"

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor]) -> RepLKNetConfig | None:
        """The drop-path rate is not in the weights and stays 0; nor is the small kernel after a merge, which then is
        None. Nor are the stages whose maps a backbone (no final norm and no head) gives: it gets all of them.
        """
        large = {}
        for key, value in state.items():
            if key.endswith(("large_kernel.lkb_origin.conv.weight", "large_kernel.lkb_reparam.weight")):
                large[key.partition(".large_kernel.")[0]] = value
        layers = Counter(map(stage_of, large))
        try:
            num_stages = len(layers)
            firsts = [f"stages.{stage}.blocks.0" for stage in range(num_stages)]
            channels = [state[f"{block}.pw1.conv.weight"].shape[1] for block in firsts]
            smalls = [
                value.shape[-1] for key, value in state.items() if key.endswith("large_kernel.small_conv.conv.weight")
            ]
            norms = [f"stages.{stage}.norm.weight" in state for stage in range(num_stages)]
            return RepLKNetConfig(
                layers=tuple(layers[stage] for stage in range(num_stages)),
                channels=tuple(channels),
                kernel_sizes=tuple(large[block].shape[-1] for block in firsts),
                small_kernel=smalls[0] if smalls else None,
                dw_ratio=large[firsts[0]].shape[0] / channels[0],
                ffn_ratio=state["stages.0.blocks.1.pw1.conv.weight"].shape[0] / channels[0],
                in_channels=state["stem.0.conv.weight"].shape[1],
                num_classes=state["head.weight"].shape[0] if "head.weight" in state else 0,
                out_indices=None if {"norm.weight", "head.weight"} & state.keys() else tuple(range(num_stages)),
                norm_intermediate_features=all(norms),
            )
        except (ArithmeticError, KeyError, ValueError, IndexError):
            return None


def _nano(kernel_sizes: tuple[int, ...]) -> RepLKNetConfig:
    return RepLKNetConfig(
        layers=(1, 1, 2, 1), channels=(16, 32, 64, 128), kernel_sizes=kernel_sizes, small_kernel=3, num_classes=12
    )


PRESETS: Mapping[str, RepLKNetConfig] = MappingProxyType(
    {
        "replknet_31b": RepLKNetConfig(
            layers=(2, 2, 18, 2), channels=(128, 256, 512, 1024), kernel_sizes=(31, 29, 27, 13)
        ),
        "replknet_31l": RepLKNetConfig(
            layers=(2, 2, 18, 2), channels=(192, 384, 768, 1536), kernel_sizes=(31, 29, 27, 13)
        ),
        "replknet_xl": RepLKNetConfig(
            layers=(2, 2, 18, 2),
            channels=(256, 512, 1024, 2048),
            kernel_sizes=(27, 27, 27, 13),
            small_kernel=None,
            dw_ratio=1.5,
        ),
        "replknet_nano_k3": _nano((3, 3, 3, 3)),
        "replknet_nano_k31": _nano((31, 15, 7, 3)),
    }
)
"""Architectures by name: the published ones (Ding et al. 2022, Table 5 and section 4.2), and two small networks for
images of 64 pixels, whose trained weights come with the package."""


def _published(**entry: Any) -> PublishedWeights:
    return PublishedWeights(
        folder="https://download.openmmlab.com/mmclassification/v0/replknet/",
        source="Ding et al. 2022, github.com/DingXiaoH/RepLKNet-pytorch, as converted by mmpretrain",
        **entry,
    )


FAMILY = Family(
    name="RepLKNet",
    network=RepLKNet,
    config=RepLKNetConfig,
    presets=PRESETS,
    published={
        "replknet_31b.in1k_224": _published(
            architecture="replknet_31b",
            file="replknet-31B_3rdparty_in1k_20221118-fd08e268.pth",
            training_data="ImageNet-1K",
            image_size=224,
            top1=83.48,
            top5=96.57,
        ),
        "replknet_31b.in1k_384": _published(
            architecture="replknet_31b",
            file="replknet-31B_3rdparty_in1k-384px_20221118-03a170ce.pth",
            training_data="ImageNet-1K",
            image_size=384,
            top1=84.84,
            top5=97.34,
        ),
        "replknet_31b.in22k_ft_in1k_224": _published(
            architecture="replknet_31b",
            file="replknet-31B_in21k-pre_3rdparty_in1k_20221118-54ed5c46.pth",
            training_data="ImageNet-22K, ImageNet-1K",
            image_size=224,
            top1=85.20,
            top5=97.56,
        ),
        "replknet_31b.in22k_ft_in1k_384": _published(
            architecture="replknet_31b",
            file="replknet-31B_in21k-pre_3rdparty_in1k-384px_20221118-76c92b24.pth",
            training_data="ImageNet-22K, ImageNet-1K",
            image_size=384,
            top1=85.99,
            top5=97.75,
        ),
        "replknet_31l.in22k_ft_in1k_384": _published(
            architecture="replknet_31l",
            file="replknet-31L_in21k-pre_3rdparty_in1k-384px_20221118-dc3fc07c.pth",
            training_data="ImageNet-22K, ImageNet-1K",
            image_size=384,
            top1=86.63,
            top5=98.00,
        ),
        "replknet_xl.meg73m_ft_in1k_320": _published(
            architecture="replknet_xl",
            file="replknet-XL_meg73m-pre_3rdparty_in1k-320px_20221118-88259b1d.pth",
            training_data="MegData73M, ImageNet-1K",
            image_size=320,
            top1=87.57,
            top5=98.39,
            mean=_HALF,
            std=_HALF,
        ),
    },
    authors="Ding et al. 2022",
    paper="2203.06717",
    origin="https://github.com/DingXiaoH/RepLKNet-pytorch",
    license="mit",
    first_layer="stem.0.conv",
)
"""Accuracies and file names: mmpretrain, configs/replknet. Preprocessing: the official repository."""
