"""`package.module:callable` and `file.py:callable`: whose code runs, and what is said when it fails."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from analysis import load_model

MAKE = "from torch import nn\n\n\ndef make():\n    return nn.Linear(SIZE, 2)\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("spec", ["own_net:make", "own_net.py:make", "./own_net.py:make", "FOLDER/own_net.py:make"])
def test_a_module_or_file_of_the_current_folder_is_a_model(folder: Path, spec: str) -> None:
    (folder / "own_net.py").write_text("import own_sizes\n" + MAKE.replace("SIZE", "own_sizes.SIZE"))
    (folder / "own_sizes.py").write_text("SIZE = 5\n")
    before = list(sys.path)
    loaded = load_model(spec.replace("FOLDER", str(folder)))
    assert isinstance(loaded.module, nn.Linear)
    assert loaded.module.in_features == 5
    assert sys.path == [*before, str(folder)]  # last, so that nothing there stands for what is installed


def test_a_file_elsewhere_finds_what_is_beside_it_and_a_package_is_one(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "deep_net-2.py").write_text("import deep_sizes\n" + MAKE.replace("SIZE", "deep_sizes.SIZE"))
    (folder / "deep" / "deep_sizes.py").write_text("SIZE = 6\n")
    (folder / "own_package").mkdir()
    (folder / "own_package" / "nets.py").write_text(MAKE.replace("SIZE", "7"))
    assert [load_model(spec).module.in_features for spec in ("deep/deep_net-2.py:make", "own_package.nets:make")] == [
        6,
        7,
    ]


def test_what_is_installed_comes_first_and_a_file_that_it_hides_is_not_taken_for_it(folder: Path) -> None:
    (folder / "colorsys.py").write_text(MAKE.replace("SIZE", "5"))  # a module of Python that nothing has imported
    before = list(sys.path)
    with pytest.raises(ValueError, match=r"cannot be imported: .*python3.*colorsys\.py has no function 'make'"):
        load_model("colorsys:make")
    assert sys.path == before
    with pytest.raises(ValueError, match=r"Python has another module 'colorsys' \(.*\); rename the file"):
        load_model("colorsys.py:make")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import torch\n\n1 / 0\n", r"ZeroDivisionError in {}:3: division by zero"),
        ("import torch\ndef make(:\n    pass\n", r"SyntaxError in {}:2: invalid syntax"),
        ("import sys\nsys.exit('enough')\n", r"SystemExit in {}:2: enough"),
        ("import torch\ntorch.zeros(2) @ torch.zeros(3)\n", r"RuntimeError in {}:2: "),
        ("\nimport no_such_package\n", r"ModuleNotFoundError in {}:2: No module named 'no_such_package'"),
        ("class Own(BaseException): ...\nraise Own('x')\n", r"Own in {}:2: x"),
        ("def __getattr__(name):\n    raise KeyError(name)\n", r"KeyError in {}:2: 'make'"),
        ("def make():\n    exit(3)\n", r"SystemExit in {}:2: 3"),
        ("def make():\n    return other()\n\ndef other():\n    raise OSError('disk')\n", r"OSError in {}:5: disk"),
        ("def make(size):\n    pass\n", r"TypeError: make\(\) missing 1 required"),
        ("\x00", r"SyntaxError"),
    ],
)
def test_what_the_users_code_raises_is_one_line_with_its_place(folder: Path, code: str, error: str) -> None:
    (folder / "own_failing.py").write_text(code)
    expected = error.replace("{}", re.escape(str(folder / "own_failing.py")))
    with pytest.raises(ValueError, match=f"model='own_failing:make': failed with {expected}"):
        load_model("own_failing:make")


def test_an_interruption_of_the_users_code_stays_one(folder: Path) -> None:
    (folder / "own_slow.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_model("own_slow:make")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module:make", "no module 'no_such_module' is installed or in the current folder"),
        ("no_such_file.py:make", "no such file"),
        (".relative:make", "is no name of a Python module"),
        ("a..b:make", "is no name of a Python module"),
        (":make", "is no name of a Python module"),
        ("json:", "expected a RepLKNet"),
        ("math:pi", "has no function 'pi'"),
        ("math:no", "math.* has no function 'no'"),
    ],
)
def test_names_of_nothing(folder: Path, spec: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_model(spec)
