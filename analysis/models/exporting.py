"""Networks for other engines: ONNX, TorchScript and programs of torch.export, each verified by running it."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

import replknet
from analysis.models.files import PREPARATION, describe_preparation
from analysis.models.layers import evaluation_mode
from analysis.models.loaded import LoadedModel
from analysis.runs.writing import check_writable, replacing

Format = Literal["onnx", "torchscript", "export"]
_BY_SUFFIX: dict[str, Format] = {".onnx": "onnx", ".pt": "torchscript", ".ts": "torchscript", ".pt2": "export"}
_TOLERANCE = 1e-3
_INPUT = "images"


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written, and how it was verified.

    Args:
        engine: What ran the file.
        shapes: The input shapes that were compared.
        difference: The largest difference of the outputs, relative to the largest one.
    """

    engine: str
    shapes: tuple[tuple[int, ...], ...]
    difference: float


def format_of(path: str | PathLike[str], format: str | None = None) -> Format:
    """The format that is asked for by name, or by how `path` ends.

    Raises:
        ValueError: If it is none of the three, or the two contradict each other.
    """
    by_name = _BY_SUFFIX.get(Path(path).suffix)
    if by_name is None:
        raise ValueError(f"path={str(path)!r}: expected a name that ends in {', '.join(_BY_SUFFIX)}")
    if format is not None and format not in get_args(Format):
        raise ValueError(f"format={format!r}: expected one of {', '.join(get_args(Format))}")
    if format is not None and format != by_name:
        raise ValueError(f"path={str(path)!r}: ends like a file of format {by_name}, not {format}")
    return by_name


def export_model(
    loaded: LoadedModel,
    path: str | PathLike[str],
    *,
    format: Format,
    size: int | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write a network for another engine and compare its outputs, at two batch and image sizes.

    A RepLKNet is re-parameterised first. Batch and image sizes stay free.

    Args:
        loaded: The model, on the CPU.
        path: Ends in .onnx, .pt or .ts (TorchScript), or .pt2 (torch.export).
        format: "onnx" (run by onnxruntime), "torchscript" or "export" (run by PyTorch).
        size: Side in pixels of the images it is traced with; by default the model's own.
        overwrite: Replace a file that is there.

    Raises:
        FileExistsError: If the file is there and `overwrite` is false.
        ValueError: If a package is absent, the network cannot be exported, or the file's outputs differ.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"path={str(path)!r}: exists already; overwrite=True replaces it")
    side = size or loaded.input_size or 224
    module = loaded.module
    if isinstance(module, replknet.RepLKNet):
        module = replknet.reparameterize(module)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, side, side, generator=generator)
    others = torch.randn(3, 3, side + 32, side + 64, generator=generator)
    check_writable(path)
    with replacing(path) as temporary, evaluation_mode(module), torch.no_grad():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # tracing warns of every shape that it takes for fixed
                _WRITERS[format](module, images, temporary, describe_preparation(loaded, module(images).shape[1]))
        except ImportError as error:
            raise ValueError(f"format={format!r}: needs {error.name} (extra 'export')") from error
        except Exception as error:  # each exporter has its own types
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"model: {loaded.name} cannot be exported as {format} ({reason})") from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            run, engine = _READERS[format](temporary)
        difference = 0.0
        shapes = []
        for batch in (images, others):
            expected = module(batch)
            found = run(batch)
            difference = max(difference, float((found - expected).abs().max() / expected.abs().max()))
            shapes.append(tuple(batch.shape))
        if not difference <= _TOLERANCE:
            raise ValueError(f"model: {loaded.name} as {format} gives outputs that differ by {difference:.1e}")
    return ExportReport(engine=engine, shapes=tuple(shapes), difference=difference)


def _dynamic_shapes() -> tuple[dict[int, Any]]:
    return ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)


def _write_onnx(module: nn.Module, images: Tensor, path: Path, _description: str) -> None:
    import onnx  # noqa: F401  the exporter's own message on its absence is a page long
    import onnxruntime  # noqa: F401  it runs the file afterwards
    import onnxscript  # noqa: F401

    torch.onnx.export(
        module,
        (images,),
        path,
        dynamo=True,
        verbose=False,
        input_names=[_INPUT],
        output_names=["scores"],
        dynamic_shapes=_dynamic_shapes(),
        external_data=False,
    )


def _write_torchscript(module: nn.Module, images: Tensor, path: Path, description: str) -> None:
    traced = torch.jit.trace(module, images, check_trace=False)  # type: ignore[no-untyped-call]
    torch.jit.save(traced, path, _extra_files={PREPARATION: description})


def _write_program(module: nn.Module, images: Tensor, path: Path, description: str) -> None:
    program = torch.export.export(module, (images,), dynamic_shapes=_dynamic_shapes())
    torch.export.save(program, path, extra_files={PREPARATION: description})


def _run_onnx(path: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, {_INPUT: batch.numpy()})[0]), (
        f"onnxruntime {onnxruntime.__version__}"
    )


def _run_torchscript(path: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    return torch.jit.load(path), f"torch {torch.__version__}"  # type: ignore[no-untyped-call]


def _run_program(path: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    return torch.export.load(path).module(), f"torch {torch.__version__}"


_WRITERS: dict[Format, Callable[[nn.Module, Tensor, Path, str], None]] = {
    "onnx": _write_onnx,
    "torchscript": _write_torchscript,
    "export": _write_program,
}
_READERS: dict[Format, Callable[[Path], tuple[Callable[[Tensor], Tensor], str]]] = {
    "onnx": _run_onnx,
    "torchscript": _run_torchscript,
    "export": _run_program,
}
