"""Conversions between layouts move every value to its place."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replknet.convolution.layouts import layout, rows_of_pixels, with_layout

LAYOUTS = (torch.contiguous_format, torch.channels_last)


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 12), st.integers(1, 12)),
    strided=st.booleans(),
    dtype=st.sampled_from((torch.float32, torch.float64, torch.bfloat16)),
)
def test_every_value_keeps_its_place(shape: tuple[int, ...], strided: bool, dtype: torch.dtype) -> None:
    x = torch.arange(float(torch.Size(shape).numel())).reshape(shape).to(dtype)
    if strided:
        x = x.transpose(2, 3)
    for first in LAYOUTS:
        converted = with_layout(x, first)
        assert converted.is_contiguous(memory_format=first)
        assert torch.equal(converted, x)
        assert torch.equal(rows_of_pixels(converted).reshape(x.shape), x)
        for second in LAYOUTS:
            again = with_layout(converted, second)
            assert again.is_contiguous(memory_format=second)
            assert torch.equal(again, x)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = torch.randn(1, 6, 10, 7)
        channels_last = with_layout(x, torch.channels_last)
        assert layout(channels_last) is torch.channels_last
        assert torch.equal(channels_last, x)
        assert torch.equal(with_layout(channels_last, torch.contiguous_format), x)
    finally:
        torch.set_num_threads(before)
