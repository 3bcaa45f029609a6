import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*words: str | Path, cwd: Path = ROOT, path: Path | None = None) -> str:
    environment = dict(os.environ) if path is None else {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_and_sdist_are_whole_and_the_wheel_runs(tmp_path: Path) -> None:
    pytest.importorskip("build")
    run("-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    assert run("-m", "twine", "check", "--strict", wheel, sdist).count("PASSED") == 2
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    for file in (
        "replknet/weights/replknet_nano_k31.safetensors",
        "replknet/py.typed",
        "analysis/__init__.pyi",
        "analysis/pages/scripts/page.css",
        "analysis/pages/scripts/maps.js",
        "analysis/pages/templates/page.html.j2",
        "analysis/study/templates/report.html.j2",
        "analysis/images/published/cue-conflict.toml",
        "analysis/training/recipes/imagenet-300.toml",
    ):
        assert file in inside, file
    assert {name.split("/")[0] for name in inside} <= {
        "replknet",
        "analysis",
        wheel.name.split("-py3")[0] + ".dist-info",
    }
    with tarfile.open(sdist) as archive_of_sources:
        names = {name.partition("/")[2] for name in archive_of_sources.getnames()}
    assert {"README.md", "LICENSE", "Makefile", "tests/conftest.py", "notebooks/first_steps.ipynb"} <= names
    # From a folder of its own, far from the sources.
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    where = run("-c", "import analysis, replknet; print(replknet.__file__)", cwd=tmp_path, path=tmp_path / "site")
    assert where.startswith(str(tmp_path / "site"))
    listed = run(
        "-m",
        "replknet",
        "info",
        tmp_path / "site/replknet/weights/replknet_nano_k3.safetensors",
        cwd=tmp_path,
        path=tmp_path / "site",
    )
    assert "replknet_nano_k3" in listed
