import hashlib
from pathlib import Path

import pytest

from analysis.images import downloads
from analysis.images.downloads import DownloadError, download_stimuli
from analysis.images.stimuli import PublishedSet, load_stimuli, published_sets
from tests.cli.command import run
from tests.server import serving


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A manifest of six small files in place of the published one."""
    files = {f"cat/cat{i}-dog{i}.png": bytes(range(i, 200)) * 9 for i in range(6)}
    digests = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
    published = PublishedSet("cue-conflict", "six stimuli", "http://127.0.0.1:9", "none", "nobody", digests)
    monkeypatch.setattr(downloads, "published_sets", lambda: {"cue-conflict": published})
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    return files


def found(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_is_fetched_once(few: dict[str, bytes], tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    with serving(few) as server:
        fetched = download_stimuli(
            "cue-conflict", tmp_path / "to", url=server.url, progress=lambda done, total: steps.append((done, total))
        )
        assert fetched == 6
        assert found(tmp_path / "to") == few
        assert steps == [(done, 6) for done in range(7)]
        assert download_stimuli("cue-conflict", tmp_path / "to", url=server.url + "/") == 0
        assert len(server.requests) == 6


def test_a_cut_connection_is_tried_again(few: dict[str, bytes], tmp_path: Path) -> None:
    path = "cat/cat3-dog3.png"
    with serving(few) as server:
        server.faults[path] = ["cut"]
        assert download_stimuli("cue-conflict", tmp_path, url=server.url) == 6
        assert server.requests.count(path) == 2
    assert found(tmp_path) == few


@pytest.mark.parametrize("fault", ["cut", "corrupt", "missing"])
def test_what_stays_wrong_is_refused_and_the_rest_kept(few: dict[str, bytes], tmp_path: Path, fault: str) -> None:
    path = "cat/cat3-dog3.png"
    with serving(few) as server:
        server.faults[path] = [fault] * 9
        with pytest.raises(DownloadError, match=r"cat/cat3-dog3\.png: .*the same command goes on"):
            download_stimuli("cue-conflict", tmp_path, url=server.url)
        there = found(tmp_path)
        assert path not in there
        assert there == {name: few[name] for name in there}
        server.faults.clear()
        download_stimuli("cue-conflict", tmp_path, url=server.url)
    assert found(tmp_path) == few


def test_a_file_of_somebody_else_is_not_touched(few: dict[str, bytes], tmp_path: Path) -> None:
    own = tmp_path / "cat" / "cat2-dog2.png"
    own.parent.mkdir()
    own.write_bytes(b"my own drawing")
    with serving(few) as server:
        with pytest.raises(DownloadError, match=r"cat2-dog2\.png: differs from the published file"):
            download_stimuli("cue-conflict", tmp_path, url=server.url)
        assert server.requests == []
    assert own.read_bytes() == b"my own drawing"
    with pytest.raises(DownloadError, match="not a folder"):
        download_stimuli("cue-conflict", own)


def test_no_server(few: dict[str, bytes], tmp_path: Path) -> None:
    with serving(few) as server:
        url = server.url
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1"):
        download_stimuli("cue-conflict", tmp_path, url=url)


def test_the_published_files_by_command(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All 1280 of them, from a local server, after an interruption."""
    source = shared / "data" / "cue-conflict"
    files = {path: (source / path).read_bytes() for path in published_sets()["cue-conflict"].files}
    with serving(files) as server:
        monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
        arguments = ("data cue-conflict --to", tmp_path / "to", "--url", server.url)
        name = next(iter(files))
        server.faults[name] = ["missing"] * 3
        run(*arguments, code=2)
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("replknet: ") and name in error
        run(*arguments)
        output = capsys.readouterr().out
    for part in ("1280 stimuli, all verified", "CC-BY-4.0", "Geirhos", "arXiv:1811.12231"):
        assert part in output
    stimuli = load_stimuli(tmp_path / "to")
    assert (len(stimuli), stimuli.notes) == (1280, ())
