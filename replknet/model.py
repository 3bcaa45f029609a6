"""RepLKNet and the function that makes one by name."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute_in_backward

from replknet import checkpoints, reparam, zoo
from replknet.blocks import Classifier, ConvBN, ConvFFN, RepLKBlock
from replknet.config import PRESETS, RepLKNetConfig
from replknet.inference import is_hooked, is_plain_call, is_transformed

_STEM_BYTES = 8 * 2**20
"""Of the stem's largest maps, for the images that go through it together in inference: more leave the cache."""


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
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = recompute_in_backward(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


class RepLKNet(Classifier):
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

    def forward_intermediates(self, x: Tensor, indices: Sequence[int] | None = None) -> list[Tensor]:
        """Stage maps, before the transition to the next stage.

        Args:
            x: Normalised images, shape (N, in_channels, H, W).
            indices: Stage numbers, increasing; None for all stages.

        Returns:
            One map per index, shape (N, channels[i], H / stride, W / stride), after the stage's own norm where the
            configuration asks for normalised intermediate features.

        Raises:
            ValueError: If `indices` names a stage that does not exist, or is empty.
        """
        wanted = range(len(self.stages)) if indices is None else indices
        if len(wanted) == 0 or not set(wanted) <= set(range(len(self.stages))):
            raise ValueError(f"indices={indices}: expected stage numbers from 0 to {len(self.stages) - 1}")
        maps = []
        x = self._forward_stem(x)
        for stage in range(max(wanted) + 1):
            x = self._forward_stage(x, stage)
            if stage in wanted:
                maps.append(self.stages[stage].get_submodule("norm")(x))
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map before the final norm, shape (N, channels[-1], H/32, W/32) with four stages."""
        x = self._forward_stem(x)
        for stage in range(len(self.stages)):
            x = self._forward_stage(x, stage)
        return x

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits, or the list of stage maps named by `config.out_indices`."""
        if self.config.out_indices is not None:
            return self.forward_intermediates(x, self.config.out_indices)
        return self.forward_head(self.forward_features(x))

    def _forward_stem(self, x: Tensor) -> Tensor:
        if x.is_cpu and not self.training and not is_transformed(x):
            # The layout that oneDNN's kernels and the matrix products of the 1x1 convolutions want.
            x = x.contiguous(memory_format=torch.channels_last)
        if not torch.is_grad_enabled() and is_plain_call(x) and not is_hooked(*self.stem.modules()):
            # A channel of the largest maps has a quarter of the image's pixels, of four bytes each.
            together = max(1, _STEM_BYTES // (self.config.channels[0] * x.shape[2] * x.shape[3]))
            if together < len(x):
                return torch.cat([self._stem_of(images) for images in torch.split(x, together)])
        return self._stem_of(x)

    def _stem_of(self, x: Tensor) -> Tensor:
        for layer in self.stem:
            x = layer(x)
        return x

    def _forward_stage(self, x: Tensor, stage: int) -> Tensor:
        if stage > 0:
            x = self.transitions[stage - 1](x)
        out: Tensor = self.stages[stage](x)
        return out

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
        self.head = nn.Identity()
        if num_classes > 0:
            self.head = nn.Linear(self.config.channels[-1], num_classes).to(reference.device, reference.dtype)

    def switch_to_deploy(self) -> None:
        """Merge the parallel kernels and fold every batch norm, in place (`reparameterize(self, inplace=True)`)."""
        reparam.reparameterize(self, inplace=True)


SHIPPED = ("replknet_nano_k3", "replknet_nano_k31")
"""Networks whose trained weights come with the package."""


def shipped_weights(name: str) -> AbstractContextManager[Path]:
    """The safetensors file of one of `SHIPPED`; it may be a temporary one (a package in a zip file)."""
    return resources.as_file(resources.files("replknet") / "weights" / f"{name}.safetensors")


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    progress: bool = True,
    checkpoint: str | PathLike[str] | None = None,
    **overrides: Any,
) -> RepLKNet:
    """A RepLKNet by name, in float32, with or without somebody's weights.

    Args:
        name: A key of `PRESETS`, such as "replknet_31b", or of `PUBLISHED`, such as "replknet_31b.in1k_224".
        pretrained: Load published weights, downloaded once (`download_weights`); of an architecture without a tag, the
            first in `PUBLISHED`. Those of "replknet_nano_k3" and "replknet_nano_k31", trained on the generated images
            of the kernel-size study, come with the package.
        progress: Show a bar on the standard error stream while weights are downloaded.
        checkpoint: A weight file in any format that `load_state_dict` reads. It is loaded strictly; a merged or fully
            folded file gives a model of that form.
        **overrides: Fields of `RepLKNetConfig` that replace the preset's, e.g. `kernel_sizes=(3, 3, 3, 3)`,
            `small_kernel=None`, `num_classes=10`. With a checkpoint, an explicit `num_classes=0` leaves the file's
            head out.

    Returns:
        The model, in training mode as every new module is; without a checkpoint its weights are random.

    Raises:
        ValueError: If the name or an override is unknown or out of range.
        DownloadError: If published weights cannot be had; the message says where to put a file fetched by hand.
        CheckpointError: If the file does not fit; the message lists the keys and the architecture it looks like.

    Example:
        >>> import replknet
        >>> replknet.create_model("replknet_nano_k31", pretrained=True).config.kernel_sizes
        (31, 15, 7, 3)
    """
    architecture = zoo.PUBLISHED[name].architecture if name in zoo.PUBLISHED else name
    if architecture not in PRESETS:
        raise ValueError(f"name={name!r}: expected one of {', '.join([*PRESETS, *zoo.PUBLISHED])}")
    unknown = sorted(set(overrides) - set(RepLKNetConfig.__dataclass_fields__))
    if unknown:
        fields = ", ".join(RepLKNetConfig.__dataclass_fields__)
        raise ValueError(f"{unknown[0]}={overrides[unknown[0]]!r}: no such setting; expected one of {fields}")
    if pretrained:
        if checkpoint is not None:
            raise ValueError(f"checkpoint={str(checkpoint)!r}: expected None with pretrained=True")
        if name in SHIPPED:
            with shipped_weights(name) as file:
                return create_model(name, checkpoint=file, **overrides)
        return create_model(architecture, checkpoint=zoo.download_weights(name, progress=progress), **overrides)
    model = RepLKNet(replace(PRESETS[architecture], **overrides))
    if checkpoint is not None:
        state = checkpoints.load_state_dict(checkpoint)
        if overrides.get("num_classes") == 0:
            state = {key: value for key, value in state.items() if not key.startswith("head.")}
            if isinstance(model.norm, nn.Identity):
                state = {key: value for key, value in state.items() if not key.startswith("norm.")}
        reparam.match_form(model, checkpoints.weight_form(state))
        checkpoints.load_into(model, state, source=str(checkpoint))
    return model


def load_checkpoint(path: str | PathLike[str]) -> RepLKNet:
    """The network in a weight file, in the file's form.

    The architecture is the one that the file describes, where it does (each network of a study), else read from the
    shapes of the weights.

    Args:
        path: A weight file in any format that `load_state_dict` reads.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it does not hold a RepLKNet.
    """
    state = checkpoints.load_state_dict(path)
    config = checkpoints.described_config(Path(path)) or checkpoints.infer_config(state)
    if config is None:
        raise checkpoints.CheckpointError(f"checkpoint={str(path)!r}: {checkpoints.describe(state)}")
    model = RepLKNet(config)
    reparam.match_form(model, checkpoints.weight_form(state))
    checkpoints.load_into(model, state, source=str(path))
    return model
