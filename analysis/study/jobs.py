"""The cells of a study as jobs of their own, on this machine or on a Slurm cluster, through submitit.

A job trains and measures one cell in its folder, where a later job goes on. When its time runs out, or it is preempted,
it writes its state and asks for another turn.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from analysis.runs.decoding import decoded, made
from analysis.runs.processes import process_group, rank
from analysis.runs.results import ResultError
from analysis.runs.settings import check_fields
from analysis.runs.texts import parse_json, read_text
from analysis.runs.writing import write_json
from analysis.study.design import Study
from analysis.study.images import StudyImages
from analysis.study.result import CellResult
from analysis.study.running import run_cell
from analysis.training.parallel import check_division

State = Literal["done", "running", "pending", "failed", "missing"]
FOLDER = "jobs"
"""Of the logs and of submitit's files, in the folder of a study."""
_REGISTRY = "jobs.json"
_JOB = re.compile(r"\w+")
_MANY = 10_000
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What a job asks for.

    Args:
        executor: "slurm", or "local" for processes on this machine.
        partition: Of the cluster; its default if there is none.
        nodes: Machines for each job.
        gpus: GPUs on each machine; one process for each.
        processes: Processes on each machine, where there are no GPUs.
        cpus: Cores for each process, and as many threads of PyTorch.
        memory: Gigabytes for each machine; the cluster's default if there is none.
        minutes: After which a job is stopped; it then goes on in another turn.
        at_once: Jobs at the same time; by default 16 on a cluster, one on this machine.
        signal_seconds: Seconds before its end at which a job is told; a step of the training must fit.
        slurm: Further options of sbatch, such as {"account": "vision"}.

    Raises:
        ValueError: If a value is out of range.
    """

    executor: str = "slurm"
    partition: str | None = None
    nodes: int = 1
    gpus: int = 0
    processes: int = 1
    cpus: int = 1
    memory: float | None = None
    minutes: int = 24 * 60
    at_once: int | None = None
    signal_seconds: int = 90
    slurm: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(
            self,
            nodes=(1, 10_000, "1 to 10000 machines"),
            gpus=(0, 1024, "0 to 1024"),
            processes=(1, 1024, "1 to 1024"),
            cpus=(1, 4096, "1 to 4096"),
            memory=(1e-3, 1e6, "a positive number of gigabytes, at most 1000000"),
            minutes=(1, 10_000_000, "1 to 10000000 minutes"),
            at_once=(1, 1_000_000, "1 to 1000000"),
            signal_seconds=(1, 1_000_000, "1 to 1000000 seconds"),
        )
        if self.executor not in ("local", "slurm"):
            raise ValueError(f"executor={self.executor!r}: expected local or slurm")
        if self.at_once is None:
            object.__setattr__(self, "at_once", 1 if self.executor == "local" else 16)
        if self.gpus and self.processes > 1:
            raise ValueError(f"processes={self.processes}: there is one for each of the {self.gpus} GPUs")
        if self.executor == "local" and (self.nodes > 1 or self.partition or self.slurm):
            raise ValueError("executor='local': one machine, without partition or options of sbatch")
        if self.signal_seconds >= 60 * self.minutes:
            raise ValueError(f"signal_seconds={self.signal_seconds}: expected less than the {self.minutes} minutes")


@dataclass(frozen=True, kw_only=True)
class CellState:
    """What has become of a cell.

    Args:
        cell: Its name.
        state: "done"; "running" or "pending" in a job; "failed", which a new submission tries again; or "missing",
            never submitted.
        job: Number of its last job, "" for none.
        line: The last line that it, or what went wrong, left.
    """

    cell: str
    state: State
    job: str = ""
    line: str = ""


@dataclass(frozen=True)
class CellJob:
    """What runs in a job: submitit pickles it, calls it, and asks it for a checkpoint before it is stopped.

    It holds plain values alone, so that nothing but this class has to be where it was when the job begins.
    """

    study: Mapping[str, Any]
    """Fields of `Study`."""
    name: str
    directory: str
    num_workers: int
    device: str
    num_threads: int
    num_processes: int

    def __call__(self) -> str:
        """Run the cell; raises what goes wrong."""
        torch.set_num_threads(self.num_threads)
        together = self.num_processes > 1
        study: Study = made(Study, self.study)
        if together:
            from submitit.helpers import TorchDistributedEnvironment

            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        with process_group() if together else nullcontext():
            (cell,) = (cell for cell in study.cells() if cell.name == self.name)
            images = StudyImages(study)
            images.check()
            outcome = run_cell(
                study,
                cell,
                images,
                Path(self.directory) / "cells" / self.name,
                num_workers=self.num_workers,
                device=self.device,
                report=_teller(study.recipe.steps),
            )
        if outcome.result is None:
            raise RuntimeError(outcome.error)
        return f"{self.name}: accuracy {outcome.result.accuracy:.4f}"

    def checkpoint(self) -> Any:
        """What to run in the next turn: the same, which finds its state in the folder of the cell."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _teller(steps: int) -> Callable[[int], None]:
    """Tells in the log, now and then, how far a training is."""
    last = float("-inf")

    def tell(done: int) -> None:
        nonlocal last
        if rank() == 0 and (time.monotonic() - last > _SECONDS_BETWEEN_LINES or done == steps):
            last = time.monotonic()
            sys.stdout.write(f"step {done} of {steps}\n")
            sys.stdout.flush()

    return tell


