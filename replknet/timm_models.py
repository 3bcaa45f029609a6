"""All families in timm's registry: `import replknet.timm_models` puts them there.

After that, `timm.create_model("replknet_31b.in1k_224", pretrained=True)` works, and all of timm around it. A name that
timm has a network of its own for is left to timm, with a warning.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import resources
from typing import Any

import timm
import torch
from timm.layers import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, model_entrypoint, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from replknet.checkpoints.naming import convert_state_dict
from replknet.checkpoints.published import download_weights
from replknet.checkpoints.reading import load_state_dict
from replknet.creating import SHIPPED, check_fit
from replknet.networks import FAMILIES, PRESETS, PUBLISHED, family_of, weight_form
from replknet.networks.family import Configuration, Network
from replknet.networks.reparameterize import match_form


class TimmNetwork(Network):
    """A network with the constructor and the methods of timm's models; its weights have the same names.

    There is a class of this kind for each family, such as `TimmRepLKNet`.

    Args:
        cfg: The architecture; what is named below replaces its fields.
        in_chans: Channels of the input image.
        num_classes: Outputs of the head; 0 for none.
        global_pool: "avg" as published, "max", "avgmax", "catavgmax" without a head, or "" for none.
        drop_rate: Dropout before the head.
        drop_path_rate: Drop-path rate of the last blocks.
        device: Where the weights are made; the present default if None.
        dtype: Of the weights.
        **architecture: Other fields of the configuration, such as `kernel_sizes`.
    """

    def __init__(
        self,
        cfg: Configuration,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **architecture: Any,
    ) -> None:
        fields = family_of(cfg).architecture_fields
        unknown = sorted(set(architecture) - set(fields))
        if unknown:
            raise TypeError(f"{unknown[0]}={architecture[unknown[0]]!r}: expected one of {', '.join(fields)}")
        changed: Any = replace(
            cfg, in_channels=in_chans, num_classes=num_classes, drop_path_rate=drop_path_rate, **architecture
        )
        with torch.device(torch.get_default_device() if device is None else device):
            super().__init__(changed)
        widths = self.config.widths
        self.num_classes, self.in_chans = num_classes, in_chans
        self.num_features = self.head_hidden_size = widths[-1]
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**stage, "module": f"stages.{stage}"}
            for stage, width in enumerate(widths)
        ]
        self.grad_checkpointing = False
        self.global_pool: Any = self._pooling(num_classes, global_pool)
        self.head_drop = nn.Dropout(drop_rate)
        self.to(dtype=dtype)

    def _pooling(self, num_classes: int, pool_type: str) -> Any:
        pooling = SelectAdaptivePool2d(pool_type=pool_type, flatten=bool(pool_type))
        if pooling.feat_mult() != 1 and (num_classes > 0 or not self.folded_at_the_end()):
            what = f"a head of {num_classes} classes" if num_classes > 0 else "a norm after the pooling"
            raise ValueError(f"global_pool={pool_type!r}: expected avg, max, avgmax or none with {what}")
        return pooling.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, or pooled features without a head."""
        return self.forward_head(self.forward_features(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooling with the final norm, dropout and the linear head; with `pre_logits` what enters the head.

        Without pooling the head is applied at every position.
        """
        x = self.head_drop(self.after_pooling(self.global_pool(self.before_pooling(x))))
        if not pre_logits:
            x = self.head(x.movedim(1, -1)).movedim(-1, 1)
        return x

    def fold_final_norm(self) -> None:
        """Fold the norm into the head: only average pooling commutes with it."""
        if self.global_pool.pool_type == "avg":
            super().fold_final_norm()

    def forward_intermediates(  # type: ignore[override]
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Stage maps as timm returns them.

        Args:
            x: Normalised images, shape (N, in_chans, H, W).
            indices: The last n stages, or stage numbers, negative ones from the end; None for all.
            norm: Apply the final norm to the last stage's map, where it is before the pooling.
            stop_early: Do not run the stages after the last one that is asked for.
            output_fmt: "NCHW", the only layout there is.
            intermediates_only: Return the maps only.

        Returns:
            The maps, or the last feature map (where it is the last stage's, after a norm before the pooling) and they.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}: expected 'NCHW'")
        wanted, last_wanted = feature_take_indices(len(self.stages), indices)
        maps = []
        x = self.forward_stem(x)
        stage = 0
        for stage in range(last_wanted + 1 if stop_early else len(self.stages)):
            x = self.forward_stage(x, stage)
            if stage in wanted:
                is_last = stage == len(self.stages) - 1
                maps.append(self.before_pooling(x) if norm and is_last else x)
        if intermediates_only:
            return maps
        return self.before_pooling(x) if stage == len(self.stages) - 1 else x, maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the maps of `indices` do not need; returns the stage numbers that were meant."""
        wanted, last = feature_take_indices(len(self.stages), indices)
        cut = last < len(self.stages) - 1
        if prune_norm or cut:
            self.norm = nn.Identity()
        self.keep_stages(last + 1)
        self.num_features = self.head_hidden_size = self.config.widths[last]
        if prune_head or cut:
            self.reset_classifier(0, "")
        return wanted  # type: ignore[no-any-return]

    def get_classifier(self) -> nn.Module:
        """The linear head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one; 0 removes it. `global_pool` changes the pooling, "" for none."""
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        pooling = self._pooling(num_classes, pool_type)
        super().reset_classifier(num_classes)
        self.num_classes = num_classes
        self.global_pool = pooling

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute block activations in the backward pass to save memory."""
        self.grad_checkpointing = enable
        self.set_gradient_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameters in the order of depth, for layer-wise learning-rate decay: by stage, or by a few blocks."""
        return self.layer_groups(coarse)


def _configuration(variant: str) -> dict[str, Any]:
    """What timm keeps beside a network of this architecture."""
    family = family_of(PRESETS[variant])
    common = {"first_conv": family.first_layer, "classifier": "head", "license": family.license}
    common |= {"interpolation": "bicubic", "paper_ids": f"arXiv:{family.paper}", "origin_url": family.origin}
    if variant in SHIPPED:
        file = resources.files("replknet") / "weights" / f"{variant}.safetensors"
        size = {"input_size": (3, 64, 64), "pool_size": (2, 2), "crop_pct": 1.0, "crop_mode": "squash"}
        return {f"{variant}.synthetic": common | size | {"file": str(file), "num_classes": 12}}
    found = {
        name: common
        | {
            "url": weights.url,
            "input_size": (3, weights.image_size, weights.image_size),
            "pool_size": (weights.image_size // 32, weights.image_size // 32),
            "crop_pct": weights.crop,
            "crop_mode": "center" if weights.crop < 1 else "squash",
            "mean": weights.mean,
            "std": weights.std,
            "num_classes": weights.num_classes,
        }
        for name, weights in PUBLISHED.items()
        if weights.architecture == variant
    }
    return found or {variant: common}


default_cfgs = generate_default_cfgs(
    {name: cfg for variant in PRESETS for name, cfg in _configuration(variant).items()}
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    tag = kwargs.get("pretrained_cfg")
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    own_source = isinstance(tag, Mapping) or any(overlay.get(key) for key in ("file", "url", "state_dict", "hf_hub_id"))
    if pretrained and variant not in SHIPPED and not own_source:
        # Ours verifies what it downloads, and says where to put a file by hand.
        overlay["state_dict"] = load_state_dict(download_weights(f"{variant}.{tag}" if tag else variant))
    model: nn.Module = build_model_with_cfg(
        _CLASSES[family_of(PRESETS[variant]).name],
        variant,
        pretrained,
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=_fitting_weights,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        model_cfg=PRESETS[variant],
        **kwargs,
    )
    return model


def _fitting_weights(state: Mapping[str, Tensor], model: TimmNetwork) -> dict[str, Tensor]:
    """Weights for timm to load, by official name; brings the model into their form.

    Beside a head of another size timm loads what fits and leaves the rest random; here the rest is checked.
    """
    official = convert_state_dict(state, to="official")
    form, own = weight_form(official), model.state_dict()
    free = {f"{family_of(model.config).first_layer}.weight"}  # which timm makes fit other channels
    if form != "folded":  # a folded head has the final norm in it
        free |= {"head.weight", "head.bias"}
    match_form(model, form)
    kept = {key: value for key, value in official.items() if key not in free}
    # Of these the shape is timm's affair, not what the numbers are.
    kept |= {key: own[key].to(official[key].dtype) for key in free & own.keys() & official.keys()}
    kept |= {key: own[key] for key in free & own.keys() - official.keys() if key.startswith("head.")}
    check_fit(model, kept, source="pretrained_cfg")
    return official


def _entrypoint(variant: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create(variant, pretrained, **kwargs)

    create.__name__ = create.__qualname__ = variant
    family = family_of(PRESETS[variant])
    create.__doc__ = f"{family.name}, architecture {variant} ({family.authors})."
    return create


def create(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """What `timm.create_model` gives for a name of this package, also where timm has a network of that name."""
    variant, _, tag = name.partition(".")
    if is_own(variant):
        module: nn.Module = timm.create_model(name, pretrained=pretrained, **kwargs)
        return module
    cfg = default_cfgs[variant].cfgs[tag] if tag else None
    return _create(variant, pretrained, pretrained_cfg=cfg, **kwargs)


def is_own(variant: str) -> bool:
    """Whether timm takes a name for the network of this package."""
    return is_model(variant) and bool(model_entrypoint(variant).__module__ == __name__)


def __getattr__(name: str) -> Any:
    """The class of a family, such as `TimmRepLKNet`."""
    for cls in _CLASSES.values():
        if cls.__name__ == name:
            return cls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_CLASSES: dict[str, type[TimmNetwork]] = {
    family.name: type(f"Timm{family.network.__name__}", (TimmNetwork, family.network), {"__module__": __name__})
    for family in FAMILIES
}
__all__ = ["TimmNetwork", "default_cfgs", *(cls.__name__ for cls in _CLASSES.values())]
_taken = [_variant for _variant in PRESETS if is_model(_variant) and not is_own(_variant)]
if _taken:
    warnings.warn(
        f"timm has networks of its own called {', '.join(_taken)}, which stay; replknet.create_model gives those of "
        "this package",
        stacklevel=2,
    )
for _variant in PRESETS:
    if not is_model(_variant):
        globals()[_variant] = register_model(_entrypoint(_variant))
