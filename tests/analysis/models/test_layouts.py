"""Rows and columns of units: from the image's way through a network, from the model, or the user; never guessed."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from analysis import LayerError, effective_receptive_field, extract_features, theoretical_receptive_field
from analysis.models.layouts import FeatureMap, find_feature_map
from analysis.models.libraries import _Logits


class Tokens(nn.Module):
    """4x4 patches between class tokens and others, shuffled on request so that no trace of rows is left."""

    def __init__(self, before: int = 0, after: int = 0, shuffled: bool = False) -> None:
        super().__init__()
        self.before, self.after = nn.Parameter(torch.randn(1, before, 3)), nn.Parameter(torch.randn(1, after, 3))
        self.shuffled = shuffled
        self.patches = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        tokens = nn.functional.avg_pool2d(x, 4).flatten(2).transpose(1, 2)
        if self.shuffled:
            tokens = tokens[:, torch.arange(tokens.shape[1], device=x.device)]
        others = [other.expand(len(x), -1, -1) for other in (self.before, self.after)]
        joined: Tensor = self.patches(torch.cat([others[0], tokens, others[1]], 1))
        return joined.mean(1)


def layout_of(found: FeatureMap) -> tuple[str, int, tuple[int, int]]:
    return found.layout, found.prefix_tokens, found.grid


@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 0), (5, 0), (5, 3), (0, 2)])
@pytest.mark.parametrize("size", [(16, 16), (16, 40)])
def test_tokens_are_where_the_image_went(before: int, after: int, size: tuple[int, int]) -> None:
    model = Tokens(before, after)
    found = find_feature_map(model, size, "patches")
    assert layout_of(found) == ("tokens", before, (size[0] // 4, size[1] // 4))
    result = effective_receptive_field(model, torch.rand(1, 3, *size), layer="patches")
    expected = np.zeros(size)
    expected[tuple(slice(4 * index, 4 * index + 4) for index in result.unit)] = 3 / 16
    np.testing.assert_allclose(result.mean_map, expected, rtol=1e-6)


def test_tokens_in_an_unknown_order_are_refused_unless_their_grid_is_named() -> None:
    model, images = Tokens(5, shuffled=True), torch.rand(1, 3, 16, 16)  # 21 tokens: 1 + 4x5, 5 + 4x4, 0 + 3x7?
    with pytest.raises(LayerError, match=r"nothing says how its output .*21.* name another layer, or its grid"):
        effective_receptive_field(model, images, layer="patches")
    named = effective_receptive_field(model, images, layer="patches", grid=(4, 4))
    assert (named.grid, named.theoretical) == ((4, 4), None)
    again = effective_receptive_field(model, images, layer="patches", grid=(4, 4), prefix_tokens=5)
    followed = Tokens(5)
    expected = effective_receptive_field(followed, images, layer="patches")
    np.testing.assert_array_equal(named.mean_map, again.mean_map)
    np.testing.assert_array_equal(named.mean_map, expected.mean_map)
    assert theoretical_receptive_field(model, (16, 16), layer="patches", grid=(4, 4)).size is None
    for grid, prefix in (((5, 5), None), ((4, 4), 6)):
        with pytest.raises(LayerError, match="grid="):
            effective_receptive_field(model, images, layer="patches", grid=grid, prefix_tokens=prefix)
    with pytest.raises(ValueError, match="prefix_tokens=1: needs the grid"):
        effective_receptive_field(model, images, layer="patches", prefix_tokens=1)


def test_a_grid_that_contradicts_the_images_way_is_refused() -> None:
    model, images = Tokens(1), torch.rand(1, 3, 16, 16)
    right = effective_receptive_field(model, images, layer="patches")
    named = effective_receptive_field(model, images, layer="patches", grid=(4, 4), prefix_tokens=1)
    np.testing.assert_array_equal(right.mean_map, named.mean_map)
    for grid, prefix in (((4, 4), 0), ((2, 8), None), ((2, 8), 1)):
        with pytest.raises(LayerError, match="shows that the units of this layer are 4x4 after 1 prefix tokens"):
            effective_receptive_field(model, images, layer="patches", grid=grid, prefix_tokens=prefix)


class Attention(nn.Module):
    """Attention by hand, with modules that see matrices of queries and keys, and heads."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.drop, self.heads = nn.Conv2d(3, 12, 4, stride=4), nn.Dropout(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.patches(x)
        tokens = self.heads(y.view(1, 3, 4, -1).transpose(2, 3))  # (1, 3, h * w, 4)
        mixed = self.drop((tokens @ tokens.transpose(2, 3)).softmax(-1)) @ tokens
        out: Tensor = y + mixed.transpose(2, 3).reshape(y.shape)
        return out


