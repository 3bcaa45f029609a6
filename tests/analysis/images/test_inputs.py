"""Images as users give them: the same ones in every form are the same input."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import analysis
from analysis import LoadedModel, load_images
from analysis.images.inputs import as_inputs
from analysis.images.preparing import evaluation_transform

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
TRANSFORM = evaluation_transform(8, mean=MEAN, std=STD, crop=1.0)


class Colours(nn.Module):
    """Answers with the mean of each colour."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(3, 3, 1, bias=False)
        nn.init.dirac_(self.maps.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.maps(x).mean((2, 3))
        return out


MODEL = LoadedModel(name="colours", module=Colours(), mean=MEAN, std=STD, input_size=8, crop=1.0)


def pictures() -> list[Image.Image]:
    values = np.random.default_rng(0).integers(0, 255, (2, 12, 10, 3), np.uint8)
    return [Image.fromarray(value) for value in values]


@pytest.fixture
def forms(tmp_path: Path) -> dict[str, Any]:
    """Two images as files, pictures, arrays, tensors, and normalised."""
    images = pictures()
    for index, image in enumerate(images):
        image.save(tmp_path / f"{index}.png")
    arrays = [np.array(image) for image in images]
    stacked = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    return {
        "folder": tmp_path,
        "text": str(tmp_path / "*.png"),
        "paths": [tmp_path / "0.png", tmp_path / "1.png"],
        "pictures": images,
        "transparent": [image.convert("RGBA") for image in images],
        "arrays": arrays,
        "array": np.stack(arrays),
        "tensor": stacked,
        "tensors": list(stacked),
        "normalised": torch.stack([TRANSFORM(image) for image in images]),
    }


def test_every_form_gives_the_same_input_and_the_same_measurements(forms: dict[str, Any]) -> None:
    expected = torch.stack([TRANSFORM(image) for image in pictures()])
    predicted = analysis.predict(MODEL, forms["paths"])
    features = analysis.extract_features(MODEL, forms["paths"], ["maps"]).arrays["maps"]
    field = analysis.effective_receptive_field(MODEL, forms["paths"], layer="maps")
    for name, form in forms.items():
        inputs = as_inputs(form, TRANSFORM)
        found = torch.stack([inputs.load(index) for index in range(len(inputs))])
        assert torch.equal(found, expected), name
        assert [item.scores for item in analysis.predict(MODEL, form)] == [item.scores for item in predicted], name
        np.testing.assert_array_equal(analysis.extract_features(MODEL, form, ["maps"]).arrays["maps"], features)
        other = analysis.effective_receptive_field(MODEL, form, layer="maps")
        np.testing.assert_array_equal(other.mean_map, field.mean_map, err_msg=name)
        assert len(set(inputs.hashes())) == 2


def test_one_image_alone(forms: dict[str, Any]) -> None:
    for form in (forms["paths"][0], forms["pictures"][0], forms["arrays"][0], forms["tensors"][0]):
        assert len(as_inputs(form, TRANSFORM)) == 1
    assert len(analysis.predict(MODEL, forms["pictures"][0])) == 1


def test_what_could_be_meant_in_two_ways_is_refused() -> None:
    floats = np.zeros((2, 8, 8, 3))
    for bad, message in (
        ([], "expected at least one"),
        (floats, r"uint8 pixels.*not float64 of shape \(8, 8, 3\)"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), "not torch.uint8"),
        ([Image.new("RGB", (4, 4)), "a.png"], "all of one kind, not str"),
        ([3], "not int"),
        (None, "not NoneType"),
        (True, "not bool"),
        (np.zeros((8, 8), np.uint8), r"not uint8 of shape \(8, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            as_inputs(bad, TRANSFORM)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
        as_inputs("nothing.png", TRANSFORM)


def test_a_set_gets_the_normalisation_of_a_loaded_model_and_keeps_its_own_for_a_module() -> None:
    images = load_images(size=16, num_images=2)
    of_model = analysis.effective_receptive_field(MODEL, images, layer="maps")
    assert (of_model.mean, of_model.model) == (MEAN, "colours")
    of_module = analysis.effective_receptive_field(MODEL.module, images, layer="maps")
    assert (of_module.mean, of_module.model) == (images.mean, "Colours")
    own = torch.stack(list(images.normalized_by(MEAN, STD)))
    for model, expected in ((MODEL, own), (MODEL.module, torch.stack(list(images)))):
        found = analysis.extract_features(model, images, ["maps"], average=True).arrays["maps"]
        np.testing.assert_array_equal(found, expected.mean((2, 3)).numpy())
        scores = analysis.predict(model, images)[0].scores
        np.testing.assert_array_equal(scores, sorted(expected[0].mean((1, 2)).double().softmax(0), reverse=True))


def test_every_measuring_function_takes_a_name(tmp_path: Path) -> None:
    analysis.save_stimuli(analysis.SyntheticImages(kind="conflict", num_images=12), tmp_path / "conflict")
    analysis.save_stimuli(analysis.SyntheticImages(num_images=12), tmp_path / "congruent")
    name = "replknet_nano_k3"
    loaded = analysis.load_model(name)
    for model in (name, loaded, loaded.module):
        field = analysis.effective_receptive_field(model, tmp_path / "congruent" / "ring", size=64)
        assert field.map_size == (64, 64)
        assert analysis.theoretical_receptive_field(model, (64, 64)).size is not None
        bias = analysis.evaluate_shape_bias(model, tmp_path / "conflict", mapping=analysis.MAPPING)
        assert len(bias.stimuli) == 12
        assert analysis.num_macs(model, (64, 64)) == analysis.num_macs(loaded, (64, 64))
        assert analysis.num_parameters(model) == sum(p.numel() for p in loaded.module.parameters())
