"""Side-by-side timings of RepLKNet and its convolution: every library in a process of its own, taking turns.

A contender is a function of this module that sets something up and returns a call to be timed. `compare` runs the
contenders of one case round by round, one call each, so that a change of the machine's speed meets all of them.
"""

import gc
import importlib.metadata
import math
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, cast

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import replknet
from analysis.allocator import is_freed_memory_kept, keep_freed_memory, return_freed_memory
from analysis.identity import processor_name
from replknet import DepthwiseConv2d, ReparamLargeKernelConv
from replknet.convolution.pointwise import PointwiseConv2d, multiply

Direction = Literal["forward", "input", "weight", "both"]
Call = Callable[[], object]


@dataclass(frozen=True)
class Contender:
    """One competitor in a case: `setup(**arguments)`, called in the process called `process`, gives what is timed."""

    name: str
    process: str
    setup: Callable[..., Call]
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """What is compared: the labels of the table's rows, and the contenders; ratios are to the first one's time."""

    labels: Mapping[str, Any]
    contenders: Sequence[Contender] = field(repr=False)


# Convolutions ------------------------------------------------------------------------------------------------------

HEADLINE = ((8, 128, 56, 31), (8, 256, 28, 29), (8, 512, 14, 27), (8, 1024, 7, 13), (32, 16, 32, 31), (1, 128, 256, 31))
WIDEST = ((8, 128, 56, 13), (8, 128, 56, 61))
"""Beside `HEADLINE`: what a very large kernel costs more than a moderate one."""
GRID_KERNELS = (3, 5, 7, 9, 13, 17, 21, 27, 31, 51)
GRID_SIZES = (7, 14, 28, 56, 112)
GRID_BATCHES = ((1, 64), (8, 64), (32, 16), (1, 512))
SINGLE: tuple[Direction, ...] = ("forward", "input", "weight")
PAPER_KERNELS = (3, 5, 7, 9, 13, 17, 21, 25, 27, 29, 31, 41, 51, 61)


def convolution(
    library: str, shape: tuple[int, int, int, int], direction: Direction, channels_last: bool, threads: int
) -> Call:
    """One depthwise convolution of `shape` (N, C, H = W, K), or its gradients."""
    num_images, channels, size, kernel = shape
    _seed(threads)
    # Which freed memory glibc keeps depends on the largest block so far; FFTs here see to that, and all shall have it.
    torch.empty(30 * 2**20, dtype=torch.uint8)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(num_images, channels, size, size).contiguous(memory_format=layout)
    grad = torch.randn(num_images, channels, size, size).contiguous(memory_format=layout)
    weight = torch.randn(channels, 1, kernel, kernel)
    function = _convolution_of(library, channels, kernel)
    if direction == "forward":
        return _without_gradients(lambda: function(x, weight))
    x.requires_grad_(direction in ("input", "both"))
    weight.requires_grad_(direction in ("weight", "both"))
    wanted = [tensor for tensor in (x, weight) if tensor.requires_grad]
    if direction == "both":
        return lambda: torch.autograd.grad(function(x, weight), wanted, grad)
    out = function(x, weight)
    return lambda: torch.autograd.grad(out, wanted, grad, retain_graph=True)


