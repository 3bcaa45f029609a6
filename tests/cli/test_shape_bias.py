import json
import shutil
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from analysis import LoadedModel, ShapeBiasResult, read_responses, write_responses
from analysis.shape_bias.categories import CATEGORIES
from analysis.shape_bias.glyphs import category_glyph, has_glyph
from analysis.shape_bias.plots import plot_category_box, plot_confusion, plot_pair_map, plot_shape_bias
from tests.analysis.shape_bias.observers import observer, write_stimuli
from tests.cli.command import run

KINDS = ("cat", "dog", "oven")
NAMES = tuple(f"{shape}{i}-{texture}{i}" for shape in KINDS for texture in KINDS for i in (1, 2))


class Thousand(nn.Module):
    calls = 0
    gain = 1.0

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights = nn.Parameter(torch.randn(3, 1000, generator=generator) * 8)

    def forward(self, x: Tensor) -> Tensor:
        Thousand.calls += len(x)
        return x.mean((2, 3)) @ self.weights


def thousand() -> LoadedModel:
    return LoadedModel(name="thousand", module=Thousand(), input_size=16)


def ten_classes() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))


MODEL = "tests.cli.test_shape_bias:thousand"


@pytest.fixture
def stimuli(tmp_path: Path) -> Path:
    return write_stimuli(tmp_path / "stimuli", NAMES)


@pytest.fixture
def humans(tmp_path: Path) -> Path:
    folder = tmp_path / "humans"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for person in range(3):
        answers = [(n, n.split("-")[0][:-1] if generator.random() < 0.8 else "na") for n in NAMES]
        write_responses(observer(answers, name=f"person-{person}"), folder / f"{person}.csv")
    return folder


Capture = pytest.CaptureFixture[str]


