from pathlib import Path

import pytest

from analysis.models.specs import distinct, near_names, network_in, split_name

LIBRARIES = ("timm", "torchvision")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("timm:resnet18", ("", "timm:resnet18")),
        ("Mine=my.net:load", ("Mine", "my.net:load")),
        ("My net = runs/a", ("My net", "runs/a")),
        ("A=timm:resnet18", ("A", "timm:resnet18")),
        ("A=b=c.pth", ("A", "b=c.pth")),
        ("runs/lr=1/network.safetensors", ("", "runs/lr=1/network.safetensors")),
        ("hf:me/net=2", ("", "hf:me/net=2")),
        ("A=runs/lr=1/w.pth", ("A", "runs/lr=1/w.pth")),
    ],
)
def test_a_name_is_what_is_before_the_first_sign_and_no_path(text: str, expected: tuple[str, str]) -> None:
    assert split_name(text) == expected


def test_the_name_of_a_file_that_is_there_is_no_name(here: Path) -> None:
    for name in ("lr=1.pth", "lr=2.py", "steps=9:30.pth"):
        (here / name).touch()
    (here / "lr=3").mkdir()
    for text in ("lr=1.pth", "lr=2.py:load", "lr=3", "steps=9:30.pth"):
        assert split_name(text) == ("", text)
    (here / "1.pth").touch()
    with pytest.raises(ValueError, match=r"model='lr=1.pth': may be the file of this name, or '1.pth' called 'lr'"):
        split_name("lr=1.pth")
    assert split_name("./lr=1.pth") == ("", "./lr=1.pth")


@pytest.mark.parametrize("text", ["=x", "A=", " = ", "A\nB=x", "\x00=x"])
def test_an_empty_part_or_a_name_that_cannot_be_printed_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"model=.*: expected NAME=SPEC with a name before and a network after"):
        split_name(text)


def test_names_get_longer_until_they_differ(here: Path) -> None:
    for name in ("w.pth", "w.pt", "a/w.pth", "b/w.pth"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).touch()

    def named(*pairs: tuple[str, str]) -> list[str]:
        names, specs = zip(*pairs, strict=True)
        return distinct(names, specs, LIBRARIES)

    assert named(("x", "x.pth"), ("y", "y.pth")) == ["x", "y"]
    runs = [("run", f"{folder}/run/network.safetensors") for folder in ("a/1", "b/1")]
    assert named(*runs) == ["a/1/run", "b/1/run"]
    assert named(*[("run", f"{folder}/run") for folder in "ab"], ("run", "")) == ["a/run", "b/run", "run"]
    assert named(("w", "a/w.pth"), ("w", "b/w.pth")) == ["a/w", "b/w"]
    assert named(("w", "w.pth"), ("w", "w.pt")) == ["w.pth", "w.pt"]
    assert named(("load", "a/n.py:load"), ("load", "b/n.py:load")) == ["a/n.py:load", "b/n.py:load"]
    assert named(("load", "a.net:load"), ("load", "b.net:load")) == ["a.net:load", "b.net:load"]
    both = [(f"resnet18{ending}", f"{library}:resnet18") for library in LIBRARIES for ending in ("",)]
    assert named(*both) == ["timm:resnet18", "torchvision:resnet18"]
    assert named(("x", "x.pth"), ("x", "x.pth")) == ["x.pth", "x.pth"]  # the same twice stays the same


def test_the_network_in_a_folder(here: Path) -> None:
    with pytest.raises(ValueError, match=r"model='.*': expected a folder with network.safetensors; no network was"):
        network_in(here)
    cell = here / "study" / "cells" / "k3"
    cell.mkdir(parents=True)
    (cell / "network.safetensors").touch()
    assert network_in(cell) == cell / "network.safetensors"
    with pytest.raises(ValueError, match=r"it is a study; its networks are .*cells/k3"):
        network_in(here / "study")


def test_near_names() -> None:
    assert near_names("resnet18") == " (did you mean timm:resnet18 or torchvision:resnet18?)"
    assert near_names("replknet31b") == " (did you mean replknet_31b or replknet_31l?)"
    assert near_names("googlenett") == " (did you mean torchvision:googlenet?)"
    assert near_names("qqqqqqqqqqqq") == near_names("") == near_names("\0") == near_names("x" * 1000) == ""