def cell_jobs(
    study: Study, names: Sequence[str], directory: Path, options: JobOptions, *, num_workers: int, device: str
) -> list[CellJob]:
    """One job for each of the cells.

    Raises:
        ValueError: If the processes of a job cannot share a batch, or a device is named beside GPUs.
    """
    processes = options.nodes * (options.gpus or options.processes)
    if options.gpus and device not in ("auto", "cuda"):
        raise ValueError(f"device={device}: expected none beside {options.gpus} GPUs, of which each process gets one")
    device = "cuda" if options.gpus else device  # "auto" is what there is where the job runs
    check_division(study.recipe, torch.device("cpu" if device == "auto" else device), processes)
    return [
        CellJob(
            study=asdict(study),
            name=name,
            directory=str(directory.resolve()),
            num_workers=num_workers,
            device=device,
            num_threads=options.cpus,
            num_processes=processes,
        )
        for name in names
    ]


def submit(jobs: Sequence[CellJob], directory: Path, options: JobOptions) -> list[str]:
    """Submit jobs to the cluster as one array; returns their numbers.

    Raises:
        ValueError: If submitit or Slurm is missing, or Slurm refuses.
    """
    executor = _executor(directory, options)
    try:
        with executor.batch():
            submitted = [executor.submit(job) for job in jobs]
    except Exception as error:  # submitit's own types, for what sbatch says
        raise ValueError(f"executor='slurm': {' '.join(str(error).split())}") from error
    _register(directory, dict(zip((job.name for job in jobs), (job.job_id for job in submitted), strict=True)), "slurm")
    return [job.job_id for job in submitted]


def run_locally(
    jobs: Sequence[CellJob], directory: Path, options: JobOptions, progress: Callable[[int, int], None] | None = None
) -> None:
    """Run jobs in processes of this machine, as many at once as the options say, until all have ended.

    Raises:
        ValueError: If submitit is missing.
    """
    executor = _executor(directory, options)
    waiting, running, ended = list(jobs), list[Any](), 0
    while waiting or running:
        while waiting and len(running) < (options.at_once or 1):
            job = waiting.pop(0)
            running.append(executor.submit(job))
            _register(directory, {job.name: running[-1].job_id}, "local")
        still = [job for job in running if not job.done()]
        ended += len(running) - len(still)
        running = still
        if progress is not None:
            progress(ended, len(jobs))
        if running:
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def job_script(jobs: Sequence[CellJob], directory: Path, options: JobOptions) -> str:
    """What sbatch would get.

    Raises:
        ValueError: If submitit is missing, or the executor is not Slurm.
    """
    if options.executor != "slurm":
        raise ValueError("executor='local': there is no job script, but a process for each cell")
    executor = _executor(directory, options, here=False)
    if len(jobs) > 1:
        executor.parameters["map_count"] = len(jobs)
    # Submitting makes its script with this; submitit has no public name for it.
    return str(executor._make_submission_file_text(executor._submitit_command_str, "uid"))


