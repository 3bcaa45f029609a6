from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.patches import Rectangle
from scipy import stats
from torch import nn
from torch.nn.utils import parametrizations, prune

import replknet
from analysis import LoadedModel
from analysis.images.synthetic.drawing import SyntheticOptions
from analysis.images.synthetic.outlines import CLASSES
from analysis.images.synthetic.sets import SyntheticImages, stimulus_set
from analysis.shape_bias.categories import MAPPING
from analysis.shape_bias.measuring import evaluate_shape_bias
from analysis.study.plots import plot_posthoc
from analysis.study.posthoc import (
    Variant,
    VariantResult,
    apply_variant,
    default_variants,
    has_small_branch,
    kernel_energy,
    large_kernels,
    measure_variants,
    posthoc_table,
    posthoc_texts,
    posthoc_warnings,
)
from tests.networks import TINY, tiny_model, tiny_slak, tiny_unireplknet

IMAGES = torch.rand(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_cropped_network_is_the_network_with_smaller_kernels() -> None:
    model = tiny_model()
    cropped = apply_variant(model, Variant(kernel=7))
    sizes = [min(7, size) for size in TINY["kernel_sizes"]]
    small = tiny_model(kernel_sizes=sizes)
    state = model.state_dict()
    for key, value in small.state_dict().items():
        margin = (state[key].shape[-1] - value.shape[-1]) // 2 if value.ndim == 4 else 0
        state[key] = (
            state[key][..., margin : state[key].shape[-1] - margin, margin : state[key].shape[-1] - margin]
            if margin
            else state[key]
        )
    small.load_state_dict(state)
    with torch.no_grad():
        assert torch.allclose(cropped(IMAGES), small(IMAGES), rtol=1e-10)
        assert not torch.allclose(cropped(IMAGES), model(IMAGES), rtol=1e-3)


def test_the_model_itself_is_left_alone_and_a_wide_crop_changes_nothing() -> None:
    model = tiny_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    apply_variant(model, Variant(kernel=1, small_branch=False))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    with torch.no_grad():
        assert torch.equal(apply_variant(model, Variant(kernel=13))(IMAGES), model(IMAGES))


@pytest.mark.parametrize("kind", ["pruned", "parametrized", "replaced", "branch replaced"])
def test_kernels_that_are_not_the_weight_of_a_layer_are_refused(kind: str) -> None:
    """A crop of a pruned kernel would be undone by the next forward pass."""
    model = tiny_model()
    block = model.get_submodule("stages.1.blocks.0.large_kernel")
    layer: Any = block.get_submodule("lkb_origin.conv")
    if kind == "pruned":
        prune.random_unstructured(layer, "weight", amount=0.5)  # type: ignore[no-untyped-call]
    elif kind == "parametrized":
        parametrizations.weight_norm(layer)
    elif kind == "replaced":
        block.get_submodule("lkb_origin").conv = nn.Sequential(layer)
    else:
        block.lkb_origin = nn.Sequential(layer)
    message = "a large kernel of stage 2 is parametrized, pruned or replaced by another module"
    for measure in (
        lambda: apply_variant(model, Variant(kernel=3)),
        lambda: apply_variant(model, Variant(small_branch=False)),
        lambda: default_variants(model),
    ):
        with pytest.raises(ValueError, match=message):
            measure()


def test_kernels_are_cropped_beside_pruned_layers() -> None:
    model = tiny_model()
    for name in ("stages.1.blocks.0.pw1.conv", "head"):
        prune.random_unstructured(model.get_submodule(name), "weight", amount=0.5)  # type: ignore[no-untyped-call]
    cropped = apply_variant(model, Variant(kernel=5))
    by_hand = tiny_model()
    for name in ("stages.1.blocks.0.pw1.conv", "head"):
        pruned: Any = model.get_submodule(name)
        layer: Any = by_hand.get_submodule(name)
        layer.weight = nn.Parameter((pruned.weight_orig * pruned.weight_mask).detach())
    by_hand = apply_variant(by_hand, Variant(kernel=5))
    with torch.no_grad():
        torch.testing.assert_close(cropped(IMAGES), by_hand(IMAGES))
        assert (cropped(IMAGES) - model(IMAGES)).abs().max() > 1e-3 * model(IMAGES).abs().max()


def test_one_stage_at_a_time() -> None:
    model = tiny_model()
    changed = apply_variant(model, Variant(kernel=3, stage=2))
    for stage, (ours, theirs) in enumerate(zip(large_kernels(changed), large_kernels(model), strict=True)):
        for layer, former in zip(ours, theirs, strict=True):
            assert torch.equal(layer.weight, former.weight) == (stage != 2)
    assert (large_kernels(changed)[2][0].weight != 0).sum() == 9 * TINY["channels"][2]


def test_dropping_the_small_branch_is_its_weight_set_to_zero() -> None:
    model = tiny_model()
    dropped = apply_variant(model, Variant(small_branch=False))
    silent = tiny_model()
    for module in silent.modules():
        if isinstance(module, replknet.ReparamLargeKernelConv) and module.small_conv is not None:
            norm = module.small_conv.bn
            norm.weight.data.zero_()  # type: ignore[operator]
            norm.bias.data.zero_()  # type: ignore[operator]
    with torch.no_grad():
        assert torch.allclose(dropped(IMAGES), silent(IMAGES), rtol=1e-10)
        assert torch.allclose(replknet.reparameterize(dropped)(IMAGES), dropped(IMAGES), rtol=1e-8)
    assert has_small_branch(model)
    assert not has_small_branch(dropped)


def test_merged_networks_are_cropped_too_but_have_no_small_branch() -> None:
    merged = replknet.reparameterize(tiny_model(), level="kernels")
    # Down to the small kernel, merging and cropping commute.
    with torch.no_grad():
        first = apply_variant(merged, Variant(kernel=7))(IMAGES)
        second = replknet.reparameterize(apply_variant(tiny_model(), Variant(kernel=7)), level="kernels")(IMAGES)
    assert torch.allclose(first, second, rtol=1e-5)
    with pytest.raises(ValueError, match="no separate small kernels"):
        apply_variant(merged, Variant(small_branch=False))
    assert all(variant.small_branch for variant in default_variants(merged))


def test_a_branch_is_dropped_where_it_is() -> None:
    """SLaK has no parallel kernel beside one that is not larger; UniRepLKNet no large kernel where it is 3 or 5."""
    model = tiny_slak(kernel_sizes=(13, 7, 5, 5), small_kernel=5)
    branches = [[part.branches() for part in stage] for stage in model.large_kernels()]
    assert [own[0] for own in branches] == [("tall", "wide", "small")] * 2 + [("tall", "wide")] * 2
    for variant in default_variants(model):
        left = {
            name
            for stage in apply_variant(model, variant).large_kernels()
            for part in stage
            for name in part.branches()
        }
        assert left == {"tall", "wide", "small"} - set(variant.dropped)
    with pytest.raises(ValueError, match=r"no separate small kernels \(those it has: tall, wide\)"):
        apply_variant(model, Variant(small_branch=False, stage=3))
    plain = tiny_unireplknet(kernel_sizes=(3, 3, 5, 5))
    with pytest.raises(ValueError, match="kernels=1: this network has no large kernels that could be cropped"):
        default_variants(plain, [1])


def test_kernels_that_would_crop_nothing_are_refused() -> None:
    model = tiny_model()
    largest = max(TINY["kernel_sizes"])
    assert Variant(kernel=largest - 2) in default_variants(model, [largest - 2])
    for kernels, message in (
        ([99], f"kernels=99: expected less than {largest}, the largest kernel"),
        ([3, largest], f"kernels={largest}: expected less than {largest}"),
        ([3, 3], r"kernels=\(3, 3\): expected one or more different numbers"),
        ([], r"kernels=\(\): expected one or more"),
        ([4], "kernels=4: expected an odd positive number"),
        ([-1], "kernels=-1: expected an odd positive number"),
        ([3.0], "kernels=3.0: expected an odd positive number"),
    ):
        with pytest.raises(ValueError, match=message):
            default_variants(model, kernels)  # type: ignore[arg-type]


def test_default_variants() -> None:
    variants = default_variants(tiny_model(), [3, 9])
    assert variants[0] == Variant()
    assert [v.kernel for v in variants if v.stage is None and v.kernel] == [3, 9]
    assert [(v.stage, v.kernel) for v in variants if v.stage is not None] == [
        (0, 3), (0, 9), (1, 3), (1, 9), (2, 3), (3, 3),
    ]  # fmt: skip
    assert variants[-1] == Variant(small_branch=False)
    assert len({variant.name for variant in variants}) == len(variants)
    automatic = [v.kernel for v in default_variants(replknet.create_model("replknet_nano_k31"), by_stage=False)]
    assert automatic[1] == 1
    assert automatic[-2] == 27
    assert len(automatic) == 10


def test_energy_of_known_kernels() -> None:
    model = tiny_model(small_kernel=None)
    for layer in large_kernels(model)[0]:
        layer.weight.data.fill_(1.0)
    for layer in large_kernels(model)[1]:
        layer.weight.data.zero_()
        layer.weight.data[:, :, 5, 5] = 2.0
    energy = kernel_energy(model)
    uniform = energy[energy["stage"] == 1]
    # A ring of radius r has 8 r taps of the 13 x 13.
    assert uniform["energy"].to_numpy() == pytest.approx(np.array([1, *(8 * r for r in range(1, 7))]) / 169)
    assert uniform["cumulative"].to_numpy() == pytest.approx(np.arange(1, 14, 2) ** 2 / 169)
    center = energy[energy["stage"] == 2]
    assert center["energy"].to_numpy() == pytest.approx([1, 0, 0, 0, 0, 0])
    assert energy.groupby("stage")["energy"].sum().to_numpy() == pytest.approx(1)


def nano(num_classes: int = 12) -> LoadedModel:
    torch.manual_seed(0)
    module = replknet.create_model(
        "replknet_nano_k31", layers=(1, 1), channels=(4, 8), kernel_sizes=(7, 5), num_classes=num_classes
    )
    return LoadedModel(name="nano", module=module.eval(), input_size=32, classes=CLASSES)


def test_measures_each_variant_and_resumes(tmp_path: Path) -> None:
    loaded = nano()
    variants = [Variant(), Variant(kernel=3), Variant(kernel=1, stage=1)]
    options = SyntheticOptions(size=32)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    measured: list[str] = []
    settings = {"size": 64}

    def measure(images_of: str = "one set", **changes: int) -> list[float]:
        results = measure_variants(
            loaded,
            variants,
            tmp_path,
            erf_images=images,
            labelled=SyntheticImages(num_images=24, options=options),
            stimuli=stimulus_set(SyntheticImages(kind="conflict", num_images=24, options=options)),
            mapping=MAPPING,
            measured_on={"accuracy": images_of},
            settings=settings | changes,
            progress=lambda done, total, name: measured.append(name),
        )
        assert results[1].measured_on == {"accuracy": images_of}
        table = posthoc_table(results)
        assert list(table["variant"]) == ["whole", "crop3", "crop1_stage2"]
        assert table["accuracy"].between(0, 1).all()
        assert table["coverage"].between(0, 1).all()
        return [float(value) for value in table["erf_area_0.99"]]

    first = measure()
    assert first[0] > first[1]
    assert measured[-1] == "done"
    stamp = (tmp_path / "crop3" / "measures" / "result.json").stat().st_mtime_ns
    assert measure() == first
    assert (tmp_path / "crop3" / "measures" / "result.json").stat().st_mtime_ns == stamp
    measure(size=65)
    assert (tmp_path / "crop3" / "measures" / "result.json").stat().st_mtime_ns != stamp
    measure("another set", size=65)


def test_intervals_of_variants_and_what_weakens_them(tmp_path: Path) -> None:
    """A network of random weights is right by chance; the exact numbers are of its own answers."""
    loaded, options = nano(), SyntheticOptions(size=32)
    labelled = SyntheticImages(num_images=48, options=options)
    stimuli = stimulus_set(SyntheticImages(kind="conflict", num_images=24, options=options))
    (whole,) = measure_variants(
        loaded,
        [Variant()],
        tmp_path,
        erf_images=torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)),
        labelled=labelled,
        stimuli=stimuli,
        mapping=MAPPING,
    )
    assert (whole.chance, VariantResult.load(tmp_path / "whole").accuracy_interval) == (1 / 12, whole.accuracy_interval)
    exact = stats.binomtest(round(48 * whole.accuracy), 48).proportion_ci(method="wilson")
    assert whole.accuracy_interval == pytest.approx((exact.low, exact.high))
    answers = evaluate_shape_bias(loaded, stimuli, mapping=MAPPING)
    assert whole.shape_bias == answers.shape_bias
    expected = answers.confidence_interval("image", num_resamples=2000)
    assert whole.shape_bias_interval == pytest.approx(expected, nan_ok=True)
    row = posthoc_table([whole]).iloc[0]
    assert (row["accuracy_low"], row["accuracy_high"]) == whole.accuracy_interval
    headings, ((name, shown, *_),) = posthoc_texts([whole])
    low, high = (100 * end for end in whole.accuracy_interval)
    assert (headings[:2], name) == (["variant", "accuracy (%)"], "whole")
    assert shown == f"{100 * whole.accuracy:.1f} [{low:.1f}, {high:.1f}]"
    good = replace(whole, accuracy=0.9, accuracy_interval=(0.8, 0.95), coverage=0.7)
    blind = replace(whole, variant=Variant(kernel=3), accuracy_interval=(0.02, 0.2), coverage=0.2)
    assert good.erf.fills_image()
    assert len(posthoc_warnings([good])) == 1
    guessing, seldom, full = posthoc_warnings([good, blind])
    assert "does not exclude guessing (8.3 %) of crop3:" in guessing
    assert "with either cue by crop3:" in seldom
    assert "takes nine tenths of the image or more (whole" in full


