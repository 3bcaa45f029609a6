import multiprocessing
import os
import time
from collections.abc import Callable

import pytest

from analysis.study.processes import Job, shared
from analysis.training.parallel import TrainingError


def begin() -> Job[str, tuple[str, int]]:
    made_by = os.getpid()

    def job(item: str, report: Callable[[int], None]) -> tuple[str, int]:
        report(len(item))
        if item == "dies":
            os._exit(3)
        if item == "fails":
            raise ValueError("a bad item")
        if item == "sleeps":
            time.sleep(600)
        return item.upper(), made_by

    return job


def cannot_begin() -> Job[str, str]:
    raise ValueError("nothing there")


def test_answers_come_in_the_order_of_the_items() -> None:
    told: list[tuple[int, int]] = []
    items = ["a", "bb", "ccc", "dddd", "eeeee"]
    answers = shared(begin, items, 2, report=lambda item, done: told.append((item, done)))
    assert [answer for answer, _ in answers] == ["A", "BB", "CCC", "DDDD", "EEEEE"]
    assert os.getpid() not in {process for _, process in answers}
    assert len({process for _, process in answers}) <= 2
    assert sorted(told) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]


@pytest.mark.parametrize(
    ("last", "error", "text"),
    [
        ("dies", TrainingError, "a process has ended with exit code 3; if the memory"),
        ("fails", ValueError, "a bad item"),
    ],
)
def test_what_goes_wrong_ends_all(last: str, error: type[Exception], text: str) -> None:
    start = time.monotonic()
    with pytest.raises(error, match=text):
        shared(begin, ["sleeps", last], 2, report=lambda item, done: None)
    assert time.monotonic() - start < 300
    assert not multiprocessing.active_children()


def test_a_process_that_cannot_begin_says_why() -> None:
    with pytest.raises(ValueError, match="nothing there"):
        shared(cannot_begin, ["a"], 1, report=lambda item, done: None)
