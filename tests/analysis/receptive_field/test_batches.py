"""Many images at a time: the same maps, or one at a time and a note."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import analysis
from analysis import ErfResult, effective_receptive_field
from tests.networks import randomize_norms, tiny_model


def images(count: int = 10, size: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(model: nn.Module, batch: Tensor, unit: tuple[int, int]) -> np.ndarray[Any, Any]:
    """The mean map of a network that returns (N, C, h, w), image by image."""
    model.eval()
    maps = []
    for image in batch:
        pixels = image[None].clone().requires_grad_()
        features = model(pixels)
        features[0, :, unit[0], unit[1]].clamp(min=0).sum().backward()
        assert pixels.grad is not None
        maps.append(pixels.grad[0].abs().sum(0))
    return torch.stack(maps).mean(0).numpy()


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.GELU(), nn.Conv2d(8, 8, 5, stride=2, padding=2)).double()


def normed() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1)]
    return randomize_norms(nn.Sequential(*layers, nn.BatchNorm2d(8))).double()


class Attention(nn.Module):
    """Over the 8 x 8 patches of each image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        mixed: Tensor = self.attention(tokens, tokens, tokens)[0]
        return mixed.transpose(1, 2).reshape(len(x), 16, 8, 8)


@pytest.mark.parametrize("make", [convolutional, normed, lambda: Attention().double()])
@pytest.mark.parametrize("batch_size", [None, 1, 3, 7])
def test_a_batch_gives_each_image_its_own_gradient(make: Any, batch_size: int | None) -> None:
    model = make()
    result = effective_receptive_field(model, images(), batch_size=batch_size)
    assert (result.batch_size, result.batch_note) == (batch_size or 8 * 224**2 // 32**2, "")
    expected = by_hand(model, images(), result.unit)
    np.testing.assert_allclose(result.mean_map, expected, rtol=0, atol=1e-12 * expected.max())


@pytest.mark.parametrize("protocol", ["standard", "official"])
@pytest.mark.parametrize("sums", ["before", "after"])
def test_batches_of_a_replknet_and_every_rule(protocol: Any, sums: Any) -> None:
    model = tiny_model()
    results = [
        effective_receptive_field(
            model, images(5, 64), protocol=protocol, sum_colors=sums, gradient_rule=rule, batch_size=size
        )
        for rule in ("relu", "abs", "square", "signed")
        for size in (1, 4)
    ]
    for alone, together in zip(results[::2], results[1::2], strict=True):
        assert together.batch_size == 4
        for name in ("mean_map", "ring_sums", "moments"):
            expected = getattr(alone, name)
            np.testing.assert_allclose(
                getattr(together, name), expected, rtol=0, atol=1e-12 * np.abs(expected).max(), err_msg=name
            )


class Mean(nn.Module):
    """Takes a little of the mean over the batch into each image."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-3 * x.mean(0, keepdim=True)


class Across(nn.Module):
    """Attention with the axes mistaken: each position attends to the other images' same position."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        mixed: Tensor = self.attention(tokens, tokens, tokens)[0]
        return mixed.transpose(1, 2).reshape(x.shape)


class Quantized(nn.Module):
    """Rounds to a scale that the largest value of the batch sets; no gradient goes through the scale."""

    def forward(self, x: Tensor) -> Tensor:
        step = x.detach().abs().amax() / 127
        return x + ((x / step).round() * step - x).detach()


class Onward(nn.Module):
    """Each image adds to those behind it alone, as a recurrent layer with its axes mistaken."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(0)


class Training(nn.BatchNorm2d):
    """Stays in training mode, whatever it is told."""

    def train(self, mode: bool = True) -> "Training":
        return super().train(True)


class Normalizes(torch.autograd.Function):
    """A gradient that is divided by its norm over the batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / gradient.shape[0]


class Backward(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Normalizes.apply(x)  # type: ignore[no-any-return]


class FromBehind(nn.Module):
    """Each image takes from the one behind it: not seen where the image that is looked at is the last."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:-1] + 0.7 * x[1:].tanh(), x[-1:]])


class InFours(nn.Module):
    """Only four images and more are mixed."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.mean(0, keepdim=True) if len(x) >= 4 else x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "mixing",
    [
        Mean,
        Across,
        Quantized,
        Onward,
        Backward,
        FromBehind,
        InFours,
        lambda: Training(8),
        lambda: nn.BatchNorm2d(8, track_running_stats=False),
    ],
)
def test_a_network_that_mixes_images_gets_one_at_a_time(mixing: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 8, 3, padding=1), mixing(), nn.Softplus(), nn.Conv2d(8, 8, 3, padding=1)]
    model = nn.Sequential(*parts).to(dtype)
    batch = images().to(dtype)
    result = effective_receptive_field(model, batch, layer="3", grid=(32, 32), batch_size=5)
    assert result.batch_size == 1
    assert "depends on the others in its batch" in result.batch_note
    alone = effective_receptive_field(model, batch, layer="3", grid=(32, 32), batch_size=1)
    np.testing.assert_array_equal(result.mean_map, alone.mean_map)
    assert alone.batch_note == ""  # as it was asked for


