"""Networks for other engines: ONNX, TorchScript and programs of torch.export, each verified by running it."""

import io
import json
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

import replknet
from analysis.models.files import PREPARATION, describe_preparation
from analysis.models.layers import ForwardError, evaluation_mode, run
from analysis.models.libraries import quiet
from analysis.models.loaded import LoadedModel
from analysis.runs.settings import check_number
from analysis.runs.writing import check_writable, replacing

Format = Literal["onnx", "torchscript", "export"]
_BY_SUFFIX: dict[str, Format] = {".onnx": "onnx", ".pt": "torchscript", ".ts": "torchscript", ".pt2": "export"}
_TOLERANCE = 1e-3
_INPUT = "images"


Save = Callable[[Path, str], None]
"""Writes a traced network and what describes it."""
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written, and how it was verified.

    Args:
        engine: What ran the file.
        shapes: The input shapes of which the outputs are those of the network.
        refused: The input shapes that the network takes and the file does not.
        difference: The largest difference of the outputs, relative to the largest one.
    """

    engine: str
    shapes: tuple[Shape, ...]
    refused: tuple[Shape, ...]
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
    """Write a network for another engine, run the file at several batch and image sizes, and compare the outputs.

    A network of `replknet` is re-parameterised first. Batch and image sizes stay free where the network and the format
    let them: the report and the file's own description (`tried`) say which sizes were taken and which refused.

    Args:
        loaded: The model, on the CPU.
        path: Ends in .onnx, .pt or .ts (TorchScript), or .pt2 (torch.export).
        format: "onnx" (run by onnxruntime), "torchscript" or "export" (run by PyTorch).
        size: Side in pixels of the images it is traced with; by default the model's own.
        overwrite: Replace a file that is there.

    Raises:
        FileExistsError: If the file is there and `overwrite` is false.
        ValueError: If a package is absent, the network cannot be exported, or the file's outputs differ or are not
            finite at a size that it takes.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"path={str(path)!r}: exists already; overwrite=True replaces it")
    own = loaded.input_size or 224
    side = own if size is None else size
    check_number("size", side, (8, 4096, "8 to 4096 pixels"))
    module = loaded.module
    if isinstance(module, replknet.Network):
        module = replknet.reparameterize(module)
    images = _batch((2, 3, side, side))
    check_writable(path)
    with replacing(path) as temporary, evaluation_mode(module), torch.no_grad():
        outputs = run(module, images, loaded.name)
        description = describe_preparation(loaded, outputs.shape[1] if isinstance(outputs, Tensor) else 0)
        try:
            with warnings.catch_warnings(), quiet("torch"):
                warnings.simplefilter("ignore")  # tracing warns of every shape that it takes for fixed
                save = _TRACERS[format](module, images)
                save(temporary, description)
        except OSError:
            raise
        except ImportError as error:
            raise ValueError(f"format={format!r}: needs {error.name} (extra 'export')") from error
        except Exception as error:  # each exporter has its own types
            reason = textwrap.shorten(str(error).strip().partition("\n")[0], 300, placeholder=" ...")
            raise ValueError(f"model: {loaded.name} cannot be exported as {format} ({reason})") from error
        what = f"model: {loaded.name} as {format}"
        report = _compared(module, temporary, format, _shapes(side, own), what)
        tried = {"engine": report.engine, "taken": report.shapes, "refused": report.refused}
        save(temporary, json.dumps(json.loads(description) | {"tried": tried}))
        _compared(module, temporary, format, report.shapes[:1], what)
    return report


