"""Options made from dataclasses: their names, help, defaults, and what they fill."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import typer
from typer.testing import CliRunner

from analysis import ErfResult
from analysis.cli.ablate import ablate_train
from analysis.cli.choosing import ModelChoice, default_workers
from analysis.cli.options import Fields, parse_names, parse_numbers, takes
from analysis.models.loaded import resolve_device
from analysis.study.design import Study
from analysis.study.jobs import JobOptions
from analysis.training.recipe import Recipe
from tests.cli.command import run


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Everything that an option can be.

    Args:
        sides: Some sides, e.g. of squares. Not told.
        shares: Parts of
            something; of any.
        kind: What it is.
        deep: Whether it is deep.
        amount: How much; None for none.
        more: Pairs.

    Raises:
        ValueError: Never.
    """

    sides: tuple[int, ...] = (3, 7)
    shares: tuple[float, ...] = (0.5,)
    kind: Literal["this", "that"] = "this"
    deep: bool = False
    amount: float | None = None
    more: Mapping[str, str] = field(default_factory=dict)


def outcome(group: Fields, *words: str) -> tuple[Any, str]:
    """What a command gets, and its help."""
    app, got = typer.Typer(), list[Any]()

    @app.command()
    @takes(choice=group)
    def command(choice: Any, number: int = 1) -> None:
        got.append(choice)

    runner = CliRunner()
    done = runner.invoke(app, words)
    assert done.exit_code == 0, done.output
    return got[0], " ".join(runner.invoke(app, ["--help"], env={"COLUMNS": "300"}).output.split())


def test_an_instance_has_the_defaults_and_what_is_given() -> None:
    group = Fields(Choice, without=("more",))
    found, shown = outcome(group)
    assert found == Choice()
    for text in (
        "Some sides, e.g. of squares. E.g. 3,7.",
        "Parts of something; of any. E.g. 0.5.",
        "What it is. One of this, that.",
        "--deep",
        "--no-deep",
        "3,7",
    ):
        assert text in shown
    assert "Not told" not in shown
    found, _ = outcome(group, "--sides", "1,2,3", "--shares", "0.25", "--kind", "that", "--deep", "--amount", "2")
    assert found == Choice(sides=(1, 2, 3), shares=(0.25,), kind="that", deep=True, amount=2.0)


def test_changes_are_what_is_given_and_no_more() -> None:
    group = Fields(Choice, called={"amount": "how_much"}, parsed={"kind": str.upper}, helps={"kind": "K"}, changes=True)
    assert outcome(group)[0] == {}
    words = ("--how-much", "3", "--kind", "x", "--more", "a=1", "--more", "b=c=d", "--no-deep")
    expected = {"amount": 3.0, "kind": "X", "more": {"a": "1", "b": "c=d"}, "deep": False}
    assert outcome(group, *words)[0] == expected


