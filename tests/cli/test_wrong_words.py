"""Words that no command takes: one line that names them, exit code 2, and nothing is written."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image

import replknet
from analysis import SyntheticImages, cli, save_stimuli
from analysis.study.design import preset
from analysis.study.record import save_study
from tests.analysis.shape_bias.observers import write_single_cues
from tests.cli.command import run
from tests.cli.wrong_words import BASES, CASES, NETWORK

RECIPE = """about = ""
source = ""
epochs = 2
warmup_epochs = 0
[recipe]
batch_size = 4
augmentation = "flip"
image_size = 64
"""


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the words name: images, labels, weights, a study, and things that are none of it."""
    root = tmp_path_factory.mktemp("material")
    save_stimuli(SyntheticImages(num_images=24), root / "congruent")
    save_stimuli(SyntheticImages(kind="conflict", num_images=24), root / "conflict")
    for part in ("train", "val"):
        shutil.copytree(root / "congruent", root / "data" / part)
    shutil.copytree(root / "data" / "train", root / "others" / "train")
    shutil.copytree(root / "data" / "train" / "ring", root / "others" / "val" / "ring")
    shutil.copytree(root / "data" / "train", root / "alone" / "train")
    (root / "empty").mkdir()
    (root / "text.txt").write_text("hello\n")
    (root / "labels.csv").write_text("class_index,category\n0,ring\nx,star\n")
    (root / "good.csv").write_text("class_index,category\n0,arrow\n1,bolt\n")
    (root / "responses.csv").write_text(
        "subj,session,trial,rt,object_response,category,condition,imagename\n"
        "s1,1,1,NaN,cat,cat,0,0001_cue_dnn_0_cat_00_cat1-dog1.png\n"
    )
    (root / "own.toml").write_text(RECIPE)
    torch.save(replknet.create_model(NETWORK).state_dict(), root / "weights.pth")
    save_study(preset("quick"), "replknet study", root / "study")
    (root / "broken").mkdir()
    (root / "broken" / "a.png").write_text("hello\n")
    (root / "wide").mkdir()
    Image.new("RGB", (40, 30)).save(root / "wide" / "a.png")
    write_single_cues(root / "tree", ["shape/clock/clock_1", "texture/zebra/zebra_1"])
    write_single_cues(root / "unknown", ["texture/clock/clock_1"])
    return root


@pytest.fixture
def here(material: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The material as the current folder, in which nothing is added, removed or changed."""
    monkeypatch.chdir(material)
    before = {path: path.stat().st_mtime_ns for path in material.rglob("*")}
    yield material
    assert {path: path.stat().st_mtime_ns for path in material.rglob("*")} == before


def refused(capsys: pytest.CaptureFixture[str], command: str, words: list[str]) -> str:
    """The one line of a command that is refused."""
    capsys.readouterr()
    run(command, *words, code=2)
    printed = capsys.readouterr()
    assert printed.err.startswith("replknet: ")
    assert printed.err.count("\n") == 1, printed.err
    assert printed.out == ""
    return printed.err


def words_of(command: str, change: str) -> list[str]:
    """The words of a command in which an option has another value (`--size 3`), or a positional word (`^0 x`)."""
    words, given = BASES[command].split(), change.split()
    if given[0].startswith("^"):
        words[int(given[0][1:])] = given[1]
        return words + given[2:]
    name, *value = given
    if name in words and name != "--set":
        words[words.index(name) : words.index(name) + 2] = []
    return [*words, name, *value]


def leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    for child, own in getattr(command, "commands", {}).items():
        yield from leaves(own, f"{name} {child}")
    if not getattr(command, "commands", {}):
        yield name, command


def all_commands() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (module, _) in cli.COMMANDS.items():
        app = __import__(f"analysis.cli.{module}", fromlist=["app"]).app
        found |= dict(leaves(typer.main.get_command(app).get_command(None, name), name))  # type: ignore[attr-defined]
    return found


def test_every_command_has_a_base() -> None:
    sets = {name for name in all_commands() if name.startswith("data ")} - {"data weights", "data synthetic"}
    assert set(BASES) | sets == set(all_commands()) - {"models"}


def test_no_option_takes_an_empty_text(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--out "$UNSET"` is not the current folder; of no option of any command."""
    tried = 0
    for name, command in all_commands().items():
        base = BASES.get(name, "--to out").split() if name != "models" else []
        for parameter in command.params:
            if parameter.param_type_name == "argument" or parameter.is_flag:
                continue
            for empty, option in (("", parameter.opts[0]), (" ", parameter.opts[-1])):
                for words in ([*base, option, empty], [*base, f"{option}={empty}"]):
                    said = refused(capsys, name, words)
                    assert said == f"replknet: {option}={empty!r}: expected a value, not an empty text\n"
                    tried += 1
    assert tried > 500
    assert "argument after replknet_nano_k3=''" in refused(capsys, "predict", [NETWORK, ""])
    assert "argument after predict=''" in refused(capsys, "predict", ["", "congruent"])


@pytest.mark.parametrize(
    ("command", "change", "message"),
    [(command, change, message) for command, cases in CASES.items() for change, message in cases],
)
def test_wrong_words_are_one_line_and_leave_nothing(
    here: Path, no_hub: None, capsys: pytest.CaptureFixture[str], command: str, change: str, message: str
) -> None:
    assert message in refused(capsys, command, words_of(command, change))


def test_accepted_beside_them(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bases themselves run: what is refused above is refused for its own words."""
    words = BASES["train"].replace("--out out", f"--out {tmp_path / 'out'}").split()
    run("train", *words, "--set", "ema_decay=.9", "--set", "max_gradient_norm=inf", "--max-steps", "1")
    trained = replknet.inspect_checkpoint(tmp_path / "out" / "network.safetensors")
    assert not trained.problems
    run("erf", *BASES["erf"].replace("--out out", f"--out {tmp_path / 'erf'}").split())
    assert (tmp_path / "erf" / "erf.csv").is_file()
