"""On an NVIDIA GPU everything is measured as on the CPU: `pytest -m cuda`, less than a minute."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import replknet
from analysis import (
    CLASSES,
    MAPPING,
    InMemory,
    LoadedModel,
    SyntheticImages,
    SyntheticOptions,
    calibrated,
    effective_receptive_field,
    evaluate,
    evaluate_shape_bias,
    extract_features,
    load_model,
    predict,
    save_stimuli,
    stimulus_set,
    untrained_copy,
)
from analysis.models.loaded import resolve_device
from analysis.models.precision import true_float32
from analysis.study.design import Study
from analysis.study.images import StudyImages
from analysis.study.posthoc import default_variants, kernel_energy, measure_variants
from analysis.study.sweeping import run_study
from analysis.training.loop import Training, accuracy, train
from analysis.training.parallel import TrainingError
from analysis.training.recipe import Recipe
from tests.cli.command import run

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
MODEL = "replknet_nano_k31"
OPTIONS = SyntheticOptions(size=64)


@contextmanager
def tf32_allowed() -> Iterator[None]:
    """By the user, everywhere."""
    torch.set_float32_matmul_precision("high")
    try:
        yield
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.fixture(scope="module")
def here() -> LoadedModel:
    return load_model(MODEL)


@pytest.fixture(scope="module")
def there() -> LoadedModel:
    return load_model(MODEL).to("auto")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    save_stimuli(SyntheticImages(num_images=72, seed=9, options=OPTIONS), path)
    return path


def test_auto_is_the_gpu_of_this_process(there: LoadedModel) -> None:
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", torch.cuda.current_device())
    assert {parameter.device.type for parameter in there.module.parameters()} == {"cuda"}


@pytest.mark.parametrize("spec", [MODEL, "timm:resnet18"])
def test_receptive_fields(spec: str) -> None:
    """Though TF32 is allowed, which would give errors of a thousandth."""
    own = load_model(spec, pretrained=False, seed=1) if spec.startswith("timm") else load_model(spec)
    images = torch.randn(3, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    if own.initial:
        own = calibrated(own, images)
    expected = effective_receptive_field(own, images)
    with tf32_allowed():
        found = effective_receptive_field(own.to("cuda"), images)
    largest = float(expected.mean_map.max())
    np.testing.assert_allclose(found.mean_map, expected.mean_map, rtol=0, atol=1e-4 * largest)
    np.testing.assert_allclose(found.area_ratio(0.5), expected.area_ratio(0.5), rtol=1e-2)
    assert found.environment["device"] == str(resolve_device("cuda"))
    assert found.environment["gpu"] == torch.cuda.get_device_name()
    assert found.weights_hash == expected.weights_hash


def test_decisions_scores_and_features(here: LoadedModel, there: LoadedModel, folder: Path) -> None:
    with tf32_allowed():
        for workers in (0, 2):
            expected, found = (evaluate(model, folder, num_workers=workers) for model in (here, there))
            np.testing.assert_array_equal(found.best[:, 0], expected.best[:, 0])
            assert found.num_correct(5) == expected.num_correct(5)
        assert found.settings["gpu"] == torch.cuda.get_device_name()
        best, ours = (predict(model, folder, batch_size=5, num_workers=2) for model in (there, here))
        assert [item.image for item in best] == [item.image for item in ours]
        for item, other in zip(best, ours, strict=True):
            assert item.names[0] == other.names[0]
            np.testing.assert_allclose(item.scores, other.scores, atol=1e-4)
        maps, others = (extract_features(model, folder, [1, "pooled"]) for model in (there, here))
    for name, values in others.arrays.items():
        np.testing.assert_allclose(maps.arrays[name], values, rtol=0, atol=1e-4 * np.abs(values).max())


def test_shape_bias(here: LoadedModel, there: LoadedModel) -> None:
    stimuli = stimulus_set(SyntheticImages(kind="conflict", num_images=132, seed=3, options=OPTIONS))
    with tf32_allowed():
        expected, found = (evaluate_shape_bias(model, stimuli, mapping=MAPPING) for model in (here, there))
    assert found.responses == expected.responses
    assert (found.num_shape, found.num_texture) == (expected.num_shape, expected.num_texture)
    assert found.logits is not None
    assert expected.logits is not None
    np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=1e-4 * np.abs(expected.logits).max())


def test_half_precision_is_close(here: LoadedModel, folder: Path) -> None:
    expected = evaluate(here, folder)
    for dtype in ("bfloat16", "float16"):
        found = evaluate(load_model(MODEL).to("cuda", dtype), folder)
        assert abs(found.num_correct() - expected.num_correct()) <= 4


def test_posthoc(tmp_path: Path) -> None:
    rows: dict[str, tuple[list[float], list[float]]] = {}
    for device in ("cpu", "cuda"):
        loaded = load_model(MODEL).to(device)
        module: Any = loaded.module
        variants = default_variants(module, [3], by_stage=False)
        results = measure_variants(loaded, variants, tmp_path / device, erf_images=torch.ones(1, 3, 64, 64))
        rows[device] = (
            [result.row()["erf_rms_radius"] for result in results],
            kernel_energy(module)["energy"].tolist(),
        )
    for found, expected in zip(rows["cuda"], rows["cpu"], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def small(seed: int = 0, **options: Any) -> replknet.RepLKNet:
    torch.manual_seed(seed)
    config = replknet.RepLKNetConfig(
        layers=(1, 1),
        channels=(16, 32),
        kernel_sizes=(13, 7),
        small_kernel=3,
        num_classes=len(CLASSES),
        **options,
    )
    return replknet.RepLKNet(config)


@pytest.fixture(scope="module")
def images() -> tuple[InMemory, InMemory]:
    options = SyntheticOptions(size=32)
    training = InMemory(SyntheticImages(num_images=96, seed=1, options=options))
    return training, InMemory(SyntheticImages(num_images=48, seed=2, options=options))


RECIPE = Recipe(steps=12, batch_size=16, learning_rate=2e-3)


def trained(
    images: tuple[InMemory, InMemory], recipe: Recipe, device: str, **options: Any
) -> tuple[nn.Module, Training]:
    model = small(drop_path_rate=recipe.drop_path_rate).to(device)
    return model, train(model, *images, recipe, **options)


@pytest.mark.parametrize(
    "changes", [{}, {"accumulate": 2}, {"mixup": 0.2, "ema_decay": 0.9}, {"autocast": "bfloat16"}], ids=str
)
def test_a_training_is_near_that_on_the_cpu(images: tuple[InMemory, InMemory], changes: dict[str, Any]) -> None:
    """The same images, mixed alike, from the same weights, in the same order."""
    recipe = replace(RECIPE, **changes)
    _, expected = trained(images, recipe, "cpu")
    model, found = trained(images, recipe, "cuda", num_workers=2)
    assert found.curve.step == expected.curve.step
    assert found.curve.learning_rate == expected.curve.learning_rate
    close = 0.05 if recipe.autocast else 0.01
    np.testing.assert_allclose(found.curve.train_loss, expected.curve.train_loss, rtol=close)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert 0 < found.seconds_per_step < 10
    assert accuracy(model, images[1]) == pytest.approx(accuracy(model.cpu(), images[1]), abs=0.05)


def test_a_training_goes_on_from_its_state(images: tuple[InMemory, InMemory], tmp_path: Path) -> None:
    _, expected = trained(images, RECIPE, "cuda")
    state = tmp_path / "state.pt"
    trained(images, RECIPE, "cuda", checkpoint=state, stop_after=7)
    _, found = trained(images, RECIPE, "cuda", checkpoint=state)
    assert found.curve.step[-1] == RECIPE.steps
    np.testing.assert_allclose(found.curve.train_loss[-1], expected.curve.train_loss[-1], rtol=1e-2)


class Failing(nn.Module):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.layer, self.left = nn.Linear(3, len(CLASSES)), step

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.mean((2, 3)))
        self.left -= self.training
        return logits * float("nan") if self.training and self.left == -1 else logits


def test_a_loss_that_is_not_finite_is_named_by_its_step(images: tuple[InMemory, InMemory], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="step 5: the loss is nan"):
        train(Failing(5).to("cuda"), images[0], None, replace(RECIPE, steps=100), checkpoint=tmp_path / "state.pt")
    assert not (tmp_path / "state.pt").exists()


def test_the_random_state_is_left_alone(images: tuple[InMemory, InMemory]) -> None:
    recipe = replace(RECIPE, drop_path_rate=0.3, random_erasing=0.5, mixup=0.2, augmentation="flip-crop")
    model = small(drop_path_rate=0.3).to("cuda")
    torch.manual_seed(5)
    states = [torch.get_rng_state(), torch.cuda.get_rng_state()]
    train(model, *images, recipe)
    for before, after in zip(states, [torch.get_rng_state(), torch.cuda.get_rng_state()], strict=True):
        assert torch.equal(before, after)
    cpu = small()
    torch.manual_seed(6)
    states = [torch.cuda.get_rng_state()]
    train(cpu, *images, RECIPE)  # on the CPU, which is no business of the GPU
    assert torch.equal(states[0], torch.cuda.get_rng_state())


def test_steps_do_not_wait_for_the_gpu(images: tuple[InMemory, InMemory]) -> None:
    """Twice as many steps wait hardly oftener: less than once for each."""

    def waits(steps: int) -> int:
        recipe = replace(RECIPE, steps=steps, ema_decay=0.9, mixup=0.2, random_erasing=0.2, drop_path_rate=0.1)
        model = small(drop_path_rate=0.1).to("cuda")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                train(model, images[0], None, recipe, record_every=1000)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught)

    waits(20)
    assert waits(80) - waits(40) < 20


class Native(nn.Module):
    """With a large depthwise convolution that is PyTorch's own."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.mix = nn.Conv2d(8, 8, kernel, padding=kernel // 2, groups=8)
        self.head = nn.Linear(8, len(CLASSES))
        self.seen: set[bool] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add(x.is_contiguous())
        logits: Tensor = self.head(self.mix(self.stem(x)).mean((2, 3)))
        return logits


