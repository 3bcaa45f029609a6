"""What the steps of a training gave, read back from the device together: to read makes the program wait for a GPU."""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from analysis.runs.processes import num_processes, total
from analysis.training.parallel import TrainingError

_MOST_STEPS = 20
"""Between two readings on a GPU."""


class Readings:
    """Losses, right answers and durations of the steps since the last reading.

    Args:
        device: Where the network is trained. A CPU is read at every step.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._rows: list[tuple[int, int, Tensor]] = []
        self._spans: list[tuple[Any, Any]] = []
        self._start: Any = None

    @property
    def due(self) -> bool:
        """Whether it is time to read."""
        return len(self._rows) >= (1 if self._stream is None else _MOST_STEPS)

    def add(self, step: int, losses: Sequence[Tensor], correct: Sequence[Tensor], size: int, norm: Tensor) -> None:
        """Note what a step gave.

        Args:
            step: Its number.
            losses: Of each part of the batch.
            correct: Right answers in each part.
            size: Images in one part.
            norm: Of the gradient.
        """
        dtype = torch.promote_types(losses[0].dtype, torch.float32)
        row = torch.stack([value.detach().to(dtype) for value in (*losses, *correct, norm)])
        self._rows.append((step, size, row))

    def outcomes(self) -> list[tuple[float, float]]:
        """Mean loss and share of right answers of each step, over all processes.

        Raises:
            TrainingError: If a loss or a gradient is not finite, naming the first such step.
        """
        if not self._rows:
            return []
        rows = torch.stack([row for _, _, row in self._rows]).tolist()
        means = torch.zeros(len(rows), 2, dtype=torch.float64)
        for (_, size, _), row, mean in zip(self._rows, rows, means, strict=True):
            parts = len(row) // 2
            for number in range(parts):
                mean[0] += row[number] / parts
                mean[1] += row[parts + number] / size / parts
        found = (total(means) / num_processes()).tolist()
        for (step, _, _), row, (loss, _) in zip(self._rows, rows, found, strict=True):
            for name, value in (("loss is", loss), ("gradient's norm is", row[-1])):
                if not math.isfinite(value):
                    raise TrainingError(f"step {step}: the {name} {value}; try a lower learning_rate")
        self._rows.clear()
        return [(loss, share) for loss, share in found]

    def start(self) -> None:
        """Begin to time a step."""
        self._start = self._now()

    def stop(self) -> None:
        """End it."""
        self._spans.append((self._start, self._now()))

    def seconds(self) -> list[float]:
        """How long each step took, on a GPU by its own clock."""
        if self._stream is None:
            found = [end - start for start, end in self._spans]
        else:
            self._stream.synchronize()
            found = [start.elapsed_time(end) / 1000 for start, end in self._spans]
        self._spans.clear()
        return found

    def _now(self) -> Any:
        """A number, or an event of the GPU."""
        if self._stream is None:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event
