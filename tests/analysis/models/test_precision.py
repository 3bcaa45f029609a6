"""What a measurement does to PyTorch's settings of float32: nothing that outlasts it."""

from operator import attrgetter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from analysis import predict
from analysis.models.precision import float32_settings, true_float32

READINGS = (
    "cuda.matmul.allow_tf32", "cudnn.allow_tf32", "cudnn.benchmark", "fp32_precision", "cuda.matmul.fp32_precision",
    "cudnn.fp32_precision", "cudnn.conv.fp32_precision", "cudnn.rnn.fp32_precision", "mkldnn.fp32_precision",
    "mkldnn.matmul.fp32_precision", "mkldnn.conv.fp32_precision", "mkldnn.rnn.fp32_precision",
)  # fmt: skip
ADJUSTMENTS: tuple[tuple[tuple[str, Any], ...], ...] = (
    (),
    (("cudnn.allow_tf32", False),),
    (("cuda.matmul.allow_tf32", True),),
    (("medium", None),),
    (("high", None), ("cudnn.allow_tf32", False)),
    (("fp32_precision", "tf32"),),
    (("fp32_precision", "ieee"),),
    (("cuda.matmul.fp32_precision", "tf32"),),
    (("cudnn.conv.fp32_precision", "ieee"),),
    (("medium", None), ("cuda.matmul.fp32_precision", "ieee")),
    (("mkldnn.matmul.fp32_precision", "bf16"), ("mkldnn.conv.fp32_precision", "tf32")),
    (("cudnn.fp32_precision", "tf32"), ("cudnn.allow_tf32", False)),
)
CUDA = torch.device("cuda")
needs_newer = pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="PyTorch before 2.9")


def reading(name: str) -> Any:
    try:
        return attrgetter(name)(torch.backends)
    except RuntimeError:
        return "contradictory"


def state() -> dict[str, Any]:
    try:
        products = torch.get_float32_matmul_precision()
    except RuntimeError:
        products = "contradictory"
    present = [name for name in READINGS if "fp32" not in name or hasattr(torch.backends, "fp32_precision")]
    return {name: reading(name) for name in present} | {"products": products}


def adjust(name: str, value: Any) -> None:
    if value is None:
        torch.set_float32_matmul_precision(name)
        return
    owner, _, attribute = name.rpartition(".")
    setattr(attrgetter(owner)(torch.backends) if owner else torch.backends, attribute, value)


@needs_newer
@pytest.mark.parametrize("adjustments", ADJUSTMENTS, ids=str)
def test_shortcuts_are_off_inside_and_as_before_afterwards(adjustments: tuple[tuple[str, Any], ...]) -> None:
    fresh = state()
    try:
        for name, value in adjustments:
            adjust(name, value)
        before = state()
        with pytest.raises(KeyError, match="whatever happens"), true_float32():
            inside = state()
            with true_float32():
                assert state() == inside
            assert state() == inside
            raise KeyError("whatever happens")
        assert state() == before
    finally:
        for name in ("fp32_precision", "cudnn.fp32_precision"):
            adjust(name, "none")
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = True
        for place in ("cuda.matmul", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn"):
            adjust(f"{place}.fp32_precision", "none")
    assert {key: value for key, value in state().items() if value != fresh[key]} == {}
    # The convolution of replknet looks at this one.
    assert inside["cuda.matmul.allow_tf32"] is False
    own = {name: inside[name] for name in READINGS if name.count(".") == 2 and "fp32" in name}
    assert set(own.values()) <= {"ieee", "none"}, own
    assert inside["cudnn.benchmark"] == before["cudnn.benchmark"]


def test_a_measurement_computes_in_true_float32_and_leaves_the_settings() -> None:
    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[dict[str, str]] = []
            self.head = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(float32_settings(CUDA))
            out: Tensor = self.head(x.mean((2, 3)))
            return out

    network = Watching()
    before = state()
    torch.set_float32_matmul_precision("high")
    try:
        assert float32_settings(CUDA) == {"float32_products": "tf32", "float32_convolutions": "tf32"}
        predict(network, torch.rand(2, 3, 8, 8))
        assert float32_settings(CUDA) == {"float32_products": "tf32", "float32_convolutions": "tf32"}
    finally:
        torch.set_float32_matmul_precision("highest")
        for place in ("cuda.matmul", "mkldnn.matmul"):
            if hasattr(torch.backends, "fp32_precision"):
                adjust(f"{place}.fp32_precision", "none")
    assert network.seen
    assert all(set(seen.values()) <= {"ieee", "none"} for seen in network.seen)
    assert {key: value for key, value in state().items() if value != before[key]} == {}
