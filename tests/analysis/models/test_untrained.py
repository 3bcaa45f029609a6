"""An untrained network: its own initialisation, batch norms that know its maps, small scales named."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import prune

import analysis
import replknet
from analysis import LoadedModel, calibrated, effective_receptive_field, load_model, untrained_copy
from analysis.models.untrained import signs_of_no_training, small_scales

IMAGES = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spec", ["timm:resnet18", "torchvision:resnet18", "timm:convnext_atto", "replknet_nano_k3"])
def test_a_copy_is_what_the_library_makes_untrained(spec: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    loaded = load_model(spec, pretrained=spec.startswith("replknet"))  # the nano networks come with their weights
    with torch.no_grad():
        for parameter in loaded.module.parameters():
            parameter.add_(1.0)  # as if trained
    copied, made = untrained_copy(loaded, seed=5), load_model(spec, pretrained=False, seed=5)
    assert copied.initial == made.initial == "own initialisation, seed 5"
    assert copied.published == {}
    state = made.module.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in copied.module.state_dict().items())
    if spec.startswith("replknet"):
        assert isinstance(loaded.module, replknet.RepLKNet)
        analysis.save_network(tmp_path / "own.safetensors", loaded.module, classes="abcdefghij", input_size=64)
        again = untrained_copy(load_model(str(tmp_path / "own.safetensors")), seed=5)
        assert all(torch.equal(value, state[key]) for key, value in again.module.state_dict().items())


def test_a_trained_network_is_not_called_initial() -> None:
    assert load_model("replknet_nano_k3").initial == ""
    assert load_model("replknet_31b", kernel_sizes=(3, 3, 3, 3)).initial == "own initialisation, seed 0"


def test_a_program_cannot_be_initialised_anew(tmp_path: Path) -> None:
    analysis.export_model(load_model("replknet_nano_k3"), tmp_path / "net.pt", format="torchscript")
    with pytest.raises(ValueError, match="no layer that can be initialised anew"):
        untrained_copy(load_model(str(tmp_path / "net.pt"), trust=True))


@pytest.mark.parametrize("change", ["weight norm", "pruned"])
def test_weights_made_from_others_are_not_called_untrained(change: str) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    if change == "pruned":
        prune.l1_unstructured(module[0], "weight", 0.5)  # type: ignore[no-untyped-call]
    else:
        nn.utils.parametrizations.weight_norm(module[0])
    loaded = LoadedModel(name="changed", module=module)
    with pytest.raises(ValueError, match="changed has weights that are made from others in every call"):
        untrained_copy(loaded)
    known = calibrated(loaded, IMAGES)  # which leaves weights alone
    maps = module[0](IMAGES)
    expected = (maps[:8].mean((0, 2, 3)) + maps[8:].mean((0, 2, 3))) / 2
    torch.testing.assert_close(known.module.get_buffer("1.running_mean"), expected)


def test_calibrated_batch_norms_know_their_own_maps() -> None:
    loaded = load_model("torchvision:resnet18", pretrained=False)
    before = {key: value.clone() for key, value in loaded.module.state_dict().items()}
    known = calibrated(loaded, IMAGES)
    assert known.initial == "own initialisation, seed 0, batch norms calibrated on 12 images"
    assert all(torch.equal(value, before[key]) for key, value in loaded.module.state_dict().items())
    assert known.module.bn1.momentum == 0.1 and not known.module.training  # type: ignore[union-attr]
    stem = loaded.module.conv1(IMAGES)  # type: ignore[operator]
    batches = [stem[:8], stem[8:]]  # the mean of the statistics of both
    torch.testing.assert_close(known.module.bn1.running_mean, sum(b.mean((0, 2, 3)) for b in batches) / 2)  # type: ignore[union-attr]
    torch.testing.assert_close(known.module.bn1.running_var, sum(b.var((0, 2, 3)) for b in batches) / 2)  # type: ignore[union-attr]
    assert all(torch.equal(p, before[key]) for key, p in known.module.named_parameters())


def test_one_definition_for_two_libraries() -> None:
    """The same architecture has the same field, once the norms that timm begins at zero are set to one."""
    results = []
    for spec in ("timm:resnet18", "torchvision:resnet18"):
        loaded = load_model(spec, pretrained=False)
        raw = effective_receptive_field(loaded, IMAGES[:2]).area_ratio(0.5)
        known = effective_receptive_field(calibrated(loaded, IMAGES, unit_scales=True), IMAGES[:2])
        assert known.initial.endswith("batch norms calibrated on 12 images")
        results.append((raw, known.area_ratio(0.5)))
    assert results[0][1] == pytest.approx(results[1][1], rel=0.2)  # other random weights
    assert results[0][0] < 0.3 * results[1][0]  # without that it sees its shortcuts


class Scales(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.PReLU()
        self.layer_scale = nn.Parameter(torch.full((4, 1, 1), -1e-4))
        self.lambda_q1 = nn.Parameter(torch.linspace(-0.1, 0.1, 4))  # of differential attention
        self.temperature_scale = nn.Parameter(torch.tensor(0.05))
        self.cls_token, self.skipinit_gain = nn.Parameter(torch.zeros(1, 1, 4)), nn.Parameter(torch.tensor(0.0))
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Any:
        return self.act(self.norm(self.conv(x)) * self.layer_scale) * self.skipinit_gain


def test_small_scales_are_named_with_the_fraction_that_they_let_through() -> None:
    loaded = LoadedModel(name="scales", module=Scales(), initial="own initialisation")
    assert small_scales(loaded.module) == {"norm.weight": 0, "layer_scale": pytest.approx(1e-4), "skipinit_gain": 0}
    told = calibrated(loaded, IMAGES)
    assert "2 norms or layer scales (skipinit_gain, norm.weight) begin at 0" in told.notes[0]
    assert "their branches let 0 % through; unit_scales=True" in told.notes[0]
    assert "1 norms or layer scales (layer_scale) begin at 0.0001: their branches let 0.01 % through" in told.notes[1]
    assert (  # in methods.txt, too
        told.initial == "own initialisation, 3 norms or layer scales let 0 to 0.01 % of their branches through"
    )
    ones = calibrated(loaded, IMAGES, unit_scales=True)
    assert ones.initial == "own initialisation, small scales set to one"
    assert ones.module.get_parameter("layer_scale").flatten().tolist() == [1, 1, 1, 1]
    assert not ones.module.get_parameter("cls_token").any()
    assert "they were set to one" in ones.notes[0]
    assert not loaded.module.get_parameter("norm.weight").any()
    for name, count in (("convnext_atto", 12), ("resnet18", 8), ("cait_xxs24_224", 24 * 2 + 2 * 2)):
        assert len(small_scales(timm.create_model(name))) == count


def test_statistics_of_frozen_norms_are_named_and_those_of_instance_norms_calibrated() -> None:
    frozen = torchvision.ops.FrozenBatchNorm2d(4)
    frozen.weight.fill_(7)
    loaded = LoadedModel(name="frozen", module=nn.Sequential(nn.Conv2d(3, 4, 3), frozen))
    copied = untrained_copy(loaded)
    assert "not reset in the untrained copy: 1.weight, 1.bias, 1.running_mean, 1.running_var" in copied.notes[0]
    assert "1 keep their statistics: frozen norms" in calibrated(copied, IMAGES).notes[1]
    norm = nn.InstanceNorm2d(3, track_running_stats=True)
    known = calibrated(LoadedModel(name="instance", module=norm, initial="own"), 5 + 3 * IMAGES)
    means = [5 + 3 * batch.mean((0, 2, 3)) for batch in (IMAGES[:8], IMAGES[8:])]
    torch.testing.assert_close(known.module.get_buffer("running_mean"), sum(means) / 2)


@pytest.mark.parametrize("name", ["fcn_resnet50", "lraspp_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_fpn"])
def test_networks_for_segmentation_and_detection_load_without_a_network(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("nothing is downloaded for random weights")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", offline)
    loaded = load_model(f"torchvision:{name}", pretrained=False)
    size = (64, 96)
    layer = "backbone.body.16" if "rcnn" in name else None
    field = analysis.theoretical_receptive_field(loaded, size, layer=layer)
    assert field.grid[0] * field.grid[1] > 1
    with pytest.raises(ValueError, match=r"returns (OrderedDict|list|dict)"):
        analysis.predict(loaded, torch.rand(1, 3, *size))


def test_weights_of_no_training_are_told() -> None:
    """timm's ResNets begin with zeros in the last norm of each block; no training leaves all of a norm alike."""
    module = timm.create_model("resnet18")
    (note,) = signs_of_no_training(LoadedModel(name="Mine", module=module))
    assert note.startswith("Mine: 8 norms or layer scales (layer1.0.bn2.weight, ")
    assert signs_of_no_training(LoadedModel(name="Mine", module=module, initial="its own")) == ()
    for name, parameter in module.named_parameters():
        if name.endswith("bn2.weight"):
            torch.nn.init.normal_(parameter)
    assert signs_of_no_training(LoadedModel(name="Mine", module=module)) == ()
    assert signs_of_no_training(load_model("replknet_nano_k31")) == ()
    slope = nn.PReLU(init=0.04)
    assert small_scales(slope) and signs_of_no_training(LoadedModel(name="Mine", module=slope)) == ()