def test_every_field_of_a_sweep_is_an_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as the three dataclasses have, but for the image folder, the recipe as such, and when seeds suffice."""
    fields = (
        len(Study.__dataclass_fields__) - 3 + len(Recipe.__dataclass_fields__) + len(JobOptions.__dataclass_fields__)
    )
    own = {"out", "preset", "data", "workers", "at_once", "device", "dry_run", "overwrite"}
    assert len(ablate_train.__signature__.parameters) == fields + len(own)  # type: ignore[attr-defined]
    monkeypatch.setenv("COLUMNS", "300")
    run("ablate train --help")
    shown = capsys.readouterr().out
    for name in ("--seeds", "--shortcut", "--train-images", "--erf-images", "--drop-path", "--time", "--signal-delay"):
        assert name in shown
    assert "with, without or both" in shown


def test_numbers() -> None:
    assert parse_numbers("--sizes", "3,7") == (3, 7)
    assert parse_numbers("--mean", "0.1,0.2,0.3", float, count=3) == (0.1, 0.2, 0.3)
    cases: list[tuple[str, dict[str, Any]]] = [("3,x", {}), ("", {}), ("3", {"count": 3})]
    cases += [("0,3", {"within": (1, 9)}), ("3,10", {"within": (1, 9)}), ("nan", {"kind": float})]
    for text, options in cases:
        with pytest.raises(ValueError, match=r"--sizes=.*: expected .*numbers"):
            parse_numbers("--sizes", text, **options)


def test_names() -> None:
    assert parse_names("--layers", "a, b.0") == ("a", "b.0")
    for text in ("", "a,,b", "a,b,a", "a, "):
        with pytest.raises(ValueError, match=r"--layers='.*': expected different names, separated by commas"):
            parse_names("--layers", text)


def test_the_choice_of_a_model() -> None:
    (small,) = ModelChoice(kernel_sizes=["3,3,3,3"], seed=1).load(["replknet_nano_k31"])
    assert small.module.config.kernel_sizes == (3, 3, 3, 3)  # type: ignore[union-attr]
    assert ModelChoice(device="cpu").computed_on() == {}
    assert ModelChoice(device="meta", dtype="float16").computed_on() == {"device": "meta", "dtype": "float16"}
    with pytest.raises(ValueError, match="small_kernel=3: applies to networks of replknet by name only"):
        ModelChoice(small_kernel=3).load(["timm:resnet18"])
    with pytest.raises(ValueError, match="pretrained=False: applies to networks by name only"):
        ModelChoice(pretrained=False).load(["weights.pth"])
    with pytest.raises(ValueError, match="unit_scales=True: applies to untrained networks only"):
        ModelChoice(unit_scales=True).load(["replknet_nano_k3"])
    assert ModelChoice(unit_scales=True, pretrained=False).load(["replknet_nano_k3"])[0].initial
    assert ModelChoice(seed=3, checkpoint=["w.pth"]).given() == {"seed": 3, "checkpoint": ("w.pth",)}


def present(monkeypatch: pytest.MonkeyPatch, *, cuda: bool, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


def test_the_device_auto_without_a_gpu_is_that_of_runs_that_named_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    present(monkeypatch, cuda=False, mps=False)
    assert ModelChoice() == ModelChoice(device="auto")
    assert ModelChoice().computed_on() == {}
    command = f"erf replknet_nano_k3 --size 64 --num-images 1 --out {tmp_path / 'erf'}"
    run(command)
    assert "note: computed on cpu\n" in capsys.readouterr().err
    assert "device" not in json.loads((tmp_path / "erf" / "run.json").read_text())["settings"]
    assert ErfResult.load(tmp_path / "erf" / "replknet_nano_k3").environment["device"] == "cpu"
    run(f"{command} --device cpu")
    assert "computed on" not in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("cuda", "mps", "device"), [(True, True, "cuda"), (False, True, "mps")])
def test_the_device_auto_is_a_gpu_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, device: str
) -> None:
    present(monkeypatch, cuda=cuda, mps=mps)
    with pytest.raises(ValueError, match=f"device={device}: cannot be used here"):  # which tells what was chosen
        resolve_device("auto")
    with pytest.raises(ValueError, match=f"device={device}: cannot be used here"):
        ModelChoice().load(["replknet_nano_k3"])
    assert ModelChoice(device="cpu").load(["replknet_nano_k3"])[0].notes == ()


def test_workers() -> None:
    assert ModelChoice(device="cpu").workers(None) == 0
    assert ModelChoice(device="cpu").workers(3) == 3
    assert [default_workers(cores) for cores in (0, 1, 2, 8, 64)] == [0, 0, 1, 7, 12]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("ablate train --preset quick --seeds 0 --out X", "--seeds=0: expected 1 to 10000"),
        ("ablate train --preset quick --drop-path 2 --out X", "--drop-path=2.0: expected a number in [0, 1)"),
        ("ablate train --preset quick --dry-run --nodes 0 --out X", "--nodes=0: expected 1 to 10000 machines"),
        ("ablate train --preset quick --dry-run --slurm account --out X", "--slurm=account: expected name=value"),
        ("ablate train --preset quick --partition gpu --out X", "--partition=gpu: goes with --executor only"),
        (
            "erf replknet_nano_k3 --size 64 --num-images 1 --layers nose --out X",
            "--layers='nose': the model has",
        ),
        ("data synthetic --kind all --to X", "--kind='all': expected one of congruent"),
    ],
)
def test_messages_name_what_was_typed(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(command, code=2)
    assert message in capsys.readouterr().err
