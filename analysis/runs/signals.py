"""Signals that ask a run to end."""

import signal
import threading
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class EndedBySignal(SystemExit):
    """A signal ends this process: no error of the code that was running, be it anybody's."""


def leave_signals_to_parent(_: int) -> None:
    """For a loader process: clusters signal all processes of a job, and a lost one would end the step at work."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class DeferredSignals:
    """Signals that ask the process to end wait until the step at work is done and its state is written."""

    def __init__(self, *, active: bool) -> None:
        self.number = 0
        """The last one that came, 0 for none."""
        self._active = active and threading.current_thread() is threading.main_thread()
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if self._active:
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if handler is not signal.SIG_IGN:
                    self._handlers[number] = handler
                    signal.signal(number, self._defer)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _defer(self, number: int, frame: FrameType | None) -> None:
        if number == self.number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number

    def take_effect(self, number: int) -> None:
        """Let a signal, which may have come to another process, do what it would have done; mostly, that is the end."""
        self.__exit__()
        self.number = 0
        signal.raise_signal(number)
        self.__enter__()
