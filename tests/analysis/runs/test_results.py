"""Results on disk and on the screen, by dataclasses made for the purpose and by those of the toolkit."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import analysis
from analysis import ErfResult, LoadedModel, ResultError, SyntheticImages, effective_receptive_field, stimulus_set
from analysis.runs.results import Result


@dataclass(frozen=True)
class Options:
    where: Literal["here", "there"] | tuple[int, int] = "here"
    factors: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Inner(Result):
    KIND: ClassVar[str] = "inner"
    name: str
    values: NDArray[np.float64]

    def headline(self) -> dict[str, Any]:
        return {"name": self.name}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Outer(Result):
    KIND: ClassVar[str] = "outer"
    pairs: tuple[tuple[str, int], ...]
    options: Options
    several: tuple[Options, ...]
    settings: dict[str, Any]
    number: float
    other: float | None
    first: Inner
    second: Inner | None = field(metadata={"folder": "another"})

    def headline(self) -> dict[str, Any]:
        return {"pairs": self.pairs, "number": self.number, "text": "<b>&"}


def outer(second: bool = True) -> Outer:
    return Outer(
        pairs=(("a", 1), ("b", 2)),
        options=Options(where=(3, 4), factors=(0.5, float("inf"))),
        several=(Options(), Options(where="there")),
        settings={"list": [1, 2], "nested": {"a": None}},
        number=float("nan"),
        other=float("-inf"),
        first=Inner(name="x", values=np.arange(3.0)),
        second=Inner(name="y", values=np.eye(2)) if second else None,
    )


@pytest.mark.parametrize("second", [True, False])
def test_every_field_comes_back_as_it_was(second: bool, tmp_path: Path) -> None:
    made = outer(second)
    made.save(tmp_path / "out")
    found = Outer.load(tmp_path / "out")
    assert (found.pairs, found.options, found.several) == (made.pairs, made.options, made.several)
    assert found.settings == made.settings
    assert np.isnan(found.number)
    assert found.other == float("-inf")
    np.testing.assert_array_equal(found.first.values, made.first.values)
    assert (found.second is not None) == second
    # JSON has no numbers that are not finite; former versions wrote Python's own.
    file = tmp_path / "out" / "measures" / "result.json"
    written = json.loads(file.read_text(), parse_constant=pytest.fail)
    assert (written["number"], written["options"]["factors"]) == ("NaN", [0.5, "Infinity"])
    file.write_text(file.read_text().replace('"NaN"', "NaN").replace('"Infinity"', "Infinity"))
    assert "NaN," in file.read_text()
    again = Outer.load(tmp_path / "out")
    assert np.isnan(again.number)
    assert again.options == made.options
    folders = {path.name for path in (tmp_path / "out").iterdir()}
    assert folders == ({"first", "another", "measures"} if second else {"first", "measures"})


def test_nothing_is_replaced_unasked_and_nothing_is_left_half_written(tmp_path: Path) -> None:
    inner = Inner(name="x", values=np.zeros(2))
    inner.save(tmp_path / "out")
    with pytest.raises(FileExistsError, match="exists already"):
        inner.save(tmp_path / "out")
    broken = Inner(name=object(), values=np.ones(2))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        broken.save(tmp_path / "out", overwrite=True)
    assert Inner.load(tmp_path / "out").name == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_kind_a_damaged_and_an_absent_result_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no result\.json"):
        Inner.load(tmp_path)
    Inner(name="x", values=np.zeros(2)).save(tmp_path / "out")
    with pytest.raises(ResultError, match="expected a result of kind 'effective receptive field', version 1; found"):
        ErfResult.load(tmp_path / "out")
    content = json.loads((tmp_path / "out" / "result.json").read_text())
    for change, message in (({"more": 1}, "no field 'more'"), ({"name": None}, None)):
        (tmp_path / "out" / "result.json").write_text(json.dumps(content | change))
        if message:
            with pytest.raises(ResultError, match=message):
                Inner.load(tmp_path / "out")
    del content["name"]
    (tmp_path / "out" / "result.json").write_text(json.dumps(content))
    with pytest.raises(ResultError, match="fields do not fit"):
        Inner.load(tmp_path / "out")
    (tmp_path / "out" / "arrays.npz").write_bytes(b"PK damaged")
    with pytest.raises(ResultError, match="unreadable result"):
        Inner.load(tmp_path / "out")


DAMAGES = [
    "",
    "[]",
    "null",
    "1",
    '"x"',
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"kind": "inner", "kind": "inner"}',
    "{}",
    '{"kind": [], "schema_version": {}}',
    '{"kind": "inner", "schema_version": 1, "name": "\\ud800"}',
    '{"kind": "inner", "schema_version": 1, "name": 1}',
    '{"kind": "inner", "schema_version": 1, "name": "x", "values": [0.0]}',
    '{"kind": "inner", "schema_version": 1}',
    '{"kind": "inner", "schema_version": 1, "name": "x", "more": 1}',
]


@pytest.mark.parametrize(
    "content", [*(text.encode() for text in DAMAGES), b"\xff{}", b'{"kind"\x00}', b"\xff\xfe{\0}\0"]
)
def test_whatever_stands_in_a_result_the_error_names_it_in_a_line(content: bytes, tmp_path: Path) -> None:
    Inner(name="x", values=np.zeros(2)).save(tmp_path / "out")
    (tmp_path / "out" / "result.json").write_bytes(content)
    with pytest.raises(ResultError, match=r"^directory='.*out': ") as raised:
        Inner.load(tmp_path / "out")
    assert len(str(raised.value)) < 600
    assert "\n" not in str(raised.value)


def test_arrays_of_another_kind_and_misplaced_fields_are_refused(tmp_path: Path) -> None:
    Inner(name="x", values=np.zeros(2)).save(tmp_path / "out")
    for arrays, message in (
        ({"values": np.zeros(2, int)}, "values: an array of int64; expected float64"),
        ({"values": np.array(["a"])}, "values: an array of <U1"),
        ({}, "values is missing"),
        ({"values": np.zeros(2), "name": np.zeros(2)}, "name is in both of its files"),
        ({"values": np.zeros(2), "more": np.zeros(2)}, "no field 'more'"),
    ):
        np.savez(tmp_path / "out" / "arrays.npz", **arrays)
        with pytest.raises(ResultError, match=message):
            Inner.load(tmp_path / "out")
    outer().save(tmp_path / "outer")
    file = tmp_path / "outer" / "measures" / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"first": {"name": "x"}}))
    with pytest.raises(ResultError, match=r"first is in result\.json, not a folder"):
        Outer.load(tmp_path / "outer")


def changed(folder: Path, **changes: Any) -> None:
    """Put other values and arrays into a saved result."""
    content = json.loads((folder / "result.json").read_text())
    with np.load(folder / "arrays.npz") as file:
        arrays = dict(file)
    for name, value in changes.items():
        (arrays if name in arrays else content)[name] = value
    (folder / "result.json").write_text(json.dumps(content))
    np.savez(folder / "arrays.npz", **arrays)


ERF_CHANGES: list[dict[str, Any]] = [
    {"images": ["a"]},
    {"image_hashes": []},
    {"center": [4, 9]},
    {"center": [-1, 4]},
    {"center": [0, 0]},
    {"unit": [9, 9]},
    {"theoretical": ["NaN", 3]},
    {"theoretical": [3]},
    {"mean_map": np.zeros((0, 0))},
    {"mean_map": np.full((9, 9), np.nan)},
    {"ring_sums": np.zeros((2, 3))},
    {"moments": np.zeros((2, 5))},
    {"options": {"unit": "elsewhere"}},
    {"options": None},
    {"skipped": None},
    {"seed": "NaN"},
]
EVALUATION_CHANGES: list[dict[str, Any]] = [
    {"images": ["a"]},
    {"images": []},
    {"labels": np.array([[0, 1]])},
    {"labels": np.array([0, 3])},
    {"labels": np.array([0, -1])},
    {"labels": np.array([True, False])},
    {"best": np.array([0, 1])},
    {"best": np.zeros((2, 0), int)},
    {"best": np.array([[0, 7], [1, 0]])},
    {"classes": ["red"]},
    {"seconds": "NaN"},
    {"seconds": -1},
    {"published": {"top1": "high"}},
    {"settings": []},
]
BIAS_CHANGES: list[dict[str, Any]] = [
    {"shapes": ["cat"]},
    {"stimuli": ["a.png", "a.png"]},
    {"image_hashes": ["a"]},
    {"logits": np.zeros((2, 5), np.float32)},
    {"logits": np.zeros((3, 12), np.float32)},
    {"logits": np.zeros((2, 12, 1), np.float32)},
    {"logits": np.full((2, 12), np.nan, np.float32)},
    {"logits": np.zeros((2, 12), bool)},
    {"categories": ["cat"]},
    {"mapping": {"indices": [["cat", [0, 0]]]}},
    {"mapping": {"indices": [["cat", [-1]]]}},
    {"mapping": {"indices": [["cat", []]]}},
    {"options": {"tie": "last"}},
    {"responses": [None, None]},
]


def test_what_does_not_go_together_is_refused_by_every_kind_of_result(tmp_path: Path) -> None:
    erf = effective_receptive_field(nn.Conv2d(3, 1, 3, padding=1), torch.rand(2, 3, 9, 9))
    evaluation = analysis.EvaluationResult(
        model="m",
        classes=("red", "blue"),
        images=("a", "b"),
        labels=np.array([0, 1]),
        best=np.eye(2, dtype=int),
        seconds=1,
    )
    loaded = analysis.load_model("replknet_nano_k3")
    images = stimulus_set(SyntheticImages(kind="conflict", num_images=2))
    bias = analysis.evaluate_shape_bias(loaded, images, mapping=analysis.MAPPING)
    kinds: list[tuple[Any, list[dict[str, Any]]]] = [
        (erf, ERF_CHANGES),
        (evaluation, EVALUATION_CHANGES),
        (bias, BIAS_CHANGES),
    ]
    for result, changes in kinds:
        for number, change in enumerate(changes):
            folder = tmp_path / f"{type(result).__name__}{number}"
            result.save(folder)
            type(result).load(folder)
            changed(folder, **change)
            with pytest.raises(ResultError, match=r"^directory="):
                type(result).load(folder)
    best = analysis.Prediction(image="a", indices=(1, 0), names=("x", "y"), scores=(0.7, 0.3))
    bias.save(tmp_path / "lost")
    np.savez(tmp_path / "lost" / "arrays.npz")  # an optional array that was there
    with pytest.raises(ResultError, match="logits is missing"):
        analysis.ShapeBiasResult.load(tmp_path / "lost")
    predictions = analysis.Predictions(model="m", items=(best,))
    for change in ({"indices": [1]}, {"indices": [-1, 0]}, {"scores": [1.7, 0]}, {"scores": ["NaN", 0]}, {"names": []}):
        predictions.save(tmp_path / "predictions", overwrite=True)
        item = json.loads((tmp_path / "predictions" / "result.json").read_text())["items"][0]
        changed(tmp_path / "predictions", items=[item | change])
        with pytest.raises(ResultError, match="a: "):
            analysis.Predictions.load(tmp_path / "predictions")


def test_predictions_come_back(tmp_path: Path) -> None:
    analysis.save_stimuli(SyntheticImages(num_images=3), tmp_path / "images")
    found = analysis.predict("replknet_nano_k3", tmp_path / "images", top=2)
    found.save(tmp_path / "out")
    again = analysis.Predictions.load(tmp_path / "out")
    assert (again.model, again.items, again.skipped) == (found.model, found.items, found.skipped)


def test_what_is_shown_is_short_and_escaped() -> None:
    assert repr(outer()) == "Outer(pairs=(('a', 1), ('b', 2)), number=nan, text='<b>&')"
    assert "&lt;b&gt;&amp;" in outer()._repr_html_()
    assert len(repr(Inner(name="x" * 10_000, values=np.zeros(1)))) < 200


def test_no_result_of_the_toolkit_dumps_arrays_or_a_module(tmp_path: Path) -> None:
    images = SyntheticImages(kind="conflict", num_images=12)
    loaded = analysis.load_model("replknet_nano_k3")
    bias = analysis.evaluate_shape_bias(loaded, stimulus_set(images), mapping=analysis.MAPPING)
    analysis.save_stimuli(SyntheticImages(num_images=12), tmp_path)
    shown: list[Any] = [
        effective_receptive_field(nn.Conv2d(3, 1, 3, padding=1), torch.rand(2, 3, 9, 9)),
        bias,
        analysis.evaluate(loaded, tmp_path),
        analysis.predict(loaded, tmp_path),
        analysis.extract_features(loaded, tmp_path),
        analysis.load_images(size=32, num_images=2000),
        stimulus_set(images),
        loaded,
        LoadedModel(name="mine", module=nn.Sequential(*[nn.Linear(2, 2)] * 50)),
    ]
    for item in shown:
        assert repr(item).startswith(f"{type(item).__name__}("), item
        for text in (repr(item), item._repr_html_()):
            assert len(text) < 1200
            assert "array(" not in text and "Linear(" not in text and "tensor" not in text
