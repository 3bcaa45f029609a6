"""What networks in the manner of ConvNeXt share: downsampling layers, stages of blocks, a norm after the pooling."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]
from torch.nn import functional as F

from replknet.convolution.layouts import inference_layout
from replknet.networks.family import Configuration, Network, run_block, stage_of

torch.fx.wrap("inference_layout")  # one node of a symbolic trace, which has no devices
_BLOCKS_IN_A_GROUP = 3
NORM_EPS = 1e-6
INIT_STD = 0.02


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels, the second axis, at each position."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        rows = F.layer_norm(x.movedim(1, -1), self.normalized_shape, self.weight, self.bias, self.eps)
        return rows.movedim(-1, 1)


class BlockSequence(nn.Sequential):
    """The blocks of a stage."""

    def __init__(self, *blocks: nn.Module, gradient_checkpointing: bool = False) -> None:
        super().__init__(*blocks)
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            if is_scripting():  # noqa: SIM108  TorchScript leaves such a branch out
                x = block(x)
            else:
                x = run_block(block, x, self.gradient_checkpointing)
        return x


class Skeleton(Network):
    """A network with the official names of ConvNeXt: `downsample_layers`, `stages`, `norm`, `head`, `norm0` to `norm3`.

    Args:
        config: The architecture.
        downsampling: Makes the layers before a stage, the stem before the first.
        block: Makes a block from its stage, its place in it and its drop-path rate.
    """

    def __init__(
        self,
        config: Configuration,
        downsampling: Callable[[int], nn.Module],
        block: Callable[[int, int, float], nn.Module],
    ) -> None:
        super().__init__()
        self.config = config
        number, width = sum(config.layers), config.widths[-1]
        self.downsample_layers = nn.ModuleList(downsampling(stage) for stage in range(len(config.layers)))
        stages = []
        for stage, layers in enumerate(config.layers):
            before = sum(config.layers[:stage])
            blocks = [block(stage, place, config.drop_path_of(before + place, number)) for place in range(layers)]
            stages.append(BlockSequence(*blocks, gradient_checkpointing=config.gradient_checkpointing))
        self.stages = nn.ModuleList(stages)
        if config.norm_intermediate_features:
            for stage, channels in enumerate(config.widths):
                self.add_module(f"norm{stage}", ChannelNorm(channels))
        # A backbone (maps and no head) has no final norm either: nothing would use it.
        self.norm = ChannelNorm(width) if config.num_classes > 0 or config.out_indices is None else nn.Identity()
        self.head = nn.Linear(width, config.num_classes) if config.num_classes > 0 else nn.Identity()
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def before_pooling(self, x: Tensor) -> Tensor:
        return x

    def after_pooling(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x)
        return out

    def folded_at_the_end(self) -> tuple[nn.Module, ...]:
        return ()

    def fold_final_norm(self) -> None:
        """A layer norm stays."""

    def forward_features(self, x: Tensor) -> Tensor:
        x = inference_layout(x, self.training)
        for downsampling, stage in zip(self.downsample_layers, self.stages, strict=False):
            x = stage(downsampling(x))
        return x

    def forward_stem(self, x: Tensor) -> Tensor:
        """The images: the stem is the first of `downsample_layers`."""
        return inference_layout(x, self.training)

    def forward_stage(self, x: Tensor, stage: int) -> Tensor:
        out: Tensor = self.stages[stage](self.downsample_layers[stage](x))
        return out

    def normed_map(self, x: Tensor, stage: int) -> Tensor:
        out: Tensor = self.get_submodule(f"norm{stage}")(x) if self.config.norm_intermediate_features else x
        return out

    def keep_stages(self, count: int) -> None:
        self.stages, self.downsample_layers = self.stages[:count], self.downsample_layers[:count]

    def layer_groups(self, coarse: bool) -> dict[str, Any]:
        """By stage, or by three blocks; a downsampling layer is of the group after it."""
        blocks: list[tuple[str, tuple[int, ...] | None]] = [(r"^(?:stages|downsample_layers)\.(\d+)", None)]
        if not coarse:
            blocks = [(r"^downsample_layers\.(\d+)", (0,))]
            for stage, layers in enumerate(self.config.layers):
                for group, first in enumerate(range(0, layers, _BLOCKS_IN_A_GROUP)):
                    own = "|".join(map(str, range(first, min(first + _BLOCKS_IN_A_GROUP, layers))))
                    blocks.append((rf"^stages\.{stage}\.(?:{own})\.", (stage, group)))
        return {"stem": r"^downsample_layers\.0", "blocks": blocks}


def blocks_in(state: Mapping[str, Tensor], endings: tuple[str, ...]) -> list[list[Tensor]]:
    """Of each stage, in order, the one weight of each block whose key ends so.

    Raises:
        KeyError: If a block between others has none.
    """
    found = {
        key.removesuffix(ending): value for key, value in state.items() for ending in endings if key.endswith(ending)
    }
    layers = Counter(map(stage_of, found))
    return [[found[f"stages.{stage}.{block}"] for block in range(layers[stage])] for stage in range(len(layers))]


def outputs_in(state: Mapping[str, Tensor], num_stages: int) -> dict[str, Any]:
    """Fields of a configuration that the weights outside the stages tell.

    A backbone (no final norm and no head) gets all stages, as the weights do not tell whose maps it gives.
    """
    return {
        "in_channels": state["downsample_layers.0.0.weight"].shape[1],
        "num_classes": state["head.weight"].shape[0] if "head.weight" in state else 0,
        "out_indices": None if {"norm.weight", "head.weight"} & state.keys() else tuple(range(num_stages)),
        "norm_intermediate_features": all(f"norm{stage}.weight" in state for stage in range(num_stages)),
    }
