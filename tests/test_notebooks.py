from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from docs.executing import NOTEBOOKS, executed


# The Jupyter client warns about its own event loop and connection files, which is not ours to mend.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client", "ignore::DeprecationWarning:zmq")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_without_a_warning_and_is_stored_without_outputs(path: Path) -> None:
    stored = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in stored.cells)
    made = nbformat.read(executed(path), as_version=4)  # type: ignore[no-untyped-call]
    assert [cell.source for cell in made.cells] == [cell.source for cell in stored.cells]
    outputs = [output for cell in made.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    said = [output["text"] for output in outputs if output["output_type"] == "stream"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert not [text for text in said if "Warning" in text or "Error" in text]


def test_a_notebook_is_executed_again_only_if_something_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    monkeypatch.setattr(NotebookClient, "execute", lambda client, **_: runs.append(client.nb))
    notebook, pages = tmp_path / "mine.ipynb", tmp_path / "pages"

    def write(source: str) -> None:
        cells = [nbformat.v4.new_code_cell(source, id="only")]  # type: ignore[no-untyped-call]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), notebook)  # type: ignore[no-untyped-call]

    write("1")
    assert executed(notebook, pages) == executed(notebook, pages) == pages / "mine.ipynb"
    assert len(runs) == 1
    write("2")
    executed(notebook, pages)
    assert len(runs) == 2
    monkeypatch.setattr("docs.executing.metadata.distributions", list)  # other libraries
    executed(notebook, pages)
    assert len(runs) == 3