def test_half_precision_which_cannot_tell_gets_one_image_at_a_time() -> None:
    model = nn.Conv2d(3, 2, 3, padding=1).to(torch.bfloat16)
    result = effective_receptive_field(model, images().to(torch.bfloat16), batch_size=5)
    assert result.batch_size == 1
    assert "half precision" in result.batch_note


class OneAtATime(nn.Module):
    """Takes a single image, as an exported program may."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x.reshape(1, 3, 32, 32))
        return y


def test_a_network_that_takes_one_image_gets_one() -> None:
    result = effective_receptive_field(OneAtATime().double(), images())
    assert (result.batch_size, len(result.images)) == (1, 10)
    assert result.batch_note.startswith("one image at a time: two at once fail (model: OneAtATime cannot take images")


class Viewed(nn.Module):
    """Flattens by `view`, which maps in another layout than the usual one do not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y.view(-1).view(y.shape)


def test_a_network_that_needs_contiguous_maps_gets_them_in_batches() -> None:
    torch.manual_seed(0)
    model = Viewed().double()
    result = effective_receptive_field(model, images(), layer="conv")
    assert (result.batch_size > 1, result.batch_note) == (True, "")
    np.testing.assert_allclose(result.mean_map, by_hand(model, images(), result.unit), rtol=0, atol=1e-12)


class Writes(nn.Module):
    """Writes over what the gradient of its first layer needs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        z = y.square()
        y.zero_()
        out: Tensor = self.act(z)
        return out


def test_batches_of_a_network_that_writes_in_place() -> None:
    result = effective_receptive_field(Writes().double(), images(), layer="act")
    assert (result.batch_size > 1, result.batch_note) == (True, "")
    same = nn.Sequential(Writes().double().conv, Squared(), nn.Sigmoid())
    np.testing.assert_allclose(result.mean_map, by_hand(same, images(), result.unit), rtol=0, atol=1e-12)


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square()


def test_the_network_keeps_its_weights_and_their_layout() -> None:
    model = normed()
    weight = model.get_parameter("0.weight")
    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    before = {name: (value.stride(), value.clone()) for name, value in model.state_dict().items()}
    effective_receptive_field(model, images(), batch_size=4)
    for name, value in model.state_dict().items():
        assert value.stride() == before[name][0], name
        assert torch.equal(value, before[name][1]), name


def test_large_images_go_one_at_a_time() -> None:
    model = nn.Conv2d(3, 1, 1).double()
    sizes = {side: effective_receptive_field(model, images(1, side)).batch_size for side in (224, 320, 512, 1024)}
    assert sizes == {224: 8, 320: 3, 512: 1, 1024: 1}


def test_a_damaged_file_in_the_middle_of_a_batch(tmp_path: Path) -> None:
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    chosen = analysis.load_images([tmp_path / f"{index}.png" for index in range(6)], size=24)
    (tmp_path / "2.png").write_bytes(b"no image")
    model = convolutional().float()
    for workers in (0, 2):
        result = effective_receptive_field(model, chosen, batch_size=4, num_workers=workers)
        assert [name for name, _ in result.skipped] == [str(tmp_path / "2.png")]
        assert result.images == tuple(str(tmp_path / f"{index}.png") for index in (0, 1, 3, 4, 5))
        alone = effective_receptive_field(model, chosen, batch_size=1)
        assert result.skipped == alone.skipped
        np.testing.assert_allclose(result.ring_sums, alone.ring_sums, rtol=1e-5)


@pytest.mark.parametrize("spoiled", [0, 3])
def test_an_image_that_is_not_finite_spoils_itself_alone(spoiled: int) -> None:
    batch = images()
    batch[spoiled, 0, 16, 16] = float("nan")
    for model in (convolutional(), tiny_model()):
        batch = batch if isinstance(model, nn.Sequential) else nn.functional.pad(batch, (16, 16, 16, 16))
        result = effective_receptive_field(model, batch, batch_size=5)
        assert (result.batch_size, result.skipped) == (5, ((f"image-{spoiled}", "the gradient is not finite"),))
        rest = effective_receptive_field(model, torch.cat([batch[:spoiled], batch[spoiled + 1 :]]), batch_size=1)
        np.testing.assert_allclose(result.ring_sums, rest.ring_sums, rtol=1e-9, atol=1e-12 * rest.ring_sums.max())


class Spoils(nn.Module):
    """Computes images together, without a trace in finite numbers: what is infinite in one is so in all."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * x.sum(0, keepdim=True)


