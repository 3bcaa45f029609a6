from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import replknet
from analysis import ForwardError, theoretical_receptive_field
from analysis.receptive_field.theoretical import centred_unit

# Sizes for the last feature map of published architectures, from the recursion of Araujo, Norris and Sim 2019
# (vgg16, alexnet, mobilenet_v2 as in their table; inception_v3's 1311 likewise).
PUBLISHED = [
    ("alexnet", "features", 195),
    ("vgg16", "features", 212),
    ("mobilenet_v2", None, 491),
    ("inception_v3", None, 1311),
]


@pytest.mark.parametrize(("name", "layer", "size"), PUBLISHED)
def test_published_sizes(name: str, layer: str | None, size: int) -> None:
    extra: dict[str, Any] = {"init_weights": False} if name == "inception_v3" else {}
    model = torchvision.models.get_model(name, weights=None, **extra)
    assert theoretical_receptive_field(model, (299, 299), layer=layer).size == (size, size)


def test_replknet_by_hand() -> None:
    with torch.device("meta"):
        model = replknet.create_model("replknet_31b")
    # Stem 3x3/2, 3x3, 3x3/2; stage kernels at strides 4 to 32; transitions 3x3/2 between them.
    expected = 1 + 2 + 4 + 4
    for stage, (pairs, kernel) in enumerate(zip((2, 2, 18, 2), (31, 29, 27, 13), strict=True)):
        stride = 4 * 2**stage
        expected += pairs * (kernel - 1) * stride + (2 * stride if stage < 3 else 0)
    field = theoretical_receptive_field(model, (1024, 1024))
    assert field.size == (expected, expected)
    assert field.grid == (32, 32)
    assert centred_unit(field, (1024, 1024)) == ((16, 16), (512.0, 512.0))
    # At 224 pixels the middle of the seven units is centred on pixel 96, not 112.
    assert centred_unit(theoretical_receptive_field(model, (224, 224)), (224, 224))[1] == (96.0, 96.0)


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 5, stride=2, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y * y.mean((2, 3), keepdim=True).sigmoid()


class ChannelsLastMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 4, stride=4), nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.norm(self.conv(x).permute(0, 2, 3, 1)))
        return y.permute(0, 3, 1, 2)


def test_a_global_gate_sees_everything_and_keeps_the_centre() -> None:
    field = theoretical_receptive_field(Gate(), (32, 32))
    assert field.size == (float("inf"), float("inf"))
    assert centred_unit(field, (32, 32)) == ((8, 8), (16.0, 16.0))


