import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

import analysis
import replknet
import replknet.timm_models
from analysis import effective_receptive_field, load_model
from analysis.images.imagenet import IMAGENET_MEAN, IMAGENET_STD, imagenet_classes
from analysis.models import loaded as loaded_module
from analysis.models.files import save_network
from analysis.models.loading import as_loaded
from analysis.recognition.prediction import class_names
from tests.networks import tiny_model


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))


def test_weights_in_a_file_are_a_model(tmp_path: Path) -> None:
    model = tiny_model().float()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
    for name in ("official.pth", "merged.safetensors"):
        torch.save(model.state_dict(), tmp_path / "official.pth")
        if name == "merged.safetensors":
            replknet.convert_checkpoint(tmp_path / "official.pth", tmp_path / name, level="full")
        loaded = load_model(str(tmp_path / name))
        assert loaded.name == Path(name).stem
        assert "the architecture was read from them" in loaded.notes[0]
        with torch.no_grad():
            assert torch.allclose(loaded.module(images), expected, atol=1e-5)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_model(str(tmp_path / "none.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match="not a readable weight file"):
        load_model(str(tmp_path / "text.pth"))
    with pytest.raises(ValueError, match="applies to networks by name only"):
        load_model(str(tmp_path / "official.pth"), checkpoint="other.pth")


def test_bare_weights_of_a_shipped_network_are_prepared_as_its_own(tmp_path: Path) -> None:
    torch.save(replknet.create_model("replknet_nano_k3", pretrained=True).state_dict(), tmp_path / "bare.pth")
    assert load_model(str(tmp_path / "bare.pth")).input_size == 64
    assert load_model("replknet_nano_k3", checkpoint=tmp_path / "bare.pth").input_size == 64
    assert "published ones are replknet_31b.in1k_224" in load_model("replknet_31b").notes[0]
    with torch.device("meta"):
        assert load_model("replknet_xl").mean == load_model("replknet_xl").std == (0.5, 0.5, 0.5)
    assert replknet.timm_models  # registers the family
    module = timm.create_model("replknet_nano_k3", pretrained=True)
    assert as_loaded(module).input_size == 64
    # Trained on whole images: no way of loading it crops or magnifies one of 64 pixels.
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
    mean, std = (np.array(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    for spec in (str(tmp_path / "bare.pth"), "replknet_nano_k3", "timm:replknet_nano_k3"):
        np.testing.assert_allclose(load_model(spec).preparation()(image), (pixels - mean) / std, atol=1e-5)


def test_a_folded_network_is_saved_with_its_description(tmp_path: Path) -> None:
    model = replknet.reparameterize(tiny_model().float())
    save_network(tmp_path / "small.safetensors", model, classes=[str(i) for i in range(10)], input_size=32)
    loaded = load_model(str(tmp_path / "small.safetensors"))
    assert (loaded.name, loaded.input_size) == ("small", 32)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(loaded.module(images), model(images), atol=1e-6)


def test_what_a_network_is_saved_with_is_plain_json(tmp_path: Path) -> None:
    """JSON has no infinite numbers: another reader than Python's would refuse the file's description."""
    path, settings = tmp_path / "small.safetensors", {"classes": [str(i) for i in range(10)], "input_size": 32}
    model = tiny_model().float()
    save_network(path, model, training={"recipe": {"max_gradient_norm": float("inf")}}, **settings)  # type: ignore[arg-type]
    with safe_open(path, "pt") as file:
        (text,) = file.metadata().values()
    assert "Infinity" not in text.replace('"Infinity"', "")
    assert load_model(str(path)).training == {"recipe": {"max_gradient_norm": "Infinity"}}
    for change, message in (
        ({"input_size": -1}, "input_size=-1"),
        ({"mean": (float("nan"), 0, 0)}, r"mean=\(nan, 0, 0\)"),
        ({"std": (0, 1, 1)}, r"std=\(0, 1, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            save_network(tmp_path / "other.safetensors", model, **settings | change)  # type: ignore[arg-type]
    assert not (tmp_path / "other.safetensors").exists()


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor")
@pytest.mark.parametrize("change", ["pruned", "lazy", "replaced", "quantised"])
def test_a_network_that_could_not_be_read_back_is_not_saved(tmp_path: Path, change: str) -> None:
    model = tiny_model().float()
    if change == "pruned":
        prune.random_unstructured(model.head, "weight", amount=0.5)  # type: ignore[no-untyped-call]
    elif change == "lazy":
        model.head = nn.LazyLinear(10)
    elif change == "replaced":
        model.head = nn.Sequential(nn.Linear(32, 10))
    else:
        model.head = torch.ao.nn.quantized.dynamic.Linear(32, 10)  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match=r"other layers than its configuration says .* could not be read back: .*head"):
        save_network(tmp_path / "small.safetensors", model, classes=[str(i) for i in range(10)], input_size=32)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["training", "kernels", "full"])
@pytest.mark.parametrize("norms", [True, False])
def test_a_backbone_is_read_back_and_gives_the_maps_of_all_stages(tmp_path: Path, norms: bool, form: Any) -> None:
    model = tiny_model(num_classes=0, out_indices=(1, 3), norm_intermediate_features=norms).float()
    written = model if form == "training" else replknet.reparameterize(model, level=form)
    torch.save(written.state_dict(), tmp_path / "backbone.pth")
    module = load_model(str(tmp_path / "backbone.pth")).module
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        found, expected = module(images), model(images)
    assert [tuple(maps.shape[1:]) for maps in found] == [(8, 16, 16), (16, 8, 8), (24, 4, 4), (32, 2, 2)]
    for stage, maps in zip((1, 3), expected, strict=True):
        torch.testing.assert_close(found[stage], maps, rtol=1e-4, atol=1e-5)


def test_a_backbone_by_name(tmp_path: Path) -> None:
    shape: Any = {"num_classes": 0, "out_indices": (0, 1, 2, 3)}
    backbone = replknet.create_model("replknet_nano_k3", **shape)
    torch.save({"state_dict": backbone.state_dict()}, tmp_path / "backbone.pth")
    loaded = load_model("replknet_nano_k3", checkpoint=tmp_path / "backbone.pth")
    assert all(torch.equal(value, backbone.state_dict()[key]) for key, value in loaded.module.state_dict().items())
    with pytest.raises(replknet.CheckpointError, match=r"a backbone without a final norm: out_indices=\(0, 1, 2, 3\)"):
        replknet.create_model("replknet_nano_k3", checkpoint=tmp_path / "backbone.pth")


def test_published_weights_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = replknet.create_model("replknet_xl", layers=(1, 1, 1, 1), channels=(4, 8, 8, 8))
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    monkeypatch.setattr("replknet.creating.download_weights", lambda name, progress: tmp_path / "weights.pth")
    monkeypatch.setattr("replknet.creating.PRESETS", {"replknet_xl": source.config})
    loaded = load_model("replknet_xl.meg73m_ft_in1k_320")
    assert loaded.published == {"top1": 87.57, "top5": 98.39}
    assert (loaded.mean, loaded.input_size) == ((0.5, 0.5, 0.5), 320)
    assert "random" not in loaded.name
    assert torch.equal(loaded.module.get_parameter("head.weight"), source.head.weight)  # type: ignore[arg-type]
    assert "random weights" in load_model("replknet_xl.meg73m_ft_in1k_320", pretrained=False).name
    with pytest.raises(ValueError, match="these weights have the kernels"):
        load_model("replknet_xl.meg73m_ft_in1k_320", kernel_sizes=(3, 3, 3, 3))


def test_libraries_bring_their_own_preparation(image: Image.Image) -> None:
    from torchvision.models import ResNet18_Weights

    loaded = load_model("torchvision:resnet18", pretrained=False)
    assert torch.equal(loaded.preparation()(image), ResNet18_Weights.DEFAULT.transforms()(image))
    assert loaded.preparation(96)(image).shape == (3, 96, 96)
    other = load_model("timm:convnext_atto", pretrained=False)
    config = timm.data.resolve_data_config({}, model=other.module)
    assert torch.equal(other.preparation()(image), timm.data.create_transform(**config)(image))
    ours = load_model("timm:replknet_nano_k3")
    assert ours.input_size == 64


@pytest.mark.parametrize(
    ("name", "tags"), [("resnet18.a1_in1", "resnet18.a1_in1k"), ("replknet_31b.x", "replknet_31b.in1k_224")]
)
def test_a_wrong_tag_of_timm_is_refused_with_the_right_ones(name: str, tags: str) -> None:
    with pytest.raises(ValueError, match=rf"^model='timm:{name}': expected '\w+', or of its weights one of .*{tags}"):
        load_model(f"timm:{name}", pretrained=False)
    assert load_model("timm:resnet18.a1_in1k", pretrained=False).initial


def test_classifiers_of_transformers(tmp_path: Path, image: Image.Image) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    labels = {index: f"kind {index}" for index in range(3)}
    config = transformers.ConvNextConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], id2label=labels, label2id={v: k for k, v in labels.items()}
    )
    network = transformers.ConvNextForImageClassification(config).eval()
    processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 64})
    network.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = load_model(f"hf:{tmp_path}")
    assert loaded.classes == ("kind 0", "kind 1", "kind 2")
    assert loaded.architecture == "ConvNextForImageClassification"
    pixels = processor(images=image, return_tensors="pt")["pixel_values"]
    prepared = loaded.preparation()(image)
    assert torch.equal(prepared, pixels[0])
    with torch.no_grad():
        assert torch.allclose(loaded.module(prepared[None]), network(pixels).logits, atol=1e-6)
    image.save(tmp_path / "image.png")
    assert analysis.predict(loaded, tmp_path / "image.png")[0].names[0] in labels.values()
    result = effective_receptive_field(loaded.module, torch.rand(1, 3, 64, 64))
    assert result.mean_map.shape == (64, 64)
    assert result.mean_map.any()
    with pytest.raises(ValueError, match=r"hf:.*its weights could not be loaded"):
        load_model(f"hf:{tmp_path / 'none'}")