def test_what_is_not_finite_in_company_is_measured_alone() -> None:
    batch = images(4)
    batch[1, 0, 16, 16] = float("nan")
    model = nn.Sequential(Spoils(), *convolutional().children())
    result = effective_receptive_field(model, batch, batch_size=4)
    assert (result.batch_size, len(result.images)) == (4, 3)
    rest = effective_receptive_field(model, batch[[0, 2, 3]], batch_size=1)
    np.testing.assert_allclose(result.mean_map, rest.mean_map, rtol=0, atol=1e-12 * rest.mean_map.max())


def interrupted(at: int) -> Any:
    def progress(done: int, total: int) -> None:
        if done == at:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("at", [1, 3, 4, 9])
def test_a_measurement_that_goes_on_in_the_middle_of_a_batch_has_the_same_bits(at: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", pretrained=False).eval()
    batch = images(10, 64).float()
    options: dict[str, Any] = {"batch_size": 4, "partial": tmp_path / "partial.npz"}
    whole = effective_receptive_field(model, batch, batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        effective_receptive_field(model, batch, **options, progress=interrupted(at))
    seen: list[int] = []
    resumed = effective_receptive_field(model, batch, **options, progress=lambda done, total: seen.append(done))
    assert seen == list(range(at, 11))
    same_bits(resumed, whole)
    same_bits(effective_receptive_field(model, batch, batch_size=4), whole)


def same_bits(result: ErfResult, expected: ErfResult) -> None:
    for name in ("mean_map", "ring_sums", "moments"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name), err_msg=name)


def test_numbers_out_of_range_are_refused() -> None:
    for argument in ("batch_size", "num_workers"):
        with pytest.raises(ValueError, match=f"{argument}=-1"):
            effective_receptive_field(convolutional(), images(), **{argument: -1})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mobilenetv3_large_100", "convnext_atto"])
def test_untrained_networks_of_timm_go_in_batches(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False)
    batch = images(2, 224).float()
    assert effective_receptive_field(model, batch, batch_size=2).batch_note == ""


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_a_map_on_a_gpu_is_that_of_the_cpu(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    batch = images(10, 224).float()
    expected = effective_receptive_field(model, batch)
    found = effective_receptive_field(model.cuda(), batch)
    assert (expected.batch_note, found.batch_note) == ("", "")
    assert found.batch_size > expected.batch_size
    np.testing.assert_allclose(found.mean_map, expected.mean_map, rtol=0, atol=1e-4 * expected.mean_map.max())
    np.testing.assert_allclose(found.ring_sums, expected.ring_sums, rtol=0, atol=1e-4 * expected.ring_sums.max())
