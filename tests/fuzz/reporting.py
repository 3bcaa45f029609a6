"""What pytest tells of the fuzzing: the seed at the beginning, the counts at the end."""

import os
from datetime import UTC, datetime
from typing import Any

import pytest

SEED = "FUZZ_SEED"
COUNTS = "fuzz"
"""Name of the property of a test's report that holds a line of the table."""


def seed_of_the_day() -> int:
    """That of the environment, or else the date, such as 20261127."""
    return int(os.environ.get(SEED) or datetime.now(UTC).strftime("%Y%m%d"))


def pytest_configure(config: pytest.Config) -> None:
    os.environ[SEED] = str(seed_of_the_day())  # of all processes alike, also round midnight


def pytest_report_header(config: pytest.Config) -> str:
    return f"fuzz: {SEED}={os.environ[SEED]}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    from tests.fuzz.engine import HEADER

    reports = [report for key in ("passed", "failed") for report in terminalreporter.stats.get(key, ())]
    rows = [value for report in reports for name, value in report.user_properties if name == COUNTS]
    if rows:
        terminalreporter.section(f"fuzz, {SEED}={os.environ[SEED]}")
        for row in [HEADER, *sorted(rows)]:
            terminalreporter.write_line(row)
