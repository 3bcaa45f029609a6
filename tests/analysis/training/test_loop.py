import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import replknet
from analysis.images.labelled import DataError, FolderImages, InMemory, LabelledImages, keep_all
from analysis.images.preparing import normalize
from analysis.images.synthetic.sets import SyntheticImages
from analysis.training.batches import TrainingBatches
from analysis.training.loop import Training, accuracy, train
from analysis.training.parallel import TrainingError, check_division
from analysis.training.progress import TrainingState
from analysis.training.readings import Readings
from analysis.training.recipe import Recipe
from analysis.training.state import StateError


class Stripes:
    """Two classes: the left or the right half is bright."""

    classes = ("left", "right")

    def __init__(self, num_images: int, side: int = 16) -> None:
        self.num_images, self.side = num_images, side
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        self.asked.append(index)
        pixels = np.random.default_rng(index).integers(0, 60, (self.side, self.side, 3)).astype(np.uint8)
        label, half = index % 2, self.side // 2
        pixels[:, half * label : half * (label + 1)] += 90
        return pixels, label


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(36, 2)
    )


RECIPE = Recipe(steps=24, batch_size=8, learning_rate=0.02, augmentation="none")


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def run(recipe: Recipe = RECIPE, **options: Any) -> tuple[nn.Module, Training]:
    model = network()
    return model, train(model, Stripes(30), Stripes(20), recipe, **options)


def test_learns_what_can_be_learned() -> None:
    model, result = run()
    assert result.curve.val_accuracy[-1] == 1 == accuracy(model, Stripes(40))
    assert not model.training
    assert result.curve.step[-1] == 24
    assert result.curve.train_loss[-1] < result.curve.train_loss[0]


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_continues_exactly_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema_decay: float | None
) -> None:
    monkeypatch.setattr("analysis.training.progress._SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    monkeypatch.setattr("analysis.training.progress._SHARE_OF_CHECKPOINTS", float("inf"))
    recipe = replace(RECIPE, ema_decay=ema_decay, augmentation="flip-crop")
    whole, expected = run(recipe)

    def stop(done: int, total: int) -> None:
        if done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, checkpoint=tmp_path / "state.pt", progress=stop)
    steps = []
    rest, result = run(recipe, checkpoint=tmp_path / "state.pt", progress=lambda done, total: steps.append(done))
    assert steps[0] == 14
    assert_same(weights(whole), weights(rest))
    assert result.curve == expected.curve


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_recorded_accuracies_are_those_of_the_weights_at_that_step(tmp_path: Path, ema_decay: float | None) -> None:
    """Of a RepLKNet, whose convolutions kept forms of their weights once: as a new network with the same ones has them.

    In one go, and interrupted after some evaluations.
    """
    options: dict[str, Any] = {"layers": (1, 1), "channels": (8, 8), "kernel_sizes": (31, 15), "num_classes": 2}

    def new() -> nn.Module:
        torch.manual_seed(0)
        return replknet.create_model("replknet_31b", **options)

    recipe = replace(RECIPE, steps=40, learning_rate=0.01, ema_decay=ema_decay)
    every: dict[str, Any] = {"evaluate_every": 5, "record_every": 5}
    images, validation = Stripes(30, side=64), Stripes(64, side=64)
    recorded = train(new(), images, validation, recipe, **every).curve.val_accuracy
    assert len(set(recorded)) > 2
    for number in (1, 4, 8):
        interrupted, fresh = new(), new()
        stop: dict[str, Any] = {"stop_after": 5 * number, "checkpoint": tmp_path / "state.pt"}
        result = train(interrupted, images, validation, recipe, **every, **stop)
        assert result.curve.val_accuracy == recorded[:number]
        fresh.load_state_dict(interrupted.state_dict())
        assert accuracy(fresh, validation) == recorded[number - 1]


def test_another_training_does_not_take_the_checkpoint(tmp_path: Path) -> None:
    run(checkpoint=tmp_path / "state.pt")
    steps: list[int] = []
    run(checkpoint=tmp_path / "state.pt", seed=1, progress=lambda done, total: steps.append(done))
    assert steps[0] == 1
    steps.clear()
    run(checkpoint=tmp_path / "state.pt", seed=1, progress=lambda done, total: steps.append(done))
    assert steps == []


@pytest.mark.parametrize("num_workers", [1, 2])
def test_loader_processes_change_nothing(num_workers: int) -> None:
    recipe = replace(RECIPE, steps=4, augmentation="flip-crop")
    alone, _ = run(recipe)
    helped, _ = run(recipe, num_workers=num_workers)
    assert_same(weights(alone), weights(helped))