def _shapes(side: int, own: int) -> list[Shape]:
    """The traced one first; then others in batch and image size: the model's own, smaller, odd, larger, oblong."""
    sides = [(side, side), (own, own), (side // 2, side // 2), (side - 1, side + 1), (2 * side, 2 * side)]
    return list(dict.fromkeys([(2, 3, side, side), *((1, 3, *size) for size in sides), (3, 3, side + 32, side + 64)]))


def _batch(shape: Shape) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _compared(module: nn.Module, path: Path, format: Format, shapes: Sequence[Shape], what: str) -> ExportReport:
    """Run a file and the network that it was made of.

    Raises:
        ValueError: If the file refuses the first shape, or gives other outputs at one that it takes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        execute, engine = _READERS[format](path)
    differences: dict[Shape, float] = {}
    refused: list[Shape] = []
    for shape in shapes:
        batch = _batch(shape)
        try:
            expected = run(module, batch)
        except ForwardError:  # a size that the network does not take
            if shape == shapes[0]:
                raise
            continue
        if not isinstance(expected, Tensor) or not expected.isfinite().all():
            given = "values that are not finite" if isinstance(expected, Tensor) else type(expected).__name__
            raise ValueError(f"{what}: for images of shape {shape} the network gives {given}; nothing can be compared")
        try:
            found = execute(batch)
        except Exception as error:  # each engine has its own types
            if shape == shapes[0]:
                reason = " ".join(str(error).split())[:300]
                raise ValueError(f"{what} does not run at the shape it was traced with, {shape} ({reason})") from error
            refused.append(shape)
            continue
        differences[shape] = _difference(found, expected)
        if not differences[shape] <= _TOLERANCE:
            raise ValueError(
                f"{what} gives outputs that differ by {differences[shape]:.1e} for images of shape {shape}"
            )
    return ExportReport(
        engine=engine, shapes=tuple(differences), refused=tuple(refused), difference=max(differences.values())
    )


def _difference(found: Tensor, expected: Tensor) -> float:
    """Relative to the largest output; NaN where the shapes differ or an output is not finite."""
    if found.shape != expected.shape or not found.isfinite().all():
        return float("nan")
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny))


def _dynamic_shapes() -> tuple[dict[int, Any]]:
    """Free where the network lets it; some, such as transformers with learned positions, take one image size only."""
    return ({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)


def _trace_onnx(module: nn.Module, images: Tensor) -> Save:
    import onnx  # noqa: F401  the exporter's own message on its absence is a page long
    import onnxruntime  # noqa: F401  it runs the file afterwards
    import onnxscript  # noqa: F401

    program: Any = torch.onnx.export(
        module,
        (images,),
        dynamo=True,
        verbose=False,
        input_names=[_INPUT],
        output_names=["scores"],
        dynamic_shapes=_dynamic_shapes(),
    )

    def save(path: Path, description: str) -> None:
        program.model.metadata_props[PREPARATION] = description
        program.save(path, external_data=False)

    return save


def _trace_torchscript(module: nn.Module, images: Tensor) -> Save:
    traced = torch.jit.trace(module, images, check_trace=False)  # type: ignore[no-untyped-call]

    def save(path: Path, description: str) -> None:
        content = io.BytesIO()  # PyTorch's own file would end the process on a disk that is full
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript is on its way out
            torch.jit.save(traced, content, _extra_files={PREPARATION: description})
        path.write_bytes(content.getbuffer())

    return save


def _trace_program(module: nn.Module, images: Tensor) -> Save:
    program = torch.export.export(module, (images,), dynamic_shapes=_dynamic_shapes())

    def save(path: Path, description: str) -> None:
        content = io.BytesIO()
        torch.export.save(program, content, extra_files={PREPARATION: description})
        path.write_bytes(content.getbuffer())

    return save


def _run_onnx(path: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it raises says the same
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, {_INPUT: batch.numpy()})[0]), (
        f"onnxruntime {onnxruntime.__version__}"
    )


def _run_torchscript(path: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    return torch.jit.load(path), f"torch {torch.__version__}"  # type: ignore[no-untyped-call]


def _run_program(path: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    return torch.export.load(path).module(), f"torch {torch.__version__}"


_TRACERS: dict[Format, Callable[[nn.Module, Tensor], Save]] = {
    "onnx": _trace_onnx,
    "torchscript": _trace_torchscript,
    "export": _trace_program,
}
_READERS: dict[Format, Callable[[Path], tuple[Callable[[Tensor], Tensor], str]]] = {
    "onnx": _run_onnx,
    "torchscript": _run_torchscript,
    "export": _run_program,
}