@pytest.mark.parametrize(("kernel", "contiguous"), [(7, False), (13, True)])
def test_the_layout_follows_the_network(kernel: int, contiguous: bool, images: tuple[InMemory, InMemory]) -> None:
    model = Native(kernel).to("cuda")
    model(torch.zeros(1, 3, 32, 32, device="cuda"))
    train(model, *images, RECIPE)
    assert model.stem.weight.is_contiguous() == contiguous
    model.seen.clear()
    accuracy(model, images[1])
    assert model.seen == {contiguous}


def test_a_study(tmp_path: Path) -> None:
    study = Study(
        kernels=(3, 5),
        num_seeds=1,
        size=32,
        layers=(1, 1),
        channels=(4, 8),
        recipe=Recipe(steps=6, batch_size=8),
        num_train=48,
        num_val=24,
        balances=(-1.0, 0.0, 1.0),
        num_conflict=24,
        erf_size=64,
        num_erf=2,
    )
    with true_float32():  # with TF32 the losses part within a few steps
        found, expected = (
            run_study(study, tmp_path / name, device=name, num_workers=workers)
            for name, workers in (("auto", 2), ("cpu", 0))
        )
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.error == ""
        assert ours.result is not None
        assert theirs.result is not None
        assert ours.result.environment["gpu"] == torch.cuda.get_device_name()
        assert ours.result.environment["float32_convolutions"] in ("tf32", "ieee", "none")
        assert ours.result.settings == theirs.result.settings
        assert ours.result.inference_ms > 0
        # Before the training: the same first weights, and the same images.
        maps = [outcome.result.untrained_erf.mean_map for outcome in (ours, theirs) if outcome.result]
        np.testing.assert_allclose(maps[0], maps[1], rtol=0, atol=1e-4 * float(maps[1].max()))
        losses = [outcome.result.curve.train_loss for outcome in (ours, theirs) if outcome.result]
        np.testing.assert_allclose(losses[0], losses[1], rtol=0.005)
    images = StudyImages(study)
    images.make(2)
    assert images.train.complete