def test_queries_by_keys_and_heads_are_no_map() -> None:
    assert layout_of(find_feature_map(Attention(), (16, 16))) == ("nchw", 0, (4, 4))
    for layer in ("drop", "heads"):
        with pytest.raises(LayerError, match="nothing says how its output"):
            find_feature_map(Attention(), (16, 16), layer)
        with pytest.raises(LayerError):
            extract_features(Attention(), torch.rand(1, 3, 16, 16), [layer], average=True)


def test_pooled_vectors_are_no_map() -> None:
    """(N, 1024, 1) at 128 pixels could be 32x32 tokens of width 1; it is a pooled vector."""

    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.pooler = nn.Conv2d(3, 1024, 32, stride=32), nn.AdaptiveAvgPool1d(1)

        def forward(self, x: Tensor) -> Tensor:
            pooled: Tensor = self.pooler(self.stem(x).flatten(2))
            return pooled.flatten(1)

    assert layout_of(find_feature_map(Pools(), (128, 128))) == ("nchw", 0, (4, 4))
    with pytest.raises(LayerError, match=r"nothing says how its output \(1, 1024,"):
        find_feature_map(Pools(), (128, 128), "pooler")


@pytest.mark.parametrize(
    ("name", "changes", "size", "expected"),
    [
        ("Swin", {"depths": [1, 1, 1, 1], "embed_dim": 32, "num_heads": [1, 1, 1, 1]}, 224, ("tokens", 0, (7, 7))),
        ("ViT", {"hidden_size": 48, "num_attention_heads": 3, "image_size": 64}, 64, ("tokens", 1, (4, 4))),
        ("Dinov2WithRegisters", {"hidden_size": 48, "num_attention_heads": 3, "image_size": 64}, 64,
         ("tokens", 5, (4, 4))),
        ("ResNet", {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}, 64,
         ("nchw", 0, (2, 2))),
    ],
)  # fmt: skip
def test_networks_of_transformers(name: str, changes: dict[str, Any], size: int, expected: Any) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(num_hidden_layers=2, **changes)
    if name in ("Swin", "ResNet"):
        config = getattr(transformers, f"{name}Config")(**changes)
    network = _Logits(transformers.AutoModelForImageClassification.from_config(config)).eval()
    assert layout_of(find_feature_map(network, (size, size))) == expected


def test_what_a_model_in_timms_manner_says_holds_where_the_trace_does_not() -> None:
    class Says(Tokens):
        num_prefix_tokens = 5

        def __init__(self, patch: int) -> None:
            super().__init__(5, shuffled=True)
            self.patch_embed = nn.Module()
            self.patch_embed.patch_size = (patch, patch)  # type: ignore[assignment]

    assert layout_of(find_feature_map(Says(4), (16, 24), "patches")) == ("tokens", 5, (4, 6))
    with pytest.raises(LayerError, match=r"nothing says how its output \(1, 29,"):  # 2x3 patches would be six
        find_feature_map(Says(8), (16, 24), "patches")
    with pytest.raises(LayerError, match=r"nothing says how its output \(1, 1, 256\)"):
        find_feature_map(timm.create_model("pit_ti_224"), (224, 224))  # returns its class token alone


def test_the_last_map_is_not_one_long_before_the_trace_was_lost() -> None:
    class Reorders(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.head = nn.Conv2d(3, 4, 4, stride=4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.stem(x).flatten(2).transpose(1, 2)
            tokens = self.block(tokens[:, torch.randperm(tokens.shape[1], device=x.device)])
            out: Tensor = self.head(tokens.mean(1))
            return out

    with pytest.raises(LayerError, match=r"followed to layer 'stem', but not beyond, where 'block' may have some"):
        find_feature_map(Reorders(), (16, 16))
    assert find_feature_map(Reorders(), (16, 16), "stem").grid == (4, 4)


@pytest.mark.parametrize("last", [False, True])
def test_averages_run_over_rows_and_columns_alone(last: bool) -> None:
    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 5, 4, stride=4), nn.LayerNorm(5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            out: Tensor = self.norm(y.permute(0, 2, 3, 1))
            return out.mean((1, 2))

    torch.manual_seed(0)
    model, images = Maps().eval(), torch.rand(2, 3, 16, 24)
    layer = "norm" if last else "conv"
    whole = extract_features(model, images, [layer]).arrays[layer]
    averaged = extract_features(model, images, [layer], average=True).arrays[layer]
    assert averaged.shape == (2, 5)
    np.testing.assert_allclose(averaged, whole.mean((1, 2) if last else (2, 3)), rtol=1e-5, atol=1e-6)
    tokens = extract_features(Tokens(2, 1), images, ["patches"], average=True).arrays["patches"]
    np.testing.assert_allclose(tokens, images.mean((2, 3)).numpy(), rtol=1e-5)
