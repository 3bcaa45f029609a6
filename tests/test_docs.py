import dataclasses
import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from typer.main import get_command

import analysis
import replknet
from analysis.cli import COMMANDS
from analysis.training.recipe import Recipe, recipe_names
from docs.executing import NOTEBOOKS

ROOT = Path(__file__).parents[1]
MODULES = [
    module.name
    for package in (replknet, analysis)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if module.name != "replknet.__main__" and not module.name.startswith("analysis.cli")
]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(ROOT / "docs"), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    commands = (tmp_path / "commands.html").read_text()
    assert 'id="replknet-ablate-posthoc"' in commands
    assert "--num-images" in commands
    reference = (tmp_path / "analysis.html").read_text()
    assert all(f'id="analysis.{name}"' in reference for name in ("predict", "evaluate", "effective_receptive_field"))
    assert 'id="replknet.create_model"' in (tmp_path / "replknet.html").read_text()
    for notebook in NOTEBOOKS:
        page = (tmp_path / "notebooks" / f"{notebook.stem}.html").read_text()
        assert len(re.findall(r'<img[^>]+src="\.\./_images/', page)) >= 3, notebook.stem
    fields = commands.partition("Fields of a recipe")[2]
    assert all(f">{field.name}<" in fields for field in dataclasses.fields(Recipe))
    assert all(f">{name}<" in fields for name in ("epochs", "warmup_epochs", *recipe_names()))


def test_the_examples_of_docstrings_run() -> None:
    tried: Counter[str] = Counter()
    for name in MODULES:
        found = doctest.testmod(importlib.import_module(name))
        assert found.failed == 0, name
        tried[".".join(name.split(".")[:2])] += found.attempted
    assert tried.total() >= 12
    for folder in ("analysis.models", "analysis.receptive_field", "analysis.recognition", "replknet.creating"):
        assert tried[folder] > 0, folder  # sub-folders are not passed over


def test_every_public_name_is_there_and_none_hides_a_folder() -> None:
    folders = {module.name for module in pkgutil.iter_modules(analysis.__path__)}
    assert not folders & set(analysis.__all__)
    assert all(getattr(analysis, name) is not None for name in analysis.__all__)
    assert {"plot_erf", "Study", "run_study", "write_report", "findings", "SyntheticImages"} <= set(analysis.__all__)


def test_the_arithmetic_of_the_plan_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # it reads the tables of the benchmarks
    found = doctest.testfile(str(ROOT / "docs" / "scaling.md"), module_relative=False)
    assert (found.failed, found.attempted >= 12) == (0, True)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("[a-z]*.md"))], ids=lambda page: page.name
)
def test_every_command_in_the_text_has_the_options_it_is_called_with(page: Path) -> None:
    text = page.read_text()
    lines = re.findall(r"^replknet (.+?)(?:\s{2,}#.*|\s+# .*)?$", text, re.MULTILINE)
    lines += re.findall(r"`replknet ([a-z-]+ [^`]+)`", text)
    for line in lines:
        words = line.replace("...", "").split()
        name = words[0]
        assert name in COMMANDS, line
        module = importlib.import_module(f"analysis.cli.{COMMANDS[name][0]}")
        command = get_command(module.app).get_command(None, name)  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            command = command.commands[words[1]] if len(words) > 1 else command
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = {word for word in words if re.fullmatch(r"--[a-z0-9-]+", word)}
        assert used <= known | {"--help"}, line


def test_links_between_files_of_the_project_exist() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (ROOT / target).exists(), f"{page.name}: {target}"
        for target in re.findall(r"`((?:docs|notebooks|benchmarks|replknet|analysis)/[\w./-]+)`", page.read_text()):
            assert (ROOT / target).exists(), f"{page.name}: {target}"
