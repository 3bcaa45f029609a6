import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import replknet
from analysis.runs.memory import keep_freed_memory
from replknet import RepLKNet

pytest_plugins = ["tests.fuzz.reporting"]

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton looks when it is imported, which some test will do

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what is to go on in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Two test processes on two cores: threads of one would only wait for those of the other.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # of what the tests start
    keep_freed_memory()  # a quarter of the time of the convolutions' tests was the system's, for memory given back


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: at the end of the run one process would wait for the other's."""
    items.sort(key=lambda item: "test_notebooks" not in item.nodeid)


class Reference:
    """Files and float64 outputs of the official implementation and of mmpretrain."""

    def __init__(self, shared: Path) -> None:
        self.path = shared / "reference"
        self.official = np.load(self.path / "tiny_official_expected.npz")
        self.mmpretrain = np.load(self.path / "tiny_mmpretrain_expected.npz")
        recorded = json.loads((self.path / "tiny_official.json").read_text())
        config = recorded["config"]
        config["kernel_sizes"] = config.pop("large_kernel_sizes")
        self.config: dict[str, Any] = config
        self.erf_ratios: dict[str, tuple[int, float]] = recorded["erf_paper_ratios"]

    def shapes(self, naming: str) -> dict[str, list[tuple[str, list[int]]]]:
        content: dict[str, list[tuple[str, list[int]]]] = json.loads(
            (self.path / f"{naming}_state_dict_shapes.json").read_text()
        )
        return content

    def load(self, file: str) -> RepLKNet:
        model = replknet.create_model("replknet_31b", checkpoint=self.path / file, **self.config)
        assert isinstance(model, RepLKNet)
        return model.double().eval()


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's hub is not asked: without a network its client tries again for a minute."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference results and real data that is not part of the project."""
    path = Path(os.environ.get("REPLKNET_DATA", Path(__file__).parents[1].parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"reference data not found at {path}; set REPLKNET_DATA")
    return path


@pytest.fixture(scope="session")
def reference(shared: Path) -> Reference:
    return Reference(shared)
