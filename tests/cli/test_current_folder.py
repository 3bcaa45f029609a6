"""No command imports what lies in the current folder, but for a module that the user names."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "predict hf:no/where {images}",
    "erf replknet_nano_k3 --images {images} --num-images 1 --size 64 --out erf --overwrite",
    "export replknet_nano_k3 --out network.pt2 --overwrite",
)
RUN = """
import multiprocessing, sys
from analysis.cli import main
if __name__ == "__main__":
    for command in sys.argv[1:]:
        try:
            main(command.split())
        except SystemExit as ended:
            print("CODE", ended.code)
    process = multiprocessing.get_context("spawn").Process(target=print)
    process.start()
    process.join()
"""
"""What the console script does, for several commands, and a process such as some of them start."""
LISTEN = """
import sys
names = set()
class Finder:
    def find_spec(self, name, path=None, target=None):
        names.add(name.partition(".")[0])
sys.meta_path.insert(0, Finder())
"""


def start(*words: object, folder: Path, path: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment = kept | {"PYTHONPATH": str(path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bin") / "replknet"
    path.write_text(RUN)
    return path


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    return [command.format(images=folder) for command in COMMANDS]


@pytest.fixture(scope="module")
def planted(commands: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a module for every name that the commands import, or look for in vain."""
    folder = tmp_path_factory.mktemp("empty")
    listening = folder / "listening"
    listening.write_text(LISTEN + RUN + '    print("NAMES", *sorted(names))\n')
    printed = start(listening, *commands, folder=folder).stdout.splitlines()
    assert [line for line in printed if line.startswith("CODE")] == ["CODE 2", "CODE 0", "CODE 0"]
    (names,) = [line.split()[1:] for line in printed if line.startswith("NAMES")]
    assert {"torch", "typer", "pyarrow", "numexpr", "json", "transformers"} < set(names)
    folder = tmp_path_factory.mktemp("planted")
    (folder / "matplotlibrc").write_text("text.usetex: True\nbackend: module://planted\n")  # LaTeX is a program, too
    for name in {*names, "bottleneck", "sitecustomize", "usercustomize"}:
        (folder / f"{name}.py").write_text(f"open({str(folder / 'RAN')!r}, 'a').write('{name} ')\nraise ImportError\n")
    return folder


def imported(folder: Path) -> str:
    found = folder / "RAN"
    text = found.read_text() if found.exists() else ""
    found.unlink(missing_ok=True)
    return text


def test_python_would_import_what_is_planted(planted: Path) -> None:
    assert start("-c", "import json", folder=planted).returncode != 0
    assert imported(planted) == "json "


def test_the_console_script_and_the_processes_it_starts_import_nothing_of_it(
    planted: Path, script: Path, commands: list[str]
) -> None:
    done = start(script, *commands, folder=planted)
    assert imported(planted) == "", done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("CODE")] == ["CODE 2", "CODE 0", "CODE 0"]


def test_the_module_imports_nothing_of_it(planted: Path, tmp_path: Path, commands: list[str]) -> None:
    # What Python itself has imported when it begins with a module, and the module, are out of our hands.
    (tmp_path / "probe.py").write_text("import sys\nprint(*sys.modules)\n")
    before = {"replknet", *start("-m", "probe", folder=tmp_path).stdout.split()}
    assert not {"torch", "json", "pathlib", "typing"} & before
    for file in planted.glob("*.py"):
        if file.stem not in before:
            (tmp_path / file.name).write_text(file.read_text())
    done = start("-m", "replknet", *commands[1].split(), folder=tmp_path)
    assert imported(planted) == ""
    assert done.returncode == 0, done.stderr


def test_a_module_that_is_named_is_imported_and_what_is_beside_it_hides_nothing_installed(
    planted: Path, tmp_path: Path, commands: list[str], script: Path
) -> None:
    images = commands[0].split()[-1]
    for file in planted.glob("*.py"):
        found = importlib.util.find_spec(file.stem)
        if found is not None and found.origin is not None:  # Python takes any module before a namespace package
            (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / "own_net.py").write_text("import torch\n\ndef make():\n    return torch.nn.Conv2d(3, 4, 3)\n")
    done = start(script, f"erf own_net:make --images {images} --size 32 --out own", folder=tmp_path)
    assert imported(planted) == ""
    assert "CODE 0" in done.stdout, done.stderr


@pytest.mark.parametrize("way", ["module", "script"])
def test_a_current_folder_that_was_deleted_is_one_line(tmp_path: Path, way: str) -> None:
    (tmp_path / "script").write_text("from analysis.cli import main\nmain()\n")
    words = ["-m", "replknet"] if way == "module" else [tmp_path / "script"]
    gone = tmp_path / "gone"
    gone.mkdir()
    leave = "import os, sys; os.rmdir(os.getcwd()); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    done = start("-c", leave, *words, "models", folder=gone)
    assert done.stderr == "replknet: the current folder was deleted; change to one that is there\n"
    assert done.returncode == 2


def test_the_module_runs_in_a_checkout_that_is_not_installed(tmp_path: Path) -> None:
    for package in ("replknet", "analysis"):
        (tmp_path / package).symlink_to(ROOT / package)
    done = start("-m", "replknet", "--help", folder=tmp_path, path=tmp_path / "nothing")
    assert done.returncode == 0, done.stderr
