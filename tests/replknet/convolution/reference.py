"""What the tests of the convolution compare with: conv2d, in float64."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from replknet.convolution.planning import Method

METHODS: tuple[Method, ...] = ("auto", "direct", "fft")


def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2), groups=x.shape[1])


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def with_gradients(function: Any, x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    out = function(x, weight)
    return (out.detach(), *torch.autograd.grad(out, (x, weight), grad))


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-300))
