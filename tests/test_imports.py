import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("replknet", ["analysis", "matplotlib", "pandas", "timm", "torchvision", "typer", "rich"]),
        ("analysis", ["matplotlib", "timm", "torchvision", "typer"]),
    ],
)
def test_a_fresh_import_loads_no_plotting_or_command_line_library(package: str, forbidden: list[str]) -> None:
    code = f"import sys, {package}; print([name for name in {forbidden!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
