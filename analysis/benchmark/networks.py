"""Networks at work, beside the same network from other layers and in other engines."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import replknet
from analysis.benchmark.timing import Call, Case, Contender, seed_and_threads, without_gradients
from analysis.models.layers import fast_layout
from analysis.runs.memory import keep_freed_memory
from replknet import DepthwiseConv2d, ReparamLargeKernelConv
from replknet.convolution.dilated import DilatedConv2d
from replknet.convolution.pointwise import PointwiseConv2d, multiply
from replknet.networks import family_of

_OWN_LAYERS = (DepthwiseConv2d, DilatedConv2d, PointwiseConv2d)


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
    seed_and_threads(threads)
    model = _created(kernel_sizes)
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
        _replace(model, lambda layer: _plain(layer) if isinstance(layer, _OWN_LAYERS) else layer)
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
        return without_gradients(lambda: model(images))
    return _gradient(model, images)


def network_on(
    device: str,
    *,
    task: str,
    size: int,
    batch: int,
    threads: int,
    dtype: str,
    kernel_sizes: tuple[int, ...] | None = None,
    native: bool = False,
    channels_last: bool = False,
    compiled: bool = False,
) -> Call:
    """RepLKNet-31B at work on a GPU.

    Args:
        device: Where.
        task: "inference" (re-parameterised, weights and images of `dtype`), "erf" (as on a CPU: plain layers with their
            batch norms) or "train" (forward, backward and AdamW, under autocast unless `dtype` is float32).
        size: Side of the images.
        batch: Number of images.
        threads: Of the processor.
        dtype: See `task`.
        kernel_sizes: Other kernels than the network's own, without the parallel small one where they are small.
        native: Plain layers, as the official code runs.
        channels_last: The layout of images and weights.
        compiled: By `torch.compile`.
    """
    seed_and_threads(threads)
    with torch.device(device):
        model = _created(kernel_sizes)
        images = torch.randn(batch, 3, size, size)
    if task != "train":
        model.eval().requires_grad_(False)
    if task == "inference" or (task == "erf" and not native):
        model = replknet.reparameterize(model)
    if native:
        _replace(model, lambda layer: _plain(layer) if isinstance(layer, _OWN_LAYERS) else layer)
    kind = torch.float32 if task == "train" else getattr(torch, dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model.to(device=device, dtype=kind, memory_format=layout)  # type: ignore[call-overload]
    images = images.to(kind).contiguous(memory_format=layout)
    if task == "erf":
        return _gradient(model, images)
    run = cast("nn.Module", torch.compile(model)) if compiled else model
    if task == "train":
        return _training_step(run, images, dtype)
    return without_gradients(lambda: run(images))


def _created(kernel_sizes: tuple[int, ...] | None) -> nn.Module:
    changes: dict[str, Any] = {} if kernel_sizes is None else {"kernel_sizes": kernel_sizes}
    if kernel_sizes is not None and max(kernel_sizes) <= 5:
        changes["small_kernel"] = None
    return replknet.create_model("replknet_31b", **changes)


def _gradient(model: nn.Module, images: Tensor) -> Call:
    """Of the central unit of the last map with respect to the images."""
    features = cast("Callable[[Tensor], Tensor]", model.forward_features)

    def gradient() -> Tensor:
        pixels = images.detach().requires_grad_()
        maps = features(pixels)
        unit = maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2].relu().sum()
        return torch.autograd.grad(unit, pixels)[0]

    return gradient


def family_network(name: str, variant: str, task: str, size: int, batch: int, threads: int) -> Call:
    """A network of any family in inference, re-parameterised, or in training.

    Args:
        name: Of its architecture.
        variant: "replknet", in the layout that `train` takes; "nn.Conv2d", every depthwise and 1x1 convolution a plain
            one of contiguous maps; or "nn.Conv2d, channels_last".
        task: "inference" or "train".
        size: Side of the images.
        batch: Number of images.
        threads: Of the processor.
    """
    seed_and_threads(threads)
    model = replknet.create_model(name)
    images = torch.randn(batch, 3, size, size)
    if task == "inference":
        model = replknet.reparameterize(model.eval().requires_grad_(False))
    if variant != "replknet":
        _replace(model, lambda layer: _plain(layer) if isinstance(layer, _OWN_LAYERS) else layer)
    layout = torch.contiguous_format if variant == "nn.Conv2d" else torch.channels_last
    if variant == "replknet":
        layout = fast_layout(model, images.device)
    model.to(memory_format=layout)
    first = model.get_submodule(family_of(model.config).first_layer)
    if task == "train":
        images = images.contiguous(memory_format=layout)
        return _training_step(model, images)
    if variant != "replknet":  # the network would choose the layout itself
        first.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(memory_format=layout),))
    return without_gradients(lambda: model(images))


def family_cases(name: str, task: str, sizes: Sequence[int], batches: Sequence[int], threads: int) -> Iterator[Case]:
    """The cases of `family_network`."""
    for size in sizes:
        for batch in batches:
            own = {"name": name, "task": task, "size": size, "batch": batch, "threads": threads}
            contenders = [
                Contender(variant, variant, family_network, {**own, "variant": variant})
                for variant in ("replknet", "nn.Conv2d", "nn.Conv2d, channels_last")
            ]
            yield Case({"network": name, "task": task, "size": size, "images": batch}, contenders)


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


def gpu_network_cases(
    task: str,
    sizes: Sequence[int],
    batches: Sequence[int],
    threads: int,
    *,
    device: str,
    dtype: str,
    compiled: bool = False,
    plain: bool = True,
) -> Iterator[Case]:
    """The cases of one task on a GPU: large kernels and 3x3 ones, both layouts, native layers.

    Args:
        task: As of `network_on`.
        sizes: Sides of the images.
        batches: Numbers of images.
        threads: Of the processor.
        device: Where all compute.
        dtype: As of `network_on`.
        compiled: Have networks by `torch.compile` as well, where the task is not "erf".
        plain: Have those without it, too; otherwise the one that they are compared with alone.
    """
    large, small = _dashed((31, 29, 27, 13)), _dashed((3, 3, 3, 3))
    threes: dict[str, Any] = {"kernel_sizes": (3, 3, 3, 3)}
    last, native, faster = {"channels_last": True}, {"native": True}, {"compiled": True}
    chosen: list[tuple[str, dict[str, Any]]] = [(large, {}), (f"{large}, channels_last", last)]
    if plain:
        if task != "erf":
            chosen += [(small, threes), (f"{small}, channels_last", threes | last)]
        chosen += [(f"{large}, nn.Conv2d", native), (f"{large}, nn.Conv2d, channels_last", native | last)]
    if compiled and task != "erf":
        chosen.append((f"{large}, channels_last, torch.compile", last | faster))
        if plain:
            chosen.append((f"{large}, nn.Conv2d, torch.compile", native | faster))
    for size in sizes:
        for batch in batches:
            own = {"device": device, "task": task, "size": size, "batch": batch, "threads": threads, "dtype": dtype}
            contenders = [
                Contender(
                    name,
                    "torch.compile" if "compiled" in changes else "network",
                    network_on,
                    own | changes,
                    _trials(size, batch) if "native" in changes and "channels_last" in changes else (),
                )
                for name, changes in chosen
            ]
            yield Case({"task": task, "size": size, "images": batch, "dtype": dtype}, contenders)


def _trials(size: int, batch: int) -> list[tuple[Mapping[str, Any], float]]:
    """A small image, one image: the vendor's convolution can take minutes for a batch."""
    small = min(size, max(64, size // 2 // 32 * 32))  # which has several pixels for each batch norm
    parts = [({"batch": 1, "size": small}, small**2 / size**2 / batch), ({"batch": 1}, 1 / batch)]
    return [(changes, share) for changes, share in parts if share < 1]


def with_rates(table: pd.DataFrame) -> pd.DataFrame:
    """The table with images per second."""
    if "median_ms" not in table:
        return table
    return table.assign(images_per_s=1e3 * table["images"] / table["median_ms"])


def _dashed(kernels: Sequence[int]) -> str:
    return "-".join(map(str, kernels))


def _training_step(model: nn.Module, images: Tensor, dtype: str = "float32") -> Call:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    targets = torch.arange(len(images), device=images.device)
    autocast = torch.autocast(images.device.type, getattr(torch, dtype), enabled=dtype != "float32")

    def step() -> None:
        optimizer.zero_grad()
        with autocast:
            loss = F.cross_entropy(model(images), targets)
        torch.autograd.backward(loss)
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

    return without_gradients(compute)


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
        cast("Any", layer.kernel_size),
        padding=cast("Any", tuple(d * (k // 2) for d, k in zip(layer.dilation, layer.kernel_size, strict=True))),
        dilation=cast("Any", layer.dilation),
        groups=layer.groups,
        bias=layer.bias is not None,
        device=layer.weight.device,
    )
    plain.load_state_dict(layer.state_dict())
    return plain.requires_grad_(layer.weight.requires_grad).train(layer.training)
