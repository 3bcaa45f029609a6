import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.images import downloads
from analysis.images.downloads import DownloadError, download_stimuli
from analysis.images.stimuli import PublishedSet, SingleCues, load_stimuli, published_sets
from tests.cli.command import run
from tests.server import Server, serving


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


# Ids of git that are known from elsewhere: `echo hello | git hash-object --stdin`, and that of an empty file.
HELLO, EMPTY = "ce013625030ba8dba906f756967f9e9ca394464a", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
COMMIT = "8655b6b" + "0" * 33
BLOBS = {
    "sets/refined_bias_shape/clock/clock_0.png": (b"hello\n", HELLO),
    "sets/refined_bias_shape/clock/clock_1.png": (b"", EMPTY),
    "sets/refined_bias_texture/zebra/4x4_zebra_0.png": (b"hello\n", HELLO),
}
OTHERS = ("README.md", "sets/refined_bias_shape/clock/.DS_Store", "sets/old/clock/clock_0.png")
KEPT = {path.removeprefix("sets/"): content for path, (content, _) in BLOBS.items()}


def listing(**changes: object) -> dict[str, object]:
    """What GitHub tells of the tree of a commit."""
    blobs = [{"path": path, "type": "blob", "sha": digest} for path, (_, digest) in BLOBS.items()]
    blobs += [{"path": path, "type": "blob", "sha": EMPTY} for path in OTHERS]
    folder = {"path": "sets/refined_bias_shape/clock", "type": "tree", "sha": EMPTY}
    return {"sha": EMPTY, "truncated": False, "tree": [*blobs, folder], **changes}


def repository(server: Server, tree: object, commit: str = COMMIT) -> None:
    """A server of the files of a commit and of what GitHub's API tells of it."""
    server.files |= {f"raw/{COMMIT}/{path}": content for path, (content, _) in BLOBS.items()}
    server.files["api/commits/8655b6b"] = json.dumps({"sha": commit}).encode()
    server.files[f"api/git/trees/{commit}?recursive=1"] = json.dumps(tree).encode()


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Three files of two classes in place of the published ones, on a server."""
    groups = {"shape": {"clock": ["n04548280"]}, "texture": {"zebra": ["n02391049"]}}
    cues = SingleCues(groups=groups, size=224, crop=0.875, interpolation="bilinear", num_images=3)
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    with serving({}) as server:
        repository(server, listing())
        own = replace(
            published_sets()["refined-bias"],
            url=f"{server.url}/raw/{{commit}}/sets/",
            repository=f"{server.url}/api",
            folder="sets/",
            single_cues=cues,
        )
        monkeypatch.setattr(downloads, "published_sets", lambda: {"refined-bias": own})
        yield server


def test_what_a_commit_lists_is_verified_by_gits_own_ids(listed: Server, tmp_path: Path) -> None:
    assert download_stimuli("refined-bias", tmp_path / "to") == 3
    assert found(tmp_path / "to") == KEPT
    (tmp_path / "to" / "refined_bias_shape" / "clock" / "clock_1.png").unlink()
    assert download_stimuli("refined-bias", tmp_path / "to") == 1
    assert found(tmp_path / "to") == KEPT
    other = tmp_path / "to" / "refined_bias_shape" / "clock" / "clock_1.png"
    other.write_bytes(b"\n")
    with pytest.raises(DownloadError, match=r"clock_1\.png: differs from the published file"):
        download_stimuli("refined-bias", tmp_path / "to")
    assert other.read_bytes() == b"\n"


def test_a_listed_file_that_arrives_different(listed: Server, tmp_path: Path) -> None:
    path = f"raw/{COMMIT}/sets/refined_bias_texture/zebra/4x4_zebra_0.png"
    listed.faults[path] = ["corrupt"] * 3
    with pytest.raises(DownloadError, match=r"4x4_zebra_0\.png: arrived different from the published file; .*goes on"):
        download_stimuli("refined-bias", tmp_path)
    assert "refined_bias_texture/zebra/4x4_zebra_0.png" not in found(tmp_path)
    assert download_stimuli("refined-bias", tmp_path, url=f"{listed.url}/raw/{COMMIT}/sets") > 0
    assert found(tmp_path) == KEPT


@pytest.mark.parametrize(
    ("tree", "commit", "message"),
    [
        (listing(truncated=True), COMMIT, "expected a whole list of the files of commit 8655b6b, found another"),
        (listing(), "9" * 40, "expected a whole list of the files of commit 8655b6b"),
        (listing(tree=listing()["tree"][:2]), COMMIT, "expected a whole list"),  # type: ignore[index]
        (listing(tree=[{"path": p, "type": "blob", "sha": "1"} for p in BLOBS]), COMMIT, "expected a whole list"),
        ({"message": "API rate limit exceeded"}, COMMIT, "the list of the files cannot be had"),
        ([], COMMIT, "the list of the files cannot be had"),
    ],
)
def test_a_list_that_is_not_that_of_the_commit(
    listed: Server, tmp_path: Path, tree: object, commit: str, message: str
) -> None:
    repository(listed, tree, commit)
    with pytest.raises(DownloadError, match=message):
        download_stimuli("refined-bias", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_single_cues_by_command(listed: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("data refined-bias --to", tmp_path / "to")
    printed = capsys.readouterr().out
    assert "3 stimuli, all verified" in printed and "none is stated for the images" in printed
    assert "arXiv:2603.10834" in printed
    listed.files.clear()
    run("data refined-bias --to", tmp_path / "to", code=2)
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and "/api: the list of the files cannot be had (404" in error[0]