def test_a_thousand_labels_are_imagenets_only_by_their_names(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    names = [name for _, name in imagenet_classes()]
    default = [f"LABEL_{index}" for index in range(1000)]
    own = [f"kind {index}" for index in range(1000)]
    for folder, labels, classes in (
        ("imagenet", names, ()),
        ("short", [name.split(",")[0] for name in names], ()),
        ("default", default, tuple(default)),
        ("own", own, tuple(own)),
        ("reversed", names[::-1], tuple(names[::-1])),
    ):
        config = transformers.ConvNextConfig(
            hidden_sizes=[4, 4, 4, 4], depths=[1, 1, 1, 1], num_labels=1000, id2label=dict(enumerate(labels))
        )
        transformers.ConvNextForImageClassification(config).save_pretrained(tmp_path / folder)
        transformers.ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(tmp_path / folder)
        loaded = load_model(f"hf:{tmp_path / folder}")
        assert loaded.classes == classes
        assert [note for note in loaded.notes if "not the names of ImageNet-1K" in note] == list(loaded.notes)
        assert bool(loaded.notes) == bool(classes)
        assert class_names(loaded, 1000)[0] == (classes or names)[0]


def test_device_and_dtype(tmp_path: Path) -> None:
    loaded = load_model("replknet_nano_k3")
    with pytest.raises(ValueError, match="dtype=int8: expected one of float32"):
        loaded.to("cpu", "int8")
    # PyTorch says so by RuntimeError and its NotImplementedError, AssertionError and ModuleNotFoundError.
    for device in ("nowhere", "xla", "mtia", "hpu"):
        with pytest.raises(ValueError, match=f"device={device}: cannot be used here"):
            loaded.to(device)
    double = loaded.to("cpu", "float64")
    assert next(double.module.parameters()).dtype is torch.float64
    # The meta device computes shapes alone: nothing on the way may assume the CPU.
    meta = load_model("replknet_nano_k31").to("meta", "float16")
    assert meta.module(torch.zeros(2, 3, 64, 64, device="meta", dtype=torch.float16)).shape == (2, 12)


def test_apples_gpus_have_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded_module, "resolve_device", torch.device)
    with pytest.raises(ValueError, match=r"dtype=float64: Apple's GPUs \(device mps\) have no such numbers"):
        load_model("replknet_nano_k31").to("mps", "float64")


