"""Images at addresses, from a local server."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from analysis import predict
from analysis.images import addresses
from analysis.images.inputs import as_inputs
from tests.cli.command import run
from tests.server import Server, serving

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.fixture
def server() -> Iterator[Server]:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    with serving({"a.png": buffer.getvalue(), "page.html": b"<!doctype html><p>no picture"}) as found:
        yield found


def test_an_address_a_file_a_picture_and_pixels_are_classified_alike(server: Server, tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    address = f"{server.url}/a.png"
    found = predict("replknet_nano_k3", [address, str(tmp_path / "a.png"), address])
    assert [item.image for item in found] == [address, str(tmp_path / "a.png")]
    others = [predict("replknet_nano_k3", images)[0] for images in (Image.fromarray(PIXELS), PIXELS)]
    for item in (*found, *others):  # a batch of two rounds otherwise than one
        assert item.indices == found[0].indices
        np.testing.assert_allclose(item.scores, found[0].scores, rtol=1e-5)


def test_what_cannot_be_had_is_one_clear_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: str, message: str) -> None:
        with pytest.raises(ValueError, match=rf"images='http.*{path}'.*{message}"):
            as_inputs(f"{server.url}/{path}", lambda image: image)  # type: ignore[arg-type, return-value]

    refused("none.png", "cannot be fetched .the server answers 404")
    refused("page.html", "not an image of a kind that is read")
    server.faults["a.png"] = ["cut"]
    refused("a.png", "cannot be fetched")
    server.faults["a.png"] = ["corrupt"]
    refused("a.png", "not an image")
    monkeypatch.setattr(addresses, "_MOST_BYTES", 100)
    refused("a.png", "larger than")
    monkeypatch.undo()
    monkeypatch.setattr(addresses, "_MOST_SECONDS", -1)
    refused("a.png", "not complete after")
    with pytest.raises(ValueError, match=r"images='http://127.0.0.1:9/a.png': cannot be fetched"):
        as_inputs("http://127.0.0.1:9/a.png", lambda image: image)  # type: ignore[arg-type, return-value]


def test_the_command_fetches_once_for_several_networks(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.csv"
    run(f"predict A=replknet_nano_k3 {server.url}/a.png --model B=replknet_nano_k31 --device cpu --out {out}")
    assert server.requests == ["a.png"]
    assert set(pd.read_csv(out)["image"]) == {f"{server.url}/a.png"}
    capsys.readouterr()
    run(f"predict replknet_nano_k3 {server.url}/none.png --device cpu", code=2)
    said = capsys.readouterr().err
    assert "none.png': cannot be fetched (the server answers 404" in said
    assert said.count("\n") == 1
