"""The points of timm's own tests of its models (tests/test_models.py there), for ours."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import load_pretrained
from timm.models._manipulate import group_with_matcher
from timm.optim import param_groups_layer_decay
from torch import nn

import replknet
from replknet import timm_models
from replknet.timm_models import TimmRepLKNet
from tests.networks import TINY, TINY_UNIREPLKNET, randomize_norms, tiny_unireplknet

NAMES = ("replknet_31b", "replknet_31l", "replknet_xl", "replknet_nano_k3", "replknet_nano_k31")
SMALL = ("replknet_nano_k3", "replknet_nano_k31")
ARCHITECTURE: dict[str, Any] = {key: value for key, value in TINY.items() if key != "num_classes"}


def small(**options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model("replknet_31b", **(ARCHITECTURE | options))


def test_the_family_is_registered() -> None:
    assert set(NAMES) <= set(timm.list_models("replknet*"))
    published = {name for name in replknet.PUBLISHED if name.startswith("replknet")}
    assert published | {f"{name}.synthetic" for name in SMALL} == set(timm.list_pretrained("replknet*"))
    assert set(replknet.PUBLISHED) <= set(timm.list_pretrained())
    assert timm.is_model("replknet_31b")
    assert timm.list_modules().count("timm_models") == 1


@pytest.mark.parametrize("order", ["import timm, replknet.timm_models", "import replknet.timm_models, timm"])
def test_one_import_registers_and_no_other(order: str) -> None:
    """Neither library is changed by importing both."""
    names = "timm.list_models('replknet_31*')"
    code = f"import replknet, timm; print({names}); {order}; print({names})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "['replknet_31b',", "'replknet_31l']"]


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_default_configuration(name: str) -> None:
    with torch.device("meta"):  # shapes; the small ones run for real below
        model = timm.create_model(name).eval()
    state, cfg = model.state_dict(), model.default_cfg
    assert f"{cfg['classifier']}.weight" in state
    assert f"{cfg['first_conv']}.weight" in state
    images = torch.zeros(2, *cfg["input_size"], device="meta")
    assert model(images).shape == (2, cfg["num_classes"])
    features = model.forward_features(images)
    assert features.shape == (2, model.num_features, *cfg["pool_size"])
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    model.reset_classifier(0)
    assert model(images).shape == (2, model.num_features)
    model.reset_classifier(0, "")
    assert model(images).shape == (2, model.num_features, *cfg["pool_size"])
    model.to_empty(device="meta").reset_classifier(7, "max")
    assert model.num_classes == 7


@pytest.mark.parametrize("name", ["replknet_31b", *SMALL])
def test_forward(name: str) -> None:
    model = timm.create_model(name).eval()
    with torch.no_grad():
        outputs = model(torch.randn(1, *model.default_cfg["input_size"]))
    assert outputs.shape == (1, model.num_classes)
    assert outputs.isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_backward_reaches_every_parameter(name: str) -> None:
    model = timm.create_model(name, num_classes=42, drop_rate=0.1, drop_path_rate=0.1).train()
    outputs = model(torch.randn(2, 3, 64, 64))
    outputs.mean().backward()
    assert outputs.shape == (2, 42)
    assert outputs.isfinite().all()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", NAMES)
def test_features_have_the_announced_channels_and_strides(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, features_only=True).eval()
    maps = model(torch.zeros(1, 3, 128, 96, device="meta"))
    assert len(maps) == len(model.feature_info.channels()) == 4
    for feature, channels, reduction in zip(
        maps, model.feature_info.channels(), model.feature_info.reduction(), strict=True
    ):
        assert feature.shape == (1, channels, 128 // reduction, 96 // reduction)


@pytest.mark.parametrize("indices", [(0,), (1, 3), (-1,), (2,), 2])
def test_out_indices_are_the_maps_of_the_whole_network(indices: Any) -> None:
    whole = small().eval()
    part = small(features_only=True, out_indices=indices).eval()
    images = torch.randn(1, 3, 64, 64)
    wanted = [range(4)[index] for index in (range(-indices, 0) if isinstance(indices, int) else indices)]
    with torch.no_grad():
        expected = replknet.RepLKNet.forward_intermediates(whole, images, wanted)
        found = part(images)
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    # What the maps do not need is not kept.
    assert len(part.model.stages) == max(wanted) + 1
    assert isinstance(part.model.head, nn.Identity)
    with pytest.raises(AssertionError, match="out of range"):
        small(features_only=True, out_indices=(4,))


def test_forward_intermediates() -> None:
    model: Any = randomize_norms(small()).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        last, maps = model.forward_intermediates(images)
        assert torch.allclose(last, model.norm(model.forward_features(images)), atol=1e-6)
        assert [feature.shape[1] for feature in maps] == list(TINY["channels"])
        only = model.forward_intermediates(images, indices=[1], stop_early=True, intermediates_only=True)
        assert torch.equal(only[0], maps[1])
        stopped, _ = model.forward_intermediates(images, indices=[1], stop_early=True)
        assert torch.equal(stopped, maps[1])
        normed = model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
        assert torch.equal(normed[0], last)
    with pytest.raises(ValueError, match="output_fmt='NLC'"):
        model.forward_intermediates(images, output_fmt="NLC")


@pytest.mark.parametrize("in_chans", [1, 4])
def test_input_channels(in_chans: int) -> None:
    model = small(in_chans=in_chans).eval()
    assert model(torch.randn(1, in_chans, 64, 64)).shape == (1, 1000)
    adapted = timm.create_model("replknet_nano_k3", pretrained=True, in_chans=in_chans, num_classes=5)
    assert adapted.eval()(torch.randn(1, in_chans, 64, 64)).shape == (1, 5)


def test_classifier_and_pooling() -> None:
    model = small(num_classes=10).eval()
    assert model.get_classifier() is model.head
    images = torch.randn(2, 3, 64, 64)
    for pool_type in ("avg", "max", "avgmax"):
        model.reset_classifier(6, pool_type)
        assert model(images).shape == (2, 6)
    model.reset_classifier(3)
    assert model.global_pool.pool_type == "avgmax"
    with pytest.raises(ValueError, match="global_pool='catavgmax': expected avg, max, avgmax or none with a head of 3"):
        model.reset_classifier(3, "catavgmax")
    model.reset_classifier(3, "")
    with torch.no_grad():
        maps = model.forward_features(images)
        by_position = torch.stack([model.head(model.norm(maps)[:, :, 0, column]) for column in range(2)], 2)
        torch.testing.assert_close(model(images)[:, :, 0], by_position)
    with pytest.raises(TypeError, match="window=7: expected one of layers, channels"):
        small(window=7)


def test_pretrained_weights_are_those_of_the_package() -> None:
    images = torch.randn(2, 3, 64, 64)
    for name in SMALL:
        model = timm.create_model(name, pretrained=True).eval()
        own = replknet.create_model(name, pretrained=True).eval()
        assert torch.allclose(model(images), own(images), atol=1e-5)
        assert model.pretrained_cfg["tag"] == "synthetic"
        features = timm.create_model(name, pretrained=True, features_only=True, out_indices=(0, 1)).eval()
        assert torch.allclose(features(images)[1], own.forward_intermediates(images, [1])[0], atol=1e-5)


def test_published_weights_come_by_the_verified_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    source: Any = randomize_norms(small(num_classes=1000))
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": replknet.convert_state_dict(source.state_dict(), to="mmpretrain")}, path)
    asked: list[str] = []

    def download(name: str) -> Any:
        asked.append(name)
        return path

    monkeypatch.setattr("replknet.timm_models.download_weights", download)
    model = small(pretrained=True)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())
    tagged = timm.create_model("replknet_31b.in22k_ft_in1k_384", pretrained=True, num_classes=5, **ARCHITECTURE)
    assert tagged.head.out_features == 5
    assert torch.equal(tagged.norm.weight, source.norm.weight)
    assert asked == ["replknet_31b", "replknet_31b.in22k_ft_in1k_384"]
    assert tagged.pretrained_cfg["crop_mode"] == "squash"
    overlaid = small(pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    assert torch.equal(overlaid.head.weight, source.head.weight)
    assert len(asked) == 2
    load_pretrained(small(), overlaid.pretrained_cfg, filter_fn=timm_models._fitting_weights)


@pytest.mark.parametrize("level", ["kernels", "full"])
@pytest.mark.parametrize("options", [{}, {"num_classes": 5}, {"num_classes": 0}, {"features_only": True}])
def test_a_merged_file_gives_a_merged_network_or_an_error(tmp_path: Path, level: Any, options: dict[str, Any]) -> None:
    """With a head of another size timm loads what has a place and leaves the rest random."""
    source: Any = randomize_norms(small(num_classes=1000)).double().eval()
    file = tmp_path / "merged.pth"
    torch.save(replknet.reparameterize(source, level=level).state_dict(), file)

    def load() -> Any:
        overlay = {"file": str(file)}
        return (
            small(pretrained=True, pretrained_cfg_overlay=overlay, **({"num_classes": 1000} | options)).double().eval()
        )

    if level == "full" and "num_classes" in options:  # the final norm is in the head that is left out
        with pytest.raises(
            replknet.CheckpointError, match=r"num_classes=1000, as the final norm|4 missing: norm\.weight"
        ):
            load()
        return
    model = load()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        if "features_only" in options:
            found, expected = model(images)[-1], source.forward_features(images)
        elif options:
            found, expected = (m.forward_head(m.forward_features(images), pre_logits=True) for m in (model, source))
        else:
            found, expected = model(images), source(images)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_weights_of_another_architecture_are_refused_beside_another_head(tmp_path: Path) -> None:
    torch.save(small(num_classes=1000).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(replknet.CheckpointError, match=r"lkb_origin\.conv\.weight \[\d+, 1, "):
        overlay = {"file": str(tmp_path / "weights.pth")}
        small(pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5, kernel_sizes=(3, 3, 3, 3), small_kernel=3)


@pytest.mark.parametrize("name", ["stem.0.conv.weight", "head.weight", "stages.0.blocks.0.pw1.conv.weight"])
def test_integers_are_no_weights(tmp_path: Path, name: str) -> None:
    state = small(num_classes=1000).state_dict()
    torch.save(state | {name: state[name].long()}, tmp_path / "weights.pth")
    with pytest.raises(replknet.CheckpointError, match=f"1 of another type: {name} int64 for float32"):
        small(pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "weights.pth")}, num_classes=1000)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    gradients = []
    for enable in (False, True):
        model = small().double().train()
        model.set_grad_checkpointing(enable)
        model(images).sum().backward()
        gradients.append(model.stem[0].conv.weight.grad)
    assert torch.allclose(*gradients)


def test_layer_decay_follows_the_depth() -> None:
    """The groups of the official optim_factory.py: stem, twelve of two pairs of blocks each, norm and head."""
    with torch.device("meta"):
        model = timm.create_model("replknet_31b")
    order: dict[str, int] = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
    assert set(order) == {key for key, _ in model.named_parameters()}
    for key, group in order.items():
        part, number, *rest = key.split(".")
        if part == "stem":
            assert group == 0
        elif part == "stages":
            assert group == {"0": 1, "1": 2, "2": 3 + int(rest[1]) // 4, "3": 12}[number]
        elif part == "transitions":
            assert group == {"0": 1, "1": 2, "2": 11}[number]
        else:
            assert group == 13
    coarse: dict[str, int] = timm.models.group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert len(set(coarse.values())) == 6  # stem, four stages, head
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    scales = {group["lr_scale"] for group in groups}
    assert sorted(scales) == [0.5**k for k in range(13, -1, -1)]


def test_reparameterize_model_gives_the_same_outputs() -> None:
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for pool in ("avg", "max"):
        model: Any = randomize_norms(small(global_pool=pool)).double().eval()
        merged = timm.utils.reparameterize_model(model)
        assert any("lkb_reparam" in key for key in merged.state_dict())
        left = [module for module in merged.modules() if isinstance(module, nn.BatchNorm2d)]
        assert left == [merged.norm]
        with torch.no_grad():
            assert torch.allclose(merged(images), model(images), rtol=1e-9)
            assert torch.allclose(replknet.reparameterize(model)(images), model(images), rtol=1e-9)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*TorchScript:DeprecationWarning")
@pytest.mark.parametrize("form", ["training", "folded"])
def test_scripts_to_plain_convolutions(form: str, tmp_path: Any) -> None:
    model = randomize_norms(small()).eval()
    if form == "folded":
        model = replknet.reparameterize(model)
    torch.jit.save(torch.jit.script(model), tmp_path / "model.pt")
    again = torch.jit.load(tmp_path / "model.pt")  # type: ignore[no-untyped-call]
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(again(images), model(images), rtol=1e-4, atol=1e-4)


def test_device_and_dtype_of_the_factory() -> None:
    model = small(device="meta", dtype=torch.bfloat16)
    assert {(tensor.device.type, tensor.dtype) for tensor in model.parameters()} == {("meta", torch.bfloat16)}
    assert all(tensor.device.type == "meta" for tensor in model.buffers())


def test_compile() -> None:
    model: Any = timm.create_model("replknet_nano_k31", pretrained=True).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert torch.allclose(compiled(images), model(images), atol=1e-5)


@pytest.mark.parametrize("architecture", ["Unet", "UPerNet"])
def test_segmentation_models_pytorch_trains_on_the_encoder(architecture: str) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    model = getattr(smp, architecture)("tu-replknet_31b", encoder_weights=None, classes=2).train()
    assert isinstance(model.encoder.model.model, TimmRepLKNet)
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0  # so that two losses of one batch can be compared
    images, masks = torch.randn(2, 3, 64, 64), torch.randint(0, 2, (2, 64, 64))
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    losses = []
    for _ in range(2):
        scores = model(images)
        assert scores.shape == (2, 2, 64, 64)
        loss: Any = nn.functional.cross_entropy(scores, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert all(parameter.grad is not None for parameter in model.encoder.parameters())


def test_a_network_of_timm_with_our_name_stays(tmp_path: Path) -> None:
    """A later timm may bring its own; whoever asks timm gets that, and is told so."""
    code = """
