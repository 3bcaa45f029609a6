"""The kernel-size study: networks that differ in their kernels only, trained and measured alike.

Every cell, one setting of the kernels with one seed, is a folder of its own. A finished cell is read, an interrupted
one continues, and a cell that fails is reported while the others go on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from analysis.runs.memory import is_freed_memory_kept, keep_freed_memory
from analysis.runs.processes import num_processes
from analysis.runs.settings import AT_ONCE, WORKERS, check_number, named_path
from analysis.statistics import trend
from analysis.study.answers import unanswered
from analysis.study.budget import cost
from analysis.study.design import Cell, Study
from analysis.study.images import StudyImages
from analysis.study.measures import SHAPE_BIAS, shown
from analysis.study.processes import Job, shared
from analysis.study.result import settings_of, study_table, values_by_seed
from analysis.study.running import Outcome, cell_settings, check_cells, check_folder, finished, run_cell

Progress = Callable[[int, int, str], None]
_MOST_AT_ONCE = 16
"""Cells at once, where nobody says how many: each takes up to a gigabyte."""
_LAUNCH_BOUND = 10e9
"""Multiply-accumulates of one step forward, up to which a GPU waits for the processor to launch its kernels."""
_GPU_MEMORY = 2 * 2**30
"""Bytes of a GPU for each cell at once: what CUDA takes for a process, and the maps of such a step."""


def run_study(
    study: Study,
    directory: str | PathLike[str],
    *,
    num_workers: int = 0,
    device: str | torch.device = "cpu",
    at_once: int | None = 1,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Train and measure every cell that `directory/cells` does not hold yet.

    Args:
        study: What to do.
        directory: Gets `cells/<name>/` with `cell.json` (the complete recipe), `network.safetensors` (which
            `load_model` reads), `curve.csv` and the measurements.
        num_workers: Processes that make or load images; without effect on the results.
        device: Where networks are trained and measured, "auto" as in `LoadedModel.to`; recorded with each cell.
        at_once: Cells at the same time. With 1 each has all threads of PyTorch. With more, each has its part of the
            threads in a process of its own (a script that calls this then needs `if __name__ == "__main__":`). None
            is one for each thread on a CPU, so that no network depends on the number of cores; so it is on an NVIDIA
            GPU with enough memory for networks so small that the GPU waits for the CPU; and 1 elsewhere.
        progress: Called with the work done, all work, and the name of the cell at work.

    Returns:
        One outcome for each cell, in the order of `study.cells()`; without those of further seeds where `until_width`
        is reached before.

    Raises:
        ValueError: If the images or the device cannot be used, or `directory` holds a finished cell of another study.
        FileNotFoundError: If the image folder is missing or incomplete.
        TrainingError: If one of several processes ends by itself.
    """
    images = StudyImages(study)
    place = check_cells(study, images, device)
    check_number("num_workers", num_workers, WORKERS)
    if at_once is None:
        at_once = _cells_at_once(study, place, len(images.train.classes))
    check_number("at_once", at_once, AT_ONCE)
    if at_once > 1 and num_processes() > 1:
        raise ValueError(f"at_once={at_once}: expected 1, as {num_processes()} processes share each training already")
    directory = named_path(directory, "directory")
    check_folder(study, directory, images)
    cells = study.cells()
    # The measurements of a cell take about as long as this many steps.
    effort = study.recipe.steps + max(study.recipe.steps // 6, 1)
    threads = max(1, torch.get_num_threads() // at_once)
    work = _Work(study, Path(directory) / "cells", effort, num_workers, place, threads)
    done = dict.fromkeys(cells, 0)

    def report(cell: Cell, steps: int) -> None:
        done[cell] = max(done[cell], steps)
        if progress is not None:
            progress(sum(done.values()), len(cells) * effort, cell.name)

    outcomes: list[Outcome] = []
    together = len(cells) // study.num_seeds if study.until_width is not None else len(cells)
    for first in range(0, len(cells), together):
        if _is_narrow(study, outcomes):
            break
        part = cells[first : first + together]
        elsewhere = {outcome.cell: outcome for outcome in _in_processes(work, images, part, at_once, report)}
        for cell in part:
            outcome = elsewhere.get(cell)
            if outcome is None or not outcome.error:
                with _threads(threads):
                    here = work.run(cell, images, partial(report, cell))
                outcome = here if outcome is None else replace(here, reused=outcome.reused)
            outcomes.append(outcome)
    return outcomes


def _cells_at_once(study: Study, place: torch.device, num_classes: int) -> int:
    number = min(torch.get_num_threads(), _MOST_AT_ONCE)
    if num_processes() > 1 or place.type not in ("cpu", "cuda"):
        return 1
    if place.type == "cuda":
        configs = {study.config(cell, num_classes) for cell in study.cells()}
        largest = max(cost(config, "macs", study.size) for config in configs)
        if largest * study.recipe.batch_size > _LAUNCH_BOUND:
            return 1
        free, _ = torch.cuda.mem_get_info(place)
        number = min(number, int(free // _GPU_MEMORY))
    return max(number, 1)


def _is_narrow(study: Study, outcomes: list[Outcome]) -> bool:
    """Whether the seeds suffice: of every setting, the interval of the difference between the ends is narrow enough."""
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    if study.until_width is None or not results:
        return False
    for _, rows in settings_of(study_table(results)):
        for measure in shown(SHAPE_BIAS, rows)[:1]:
            kernels, values = values_by_seed(rows, measure.name)
            complete = len(kernels) == len(study.kernels_of(rows["family"].iloc[0]))
            found = trend(values, sequential=True) if complete else None
            if found is not None and found.high - found.low <= study.until_width:
                break
        else:
            return False
    return True


@dataclass(frozen=True)
class _Work:
    """What is done for every cell."""

    study: Study
    folder: Path
    effort: int
    num_workers: int
    device: torch.device
    num_threads: int

    def run(self, cell: Cell, images: StudyImages, report: Callable[[int], None]) -> Outcome:
        report(0)
        target = self.folder / cell.name
        outcome = run_cell(
            self.study, cell, images, target, num_workers=self.num_workers, device=self.device, report=report
        )
        report(self.effort)
        return outcome


def _in_processes(
    work: _Work, images: StudyImages, cells: Sequence[Cell], at_once: int, report: Callable[[Cell, int], None]
) -> list[Outcome]:
    """Do the cells that are not finished, if there are several, in processes; their results are in their folders."""

    def is_missing(cell: Cell) -> bool:
        found = finished(work.folder / cell.name, cell_settings(work.study, cell, images))
        return found is None or bool(unanswered(found, images))

    missing = [cell for cell in cells if is_missing(cell)] if at_once > 1 else []
    number = min(at_once, len(missing))
    if number < 2:
        return []
    images.make(max(number, work.num_workers))
    with TemporaryDirectory(prefix="replknet-") as name:
        images.store(Path(name))
        begin = partial(_begin, replace(work, num_workers=0), Path(name), is_freed_memory_kept())
        return shared(begin, missing, number, report=lambda item, steps: report(missing[item], steps))


def _begin(work: _Work, stored: Path, keeps_memory: bool) -> Job[Cell, Outcome]:
    """In a process of several."""
    if keeps_memory:
        keep_freed_memory()
    torch.set_num_threads(work.num_threads)
    images = StudyImages(work.study)
    images.restore(stored)
    return lambda cell, report: replace(work.run(cell, images, report), result=None)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    former = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(former)