def test_linear_layers_on_channels_last_are_pointwise() -> None:
    field = theoretical_receptive_field(ChannelsLastMlp(), (32, 48))
    assert field.size == (4, 4)
    assert centred_unit(field, (32, 48)) == ((4, 6), (17.5, 25.5))


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(3, 2, 3, padding=2, dilation=2), nn.MaxPool2d(3, 2, 1), nn.Conv2d(2, 2, 3)],
        [nn.ZeroPad2d((1, 0, 2, 0)), nn.Conv2d(3, 2, 4, stride=2), nn.AvgPool2d(2)],
        [nn.Conv2d(3, 2, 3, stride=2, padding=1), nn.Upsample(scale_factor=2), nn.Conv2d(2, 2, 3, padding=1)],
        [nn.Conv2d(3, 2, 3, stride=3), nn.Upsample(scale_factor=3, mode="bilinear"), nn.ReLU()],
        [nn.Conv2d(3, 2, 5, padding=2), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)],
    ],
)
def test_nothing_outside_moves_a_unit_and_the_edge_does(layers: list[nn.Module]) -> None:
    """Measured with gradients of positive linear weights, an independent way to the same window."""
    model = nn.Sequential(*layers).double().eval()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.5, 1.0)
    size = (40, 42)
    field = theoretical_receptive_field(model, size)
    assert field.axes is not None
    (row, column), _ = centred_unit(field, size)
    image = torch.rand(1, 3, *size, dtype=torch.float64, requires_grad=True)
    # A maximum hides all but one pixel of its window, so the gradients of several images are joined.
    touched = torch.zeros(size, dtype=torch.bool)
    for seed in range(300 if any(isinstance(layer, nn.MaxPool2d) for layer in layers) else 1):
        image = torch.rand(1, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        image.requires_grad_(True)
        (gradient,) = torch.autograd.grad(model(image)[0, :, row, column].sum(), image)
        touched |= gradient.abs().sum((0, 1)) > 0
    for axis, index, seen in ((0, row, touched.any(1)), (1, column, touched.any(0))):
        pixels = seen.nonzero().flatten()
        low = field.axes[axis].low + index * field.axes[axis].stride
        high = field.axes[axis].high + index * field.axes[axis].stride
        assert low <= pixels.min().item() <= low + 3
        assert high - 3 <= pixels.max().item() <= high
        if not any(isinstance(layer, nn.Upsample) for layer in layers):
            assert (pixels.min().item(), pixels.max().item()) == (low, high)


# With every weight of a norm or a layer scale at one all of these see the whole image; the gradients say so, too.
EVERYWHERE = [
    "vit_tiny_patch16_224",
    "botnet26t_256",
    "ecaresnet26t",
    "mixer_s32_224",
    "regnety_002",
    "convnextv2_atto",
]


@pytest.mark.parametrize("name", EVERYWHERE)
def test_attention_gates_and_norms_of_the_map_see_the_whole_image(name: str) -> None:
    model = timm.create_model(name)
    size = model.pretrained_cfg["input_size"][1:]
    field = theoretical_receptive_field(model, size)
    assert (field.size, field.reason) == ((float("inf"), float("inf")), "")


def test_neighbourhood_attention_ends_the_trace_says_so_and_keeps_the_centre() -> None:
    field = theoretical_receptive_field(timm.create_model("halonet26t"), (256, 256))
    assert field.size is None
    assert "not traced through" in field.reason
    # As in a ResNet: every convolution and pooling of stride two is centred on its even cells.
    assert centred_unit(field, (256, 256)) == ((4, 4), (128.0, 128.0))


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)).train()
    before = [id(tensor) for tensor in (*model.parameters(), *model.buffers())]
    theoretical_receptive_field(model, (16, 16))
    assert [id(tensor) for tensor in (*model.parameters(), *model.buffers())] == before
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert int(model[1].num_batches_tracked) == 0  # type: ignore[arg-type]


class Keeps(nn.Module):
    """Keeps what it made for the last image, as rotary positions and anchors are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.positions, self.by_size = nn.Conv2d(3, 2, 3), torch.zeros(0), dict[int, Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        if self.positions.shape != y.shape[2:]:
            self.positions = torch.ones(y.shape[2:], device=y.device)
            self.by_size[y.shape[2]] = self.positions
        return y * self.positions * self.by_size[y.shape[2]]


def test_nothing_that_a_model_keeps_between_calls_is_left_without_data() -> None:
    model = Keeps()
    first = model.positions
    assert theoretical_receptive_field(model, (16, 16)).size == (3, 3)
    assert model.positions is first
    assert model.by_size == {}
    assert model(torch.rand(1, 3, 16, 16)).shape == (1, 2, 14, 14)


class ReadsValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y * 2 if float(y.detach().sum()) > 0 else y


def test_a_forward_pass_that_reads_values_still_gives_the_grid() -> None:
    field = theoretical_receptive_field(ReadsValues(), (16, 24))
    assert (field.size, field.grid) == (None, (8, 12))
    assert "a forward pass without data" in field.reason
    with pytest.raises(ForwardError, match="channels"):  # what is wrong with the model itself is not hidden
        theoretical_receptive_field(ReadsValues(), (16, 24), in_channels=4)


@pytest.mark.parametrize(("norm", "size"), [(nn.BatchNorm2d(4), 3), (nn.InstanceNorm2d(4), float("inf"))])
def test_a_norm_of_the_map_itself_sees_the_whole_map(norm: nn.Module, size: float) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), norm)
    assert theoretical_receptive_field(model, (16, 16)).size == (size, size)


@pytest.mark.parametrize(("size", "channels"), [((0, 8), 3), ((8, -1), 3), ((8, 8), 0)])
def test_an_image_without_a_pixel_or_a_channel_is_refused(size: tuple[int, int], channels: int) -> None:
    with pytest.raises(ValueError, match=r"image_size=.*in_channels=.*expected numbers of at least 1"):
        theoretical_receptive_field(nn.Conv2d(3, 4, 3), size, in_channels=channels)