def test_a_band_and_bars_are_the_intervals_of_the_table() -> None:
    table = pd.DataFrame(
        {
            "variant": ["whole", "crop3", "crop1"],
            "kernel": [np.nan, 3, 1],
            "stage": [np.nan] * 3,
            "without": [None] * 3,
            "accuracy": [0.9, 0.6, 0.3],
            "accuracy_low": [0.8, 0.5, np.nan],
            "accuracy_high": [0.95, 0.7, np.nan],
        }
    )
    ax = plot_posthoc(table, "accuracy", "accuracy (%)", scale=100)
    (bars,) = ax.collections
    assert [np.asarray(path.vertices)[:, 1].tolist() for path in bars.get_paths()] == [[50, 70]]
    (band,) = (patch for patch in ax.patches if isinstance(patch, Rectangle))
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((80, 95))
    plain = plot_posthoc(table.drop(columns=["accuracy_low", "accuracy_high"]), "accuracy", "accuracy (%)")
    assert not plain.patches


def test_wrong_values_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kernel=4"):
        apply_variant(tiny_model(), Variant(kernel=4))
    with pytest.raises(ValueError, match="stage=4"):
        apply_variant(tiny_model(), Variant(stage=4))
    other = replace(nano(), module=torch.nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match="expected a RepLKNet"):
        measure_variants(other, [Variant()], tmp_path, erf_images=torch.rand(1, 3, 32, 32))
