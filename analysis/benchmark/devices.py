"""How calls are timed on a device, what memory they take there, and what a device says of itself."""

import gc
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from analysis.runs.identity import processor_name
from analysis.runs.memory import is_freed_memory_kept, return_freed_memory

Call = Callable[[], object]
Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")
SHORT = 0.001
"""Seconds below which a GPU may wait for the processor, so that its own time is measured by a graph of the call."""


class Meter:
    """Times calls by the clock of this machine; of a processor it also tells the memory."""

    def __init__(self, device: str) -> None:
        self._wait: Call = torch.accelerator.synchronize if device != "cpu" else lambda: None
        self._tells_memory = device == "cpu"

    def seconds(self, call: Call, number: int) -> float:
        """Of one call, the mean of so many."""
        begin = time.perf_counter()
        for _ in range(number):
            call()
        self._wait()
        return (time.perf_counter() - begin) / number

    def first(self, call: Call) -> tuple[float, float | None]:
        """Seconds of a first call, and MiB that it needs beyond what was there before; None where nothing tells."""
        self.settle()
        before = _reset_peak() if self._tells_memory else None
        seconds = self.seconds(call, 1)
        return seconds, None if before is None else (_memory("VmHWM") - before) / 1024

    def ready(self, call: Call, first: float) -> tuple[Call, float, dict[str, Any]]:
        """What is to be timed, its seconds, and what else is known of it, after a first call of so many seconds."""
        return call, self.seconds(call, 1) if first < 1 else first, {}

    def settle(self) -> None:
        """Give freed memory back, for other processes to have."""
        return_freed_memory()

    def keeps_memory(self) -> bool:
        """Whether freed memory stays with this process otherwise."""
        return is_freed_memory_kept()

    def after_round(self) -> None:
        """The same after a contender's turn, where the next one needs it."""
        if self.keeps_memory():
            self.settle()


class CudaMeter(Meter):
    """Times calls by events on a stream of this process's own; TF32 is off in it.

    What is short is recorded once as a CUDA graph, and its replays are timed: the time of the GPU alone, which the
    processor that launches the kernels one by one may not keep busy. Not everything can be recorded.
    """

    def __init__(self, device: str) -> None:
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        torch.cuda.set_stream(self._stream)

    def seconds(self, call: Call, number: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(number):
            call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000 / number

    def first(self, call: Call) -> tuple[float, float | None]:
        self.settle()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        begin = time.perf_counter()  # compilation is the processor's
        call()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        return seconds, (torch.cuda.max_memory_allocated() - before) / 2**20

    def ready(self, call: Call, first: float) -> tuple[Call, float, dict[str, Any]]:
        seconds = self.seconds(call, 1)
        seconds = self.seconds(call, max(1, min(100, int(0.02 / max(seconds, 1e-6)))))
        known = {"first_ms": 1e3 * first, "eager_ms": 1e3 * seconds, "timed": "calls"}
        replay = self._recorded(call) if seconds < SHORT else None
        if replay is None:
            return call, seconds, known
        replay()
        return replay, self.seconds(replay, 10), known | {"timed": "graph"}

    def _recorded(self, call: Call) -> Call | None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                call()
        except RuntimeError:  # something in it waits for the GPU
            torch.cuda.synchronize()
            return None

        def replay() -> object:
            graph.replay()
            return call  # which keeps what it reads and no graph does

        return replay

    def settle(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()

    def keeps_memory(self) -> bool:
        return True


def meter_of(device: str) -> Meter:
    return CudaMeter(device) if device.startswith("cuda") else Meter(device)


def _reset_peak() -> int | None:
    """Forget the peak of this process's memory; what it holds now in KiB, None where the system does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _memory("VmRSS")
    except OSError:
        return None


def _memory(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0])


def environment(threads: int, device: str = "cpu") -> dict[str, Any]:
    """Device, processor, threads, versions and, on CUDA, the card, for the record."""
    versions = {}
    for package in (
        "torch",
        "numpy",
        "torch-fftconv",
        "fft-conv-pytorch",
        "onnxruntime",
        "openvino",
        "timm",
        "openerf",
    ):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "device": device,
        "processor": processor_name(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        **versions,
        **_accelerator(device),
    }


def _accelerator(device: str) -> dict[str, Any]:
    if not device.startswith("cuda"):
        return {}
    card = torch.cuda.get_device_properties(device)
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "not installed"
    return {
        "gpu": card.name,
        "gpu_memory_mib": card.total_memory // 2**20,
        "multiprocessors": card.multi_processor_count,
        "capability": f"{card.major}.{card.minor}",
        "cuda": torch.version.cuda or f"hip {torch.version.hip}",
        "driver": _driver(),
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "triton": triton,
        "tf32": "off",
    }


def _driver() -> str:
    """The version of NVIDIA's driver; empty where the system does not tell."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return ""
    return next((word for word in text.split() if word.count(".") == 2 and word[0].isdecimal()), "")


def start_device(device: str) -> None:
    """Begin to use a device in this process, which takes seconds."""
    torch.zeros(1, device=device)


def first_call(asked: tuple[Mapping[str, Any], str, Callable[..., Call], Mapping[str, Any]]) -> dict[str, Any]:
    """What the first call of a contender takes in a process that has not compiled it, its set-up included.

    Args:
        asked: Labels of its case, its name, its set-up and the arguments of that.

    Returns:
        A row: the labels, "contender", "first_ms" and, if it failed, "note".
    """
    labels, name, setup, arguments = asked
    row: dict[str, Any] = {**labels, "contender": name, "note": ""}
    begin = time.perf_counter()
    try:
        setup(**arguments)()
        torch.cuda.synchronize()
    except Exception as error:  # whatever a compiler raises; the table of times will tell
        row["note"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    row["first_ms"] = 1e3 * (time.perf_counter() - begin)
    torch.cuda.empty_cache()
    return row