def test_the_seed_decides_and_the_callers_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    first = run()[0]
    model = network()
    torch.manual_seed(5)
    train(model, Stripes(30), Stripes(20), RECIPE)
    assert torch.equal(torch.rand(3), expected)
    assert_same(weights(first), weights(model))
    other, _ = run(seed=1)
    assert not torch.equal(weights(first)["0.weight"], weights(other)["0.weight"])


def test_every_epoch_sees_every_image_once() -> None:
    images = Stripes(24)
    train(network(), images, Stripes(2), replace(RECIPE, steps=6, batch_size=8))
    seen = images.asked[-48:]  # the first images were looked at to know the set by
    first, second = seen[:24], seen[24:]
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second


def test_learning_rate_follows_warm_up_and_cosine() -> None:
    recipe = replace(RECIPE, steps=40, warmup=0.25, learning_rate=0.01)
    curve = run(recipe)[1].curve
    for step, rate in zip(curve.step, curve.learning_rate, strict=True):
        t = step - 0.5
        expected = 0.01 * t / 10 if t < 10 else 0.005 * (1 + np.cos(np.pi * t / 40))
        assert rate == pytest.approx(expected)


def test_decays_matrices_only_and_average_of_no_memory_is_the_last() -> None:
    plain, _ = run()
    averaged, _ = run(replace(RECIPE, ema_decay=0.0))
    for name, value in weights(plain).items():
        assert torch.allclose(value, weights(averaged)[name], rtol=1e-6, atol=1e-7), name
    # A gradient far below AdamW's epsilon moves nothing: the step is the decay, rate * decay of the weight.
    model = network()
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
    frozen = replace(RECIPE, steps=1, warmup=0.0, weight_decay=0.5, max_gradient_norm=1e-11)
    rate = train(model, Stripes(8), Stripes(2), frozen).curve.learning_rate[0]
    after = dict(model.named_parameters())
    assert after["0.weight"].detach().numpy() == pytest.approx(1 - rate * 0.5, abs=rate / 100)
    assert after["0.bias"].detach().numpy() == pytest.approx(1, abs=rate / 100)
    assert after["1.weight"].detach().numpy() == pytest.approx(1, abs=rate / 100)


def test_flip_mirrors_half_of_the_images() -> None:
    images = Stripes(64)
    batches = TrainingBatches(images, replace(RECIPE, batch_size=64, augmentation="flip"), seed=0)
    pixels, labels = batches[0]
    bright_left = pixels[..., :8].float().mean((1, 2, 3)) > pixels[..., 8:].float().mean((1, 2, 3))
    flipped = bright_left != (labels == 0)
    assert 0.3 < flipped.float().mean() < 0.7


def test_normalization_by_hand() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    values = normalize(pixels, (0.5, 0.0, 0.5), (0.5, 0.1, 0.25)).flatten()
    assert values.tolist() == pytest.approx([-1, 2, 2])


def test_a_loss_that_is_not_finite_ends_it() -> None:
    model = network()
    dict(model.named_parameters())["5.weight"].data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="step 0"):
        train(model, Stripes(8), Stripes(2), RECIPE)
    with pytest.raises(TrainingError, match="the network's logits are not finite"):
        accuracy(model, Stripes(2))  # argmax would name the first NaN


class Rooted(nn.Module):
    """The root of 0 is finite, its derivative is not."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((1, 2, 3))[:, None] + self.scale.sqrt()


def test_a_gradient_that_is_not_finite_ends_it_before_it_reaches_the_weights() -> None:
    model = Rooted()
    with pytest.raises(TrainingError, match="step 0: the gradient's norm is"):
        train(model, Stripes(8), None, RECIPE)
    assert model.scale.tolist() == [0, 0]


class Failing(nn.Module):
    """Its loss is not a number in one step of a training."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.layer, self.left = nn.Linear(3, 2), step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(x.mean((2, 3)))
        self.left -= self.training
        return logits * float("nan") if self.training and self.left == -1 else logits