import warnings
import timm
from timm.models import register_model
from torch import nn

def unireplknet_t(pretrained=False, **kwargs):
    return nn.Identity()

register_model(unireplknet_t)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from replknet import timm_models
print([str(w.message) for w in caught if "replknet" in str(w.message)])
print(type(timm.create_model("unireplknet_t")).__name__, type(timm.create_model("unireplknet_a")).__name__)
print(type(timm_models.create("unireplknet_t", num_classes=3)).__name__)
from analysis.models.replknets import new_model
print(type(new_model("unireplknet_t", num_classes=3).module).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told, theirs, ours, trained = done.stdout.strip().splitlines()
    assert "timm has networks of its own called unireplknet_t, which stay" in told
    assert theirs == "Identity TimmUniRepLKNet"
    assert (ours, trained) == ("TimmUniRepLKNet", "TimmUniRepLKNet")


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*TorchScript:DeprecationWarning")
@pytest.mark.parametrize("form", ["training", "merged"])
def test_unireplknet_scripts_and_has_the_methods_of_timm(form: str) -> None:
    model = timm.create_model("unireplknet_t", **TINY_UNIREPLKNET)
    model.load_state_dict(tiny_unireplknet().state_dict())
    model.eval()
    if form == "merged":
        model = timm.utils.reparameterize_model(model)
    images = torch.randn(2, 3, 64, 64)
    wanted = tiny_unireplknet().float()(images)
    with torch.no_grad():
        for network in (model, torch.jit.script(model), torch.fx.symbolic_trace(model)):
            assert torch.allclose(network(images), wanted, atol=1e-5)
    final, maps = model.forward_intermediates(images)
    assert [tuple(found.shape[1:]) for found in maps] == [(8, 16, 16), (16, 8, 8), (24, 4, 4), (32, 2, 2)]
    assert torch.allclose(model.forward_head(final), wanted, atol=1e-5)
    unpooled = timm.create_model("unireplknet_t", **TINY_UNIREPLKNET, global_pool="").eval()
    assert unpooled(images).shape == (2, 10, 2, 2)
    with pytest.raises(ValueError, match=r"global_pool='catavgmax'.*a norm after the pooling"):
        timm.create_model("unireplknet_t", **(TINY_UNIREPLKNET | {"num_classes": 0}), global_pool="catavgmax")
    groups = group_with_matcher(model.named_parameters(), model.group_matcher())
    order = [next(iter(names)) for _, names in sorted(groups.items())]
    assert order[0].startswith("downsample_layers.0")
    assert [name.split(".")[1] for name in order[2:5]] == ["1", "2", "3"]
    model.prune_intermediate_layers([1])
    assert (len(model.stages), len(model.downsample_layers)) == (2, 2)
