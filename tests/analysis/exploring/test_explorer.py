"""What the page asks: by hand, and by the library's own functions."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from analysis import LoadedModel, effective_receptive_field, load_model, predict
from analysis.exploring.explorer import Explorer, NamedImage, images_to_explore
from analysis.exploring.plots import enlargement, marked_picture, plot_unit
from analysis.figures import OKABE_ITO
from analysis.models.layers import LayerError
from analysis.models.layouts import LAST

LARGE, SMALL = "replknet_nano_k31", "replknet_nano_k3"


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    images, skipped = images_to_explore(None, num_images=4, size=64, seed=3)
    assert skipped == ()
    return Explorer([load_model(LARGE), load_model(SMALL)], images)


@pytest.fixture(scope="module")
def boxes() -> Explorer:
    """Units that see squares of 4 x 4 pixels side by side, each pixel with a gradient of 3 colours x 2 channels."""
    conv = nn.Conv2d(3, 2, 4, stride=4, bias=False)
    nn.init.ones_(conv.weight)
    model = LoadedModel(name="boxes", module=conv, mean=(0.0,) * 3, std=(1.0,) * 3, input_size=16, crop=1)
    return Explorer([model], [NamedImage(name="grey", image=np.full((16, 16, 3), 128, np.uint8))])


def prepared(pixels: NDArray[np.uint8]) -> Tensor:
    """Normalised by ImageNet's numbers, as the shipped networks were trained."""
    values = torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float()[None] / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (values - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


def gradient_by_hand(module: nn.Module, layer: str, unit: tuple[int, int], pixels: Any) -> NDArray[np.float64]:
    images = prepared(pixels).requires_grad_(True)
    caught: list[Tensor] = []
    handle = module.get_submodule(layer).register_forward_hook(lambda _module, _inputs, out: caught.append(out))
    module.eval()(images)
    handle.remove()
    (gradient,) = torch.autograd.grad(caught[0][:, :, unit[0], unit[1]].relu().sum(), images)
    return np.asarray(gradient.double().abs().sum(1)[0])


def test_the_map_is_the_input_gradient_of_the_unit_under_the_pixel(explorer: Explorer) -> None:
    """Units of the second stage, 8 x 8 of 64 pixels, have their centres at 0, 8, 16, ...: (8, 40) is nearest."""
    found = explorer.field(LARGE, 1, "stages.1", pixel=(5, 41))
    assert (found.unit, found.grid, found.center) == ((1, 5), (8, 8), (8.0, 40.0))
    pixels = explorer.images[1].image
    by_hand = gradient_by_hand(load_model(LARGE).module, "stages.1", (1, 5), pixels)
    np.testing.assert_allclose(found.mean_map, by_hand, rtol=1e-3, atol=1e-5 * by_hand.max())
    library = effective_receptive_field(LARGE, [pixels], layer="stages.1", unit=(1, 5), batch_size=1)
    np.testing.assert_array_equal(found.mean_map, library.mean_map)


def test_without_a_click_it_is_the_unit_in_the_middle(explorer: Explorer) -> None:
    library = effective_receptive_field(SMALL, [explorer.images[0].image], batch_size=1)
    found = explorer.field(SMALL, 0)
    assert (found.layer, found.unit) == (LAST, library.unit)
    np.testing.assert_array_equal(found.mean_map, library.mean_map)


@pytest.mark.parametrize(
    ("pixel", "unit"),
    [
        ((0, 0), (0, 0)),
        ((0, 15), (0, 3)),
        ((15, 0), (3, 0)),
        ((15, 15), (3, 3)),
        ((-0.5, 15.5), (0, 3)),  # the very edges
        ((3, 4), (0, 1)),
        ((3.5, 7.5), (1, 2)),  # as near to either: the one further down and right
        ((3.49, 7.51), (0, 2)),
        (None, (2, 2)),
    ],
)
def test_the_unit_is_the_one_whose_centre_is_nearest(boxes: Explorer, pixel: Any, unit: tuple[int, int]) -> None:
    """Centres lie at 1.5, 5.5, 9.5 and 13.5."""
    assert boxes.layers("boxes") == {LAST: (4, 4)}
    assert boxes.unit("boxes", LAST, (16, 16), pixel) == unit
    box = np.zeros((16, 16))
    box[4 * unit[0] : 4 * unit[0] + 4, 4 * unit[1] : 4 * unit[1] + 4] = 6
    np.testing.assert_array_equal(boxes.field("boxes", 0, pixel=pixel).mean_map, box)


@pytest.mark.parametrize("pixel", [(-1, 0), (0, 16), (float("nan"), 0)])
def test_a_pixel_beside_the_picture_is_refused(boxes: Explorer, pixel: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"pixel=.*: expected one of a picture of 16x16"):
        boxes.field("boxes", 0, pixel=pixel)


def test_kernels_are_cropped_in_a_copy() -> None:
    loaded = load_model(LARGE)
    before = copy.deepcopy(loaded.module.state_dict())
    images, _ = images_to_explore(None, num_images=1, size=64)
    explorer = Explorer([loaded], images, layers=["stages.0"])
    by_hand = copy.deepcopy(loaded.module)
    for layer in by_hand.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.weight.shape[-1] > 7:
            edge = (layer.weight.shape[-1] - 7) // 2
            kept = torch.zeros_like(layer.weight)
            kept[:, :, edge:-edge, edge:-edge] = 1
            layer.weight.data *= kept
    found = explorer.field(LARGE, 0, "stages.0", pixel=(30, 30), kernel=7)
    expected = gradient_by_hand(by_hand, "stages.0", found.unit, images[0].image)
    np.testing.assert_allclose(found.mean_map, expected, rtol=1e-3, atol=1e-5 * expected.max())
    assert found.model == f"{LARGE}, kernels cropped to 7"
    logits = by_hand(prepared(images[0].image))[0].detach().softmax(0)  # type: ignore[arg-type]
    best = explorer.classes(LARGE, 0, kernel=7)[0]
    assert best.indices[0] == int(logits.argmax())
    assert best.scores[0] == pytest.approx(float(logits.max()), abs=1e-4)

    whole = explorer.field(LARGE, 0, "stages.0", pixel=(30, 30))
    assert whole.rms_radius() > 1.5 * found.rms_radius()
    last = explorer.field(LARGE, 0, "stages.0", pixel=(30, 30), kernel=31)
    np.testing.assert_array_equal(last.mean_map, whole.mean_map)
    assert last.model == LARGE
    after = loaded.module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_only_networks_with_large_kernels_have_crops(explorer: Explorer, boxes: Explorer) -> None:
    assert list(explorer.kernels(LARGE)) == list(range(1, 32, 2))
    assert list(explorer.kernels(SMALL)) == [1, 3]
    assert not boxes.kernels("boxes")
    with pytest.raises(ValueError, match="kernel=3: expected none: this network has no large kernels"):
        boxes.field("boxes", 0, kernel=3)
    with pytest.raises(ValueError, match="kernel=4: expected an odd number from 1 to 31"):
        explorer.classes(LARGE, 0, kernel=4)


def test_classes_are_those_of_predict(explorer: Explorer, boxes: Explorer) -> None:
    found = explorer.classes(LARGE, 2)[0]
    expected = predict(LARGE, [explorer.images[2].image])[0]
    assert (found.names, found.scores) == (expected.names, expected.scores)
    with pytest.raises(ValueError, match="class scores"):
        boxes.classes("boxes", 0)


def test_the_picture_is_what_the_network_gets(explorer: Explorer) -> None:
    np.testing.assert_array_equal(explorer.picture(LARGE, 0), explorer.images[0].image)
    image = NamedImage(name="wide", image=np.random.default_rng(0).integers(0, 256, (20, 60, 3), np.uint8))
    wide = Explorer([load_model(SMALL)], [image], size=32, layers=[LAST])
    assert wide.picture(SMALL, 0).shape == (32, 32, 3)
    assert wide.field(SMALL, 0).map_size == (32, 32)


def test_layers_are_those_with_units(explorer: Explorer) -> None:
    layers = explorer.layers(SMALL)
    assert list(layers)[:3] == [LAST, "stem.0", "stem.1"]
    assert (layers[LAST], layers["stages.0"], layers["stages.3"]) == ((2, 2), (16, 16), (2, 2))
    assert "head" not in layers
    with pytest.raises(LayerError, match="'nose'"):
        Explorer([load_model(SMALL)], explorer.images, layers=["nose"])


def test_images_are_generated_or_drawn_from_a_folder(explorer: Explorer, tmp_path: Path) -> None:
    assert [item.name for item in explorer.images] == ["arrow", "bolt", "arrow-bolt", "bolt-crescent"]
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    images, skipped = images_to_explore(tmp_path, num_images=5, size=64)
    assert [(item.name, item.image) for item in images] == [("a.png", tmp_path / "a.png")]
    assert [name for name, _ in skipped] == ["b.png"]
    red = Explorer([load_model(SMALL)], images, layers=[LAST]).picture(SMALL, 0)
    assert (red == (255, 0, 0)).all()


def test_the_drawings_mark_the_unit_and_its_squares(boxes: Explorer) -> None:
    """The square of 99 % of a box is a little smaller than its 4 pixels, of which each is 32 of the picture's."""
    found = boxes.field("boxes", 0, pixel=(8, 12))
    assert found.center == (9.5, 13.5)
    dot = plot_unit(found).axes[0].lines[0].get_xydata()
    assert np.asarray(dot).tolist() == [[13.5, 9.5]]
    assert enlargement((16, 16)) == 32
    picture = np.asarray(marked_picture(boxes.picture("boxes", 0), found))
    assert picture.shape == (512, 512, 3)
    orange = (picture == np.rint(255 * np.array(to_rgb(OKABE_ITO[1])))).all(2)
    rows, columns = (places.mean() for places in np.nonzero(orange))
    assert (rows, columns) == pytest.approx((320, 448), abs=1)
    changed = np.nonzero((picture != 128).any(2))
    assert [changed[0].min(), changed[0].max()] == pytest.approx([256, 384], abs=4)
    assert changed[1].min() == pytest.approx(384, abs=4)
