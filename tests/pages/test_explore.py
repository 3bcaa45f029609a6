"""The page of `replknet explore` in a real browser, and its end."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pages.browser import Tab, browsing

pytest.importorskip("gradio")
WATCHED = """
import sys
def watch(event, values):
    if event in ("socket.connect", "socket.bind"):
        print("ADDRESS", values[1], file=sys.stderr, flush=True)
    if event == "socket.getaddrinfo" and values[0] not in (None, "127.0.0.1", "localhost"):
        print("LOOKED UP", values[0], file=sys.stderr, flush=True)
sys.addaudithook(watch)
from analysis.cli import main
main(sys.argv[1:])
"""
"""The command, which tells of every address that it binds, connects to or looks up."""


@dataclass(frozen=True)
class Served:
    process: subprocess.Popen[str]
    address: str
    errors: Path
    temporary: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("explore")
    words = ["explore", "replknet_nano_k31", "replknet_nano_k3", "--num-images", "2", "--layers", "stages.1,last"]
    with pytest.MonkeyPatch.context() as patch, (folder / "errors").open("w") as errors:
        patch.setenv("TMPDIR", str(folder))
        process = subprocess.Popen(
            [sys.executable, "-c", WATCHED, *words],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), (folder / "errors").read_text()
        yield Served(process, line.split()[0], folder / "errors", folder)
    finally:
        process.kill()
        with process:  # waits, and closes its pipe
            pass


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


def facts(tab: Tab, *, other_than: str = "") -> str:
    """What is told of the unit, once it is another one."""
    told = "(document.querySelector('#facts p') || {}).textContent || ''"
    tab.wait_for(f"![{json.dumps(other_than)}, ''].includes({told})")
    return str(tab.evaluate(told))


def pictures(tab: Tab) -> tuple[str, str]:
    """The marked picture, and the values in the map."""
    tab.wait_for("document.querySelector('#unit svg image') !== null")
    tab.wait_for("(document.querySelector('#picture img') || {}).naturalWidth === 512")
    source = tab.evaluate("document.querySelector('#picture img').src")
    return source, tab.evaluate("document.querySelector('#unit svg image').getAttribute('xlink:href')")


def classes(tab: Tab) -> str:
    return str(tab.evaluate("document.querySelector('#classes tbody').textContent"))


def test_clicks_change_map_classes_layer_crop_and_network(served: Served, tab: Tab) -> None:
    tab.open(served.address)
    shown = "window.gradio_config?.components.find(part => part.props.elem_id === 'picture').props.value"
    tab.wait_for(f"!!({shown})")  # at once, not with the first answer
    first = facts(tab)
    before = pictures(tab)
    assert "arrow: unit (4, 4) of 8x8" in first
    named = classes(tab)
    assert named.startswith("arrow0.9")

    # A twentieth from the left is pixel 3 of 64, whose nearest centre is at 0; four fifths down is pixel 51: 48.
    tab.point("#picture img", 0.05, 0.8, click=True)
    clicked = facts(tab, other_than=first)
    assert "arrow: unit (6, 0) of 8x8, row and column from 0, centre at pixel (48, 0)" in clicked
    tab.wait_for(f"document.querySelector('#picture img').src !== {json.dumps(before[0])}")
    assert pictures(tab)[1] != before[1]
    assert classes(tab) == named

    tab.point("#images .gallery-item:nth-child(2) button", click=True)
    conflict = facts(tab, other_than=clicked)
    assert conflict.startswith("arrow-bolt: unit (6, 0) of 8x8")
    assert classes(tab) != named

    whole = pictures(tab)[1]
    tab.choose("#kernel input[type=range]", "5")
    cropped = facts(tab, other_than=conflict)
    assert "theoretical field with whole kernels" in cropped
    assert pictures(tab)[1] != whole

    tab.point("#network input", click=True)
    tab.wait_for("document.querySelectorAll('[role=option]').length === 2")
    tab.point("[role=option]:nth-child(2)", click=True)
    other = facts(tab, other_than=cropped)
    assert "unit (6, 0) of 8x8" in other
    assert tab.evaluate("document.querySelector('#kernel input[type=range]').max") == "3"

    assert {address.split("/")[2] for address in tab.requests} == {served.address.split("/")[2]}
    assert tab.complaints == []


@pytest.mark.parametrize("dark", [False, True])
def test_a_narrow_page_does_not_scroll_sideways(served: Served, tab: Tab, dark: bool) -> None:
    tab.open(served.address, width=420, dark=dark)
    facts(tab)
    pictures(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 420
    smallest = tab.evaluate(
        "Math.min(...[...document.querySelectorAll('#unit svg text')].map((text) => {"
        "const scale = text.getScreenCTM(); return parseFloat(getComputedStyle(text).fontSize)"
        " * Math.hypot(scale.a, scale.b); }), 99)"
    )
    assert smallest >= 9


def test_ctrl_c_ends_it_and_nothing_is_left(served: Served) -> None:
    assert list(served.temporary.glob("replknet-explore-*"))
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(timeout=30) == 0
    said = served.errors.read_text()
    addresses = [line for line in said.splitlines() if line.startswith(("ADDRESS", "LOOKED UP"))]
    assert addresses  # it binds its port
    own = ("ADDRESS ('127.0.0.1', ", "ADDRESS ('::1', ")  # urllib3 tries out whether there is an IPv6
    assert all(line.startswith(own) for line in addresses), addresses
    assert "Traceback" not in said
    left = [path for path in served.temporary.iterdir() if not path.name.startswith("torchinductor")]  # PyTorch's cache
    assert left == [served.errors]