def test_untrained_copies_are_those_of_the_cpu() -> None:
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    loaded = LoadedModel(name="own", module=own)
    expected = untrained_copy(loaded, seed=4).module.state_dict()
    found = untrained_copy(loaded.to("cuda"), seed=4).module.state_dict()
    for name, values in expected.items():
        assert found[name].is_cuda
        assert torch.equal(found[name].cpu(), values)


def test_merging_gives_the_same_network() -> None:
    model = small().eval()
    x = torch.randn(2, 3, 32, 32)
    merged = replknet.reparameterize(small().eval().to("cuda"))
    with torch.no_grad(), warnings.catch_warnings():
        torch.testing.assert_close(replknet.reparameterize(model)(x), merged.cpu()(x), rtol=1e-4, atol=1e-5)


def test_commands_use_the_gpu_and_tell(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(f"evaluate {MODEL} --data", folder, "--out", tmp_path / "evaluate")
    told = f"computed on {resolve_device('cuda')}, {torch.cuda.get_device_name()}"
    assert told in capsys.readouterr().err
    result = json.loads((tmp_path / "evaluate" / "result" / "result.json").read_text())
    assert torch.cuda.get_device_name() in json.dumps(result)
    run(f"erf {MODEL} --size 64 --num-images 1 --out", tmp_path / "erf")
    assert told in capsys.readouterr().err
    assert json.loads((tmp_path / "erf" / "run.json").read_text())["settings"]["device"] == "cuda"
    run(f"erf {MODEL} --size 64 --num-images 1 --device cuda --out", tmp_path / "erf")
    run(f"erf {MODEL} --size 64 --num-images 1 --device cpu --out", tmp_path / "erf", code=2)
    assert "holds another run, which differs in device" in capsys.readouterr().err


def test_timm_trains_with_large_native_kernels_in_reasonable_time(images: tuple[InMemory, InMemory]) -> None:
    model = timm.create_model("convnext_atto", num_classes=len(CLASSES), kernel_sizes=31).to("cuda")
    found = train(model, images[0], None, replace(RECIPE, steps=3))
    assert found.seconds_per_step < 1
