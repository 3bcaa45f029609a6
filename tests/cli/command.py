"""The one way in which tests run a command: through the entry point, in this process."""

import pytest

from analysis.cli import main


def run(command: object, *more: object, code: int = 0) -> None:
    """Run a command of one or several words, and compare its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([*str(command).split(), *map(str, more)])
    assert ended.value.code == code
