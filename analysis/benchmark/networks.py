"""RepLKNet-31B at work, beside the same network from other layers and in other engines."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import replknet
from analysis.benchmark.timing import Call, Case, Contender, seed_and_threads, without_gradients
from analysis.runs.memory import keep_freed_memory
from replknet import DepthwiseConv2d, ReparamLargeKernelConv
from replknet.convolution.pointwise import PointwiseConv2d, multiply


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
        return without_gradients(lambda: model(images))
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
        layer.kernel_size[0],
        padding=layer.kernel_size[0] // 2,
        groups=layer.groups,
        bias=layer.bias is not None,
    )
    plain.load_state_dict(layer.state_dict())
    return plain.requires_grad_(layer.weight.requires_grad).train(layer.training)
