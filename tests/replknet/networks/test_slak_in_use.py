"""SLaK in weight files, in studies of kernels, and in other people's libraries."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn
from torch.nn import functional as F

import replknet
import replknet.timm_models
from analysis import LoadedModel
from analysis.models.exporting import export_model
from analysis.study.posthoc import Variant, apply_variant, default_variants, kernel_energy
from replknet import SLaK, SLaKConfig
from replknet.checkpoints.describing import architecture_of, infer_config
from replknet.networks.slak import PRESETS, StripConv
from tests.cli.command import run
from tests.networks import TINY_SLAK, same, tiny_slak

IMAGES = torch.randn(2, 3, 96, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
VARIANTS = {"T": "slak_t", "S": "slak_s", "B": "slak_b", "L": "slak_l", "T_31": "slak_t_31", "T_61": "slak_t_61"}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def strips_of(model: nn.Module) -> list[StripConv]:
    return [module for module in model.modules() if isinstance(module, StripConv)]


# Weight files ---------------------------------------------------------------------------------------------------------


def laid_out(kind: str, state: dict[str, Tensor]) -> dict[str, Any]:
    """A file as the official codes write it."""
    in_module = {f"module.{key}": value for key, value in state.items()}
    files: dict[str, dict[str, Any]] = {
        "flat": dict(state),
        "training": {"model": in_module, "epoch": 3, "args": argparse.Namespace(model="SLaK_tiny", lr=0.1)},
        "averaged": {"model": {key: torch.zeros_like(value) for key, value in state.items()}, "model_ema": in_module},
        "dense prediction": {"state_dict": {f"backbone.{key}": value for key, value in state.items()}},
    }
    return files[kind]


@pytest.mark.parametrize("level", [None, "full"])
@pytest.mark.parametrize(
    "overrides", [{}, {"strip_width": None, "small_kernel": 3}, {"norm_intermediate_features": True}]
)
@pytest.mark.parametrize("kind", ["flat", "training", "averaged", "dense prediction"])
def test_files_load_by_name_or_alone_in_every_form(
    tmp_path: Path, kind: str, overrides: dict[str, Any], level: Any
) -> None:
    model = tiny_slak(**overrides).float()
    if level is not None:
        model = replknet.reparameterize(model, level=level)
    torch.save(laid_out(kind, model.state_dict()), tmp_path / "slak.pth")
    named = replknet.create_model("slak_t", checkpoint=tmp_path / "slak.pth", **(TINY_SLAK | overrides))
    for loaded in (named, replknet.load_checkpoint(tmp_path / "slak.pth")):
        assert isinstance(loaded, SLaK) and same(loaded.state_dict(), model.state_dict())
    info = replknet.inspect_checkpoint(tmp_path / "slak.pth")
    assert (info.form, info.naming, info.problems) == ("training" if level is None else "merged", "official", ())
    assert info.architecture == f"a SLaK with layers=(2, 1, 2, 1), channels={model.config.widths}"
    assert isinstance(info.config, SLaKConfig)
    assert info.config.kernel_sizes == model.config.kernel_sizes
    assert info.config.strip_width == model.config.strip_width


@pytest.mark.parametrize("size", VARIANTS)
def test_the_published_shapes_are_recognised(shared: Path, size: str) -> None:
    listed = json.loads((shared / "reference" / "slak_state_dict_shapes.json").read_text())
    for form in ("training", "merged_bn_folded_DERIVED"):
        state = {key: torch.empty(shape, device="meta") for key, shape in listed[form][size]}
        config = infer_config(state)
        assert architecture_of(config) == VARIANTS[size]
        assert (config.strip_width, config.small_kernel, config.num_classes) == (5, 5, 1000)


def test_a_file_that_does_not_fit_is_refused_with_what_it_is(tmp_path: Path) -> None:
    state = dict(tiny_slak().float().state_dict())
    torch.save({**state, "stages.0.0.large_kernel.LoRA3.conv.weight": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(
        replknet.CheckpointError, match=r"1 unexpected: stages\.0\.0\.large_kernel\.LoRA3\.conv\.weight"
    ):
        replknet.load_checkpoint(tmp_path / "more.pth")
    del state["stages.2.1.large_kernel.LoRA2.bn.running_var"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(
        replknet.CheckpointError, match=r"1 missing: stages\.2\.1\.large_kernel\.LoRA2\.bn\.running_var"
    ):
        replknet.load_checkpoint(tmp_path / "less.pth")
    torch.save(tiny_slak().float().state_dict(), tmp_path / "slak.pth")
    with pytest.raises(replknet.CheckpointError, match=r"a SLaK with .*strips 5 wide, small kernel 5, num_classes=10"):
        replknet.create_model("slak_t", checkpoint=tmp_path / "slak.pth")
    with pytest.raises(ValueError, match="its code has no SLaK"):
        replknet.convert_checkpoint(tmp_path / "slak.pth", tmp_path / "theirs.pth", to="mmpretrain")


def test_published_weights_say_where_a_person_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert {name: weights.top1 for name, weights in replknet.PUBLISHED.items() if name.startswith("slak")} == {
        "slak_t.in1k_300ep": 82.5,
        "slak_t.in1k_120ep": 81.6,
        "slak_s.in1k_300ep": 83.8,
        "slak_b.in1k_300ep": 84.0,
        "slak_t_31.in1k_120ep": 81.5,
        "slak_t_61.in1k_120ep": 81.5,
    }
    weights = replknet.PUBLISHED["slak_t.in1k_300ep"]
    assert weights.sha256 == ""
    with pytest.raises(replknet.DownloadError, match=f"fetch {weights.url} by hand and put it at .*{weights.file}"):
        replknet.download_weights("slak_t")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / weights.file).write_bytes(b"fetched")
    assert replknet.download_weights("slak_t") == tmp_path / "checkpoints" / weights.file
    with pytest.raises(replknet.DownloadError, match="expected 00000000"):
        replknet.download_weights("slak_t", sha256="00000000")


# What studies do with kernels -----------------------------------------------------------------------------------------


def test_kernels_for_a_study_say_what_does_not_fit() -> None:
    config = PRESETS["slak_t"]
    changed, left_out = config.with_kernels((31, 29, 27, 13), None)
    assert (changed, left_out) == (PRESETS["slak_t_31"], "")
    changed, left_out = config.with_kernels((3, 3, 3, 3), None)
    assert (changed.strip_width, changed.small_kernel_of(0)) == (None, None)
    assert left_out == (
        "strips as wide as 5 do not fit, kernels are whole; no parallel 5x5 kernel beside one that is not larger"
    )
    assert config.with_kernels(None, 0)[0].small_kernel is None


@torch.no_grad()
def test_a_crop_of_strips_is_the_network_with_shorter_strips_and_parts_can_be_left_out() -> None:
    model = tiny_slak()
    cropped, small = apply_variant(model, Variant(kernel=11)), tiny_slak(kernel_sizes=(11, 11, 11, 11))
    state = model.state_dict()
    for key, value in small.state_dict().items():
        if "LoRA" in key and value.ndim == 4:
            rows, columns = (
                (big - little) // 2 for big, little in zip(state[key].shape[2:], value.shape[2:], strict=True)
            )
            state[key] = state[key][..., rows : rows + value.shape[2], columns : columns + value.shape[3]]
    small.load_state_dict(state)
    assert relative_error(cropped(IMAGES), small(IMAGES)) < 1e-12
    names = ["whole", "whole_notall", "whole_nowide", "whole_nosmall"]
    variants = [variant for variant in default_variants(model, by_stage=False) if variant.kernel is None]
    assert sorted(variant.name for variant in variants) == sorted(names)
    for variant in variants:
        changed = apply_variant(model, variant)
        silent = tiny_slak()
        for strip in strips_of(silent):
            for name, part in (("tall", strip.LoRA1), ("wide", strip.LoRA2), ("small", strip.small_conv)):
                if name in variant.dropped and part is not None:
                    part.bn.weight.zero_()  # type: ignore[operator]
                    part.bn.bias.zero_()  # type: ignore[operator]
        assert relative_error(changed(IMAGES), silent(IMAGES)) < 1e-12


def test_the_energy_of_strips_is_that_of_their_sum() -> None:
    energy = kernel_energy(tiny_slak())
    last = energy.groupby("stage")["cumulative"].last()
    assert last.tolist() == pytest.approx([1.0] * 4)
    assert energy.groupby("stage")["radius"].max().tolist() == [25, 24, 23, 6]


# Other people's libraries ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_timm_has_the_family() -> None:
    assert set(PRESETS) <= set(timm.list_models("slak*"))
    model = timm.create_model("slak_t", **TINY_SLAK).eval()
    images = IMAGES.float()
    maps = timm.create_model("slak_t", features_only=True, **TINY_SLAK).eval()(images)
    assert [tuple(item.shape[1:]) for item in maps] == [(10, 24, 16), (20, 12, 8), (31, 6, 4), (41, 3, 2)]
    last, _ = model.forward_intermediates(images)
    torch.testing.assert_close(model.forward_head(last), model(images))
    assert model.default_cfg["first_conv"] == "downsample_layers.0.0"
    merged = timm.utils.reparameterize_model(model)
    torch.testing.assert_close(merged(images), model(images))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in merged.modules())
    scripted = torch.jit.script(model)
    torch.testing.assert_close(scripted(images), model(images))


def test_layer_decay_has_the_groups_of_the_official_code() -> None:
    with torch.device("meta"):
        model = timm.create_model("slak_s")
    groups = group_with_matcher(model.named_parameters(), model.group_matcher(), reverse=True)
    keys = ["downsample_layers.0.0", "stages.0.2.norm", "downsample_layers.1.1", "stages.1.0.norm"]
    keys += ["downsample_layers.2.0", "stages.2.2.norm", "stages.2.3.norm", "stages.2.26.norm"]
    keys += ["downsample_layers.3.0", "stages.3.2.norm", "head"]
    assert [groups[f"{key}.weight"] for key in keys] == [0, 1, 2, 2, 3, 3, 4, 11, 12, 12, 13]


@pytest.mark.parametrize("overrides", [{}, {"strip_width": None}])
def test_exported_compiled_and_traced_networks_give_the_same_outputs(tmp_path: Path, overrides: dict[str, Any]) -> None:
    model = replknet.reparameterize(tiny_slak(**overrides))
    program = torch.export.export(model, (IMAGES,)).module()
    traced = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        for form in (program, traced, torch.compile(model, backend="aot_eager")):
            assert relative_error(form(IMAGES), model(IMAGES)) < 1e-12
    path = tmp_path / "slak.onnx"
    report = export_model(LoadedModel(name="slak", module=model.float(), input_size=64), path, format="onnx")
    assert path.is_file() and report.difference < 1e-5


def test_a_step_of_a_recipe_changes_every_parameter() -> None:
    model = tiny_slak(drop_path_rate=0.1).float().train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):  # a block that is dropped in one step gets no gradient
        torch.autograd.backward(F.cross_entropy(model(IMAGES.float()), torch.tensor([1, 2])))
        optimizer.step()
    assert not [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]


# The commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Weights of a tiny network as the official training code leaves them."""
    model = tiny_slak(kernel_sizes=(13, 11, 9, 7)).float()
    torch.save(laid_out("training", model.state_dict()), tmp_path / "tiny.pth")
    return tmp_path / "tiny.pth"


