"""The notebooks with their outputs, for the pages and for the tests.

They are stored without outputs, so that a change of one is a change of its text, and no picture that is older than the
code is shown. Each is executed once for each state of everything that it is made from, and kept in `docs/notebooks`.
"""

import fcntl
import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from replknet.checkpoints.writing import replacing

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
_MADE_FROM = "made_from"
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # what runs beside it, such as other tests, would wait for its threads
    # A library asks for widgets, which a user has (jupyter) and the environment of the pages has not.
    "PYTHONWARNINGS": "ignore:IProgress not found",
}


def executed(notebook: Path, folder: Path = ROOT / "docs" / "notebooks") -> Path:
    """The notebook in `folder`, executed, or as it is there if nothing that it is made from has changed.

    Raises:
        CellExecutionError: If a cell fails.
    """
    folder.mkdir(exist_ok=True)
    path = folder / notebook.name
    with (folder / f".{notebook.stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the tests of several processes want the same one
        made_from = _state(notebook)
        if not path.exists() or nbformat.read(path, as_version=4).metadata.get(_MADE_FROM) != made_from:
            content = nbformat.read(notebook, as_version=4)
            client = NotebookClient(
                content, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(notebook.parent)}}
            )
            client.execute(env=os.environ | _ENVIRONMENT)
            content.metadata[_MADE_FROM] = made_from
            with replacing(path) as new:
                nbformat.write(content, new)
    return path


def _state(notebook: Path) -> str:
    """Of the notebook, the code and the tables that it reads, and the libraries."""
    digest = hashlib.sha256(platform.python_version().encode())
    packages = [path for name in ("replknet", "analysis") for path in (ROOT / name).rglob("*")]
    files = [path for path in packages if path.is_file() and "__pycache__" not in path.parts]
    for path in [notebook, *sorted((*files, *(ROOT / "docs").glob("*.csv")))]:
        digest.update(f"{path.name} {path.stat().st_size} ".encode() + path.read_bytes())
    libraries = {f"{library.name} {library.version}" for library in metadata.distributions()}
    digest.update("\n".join(sorted(libraries)).encode())
    return digest.hexdigest()