def _convolution_of(library: str, channels: int, kernel: int) -> Callable[[Tensor, Tensor], Tensor]:
    if library == "replknet":
        return replknet.depthwise_conv2d
    if library == "conv2d":
        return lambda x, weight: F.conv2d(x, weight, padding=kernel // 2, groups=channels)
    if library == "torch-fftconv":
        from torch_fftconv import fft_conv2d
    else:
        from fft_conv_pytorch import fft_conv as fft_conv2d
    return lambda x, weight: cast("Tensor", fft_conv2d(x, weight, padding=kernel // 2, groups=channels))


def convolution_cases(suite: str, threads: int) -> Iterator[Case]:
    """The cases of "headline" (forward+backward), "grid" (each direction alone) or "paper" (24 layers, forward)."""
    if suite == "headline":
        for shape in HEADLINE + WIDEST:
            libraries = ("replknet", "conv2d", "torch-fftconv", "fft-conv-pytorch")
            yield _convolution_case(shape, "both", threads, libraries)
    elif suite == "grid":
        for num_images, channels in GRID_BATCHES:
            for size in GRID_SIZES:
                for kernel in GRID_KERNELS:
                    for direction in SINGLE:
                        shape = (num_images, channels, size, kernel)
                        yield _convolution_case(shape, direction, threads, ("replknet", "conv2d", "torch-fftconv"))
    else:
        for size in (16, 32, 64):
            for kernel in PAPER_KERNELS:
                yield _convolution_case((1, 384, size, kernel), "forward", threads, ("replknet", "conv2d"))


def _convolution_case(
    shape: tuple[int, int, int, int], direction: Direction, threads: int, libraries: Sequence[str]
) -> Case:
    contenders = []
    for library in libraries:
        for channels_last in (False, True) if library in ("replknet", "conv2d") else (False,):
            name = f"{library}, channels_last" if channels_last else library
            arguments = {"library": library, "shape": shape, "direction": direction, "channels_last": channels_last}
            contenders.append(Contender(name, library, convolution, {**arguments, "threads": threads}))
    labels = dict(zip(("images", "channels", "size", "kernel"), shape, strict=True))
    return Case({**labels, "direction": direction}, contenders)


# Networks ----------------------------------------------------------------------------------------------------------


def network(
    variant: str, task: str, size: int, batch: int, threads: int, kernel_sizes: tuple[int, ...] | None = None
) -> Call:
    """RepLKNet-31B at work.

    Args:
        variant: "replknet"; "nn.Conv2d", the network from plain layers, as the official code runs; "nn.Conv2d,
            channels_last"; "without large convolutions", in which they are identities; "1x1 products alone", a bound:
            the matrix products of the 1x1 convolutions, one after the other, on maps that are there already;
            "onnxruntime" or "openvino".
        task: "inference" (re-parameterised), "erf" (gradient of the central unit of the last map with respect to the
            image, weights frozen; plain layers as the official script runs them, with their batch norms; all others
            with memory kept, as `replknet erf` does) or "train" (forward, backward and AdamW).
        size: Side of the images.
        batch: Number of images.
        threads: Threads of the library.
        kernel_sizes: Other kernels than the network's own, without the parallel small one.
    """
    _seed(threads)
    changes: dict[str, Any] = {} if kernel_sizes is None else {"kernel_sizes": kernel_sizes}
    if kernel_sizes is not None and max(kernel_sizes) <= 5:
        changes["small_kernel"] = None
    model: nn.Module = replknet.create_model("replknet_31b", **changes)
    images = torch.randn(batch, 3, size, size)
    if task == "train":
        return _training_step(model, images)
    model.eval().requires_grad_(False)
    if task == "erf" and not variant.startswith("nn.Conv2d"):
        keep_freed_memory()
    if task == "inference" or not variant.startswith("nn.Conv2d"):
        model = replknet.reparameterize(model)  # as `replknet erf` does; the official script does not
    if variant in ("onnxruntime", "openvino"):
        return _exported(model, images, variant, threads)
    if variant.startswith("nn.Conv2d"):
        _replace(model, lambda layer: _plain(layer) if isinstance(layer, DepthwiseConv2d | PointwiseConv2d) else layer)
        # The network would choose the layout itself; these are the two that a user can give to the official code.
        layout = torch.channels_last if variant.endswith("channels_last") else torch.contiguous_format
        model.to(memory_format=layout)
        model.get_submodule("stem.0").register_forward_pre_hook(
            lambda _, inputs: (inputs[0].contiguous(memory_format=layout),)
        )
    elif variant == "1x1 products alone":
        return _products(model, images, backward=task == "erf")
    elif variant != "replknet":
        _replace(model, lambda layer: nn.Identity() if isinstance(layer, ReparamLargeKernelConv) else layer)
    if task == "inference":
        return _without_gradients(lambda: model(images))
    features = cast("Callable[[Tensor], Tensor]", model.forward_features)

    def gradient() -> Tensor:
        pixels = images.detach().requires_grad_()
        maps = features(pixels)
        unit = maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2].relu().sum()
        return torch.autograd.grad(unit, pixels)[0]

    return gradient


def network_cases(task: str, sizes: Sequence[int], batches: Sequence[int], threads: int) -> Iterator[Case]:
    """The cases of one task; training and inference also compare the network's kernels with 3x3 ones."""
    variants: tuple[str, ...] = ("replknet", "nn.Conv2d", "nn.Conv2d, channels_last", "without large convolutions")
    variants += ("1x1 products alone",)
    if task == "inference":
        variants += ("onnxruntime", "openvino")
    for size in sizes:
        for batch in batches:
            labels = {"task": task, "size": size, "images": batch}
            arguments = {"task": task, "size": size, "batch": batch, "threads": threads}
            if task == "train":
                yield Case(
                    labels,
                    [
                        Contender(
                            _dashed(kernels), _dashed(kernels), network, {**arguments, "variant": "replknet", **own}
                        )
                        for kernels, own in (
                            ((31, 29, 27, 13), {}),
                            ((3, 3, 3, 3), {"kernel_sizes": (3, 3, 3, 3)}),
                        )
                    ],
                )
            else:
                yield Case(labels, [Contender(v, v, network, {**arguments, "variant": v}) for v in variants])
            if task == "inference":
                small = {**arguments, "variant": "replknet", "kernel_sizes": (3, 3, 3, 3)}
                contenders = [
                    Contender("31-29-27-13", "replknet", network, {**arguments, "variant": "replknet"}),
                    Contender("3-3-3-3", "small", network, small),
                ]
                yield Case({**labels, "task": "inference by kernel"}, contenders)


def _dashed(kernels: Sequence[int]) -> str:
    return "-".join(map(str, kernels))


def _training_step(model: nn.Module, images: Tensor) -> Call:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    targets = torch.arange(len(images))

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(images), targets))
        optimizer.step()

    return step