@pytest.fixture
def rarely_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, of which every step is not read at once."""
    monkeypatch.setattr(Readings, "due", False)


@pytest.mark.usefixtures("rarely_read")
@pytest.mark.parametrize("stores", [True, False])
def test_what_is_not_finite_is_named_by_its_step_before_anything_is_written(
    stores: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingState, "due", stores)
    state = tmp_path / "state.pt"
    with pytest.raises(TrainingError, match="step 3: the loss is nan"):
        train(Failing(3), Stripes(8), None, RECIPE, checkpoint=state, record_every=10)
    if stores:
        content = torch.load(state, weights_only=True)
        assert content["loop"]["step"] == 3
        assert all(values.isfinite().all() for values in content["model"].values())
    else:
        assert not state.exists()


def test_steps_that_are_read_together_are_those_that_are_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(RECIPE, accumulate=2, ema_decay=0.9)
    found = []
    for together in (False, True):
        if together:
            monkeypatch.setattr(Readings, "due", False)
        model = network()
        found.append((train(model, Stripes(8), Stripes(4), recipe), weights(model)))
    assert found[0][0].curve == found[1][0].curve
    assert_same(found[0][1], found[1][1])
    assert found[1][0].seconds_per_step > 0


def test_moving_average_of_weights_and_statistics_by_hand() -> None:
    """The first weights, then (1 + t) / (10 + t) of the average and the rest of the new ones; counts are copied."""
    model = nn.Sequential(nn.Conv2d(3, 2, 16), nn.BatchNorm2d(2), nn.Flatten())
    recipe = replace(RECIPE, steps=4, ema_decay=0.9)
    seen: list[dict[str, torch.Tensor]] = []
    original = TrainingState.finish_step

    def finish(state: TrainingState) -> None:
        original(state)
        seen.append(weights(state.model))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingState, "finish_step", finish)
        train(model, Stripes(8), None, recipe)
    expected = {name: value.double() for name, value in seen[0].items()}
    for count, after in enumerate(seen[1:], 1):
        keep = (1 + count) / (10 + count)
        expected = {name: keep * value + (1 - keep) * after[name].double() for name, value in expected.items()}
    expected["1.num_batches_tracked"] = torch.tensor(4.0)
    for name, value in weights(model).items():
        torch.testing.assert_close(value.double(), expected[name].double(), rtol=1e-5, atol=1e-7)


def test_a_gpu_without_bfloat16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, gpu = replace(RECIPE, autocast="bfloat16"), torch.device("cuda:0")
    check_division(recipe, torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_division(recipe, gpu)  # of another machine
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation, there=there: there)
        with nullcontext() if there else pytest.raises(ValueError, match="autocast='bfloat16': cuda:0, Tesla T4 does"):
            check_division(recipe, gpu)


def test_recipe_is_checked() -> None:
    for name, value in (
        ("steps", 0),
        ("batch_size", 1),
        ("learning_rate", -1.0),
        ("warmup", 1.0),
        ("label_smoothing", 1.0),
        ("augmentation", "mixup"),
        ("ema_decay", 1.0),
        ("max_gradient_norm", 0.0),
        ("steps", 1e12),
        ("batch_size", 10**9),
        ("batch_size", True),
        ("learning_rate", float("inf")),
        ("learning_rate", float("nan")),
        ("minimum_rate", 0.03),
        ("weight_decay", float("inf")),
        ("mixup", float("inf")),
        ("cutmix", -1),
        ("random_erasing", 1.5),
        ("ema_decay", ".9999"),
        ("max_gradient_norm", float("nan")),
        ("accumulate", 9),
        ("gradient_checkpointing", 1),
        ("autocast", None),
    ):
        with pytest.raises(ValueError, match=f"{name}="):
            replace(RECIPE, **{name: value})  # type: ignore[arg-type]


def test_what_cannot_be_trained_is_refused_before_the_first_step(tmp_path: Path) -> None:
    images = Stripes(8)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"mean": (0, 0)}, r"mean=\(0, 0\): expected three numbers"),
        ({"std": (1, 1, 0)}, r"std=\(1, 1, 0\): expected three numbers from 1e-12"),
        ({"seed": -1}, "seed=-1"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"stop_after": 0}, "stop_after=0"),
        ({"evaluate_every": 0.5}, "evaluate_every=0.5"),
        ({"recipe": replace(RECIPE, accumulate=3)}, "batch_size=8: expected a multiple of 3"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            train(network(), images, None, **{"recipe": RECIPE, "checkpoint": tmp_path / "state.pt", **changes})
    with pytest.raises(ValueError, match=r"cannot take images of shape \(1, 3, 32, 32\)"):
        train(network(), Stripes(8, side=32), None, RECIPE, checkpoint=tmp_path / "state.pt")
    wide = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    with pytest.raises(ValueError, match=r"returns shape \(1, 3\) .* one score for each of the 2 classes"):
        train(wide, images, None, RECIPE, checkpoint=tmp_path / "state.pt")
    assert not any(tmp_path.iterdir())


def make_folder(root: Path, parts: tuple[str, ...] = ("train", "test")) -> Path:
    for part in parts:
        for number, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for index in range(3):
                color = (80 * index, 100 * number, 200)
                Image.new("RGB", (40, 20 + 10 * number), color).save(root / part / name / f"{index}.png")
    return root


def test_image_folders(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    images, validation = (FolderImages(root, split, size=16) for split in ("train", "val"))
    assert images.classes == ("cat", "dog") == validation.classes
    assert len(images) == 6
    pixels, label = images[4]
    assert pixels.shape == (16, 16, 3)
    assert (pixels == (80, 100, 200)).all()
    assert label == 1
    assert images.fingerprint() != FolderImages(root, "train", size=32).fingerprint()
    assert images.fingerprint() == FolderImages(root, "train", size=16).fingerprint()


def test_the_middle_square_is_taken(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    Image.fromarray(wide).save(tmp_path / "train" / "a" / "wide.png")
    assert (FolderImages(tmp_path, "train", size=10)[0][0] == 255).all()


def test_folders_that_cannot_be_meant(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        FolderImages(tmp_path / "none", "train", size=16)
    with pytest.raises(FileNotFoundError, match="val or validation or test"):
        FolderImages(make_folder(tmp_path, ("train",)), "val", size=16)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty"):
        FolderImages(tmp_path, "train", size=16)
    (tmp_path / "train" / "empty" / "bad.png").write_bytes(b"no image")
    images = FolderImages(tmp_path, "train", size=16)
    with pytest.raises(DataError, match=r"bad\.png"):
        images[len(images) - 1]


def test_images_are_kept_in_memory() -> None:
    source = Stripes(4)
    kept: LabelledImages = InMemory(source)
    assert kept.classes == source.classes
    first = [kept[index][0] for index in range(4)]
    asked = len(source.asked)
    assert all(np.array_equal(kept[index][0], pixels) for index, pixels in enumerate(first))
    assert len(source.asked) == asked


def test_images_made_in_processes_are_those_made_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [InMemory(SyntheticImages(num_images=70, seed=seed)) for seed in (1, 2)]
    sets[1][3]
    keep_all(sets, 0)
    assert [images.complete for images in sets] == [False, False]
    keep_all(sets, 2)
    assert [images.complete for images in sets] == [True, True]
    monkeypatch.setattr(SyntheticImages, "__getitem__", None)  # none is made again
    found = [[images[index] for index in range(70)] for images in sets]
    monkeypatch.undo()
    for seed, items in enumerate(found, 1):
        for index, (pixels, label) in enumerate(items):
            expected, right = SyntheticImages(num_images=70, seed=seed)[index]
            assert label == right
            np.testing.assert_array_equal(pixels, expected)


class Damaged(Stripes):
    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        if index == 5:
            raise DataError("damaged")
        return super().__getitem__(index)


def test_an_image_that_cannot_be_made_in_advance_is_named_to_whoever_asks_for_it() -> None:
    images = InMemory(Damaged(8))
    keep_all([images], 1)
    assert not images.complete
    assert images[4][1] == 0
    with pytest.raises(DataError, match="damaged"):
        images[5]


def test_validation_of_other_classes_is_refused(tmp_path: Path) -> None:
    other = Stripes(4)
    other.classes = ("up", "down")
    with pytest.raises(ValueError, match=r"not in both are down, left, right, \.\.\. \(4 in all\)"):
        train(network(), Stripes(8), other, RECIPE)


def test_a_checkpoint_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that breaks off leaves the former state."""
    monkeypatch.setattr("analysis.training.progress._SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    monkeypatch.setattr("analysis.training.progress._SHARE_OF_CHECKPOINTS", float("inf"))
    path = tmp_path / "state.pt"
    calls = []

    def broken(content: Any, target: Any) -> None:
        calls.append(1)
        if len(calls) == 5:
            target.write(b"half")
            raise OSError("disk full")
        save(content, target)

    save = torch.save
    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(StateError, match="disk full"):
        run(checkpoint=path)
    monkeypatch.setattr(torch, "save", save)
    steps: list[int] = []
    run(checkpoint=path, progress=lambda done, total: steps.append(done))
    assert steps[0] == 5
    assert os.path.getsize(path) > 100  # noqa: PTH202
