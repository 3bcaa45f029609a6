"""What the processes of one run have in common, on torch.distributed.

Every process calls the same functions in the same order and ends with the same results; the first one alone writes.
Without a process group everything here is what one process does anyway.
"""

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed, nn

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")


def num_processes() -> int:
    """Processes of this run."""
    return distributed.get_world_size() if _together() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if _together() else 0


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()


@contextmanager
def process_group() -> Iterator["Store"]:
    """Join the processes that torchrun, or whatever set its variables, has started; leave them at the end.

    Tensors on GPUs go through NCCL, all else through gloo. Each process gets the GPU of its number on its machine.
    Gives what they have in common even where they no longer do the same.

    Raises:
        RuntimeError: If the others cannot be reached.
    """
    from torch.distributed.rendezvous import rendezvous

    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    store, number, count = next(rendezvous("env://"))
    distributed.init_process_group(backend, store=store, rank=number, world_size=count)
    try:
        yield store
    finally:
        distributed.destroy_process_group()


def gather(value: T) -> list[T]:
    """The values of all processes, by their number; in every process."""
    if num_processes() == 1:
        return [value]
    values: list[Any] = [None] * num_processes()
    distributed.all_gather_object(values, value)
    return values


def by_first(work: Callable[[], T]) -> T:
    """What `work` returns or raises in the first process, which alone runs it; in every process."""
    outcome = _attempt(work) if rank() == 0 else None
    if num_processes() > 1:
        box = [outcome]
        distributed.broadcast_object_list(box, src=0)
        outcome = box[0]
    assert outcome is not None
    return _resolve(outcome)


def in_turns(count: int, work: Callable[[int], T], *, start: int = 0) -> Iterator[T]:
    """`work(item)` for the items from `start` to `count`, in order, each done by one process; in every process.

    What one process raises is raised in all.
    """
    for first in range(start, count, num_processes()):
        own = first + rank()
        outcomes = gather(_attempt(partial(work, own)) if own < count else (None, None))
        for outcome in outcomes[: count - first]:
            yield _resolve(outcome)


def _attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        if num_processes() == 1:
            raise
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # an exception of somebody else, which does not travel
            return None, RuntimeError(f"{type(error).__name__}: {error}")
        return None, error


def _resolve(outcome: tuple[T | None, Exception | None]) -> T:
    value, error = outcome
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def total(values: Tensor, *, largest: bool = False) -> Tensor:
    """Sum, or maximum, of a float64 tensor over all processes."""
    if num_processes() > 1:
        distributed.all_reduce(values, distributed.ReduceOp.MAX if largest else distributed.ReduceOp.SUM)
    return values


def copy_buffers(module: nn.Module) -> None:
    """Give every process the buffers of the first: batch norms of each have seen other images."""
    if num_processes() > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, src=0)
