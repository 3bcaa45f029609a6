"""`replknet explore`, before it serves anything; `tests/pages` clicks on its page."""

import socket
import sys

import pytest

from tests.cli.command import run


def test_without_gradio_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    run("explore replknet_nano_k3", code=2)
    said = capsys.readouterr().err
    assert said == 'replknet: explore: needs the package gradio; pip install "replknet[explore]"\n'


def test_a_port_in_use_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        run(f"explore replknet_nano_k3 --port {port}", code=2)
    said = capsys.readouterr().err
    assert said.startswith(f"replknet: --port={port}: cannot be used here (")
    assert said.count("\n") == 1