def test_all_outputs(stimuli: Path, humans: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    raw = tmp_path / "recorded.csv"
    write_responses(observer([(name, "dog") for name in NAMES], name="dog-sayer"), raw)
    arguments = ("shape-bias", MODEL, raw, "--stimuli", stimuli, "--humans", humans, "--out", out)
    run(*arguments)
    result = ShapeBiasResult.load(out / "thousand")
    assert result.logits is not None and result.logits.shape == (18, 1000)
    table = pd.read_csv(out / "shape_bias.csv").set_index("observer")
    assert list(table.index) == ["thousand", "dog-sayer", "person-0", "person-1", "person-2"]
    assert table.loc["thousand", "num_shape"] == result.num_shape
    # Of twelve conflicts four show a dog, four wear one, four neither.
    assert table[["num_shape", "num_texture", "num_neither"]].to_numpy()[1].tolist() == [4, 4, 4]
    decisions = pd.read_csv(out / "decisions.csv")
    assert len(decisions) == 5 * 18
    assert set(decisions["decision"]) <= {"shape", "texture", "neither", "correct", "wrong"}
    for name in ("by_shape", "by_texture", "pairs", "confusion", "comparisons", "consistency"):
        assert len(pd.read_csv(out / f"{name}.csv")) > 0
    assert read_responses(out / "raw-responses" / "cue-conflict_thousand_session_1.csv").responses == result.responses
    summary = json.loads((out / "summary.json").read_text())
    assert summary["humans"]["num_observers"] == 3
    assert summary["observers"][1]["shape_bias"] == 0.5
    figures = ["shape_bias", "categories", "consistency"]
    figures += [f"{kind}_{who}" for kind in ("pairs", "confusion") for who in ("thousand", "dog-sayer")]
    for figure in figures:
        assert (out / f"{figure}.pdf").is_file()
        assert matplotlib.image.imread(out / f"{figure}.png").std() > 0.01
    printed = capsys.readouterr()
    assert "0.5000" in printed.out and "noise ceiling" in printed.err
    assert "figures: 100 % (7 of 7)" in printed.err


def test_comparisons_tell_what_was_drawn(tmp_path: Path) -> None:
    """Images that share neither shape nor texture are drawn one by one, whatever was asked for."""
    for number, answer in enumerate(("cat", "dog")):
        answers = [(f"cat{index}-dog{index}", answer) for index in range(1, 5)]
        write_responses(observer(answers, name=answer), tmp_path / f"{number}.csv")
    run("shape-bias", tmp_path / "0.csv", tmp_path / "1.csv", "--out", tmp_path / "out")
    for table in ("comparisons", "shape_bias"):
        assert set(pd.read_csv(tmp_path / "out" / f"{table}.csv")["cluster"]) == {"image"}


def test_a_second_call_answers_from_saved_logits(stimuli: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    arguments = ("shape-bias", MODEL, "--stimuli", stimuli, "--out", out)
    run(*arguments)
    calls = Thousand.calls
    before = {path: path.read_bytes() for path in out.rglob("*.csv")}
    run(*arguments)
    assert Thousand.calls == calls
    assert {path: path.read_bytes() for path in out.rglob("*.csv")} == before
    # Other options would replace the tables: only when asked, and then without a new run.
    changed = (*arguments, "--aggregation", "max-probability", "--estimator", "category-mean", "--cluster", "shape")
    capsys.readouterr()
    run(*changed, code=2)
    error = capsys.readouterr().err
    assert "differs in cluster, aggregation, estimator" in error and "--overwrite" in error
    assert {path: path.read_bytes() for path in out.rglob("*.csv")} == before
    run(*changed, "--overwrite")
    assert Thousand.calls == calls
    table = pd.read_csv(out / "shape_bias.csv")
    assert table[["aggregation", "estimator", "cluster"]].iloc[0].tolist() == [
        "max-probability",
        "category-mean",
        "shape",
    ]
    assert ShapeBiasResult.load(out / "thousand").options.aggregation == "max-probability"
    # Other stimuli are another run.
    shutil.rmtree(stimuli / "oven")
    run(*arguments, "--overwrite")
    assert Thousand.calls == calls + 13  # and the black image that asks whether the model fits
    assert len(ShapeBiasResult.load(out / "thousand").stimuli) == 12


def test_custom_labels(stimuli: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("class_index,category\n0,cat\n1,dog\n2,oven\n")
    model = "tests.cli.test_shape_bias:ten_classes"
    run("shape-bias", model, "--stimuli", stimuli, "--labels", labels, "--out", tmp_path / "out")
    result = ShapeBiasResult.load(tmp_path / "out" / "ten_classes")
    assert result.categories == ("cat", "dog", "oven")
    assert set(result.responses) <= {"cat", "dog", "oven"}


def test_labels_that_do_not_fit_saved_logits_touch_nothing(stimuli: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    arguments = ("shape-bias", MODEL, "--stimuli", stimuli, "--out", out)
    run(*arguments)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    labels = tmp_path / "labels.csv"
    labels.write_text("class_index,category\n0,cat\n1,dog\n2000,oven\n")
    capsys.readouterr()
    run(*arguments, "--labels", labels, "--overwrite", code=2)
    assert "1000 outputs" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_edges_give_an_accuracy_and_no_ratio(tmp_path: Path, capsys: Capture) -> None:
    folder = write_stimuli(tmp_path / "edges", ["cat1", "dog1", "oven2"])
    out = tmp_path / "out"
    run("shape-bias", MODEL, "--stimuli", folder, "--out", out)
    assert "no shape bias" in capsys.readouterr().err
    table = pd.read_csv(out / "shape_bias.csv")
    assert np.isnan(table["shape_bias"][0]) and 0 <= table["accuracy"][0] <= 1
    assert not (out / "shape_bias.png").exists() and (out / "confusion.png").is_file()


def _responses_cut(tmp_path: Path, humans: Path) -> None:
    text = (humans / "0.csv").read_text()
    (humans / "0.csv").write_text(text[:-30])


@pytest.mark.parametrize(
    ("extra", "damage", "message"),
    [
        (("--aggregation", "median"), None, "--aggregation='median': expected one of mean-probability"),
        (("--cluster", "dog"), None, "--cluster=dog"),
        (("--tie", "dog"), None, "--tie='dog'"),
        (("--estimator", "dog"), None, "--estimator='dog'"),
        (("--congruent", "dog"), None, "--congruent='dog'"),
        (("--labels", "none.csv"), None, "labels='none.csv': no such file"),
        (("--size", "0"), None, "--size"),
        ((), _responses_cut, "is the file cut off?"),
    ],
)
def test_faults_are_one_line(
    stimuli: Path,
    humans: Path,
    tmp_path: Path,
    capsys: Capture,
    extra: tuple[str, ...],
    damage: Callable[[Path, Path], None] | None,
    message: str,
) -> None:
    if damage is not None:
        damage(tmp_path, humans)
    out = tmp_path / "out"
    run("shape-bias", MODEL, "--stimuli", stimuli, "--humans", humans, "--out", out, *extra, code=2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("replknet: ") and message in lines[0]
    assert not out.exists()


def test_models_that_cannot_run_lose_nothing(stimuli: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    wrong = "tests.cli.test_shape_bias:ten_classes"
    run("shape-bias", MODEL, "--stimuli", stimuli, "--out", out)
    capsys.readouterr()
    run("shape-bias", MODEL, wrong, "--stimuli", stimuli, "--out", out, "--overwrite", code=2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "10 outputs" in lines[0]
    assert len(ShapeBiasResult.load(out / "thousand").stimuli) == 18
    run("shape-bias", MODEL, "--out", tmp_path / "other", code=2)
    assert "--stimuli" in capsys.readouterr().err


class Stubborn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("out of cheese")


def stubborn() -> nn.Module:
    return Stubborn()


def named(name: str) -> LoadedModel:
    return LoadedModel(name=name, module=Thousand(), input_size=16)


def slash() -> LoadedModel:
    return named("a/b")


def dash() -> LoadedModel:
    return named("a-b")


def dots() -> LoadedModel:
    return named("..")


def french() -> LoadedModel:
    return named("modèle à moi")


def raw() -> LoadedModel:
    return named("raw-responses")


def test_names_of_models_never_lead_out_of_their_folder(stimuli: Path, tmp_path: Path, capsys: Capture) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("years of work")
    here = "tests.cli.test_shape_bias"
    for models, message in (
        ((f"{here}:slash", f"{here}:dash"), "two results would be called"),
        ((f"{here}:raw",), "two results would be called 'raw-responses'"),
        ((f"{here}:dots",), "holds no letter or digit"),
    ):
        run("shape-bias", *models, "--stimuli", stimuli, "--out", tmp_path / "par" / "out", code=2)
        assert message in capsys.readouterr().err
        assert not (tmp_path / "par").exists()
    run("shape-bias", MODEL, f"{here}:french", "--stimuli", stimuli, "--out", tmp_path / "out")
    for folder in ("thousand", "modèle-à-moi"):
        assert len(ShapeBiasResult.load(tmp_path / "out" / folder).stimuli) == 18
    assert precious.read_text() == "years of work"


def test_overwrite_removes_only_what_the_command_wrote(stimuli: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    run("shape-bias", MODEL, "--stimuli", stimuli, "--out", out)
    (out / "pairs_my_notes.csv").write_text("mine")
    (out / "figures").mkdir()
    (out / "figures" / "result.json").write_text("mine")
    run("shape-bias", MODEL, "--stimuli", stimuli, "--out", out, "--tie", "none", "--overwrite")
    (out / "modèle-à-moi").mkdir()
    (out / "modèle-à-moi" / "notes.txt").write_text("mine")
    french = "tests.cli.test_shape_bias:french"
    run("shape-bias", MODEL, french, "--stimuli", stimuli, "--out", out, "--overwrite", code=2)
    assert "modèle-à-moi is not of this command" in capsys.readouterr().err
    assert (out / "modèle-à-moi" / "notes.txt").read_text() == "mine"
    assert (out / "pairs_my_notes.csv").read_text() == (out / "figures" / "result.json").read_text() == "mine"
    capsys.readouterr()
    run(
        "erf",
        "tests.cli.test_erf:small_network",
        "--size",
        "24",
        "--num-images",
        "1",
        "--out",
        out,
        "--overwrite",
        code=2,
    )
    assert "holds results of something else" in capsys.readouterr().err
    assert (out / "thousand" / "result.json").is_file()


def test_people_follow_the_options(stimuli: Path, humans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--estimator", "category-mean", "--congruent", "include")
    run("shape-bias", MODEL, "--stimuli", stimuli, "--humans", humans, "--out", out, *options)
    table = pd.read_csv(out / "shape_bias.csv")
    assert set(table["num_images"]) == {18}
    assert set(table["estimator"]) == {"category-mean"}


def test_damaged_files_are_one_line_or_made_anew(stimuli: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    arguments = ("shape-bias", MODEL, "--stimuli", stimuli, "--out", out)
    run(*arguments)
    (out / "thousand" / "arrays.npz").write_bytes(b"PK damaged")
    capsys.readouterr()
    run(*arguments, code=2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "unreadable result" in lines[0] and "--overwrite" in lines[0]
    (out / "thousand.partial.npz").write_bytes(b"PK damaged")  # what a killed run may leave
    known = json.loads((out / "run.json").read_text())
    known["outputs"].append("thousand.partial.npz")
    (out / "run.json").write_text(json.dumps(known))
    run(*arguments, "--overwrite")
    assert len(ShapeBiasResult.load(out / "thousand").stimuli) == 18
    (out / "run.json").write_text("[]")
    run(*arguments, code=2)
    assert "run.json is damaged" in capsys.readouterr().err


def test_a_model_that_fails_leaves_no_trace(stimuli: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    run("shape-bias", "tests.cli.test_shape_bias:stubborn", "--stimuli", stimuli, "--out", out, code=2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "RuntimeError: out of cheese" in lines[0]
    assert not out.exists()


def test_other_images_than_the_people_are_refused_first(
    stimuli: Path, tmp_path: Path, humans: Path, capsys: Capture
) -> None:
    write_responses(observer([("boat1-car1", "boat")], name="somebody"), humans / "9.csv")
    run("shape-bias", MODEL, "--stimuli", stimuli, "--humans", humans, "--out", tmp_path / "out", code=2)
    assert "--stimuli and somebody have no image in common" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_figures_hold_the_decisions() -> None:
    answers = [(n, n.split("-")[0][:-1] if index % 3 else n.split("-")[1][:-1]) for index, n in enumerate(NAMES)]
    result = observer(answers, name="net")
    person = observer([(n, n.split("-")[0][:-1]) for n in NAMES], name="person")
    ax = plot_shape_bias([result], humans=[person])
    points = {line.get_label(): np.asarray(line.get_xdata()) for line in ax.lines}
    np.testing.assert_allclose(points["net"], 1 - result.by_category()["shape_bias"])
    np.testing.assert_allclose(points["humans (n = 1)"], 0)
    legend = ax.get_legend()
    assert legend is not None
    title = legend.get_title().get_text().replace("\n", " ")
    assert title == "12 conflict images, common to all observers"
    alone = plot_shape_bias([result.with_options(congruent="include")]).get_legend()
    assert alone is not None and alone.get_title().get_text() == "18 images"
    for draw in (plot_shape_bias, plot_category_box):
        with pytest.raises(ValueError, match="net has seen 18 images and person 17, not the same"):
            draw([result], humans=[person.restricted(person.stimuli[1:])])
    assert "12 conflict images, common to" in plot_category_box([result], humans=[person]).get_xlabel()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cat", "dog", "oven", "all images"]
    texts = {text.get_text() for text in plot_pair_map(result).texts}
    pairs = result.pair_map()
    assert texts == {f"{row.num_shape}/{row.num_texture}" for row in pairs.itertuples()}
    image = plot_confusion(person).images[0].get_array()
    assert image is not None and np.diag(np.asarray(image)[:, [7, 10, 14]]).tolist() == [100.0] * 3


def test_every_category_has_a_picture_inside_its_square() -> None:
    for category in CATEGORIES:
        assert has_glyph(category)
        for patch in category_glyph(category, 10).get_children():
            box = patch.get_path().get_extents(patch.get_patch_transform())  # type: ignore[attr-defined]
            assert box.x0 >= -0.5 and box.y0 >= -0.5 and box.x1 <= 10.5 and box.y1 <= 10.5
    assert not has_glyph("lion") and not category_glyph("lion").get_children()