ACCELERATORS = [
    name for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())) if there
]


@pytest.mark.cuda
@pytest.mark.skipif(not ACCELERATORS, reason="no CUDA or MPS device")
@pytest.mark.parametrize("device", ACCELERATORS)
def test_an_accelerator_gives_the_same_results(device: str, image: Image.Image, tmp_path: Path) -> None:
    image.save(tmp_path / "image.png")
    here = load_model("replknet_nano_k31")
    there = load_model("replknet_nano_k31").to(device)
    expected, found = (analysis.predict(model, tmp_path / "image.png", top=12)[0] for model in (here, there))
    assert sorted(found.indices) == sorted(expected.indices)
    np.testing.assert_allclose(sorted(found.scores), sorted(expected.scores), atol=1e-4)
    images = torch.rand(1, 3, 64, 64)
    maps = [effective_receptive_field(model.module, images).mean_map for model in (here, there)]
    np.testing.assert_allclose(maps[1], maps[0], rtol=1e-2, atol=1e-4 * float(maps[0].max()))


@pytest.mark.parametrize(
    "change",
    [
        {"input_size": -1},
        {"input_size": "64"},
        {"input_size": 1e9},
        {"mean": ["a", "b", "c"]},
        {"mean": [0.0, 0.0]},
        {"std": [0.0, 1.0, 1.0]},
        {"std": [None, 1.0, 1.0]},
        {"crop": [1.0]},
        {"crop": 2.0},
        {"classes": "abc"},
        {"classes": [1, 2]},
        {"training": "long"},
    ],
)
def test_a_description_with_a_value_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    model, path = tiny_model().float(), tmp_path / "small.safetensors"
    save_network(path, model, classes=[f"c{index}" for index in range(model.config.num_classes)], input_size=64)
    with safe_open(path, framework="pt") as file:
        description = json.loads(file.metadata()["replknet"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  no mapping
    assert load_model(str(path)).input_size == 64
    save_file(tensors, path, metadata={"replknet": json.dumps(description | change)})
    with pytest.raises(ValueError, match="its description does not fit"):
        load_model(str(path))


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_objects_in_the_cache_of_torchvision_are_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    weights = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT
    file = tmp_path / "checkpoints" / Path(weights.url).name
    file.parent.mkdir()
    model = torchvision.models.squeezenet1_1(weights=None)
    torch.save(model.state_dict(), file)
    loaded = load_model("torchvision:squeezenet1_1")
    name = "classifier.1.weight"
    assert torch.equal(loaded.module.state_dict()[name], model.state_dict()[name])
    torch.save(model.state_dict() | {"more": Planted(tmp_path / "ran")}, file)
    with pytest.raises(ValueError, match="is damaged, or holds more than tensors"):
        load_model("torchvision:squeezenet1_1")
    assert not (tmp_path / "ran").exists()


def test_code_in_a_folder_of_transformers_is_not_run(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    names = {"AutoConfig": "planted.Config", "AutoModelForImageClassification": "planted.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": names}))
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ValueError, match="contains custom code"):
        load_model(f"hf:{tmp_path}")
    assert not (tmp_path / "ran").exists()