def _executor(directory: Path, options: JobOptions, *, here: bool = True) -> Any:
    """Submitit's executor; with `here` false, one that describes jobs for a Slurm that need not be on this machine."""
    try:
        import submitit
    except ImportError:
        raise ValueError(
            f"executor={options.executor!r}: needs the package submitit; pip install 'replknet[scale]'"
        ) from None

    class Elsewhere(submitit.SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 1

    folder = directory.resolve() / FOLDER
    per_node = options.gpus or options.processes
    if options.executor == "local":
        executor: Any = submitit.LocalExecutor(folder, max_num_timeout=_MANY)
        executor.update_parameters(
            timeout_min=options.minutes,
            tasks_per_node=per_node,
            gpus_per_node=options.gpus,
            signal_delay_s=options.signal_seconds,
        )
        return executor
    try:
        executor = (submitit.SlurmExecutor if here else Elsewhere)(folder, max_num_timeout=_MANY)
    except RuntimeError as error:
        raise ValueError(f"executor='slurm': {error}") from error
    wanted = {
        "job_name": f"replknet-{directory.resolve().name}",
        "time": options.minutes,
        "nodes": options.nodes,
        "ntasks_per_node": per_node,
        "cpus_per_task": options.cpus,
        "gpus_per_node": options.gpus or None,
        "mem": None if options.memory is None else f"{round(1024 * options.memory)}M",
        "partition": options.partition,
        "array_parallelism": options.at_once,
        "signal_delay_s": options.signal_seconds,
        "srun_args": ["--kill-on-bad-exit=1"],  # one process of several that fails ends the job
        "additional_parameters": dict(options.slurm) or None,
    }
    executor.update_parameters(**{name: value for name, value in wanted.items() if value is not None})
    return executor


def cell_states(study: Study, directory: Path) -> list[CellState]:
    """What has become of every cell of a study, and of others in its folder."""
    names = [cell.name for cell in study.cells()]
    names += sorted(path.name for path in (directory / "cells").glob("*/") if path.name not in names)
    known = _registered(directory)
    queued = _queued() if any(entry["executor"] == "slurm" for entry in known.values()) else {}
    return [_state_of(name, directory, known.get(name), queued) for name in names]


def _state_of(
    name: str, directory: Path, entry: Mapping[str, str] | None, queued: Mapping[str, tuple[State, str]]
) -> CellState:
    folder = directory / "cells" / name
    job = entry["job"] if entry is not None else ""
    damage = ""
    try:
        result = CellResult.load(folder)
        return CellState(cell=name, state="done", job=job, line=f"accuracy {100 * result.accuracy:.1f} %")
    except OSError:
        pass
    except ResultError as error:
        damage = str(error)
    if job in queued:
        state, reason = queued[job]
        line = reason if state == "pending" else _last_line(directory / FOLDER, job, ended=False)
        return CellState(cell=name, state=state, job=job, line=line)
    if entry is not None and entry["executor"] == "local" and _is_alive(job):
        return CellState(cell=name, state="running", job=job, line=_last_line(directory / FOLDER, job, ended=False))
    if damage:
        return CellState(cell=name, state="failed", job=job, line=damage)
    if (folder / "error.txt").is_file():
        return CellState(cell=name, state="failed", job=job, line=(_last_lines(folder / "error.txt") or [""])[-1])
    if entry is not None:
        line = _last_line(directory / FOLDER, job, ended=True) or "ended without a word"
        return CellState(cell=name, state="failed", job=job, line=line)
    return CellState(cell=name, state="missing", line="begun, not finished" if folder.is_dir() else "")


def _queued() -> dict[str, tuple[State, str]]:
    """What Slurm knows of the jobs that have not ended, by number: running or pending, and why.

    The accounting data base, which many clusters lack, is not asked.
    """
    try:
        command = ["squeue", "--noheader", "--array", "--format=%i|%T|%r|%S"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    found: dict[str, tuple[State, str]] = {}
    for line in answer.splitlines():
        job, state, reason, start = line.split("|", 3)
        active: State = "running" if state in ("RUNNING", "COMPLETING", "CONFIGURING", "STOPPED") else "pending"
        expected = f", expected to start {start}" if start not in ("N/A", "") else ""
        why = "" if reason == "None" else f": {reason}"
        found[job] = (active, f"{state.lower()}{why}{expected}")
    return found


def _is_alive(pid: str) -> bool:
    if not pid.isdecimal():  # Python reads "7_0" as 70
        return False
    try:
        os.kill(int(pid), 0)
        command = Path(f"/proc/{pid}/cmdline")
        return not command.exists() or b"submitit" in command.read_bytes()
    except (OSError, ValueError, OverflowError):
        return False


def _last_line(folder: Path, job: str, *, ended: bool) -> str:
    """The last line of a job's own in its logs; of one that ended in the middle of its steps, what srun says of it."""
    lines: list[str] = []
    logs = [path for path in folder.glob(f"{job}_*_log.*") if path.suffix in (".out", ".err") and path.is_file()]
    for path in sorted(logs, key=lambda path: path.stat().st_mtime):
        lines += _last_lines(path)
    if any("No module named 'analysis." in line for line in lines):
        return "was queued by a former version, whose files have moved; the same command submits it again"
    own = [line for line in lines if not line.startswith(("submitit ", "srun: ", "slurmstepd"))]
    of_slurm = [line for line in lines if line.startswith(("srun: ", "slurmstepd"))]
    if ended and of_slurm and (not own or own[-1].startswith("step ")):
        return of_slurm[-1]
    return (own or lines or [""])[-1]


def _last_lines(path: Path) -> list[str]:
    """The last ones of a text that somebody else has written."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        return [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]


def _registered(directory: Path) -> dict[str, dict[str, str]]:
    """Executor and number of the last job of each cell; none where the file is damaged."""
    try:
        content = parse_json(read_text(directory / FOLDER / _REGISTRY, "path"))
        found: dict[str, dict[str, str]] = decoded(content, dict[str, dict[str, str]])
    except (OSError, TypeError, ValueError):
        return {}
    return {
        name: entry for name, entry in found.items() if {*entry} == {"executor", "job"} and _JOB.fullmatch(entry["job"])
    }


def _register(directory: Path, numbers: Mapping[str, str], executor: str) -> None:
    known = _registered(directory) | {name: {"executor": executor, "job": job} for name, job in numbers.items()}
    (directory / FOLDER).mkdir(parents=True, exist_ok=True)
    write_json(directory / FOLDER / _REGISTRY, known)