def _products(model: nn.Module, images: Tensor, *, backward: bool) -> Call:
    """The matrix products of one pass; layers of one shape share their maps, which would fill the memory."""
    calls: list[tuple[PointwiseConv2d, Tensor, Tensor]] = []
    shared: dict[torch.Size, Tensor] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        shapes = (maps.permute(0, 2, 3, 1).flatten(0, 2).shape for maps in (inputs[0], out))
        rows, gradient = (shared.setdefault(shape, torch.randn(shape)) for shape in shapes)
        calls.append((cast("PointwiseConv2d", layer), rows, gradient))

    layers = [layer for layer in model.modules() if isinstance(layer, PointwiseConv2d)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()

    def compute() -> None:
        for layer, rows, _ in calls:
            multiply(rows, layer)
        for layer, _, gradient in reversed(calls) if backward else []:
            gradient @ layer.weight.flatten(1)

    return _without_gradients(compute)


def _exported(model: nn.Module, images: Tensor, runtime: str, threads: int) -> Call:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model, (images,), path, dynamo=True, verbose=False, input_names=["images"])
        array = images.numpy()
        if runtime == "onnxruntime":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            return lambda: session.run(None, {"images": array})
        import openvino

        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_MMAP": False,  # the file goes away
        }
        request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
        return lambda: request.infer({"images": array})


def _replace(module: nn.Module, change: Callable[[nn.Module], nn.Module]) -> None:
    for name, child in module.named_children():
        new = change(child)
        if new is child:
            _replace(child, change)
        else:
            setattr(module, name, new)


def _plain(layer: nn.Conv2d) -> nn.Conv2d:
    plain = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size[0],
        padding=layer.kernel_size[0] // 2,
        groups=layer.groups,
        bias=layer.bias is not None,
    )
    plain.load_state_dict(layer.state_dict())
    return plain.requires_grad_(layer.weight.requires_grad).train(layer.training)


def _without_gradients(call: Call) -> Call:
    def run() -> object:
        with torch.no_grad():
            return call()

    return run