def test_info_says_what_a_file_is(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("info", file)
    shown = capsys.readouterr().out
    for text in ("a SLaK with layers=(2, 1, 2, 1), channels=(10, 20, 31, 41)", "13-11-9-7", "5 wide", "under 'model'"):
        assert text in shown


def test_a_merged_file_answers_as_its_source(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = file.with_name("image.png")
    Image.new("RGB", (64, 64), (200, 40, 90)).save(image)
    run("convert", file, file.with_suffix(".safetensors"))
    run("reparameterize", file, file.with_name("merged.pth"))
    assert "LoRA1.conv.bias" in " ".join(replknet.load_state_dict(file.with_name("merged.pth")))
    capsys.readouterr()
    answers = []
    for name in ("tiny.pth", "tiny.safetensors", "merged.pth"):
        run("predict", file.with_name(name), image)
        answers.append(capsys.readouterr().out.replace(" ", ""))
    assert answers[0] == answers[1] == answers[2] and "class" in answers[0]


def test_erf_and_posthoc_ablation(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = file.with_name("images")
    folder.mkdir()
    for number in range(2):
        Image.effect_noise((64, 64), 50 + number).convert("RGB").save(folder / f"{number}.png")
    common = ("--images", folder, "--size", 64, "--num-images", 2)
    run("erf", file, *common, "--out", file.with_name("erf"))
    run("ablate posthoc", file, *common, "--kernels", "3", "--no-stages", "--out", file.with_name("posthoc"))
    shown = capsys.readouterr().out
    # The theoretical receptive field: stem, stages of 2, 1, 2 and 1 blocks, and the convolutions between them.
    assert str(4 + 2 * 12 * 4 + 4 + 10 * 8 + 8 + 2 * 8 * 16 + 16 + 6 * 32) in shown
    for name in ("whole", "crop3", "whole_notall", "whole_nowide", "whole_nosmall"):
        assert name in shown
