import gc
import resource
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import replknet
from replknet import DownloadError
from replknet.checkpoints.published import sha256_of
from tests.networks import TINY, randomize_norms, tiny_unireplknet
from tests.server import Server, serving

NAME = "replknet_31b.in1k_224"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's hub folder; what is kept there is in `checkpoints`."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, str]]:
    """A small network's file, as mmpretrain lays it out, in place of a published one, on a local server."""
    model = randomize_norms(replknet.create_model("replknet_31b", **TINY))
    state = replknet.convert_state_dict(model.state_dict(), to="mmpretrain")
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "source.pth")
    file = f"replknet-31B_3rdparty_in1k_20221118-{sha256_of(tmp_path / 'source.pth')[:8]}.pth"
    with serving({file: (tmp_path / "source.pth").read_bytes()}) as server:
        entry = replace(replknet.PUBLISHED[NAME], file=file, folder=server.url + "/")
        monkeypatch.setattr("replknet.checkpoints.published.PUBLISHED", {**replknet.PUBLISHED, NAME: entry})
        yield server, file


def test_a_file_is_fetched_once_verified_and_found_again(
    hub: Path, published: tuple[Server, str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, file = published
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    path = replknet.download_weights(NAME)
    assert path == hub / file
    assert "100%" in capfd.readouterr().err
    assert replknet.download_weights("replknet_31b") == path
    assert server.requests == [file]
    assert [entry.name for entry in hub.iterdir()] == [file]
    model = replknet.create_model(NAME, pretrained=True, **TINY)
    assert torch.equal(model.state_dict()["norm.weight"], replknet.load_state_dict(path)["norm.weight"])


@pytest.mark.parametrize("fault", ["cut", "corrupt", "missing"])
def test_what_goes_wrong_is_one_line_and_leaves_nothing(fault: str, hub: Path, published: tuple[Server, str]) -> None:
    server, file = published
    server.faults[file] = [fault]
    with pytest.raises(DownloadError) as raised:
        replknet.download_weights(NAME, progress=False)
    message = str(raised.value)
    assert f"{server.url}/{file}" in message
    assert f"by hand and put it at {hub / file}" in message
    assert list(hub.iterdir()) == []
    replknet.download_weights(NAME, progress=False)
    del raised
    gc.collect()  # a connection left open would warn here


def test_without_a_network_the_address_and_the_place_are_named(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(replknet.PUBLISHED[NAME], folder="http://127.0.0.1:9/")
    monkeypatch.setattr("replknet.checkpoints.published.PUBLISHED", {NAME: entry})
    with pytest.raises(
        DownloadError, match=r"refused.*; fetch http://127.0.0.1:9/replknet-31B\S+ by hand and put it at"
    ):
        replknet.create_model(NAME, pretrained=True)
    with pytest.raises(DownloadError, match=r"url='no-scheme/file.pth': expected an address such as http"):
        replknet.download_weights(NAME, url="no-scheme/file.pth")


def test_a_file_of_that_name_that_differs_is_refused_and_kept(hub: Path, published: tuple[Server, str]) -> None:
    server, file = published
    hub.mkdir(parents=True)
    (hub / file).write_bytes(b"half of it")
    with pytest.raises(
        DownloadError, match=r"is cut or not the published file \(its SHA-256 starts with \w{8}, expected"
    ):
        replknet.download_weights(NAME)
    assert (hub / file).read_bytes() == b"half of it"
    assert server.requests == []


def test_a_cache_that_cannot_be_written_is_named(
    hub: Path, published: tuple[Server, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.parent.mkdir(parents=True)
    hub.write_text("a file where the folder should be")
    with pytest.raises(DownloadError, match=f"put it at {hub}"):
        replknet.download_weights(NAME, progress=False)


def test_a_full_disk_leaves_nothing(hub: Path, published: tuple[Server, str]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(DownloadError, match=r"could not be fetched \(.*large"):
            replknet.download_weights(NAME, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(hub.iterdir()) == []


def test_what_a_killed_download_left_goes_though_the_file_is_there(hub: Path, published: tuple[Server, str]) -> None:
    target = replknet.download_weights(NAME, progress=False)
    left = target.with_name(f".new.{2**22}.{target.name}")  # Linux gives no process this number
    left.mkdir()
    assert replknet.download_weights(NAME, progress=False) == target
    assert list(target.parent.iterdir()) == [target]


def test_names_and_files_of_the_published_weights() -> None:
    for name, weights in replknet.PUBLISHED.items():
        assert name.startswith(weights.architecture + ".")
        assert weights.url.startswith("https://") and weights.file.endswith(".pth")
    hashed = {name: weights for name, weights in replknet.PUBLISHED.items() if weights.sha256}
    assert len(hashed) == 6
    for name, weights in hashed.items():
        assert weights.file.endswith(f"-{weights.sha256}.pth")
        assert len(weights.sha256) == 8
        assert name.endswith(f"_{weights.image_size}")
        assert weights.crop == (1.0 if weights.image_size == 384 else 0.875)
        assert (weights.mean == (0.5,) * 3) == (weights.architecture == "replknet_xl")
    assert replknet.create_model(NAME, **TINY).config.channels == TINY["channels"]
    with pytest.raises(ValueError, match=r"no published weights; expected one of replknet_31b.in1k_224"):
        replknet.download_weights("replknet_nano_k3")


def test_a_full_checkpoint_of_31b_loads_from_the_server(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = replknet.create_model("replknet_31b")
    state = replknet.convert_state_dict(model.state_dict(), to="mmpretrain")
    source = tmp_path / "source.pth"
    torch.save({"meta": {}, "state_dict": state}, source)
    file = f"replknet-31B-{sha256_of(source)[:8]}.pth"
    with serving({file: source.read_bytes()}) as server:
        entry = replace(replknet.PUBLISHED[NAME], file=file, folder=server.url + "/")
        monkeypatch.setattr("replknet.checkpoints.published.PUBLISHED", {**replknet.PUBLISHED, NAME: entry})
        loaded = replknet.create_model("replknet_31b", pretrained=True, progress=False).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())


def test_a_file_without_a_published_hash_is_read_and_can_be_pinned(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "unireplknet_a.in1k_224"
    torch.save({"model": tiny_unireplknet().state_dict()}, tmp_path / "source.pth")
    digest = sha256_of(tmp_path / "source.pth")
    file = replknet.PUBLISHED[name].file
    with serving({file: (tmp_path / "source.pth").read_bytes()}) as server:
        entry = replace(replknet.PUBLISHED[name], folder=server.url + "/")
        monkeypatch.setattr("replknet.checkpoints.published.PUBLISHED", {name: entry})
        server.faults[file] = ["cut"]
        with pytest.raises(DownloadError, match="arrived cut"):
            replknet.download_weights(name, progress=False)
        with pytest.raises(DownloadError, match="arrived cut or is not the published file"):
            replknet.download_weights(name, sha256="0" * 64, progress=False)
        assert list(hub.iterdir()) == []
        path = replknet.download_weights(name, progress=False)
    assert replknet.download_weights(name, sha256=digest.upper()) == path
    with pytest.raises(DownloadError, match=f"starts with {digest[:8]}, expected 00000000"):
        replknet.download_weights(name, sha256="0" * 8)
    with pytest.raises(ValueError, match="sha256='xyz': expected 8 to 64 hexadecimal digits"):
        replknet.download_weights(name, sha256="xyz")
    assert replknet.inspect_checkpoint(path).published is None


def test_a_pin_against_the_published_hash_is_refused() -> None:
    with pytest.raises(ValueError, match="which begins with fd08e268"):
        replknet.download_weights(NAME, sha256="0" * 64)
