from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

import analysis
import replknet
import replknet.timm_models  # registers with timm
from analysis import LayerError, extract_features, predict
from analysis.images.files import find_images
from analysis.images.imagenet import imagenet_classes
from analysis.images.preparing import evaluation_transform
from tests.networks import efficientnet_lite0


class Brightness(nn.Module):
    """Scores that can be worked out by hand: the mean of each colour channel, times four."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(3, 3, bias=False)
        self.head.weight.data = 4 * torch.eye(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.pool(x).flatten(1))
        return scores


COLOURS = analysis.LoadedModel(
    name="colours",
    module=Brightness(),
    mean=(0.0,) * 3,
    std=(1.0,) * 3,
    input_size=32,
    classes=("red", "green", "blue"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in (("b/blue.png", (0, 0, 255)), ("a/red.png", (255, 0, 0)), ("a/green.jpg", (0, 255, 0))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (50, 40), colour).save(tmp_path / name, quality=95)
    (tmp_path / "a" / "broken.png").write_bytes(b"not a png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    return tmp_path


def test_scores_of_a_network_worked_out_by_hand(folder: Path) -> None:
    found = predict(COLOURS, folder, top=2)
    assert [Path(item.image).name for item in found] == ["green.jpg", "red.png", "blue.png"]
    assert [item.names[0] for item in found] == ["green", "red", "blue"]
    expected = np.exp(4) / (np.exp(4) + 2)
    assert found[1].scores[0] == pytest.approx(expected, abs=1e-6)
    assert found[1].scores[1] == pytest.approx(1 / (np.exp(4) + 2), abs=1e-6)
    assert found.skipped == ((str(folder / "a" / "broken.png"), "corrupt"),)
    table = found.table()
    assert list(table["rank"]) == [1, 2] * 3
    assert len(predict(COLOURS, folder / "b" / "blue.png", top=9)[0].names) == 3


def test_worker_processes_and_batches_change_nothing(folder: Path) -> None:
    one = predict(COLOURS, folder, batch_size=1)
    other = predict(COLOURS, folder, batch_size=2, num_workers=2)
    assert one.items == other.items
    assert one.skipped == other.skipped


def test_images_are_files_folders_and_patterns_each_once(folder: Path) -> None:
    def names(*sources: Any) -> list[str]:
        return [path.name for path in find_images(sources)]

    assert names(folder / "b", str(folder / "*" / "*.png")) == ["blue.png", "broken.png", "red.png"]
    assert names(folder / "a" / "notes.txt") == ["notes.txt"]
    with pytest.raises(FileNotFoundError, match="no file matches"):
        find_images(str(folder / "*.gif"))
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no image"):
        find_images(folder / "empty")
    with pytest.raises(ValueError, match="none of 1 files is a usable image"):
        predict(COLOURS, folder / "a" / "notes.txt")


def test_resizing_follows_the_published_rule() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8))
    found = evaluation_transform(224, mean=(0.5,) * 3, std=(0.5,) * 3)(image)
    # int(224 / 0.875) = 256 on the short side, then the central 224 pixels.
    resized = image.resize((int(500 * 256 / 300), 256), Image.Resampling.BICUBIC)
    left = round((resized.width - 224) / 2)
    expected = np.asarray(resized.crop((left, 16, left + 224, 240)), np.float32).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(found.numpy(), (expected - 0.5) / 0.5, atol=1e-6)
    # From 384 on a square without a crop.
    square = evaluation_transform(384, mean=(0.0,) * 3, std=(1.0,) * 3)(image)
    whole = np.asarray(image.resize((384, 384), Image.Resampling.BICUBIC), np.float32).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(square.numpy(), whole, atol=1e-6)
    with pytest.raises(ValueError, match="crop=2"):
        evaluation_transform(224, mean=(0.0,) * 3, std=(1.0,) * 3, crop=2)


@pytest.mark.parametrize("name", ["replknet_31b.in1k_224", "replknet_xl.meg73m_ft_in1k_320", "replknet_31b.in1k_384"])
def test_timm_prepares_our_models_in_the_same_way(name: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (500, 700, 3), dtype=np.uint8))
    weights = replknet.PUBLISHED[name]
    ours = analysis.LoadedModel(
        name=name, module=nn.Identity(), mean=weights.mean, std=weights.std, input_size=weights.image_size
    ).preparation()
    with torch.device("meta"):
        config = timm.data.resolve_data_config({}, model=timm.create_model(name))
    difference = (timm.data.create_transform(**config)(image) - ours(image)).abs().max()
    assert difference < 1e-6


def test_a_real_classifier_names_photographs(shared: Path) -> None:
    found = predict(efficientnet_lite0(), shared / "data" / "photos")
    assert len(found) == 48
    assert found.skipped == ()
    # The file names carry the WordNet id and the class of the photograph.
    ids = [wordnet_id for wordnet_id, _ in imagenet_classes()]
    right = [ids[item.indices[0]] == Path(item.image).name.split("_")[0] for item in found]
    assert np.mean(right) > 0.6
    assert all(abs(sum(item.scores)) <= 1 and item.scores[0] >= item.scores[-1] for item in found)


def test_what_is_no_classifier_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"Identity returns shape \(3, 3, 224, 224\); expected one row"):
        predict(nn.Identity(), [folder / "a" / "red.png", folder / "a" / "green.jpg", folder / "b" / "blue.png"])
    with pytest.raises(ValueError, match="cannot take images of shape"):
        predict(nn.Linear(7, 2), folder / "b")
    with pytest.raises(ValueError, match="names 4 classes and returns 3"):
        predict(replace(COLOURS, classes=("red", "green", "blue", "grey")), folder / "b")
    with pytest.raises(ValueError, match="top=0"):
        predict(COLOURS, folder, top=0)


def test_features_of_stages_layers_and_the_head(folder: Path, tmp_path: Path) -> None:
    found = extract_features("replknet_nano_k31", folder, stages=[3, 0, "pooled", "stages.1.blocks.0"])
    shapes = {name: array.shape for name, array in found.arrays.items()}
    assert shapes == {
        "stage3": (3, 128, 2, 2),
        "stage0": (3, 16, 16, 16),
        "pooled": (3, 128),
        "stages.1.blocks.0": (3, 32, 8, 8),
    }
    assert [Path(name).name for name in found.images] == ["green.jpg", "red.png", "blue.png"]
    # Independently: the network's own methods on the same input.
    loaded = analysis.load_model("replknet_nano_k31")
    batch = torch.stack([loaded.preparation()(Image.open(name).convert("RGB")) for name in found.images])
    module: Any = loaded.module
    with torch.no_grad():
        last = module.forward_features(batch)
        np.testing.assert_allclose(found.arrays["stage3"], last, atol=1e-5)
        np.testing.assert_allclose(found.arrays["pooled"], module.forward_head(last, pre_logits=True), atol=1e-5)
    averaged = extract_features("replknet_nano_k31", folder, stages=[0], average=True)
    np.testing.assert_allclose(averaged.arrays["stage0"], found.arrays["stage0"].mean((2, 3)), atol=1e-6)
    path = tmp_path / "f.npz"
    found.save(path)
    with np.load(path) as file:
        assert set(file) == {*shapes, "images", "model"}
        np.testing.assert_array_equal(file["stage0"], found.arrays["stage0"])
    with pytest.raises(FileExistsError, match="exists already"):
        found.save(path)


def test_the_last_feature_map_and_layers_that_are_called_by_numbers(folder: Path, tmp_path: Path) -> None:
    found = extract_features("replknet_nano_k31", folder, stages=["last", 0])
    assert list(found.arrays) == ["last", "stage0"]
    expected = extract_features("replknet_nano_k31", folder, stages=[3]).arrays["stage3"]
    np.testing.assert_allclose(found.arrays["last"], expected, atol=1e-5)
    net = nn.Sequential(nn.Conv2d(3, 2, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = extract_features(net, folder, stages=["0", "last"])
    np.testing.assert_array_equal(np.maximum(found.arrays["0"], 0), found.arrays["last"])
    means = extract_features(net, folder, stages=["last"], average=True).arrays["last"]
    np.testing.assert_allclose(means, found.arrays["last"].mean((2, 3)), atol=1e-6)
    named = nn.Sequential(OrderedDict(last=nn.Conv2d(3, 2, 4, 4), act=nn.ReLU()))  # a layer of that name is that layer
    assert (extract_features(named, folder, stages=["last"]).arrays["last"] < 0).any()
    with pytest.raises(ValueError, match="stages='file': no array can have this name"):
        extract_features(nn.Sequential(OrderedDict(file=nn.Flatten())), folder, stages=["file"])


def test_features_of_other_networks(folder: Path) -> None:
    timm_model = extract_features(analysis.load_model("timm:resnet18", pretrained=False), folder, stages=[1, "pooled"])
    assert timm_model.arrays["stage1"].shape == (3, 64, 56, 56)
    assert timm_model.arrays["pooled"].shape == (3, 512)
    net = analysis.load_model("torchvision:mobilenet_v2", pretrained=False)
    assert extract_features(net, folder, stages=["pooled"]).arrays["pooled"].shape == (3, 1280)
    with pytest.raises(LayerError, match="has no numbered stages"):
        extract_features(net, folder, stages=[1])
    with pytest.raises(
        LayerError, match="layer='nose': the model has no such module; expected pooled or a name such as"
    ):
        extract_features(net, folder, stages=["nose"])
    with pytest.raises(LayerError, match="stages=\\[7\\]"):
        extract_features("replknet_nano_k3", folder, stages=[7])
    with pytest.raises(ValueError, match="expected one or more different stages"):
        extract_features(net, folder, stages=[])
    with pytest.raises(ValueError, match=r"stages=\['pooled', 'pooled'\]: expected one or more different"):
        extract_features(net, folder, stages=["pooled", "pooled"])
    with pytest.raises(ValueError, match="average=True: pooled gives vectors, which have no positions"):
        extract_features(net, folder, average=True)


class Named(nn.Module):
    """Returns its outputs by name, and has no linear layer."""

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict(out=x.mean((2, 3)))


def test_features_of_a_network_that_returns_no_tensor(folder: Path) -> None:
    with pytest.raises(LayerError, match=r"model: Named has no last linear layer .* returns OrderedDict; name"):
        extract_features(Named(), folder)


def test_numbers_out_of_range_are_named(folder: Path) -> None:
    """Also those that a shorter way would have taken for the default."""
    for changes, message in (
        ({"size": 0}, "size=0: expected 1 to 16384 pixels"),
        ({"size": 2.5}, "size=2.5: expected 1 to 16384 pixels"),
        ({"batch_size": 0}, "batch_size=0: expected 1 to 65536 images"),
        ({"batch_size": 10**20}, "batch_size=100000000000000000000: expected"),
        ({"num_workers": 10**20}, "num_workers=100000000000000000000: expected 0 to 1024 processes"),
        ({"top": 1.5}, "top=1.5: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            predict(COLOURS, folder, **changes)
    with pytest.raises(ValueError, match=r"images='': expected a path; '\.' is the current folder"):
        predict(COLOURS, "")
    with pytest.raises(ValueError, match="images=' '"):
        predict(COLOURS, [folder / "b" / "blue.png", " "])


def test_interrupted_predictions_and_features_go_on_where_they_were(folder: Path, tmp_path: Path) -> None:
    calls: list[int] = []
    counted = replace(COLOURS, module=nn.Sequential(COLOURS.module))
    counted.module.register_forward_hook(lambda _module, inputs, _out: calls.append(len(inputs[0])))

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    def names(found: Any) -> list[str]:
        return list(found.images) if isinstance(found, analysis.Features) else [item.image for item in found]

    for measure in (predict, extract_features):
        whole = measure(counted, folder, batch_size=1)
        calls.clear()
        partial = tmp_path / f"{measure.__name__}.npz"
        with pytest.raises(KeyboardInterrupt):
            measure(counted, folder, batch_size=1, partial=partial, progress=stop)
        found = measure(counted, folder, batch_size=1, partial=partial)
        assert sum(calls) == len(names(whole))  # no image twice
        assert names(found) == names(whole)
        assert found.skipped == whole.skipped
        assert not partial.exists()
    # Another number of classes, other layers, another image: another measurement.
    with pytest.raises(KeyboardInterrupt):
        predict(counted, folder, batch_size=1, partial=tmp_path / "p.npz", progress=stop)
    calls.clear()
    predict(counted, folder, top=1, batch_size=1, partial=tmp_path / "p.npz")
    assert sum(calls) == len(names(whole))


def test_scores_that_are_not_finite_are_no_answer(folder: Path, tmp_path: Path) -> None:
    batch = torch.stack([torch.zeros(3, 8, 8), torch.full((3, 8, 8), float("nan"))])
    found = predict(COLOURS, batch)
    assert [item.image for item in found] == ["image-0"]
    assert found.skipped == (("image-1", "the logits are not finite"),)
    with pytest.raises(ValueError, match="none of 1 files is a usable image; image-0: the logits are not finite"):
        predict(COLOURS, batch[1:])
    # Features, too.
    features = extract_features(COLOURS, batch)
    assert features.images == ("image-0",)
    assert features.skipped == (("image-1", "the features are not finite"),)
    assert np.isfinite(features.arrays["pooled"]).all()
    with pytest.raises(ValueError, match="none of 1 files is a usable image; image-0: the features are not finite"):
        extract_features(COLOURS, batch[1:])


def _without_head(name: str) -> nn.Module:
    network: Any
    if name in ("replknet", "maps"):
        options: dict[str, Any] = {"num_classes": 0} if name == "replknet" else {"out_indices": (0, 3)}
        return replknet.create_model("replknet_nano_k3", pretrained=False, **options)
    if name == "timm":
        headless: nn.Module = timm.create_model("resnet18", num_classes=0)
        return headless
    network = timm.create_model("resnet18") if name == "by hand" else torchvision.models.resnet18()
    if name == "trunk":
        return nn.Sequential(*list(network.children())[:-1], nn.Flatten())
    network.fc = nn.Identity()
    return Wrapped(network) if name == "wrapped" else network


class Wrapped(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.network(x)
        return scores


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("replknet", r"128 features of each image and no class scores \(its head is an Identity\)"),
        ("maps", "returns list; expected one row of two or more class scores"),
        ("timm", r"512 features of each image and no class scores \(its num_classes is 0\)"),
        ("by hand", r"512 features .* \(its num_classes is 1000\)"),
        ("torchvision", r"512 features .* \(its fc is an Identity\)"),
        ("wrapped", r"512 features .* \(its network.fc is an Identity\)"),
        ("trunk", r"512 features .* \(it ends in a BatchNorm2d\)"),
    ],
)
def test_a_network_without_a_head_names_nothing(folder: Path, tmp_path: Path, name: str, reason: str) -> None:
    network = _without_head(name)
    images = analysis.SyntheticImages(kind="conflict", num_images=12)
    analysis.save_stimuli(images, tmp_path / "stimuli")
    mapping = analysis.LabelMapping.from_dict(dict(enumerate(images.classes)))
    (tmp_path / "labels.csv").write_text("b/blue.png,0\n")
    calls: list[Callable[[], Any]] = [
        lambda: predict(network, folder / "b", size=64),
        lambda: analysis.evaluate(network, folder, labels=tmp_path / "labels.csv", size=64),
        lambda: analysis.evaluate_shape_bias(network, tmp_path / "stimuli", mapping=mapping),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=rf"{reason}.*; extract_features \(replknet features\) keeps"):
            call()


def test_a_classifier_without_names_answers_with_numbers_and_says_so(folder: Path) -> None:
    ten = torchvision.models.resnet18(num_classes=10)
    found = predict(ten, folder, top=10, size=64)
    assert set(found[0].names) == {f"class {index}" for index in range(10)}
    assert found.notes == ("ResNet names no classes: its 10 outputs are told by their number",)
    guessed = predict(timm.create_model("resnet18"), folder, size=64)
    assert guessed.notes == ("ResNet names no classes: its 1000 outputs are taken for those of ImageNet-1K",)
    assert guessed[0].names[0] == imagenet_classes()[guessed[0].indices[0]][1]
    assert predict(COLOURS, folder).notes == ()
    for head in (nn.Identity(), nn.Sequential(nn.Dropout(), nn.Identity())):
        trusted = replace(COLOURS, module=nn.Sequential(COLOURS.module, head))  # it names its classes
        assert predict(trusted, folder).items == predict(COLOURS, folder).items
    with pytest.raises(ValueError, match=r"returns shape \(1, 1\); expected one row of two or more class scores"):
        predict(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1)), folder / "a" / "red.png")