def _seed(threads: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(threads)


# Measuring ---------------------------------------------------------------------------------------------------------


def compare(
    cases: Sequence[Case],
    *,
    repeats: int,
    seconds: float,
    hopeless: float = math.inf,
    progress: Callable[[int, int], None],
) -> pd.DataFrame:
    """Time every contender of every case.

    Args:
        cases: What to compare.
        repeats: Rounds, in each of which every contender is called once (short calls for 20 ms, averaged, after
            as many that are not timed).
        seconds: Time for the rounds of one case after which no new one begins; two are always made.
        hopeless: A contender whose first call takes so many times as long as the fastest one's, and more than a
            twentieth of a second, is not called again: that call is its time, and it has one round.
        progress: Called with the number of cases done and of all.

    Returns:
        One row per contender: the labels of its case, its name, median, minimum and maximum of the rounds in
        milliseconds, the number of rounds, `ratio`, its median over the first contender's, and `peak_mib`, the memory
        that the first call needs beyond what was there before it. A contender whose library is not installed has no
        times.
    """
    rows: list[dict[str, Any]] = []
    with _workers({contender.process for case in cases for contender in case.contenders}) as workers:
        for index, case in enumerate(cases):
            progress(index, len(cases))
            rows += _measure(case, workers, repeats, seconds, hopeless)
    progress(len(cases), len(cases))
    return pd.DataFrame(rows)


def slowness(table: pd.DataFrame, other: str) -> pd.DataFrame:
    """How long RepLKNet's convolution takes in its better layout, over another contender in its better one.

    Args:
        table: Of `compare`, for `convolution_cases`.
        other: "conv2d" or "torch-fftconv".

    Returns:
        One row per case that both were timed in, slowest first: its labels, `ours_ms`, `other_ms` and `ratio`.
    """
    labels = list(table.columns[: list(table.columns).index("contender")])
    family = table["contender"].str.removesuffix(", channels_last")
    best = table.assign(family=family).pivot_table("median_ms", labels, "family", aggfunc="min").reset_index()
    found = best[[*labels, "replknet", other]].rename(columns={"replknet": "ours_ms", other: "other_ms"}).dropna()
    found["ratio"] = found["ours_ms"] / found["other_ms"]
    return pd.DataFrame(found.sort_values("ratio", ascending=False, ignore_index=True))


def _measure(
    case: Case, workers: Mapping[str, Connection], repeats: int, seconds: float, hopeless: float
) -> list[dict[str, Any]]:
    ready = []
    rows = []
    for position, contender in enumerate(case.contenders):
        answer = _ask(workers[contender.process], ("set up", position, contender.setup, dict(contender.arguments)))
        row: dict[str, Any] = {**case.labels, "contender": contender.name}
        if isinstance(answer, str):
            row["note"] = answer
        else:
            row["peak_mib"], first = answer
            ready.append((position, contender, row, cast("list[float]", [first])))
        rows.append(row)
    longest = max(50.0, hopeless * min((times[0] for *_, times in ready), default=0.0))
    repeated = [entry for entry in ready if entry[3][0] <= longest]
    for _, _, _, times in repeated:
        times.clear()
    begin = time.monotonic()
    for done in range(repeats):
        if done >= 2 and time.monotonic() - begin > seconds:
            break
        for position, contender, _, times in repeated:
            times.append(_ask(workers[contender.process], ("run", position)))
    for _, contender, row, times in ready:
        row |= {"median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times), "rounds": len(times)}
        row["ratio"] = row["median_ms"] / ready[0][2]["median_ms"]
        _ask(workers[contender.process], ("clear",))
    return rows


def _ask(connection: Connection, message: tuple[Any, ...]) -> Any:
    try:
        connection.send(message)
        return connection.recv()
    except (EOFError, ConnectionError) as error:
        raise ChildProcessError(
            "a benchmark's process has ended; the memory may not suffice for all contenders"
        ) from error


@contextmanager
def _workers(names: set[str]) -> Iterator[dict[str, Connection]]:
    context = multiprocessing.get_context("spawn")
    processes = []
    connections = {}
    for name in sorted(names):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
        connections[name] = ours
    try:
        yield connections
    finally:
        for connection in connections.values():
            connection.close()
        for process in processes:
            process.join(10)
            process.terminate()


def _serve(connection: Connection) -> None:
    """Answer requests until the other side goes away."""
    calls: dict[int, tuple[Call, int, bool]] = {}
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        if message[0] == "set up":
            try:
                call = message[2](**message[3])
                return_freed_memory()
                before = _reset_peak()
                duration = first = _seconds(call, 1)
                peak = None if before is None else (_memory("VmHWM") - before) / 1024
                if first < 1:
                    duration = _seconds(call, 1)
                return_freed_memory()
                # Another process had the caches just now, and its waiting threads keep a core for some 10 ms more: as
                # many short calls are made before those that are timed; so is one that finds its memory again, which
                # is returned in between for the others to have.
                calls[message[1]] = (call, max(1, int(0.02 / duration)), duration < 1 or is_freed_memory_kept())
                connection.send((peak, 1e3 * first))
            except ImportError as error:
                connection.send(f"not installed: {error.name}")
        elif message[0] == "run":
            call, number, warm_up = calls[message[1]]
            if warm_up:
                _seconds(call, number)
            seconds = _seconds(call, number)
            if is_freed_memory_kept():
                return_freed_memory()
            connection.send(1e3 * seconds)
        else:
            calls.clear()
            gc.collect()
            connection.send(None)


def _seconds(call: Call, number: int) -> float:
    begin = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - begin) / number


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


def environment(threads: int) -> dict[str, Any]:
    """Processor, threads and versions, for the record."""
    versions = {}
    for package in ("torch", "numpy", "torch-fftconv", "fft-conv-pytorch", "onnxruntime", "openvino"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "processor": processor_name(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        **versions,
    }
