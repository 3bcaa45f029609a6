import subprocess
import sys

import pytest

PROGRAM = """
import resource
from analysis.runs.memory import keep_freed_memory
size = 40 * 2**20
kept = {keep} and keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * size
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(kept, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_freed_memory_is_used_again() -> None:
    """A block of 40 MiB has 10240 pages of 4 KiB; a second one of the same size needs no new ones."""

    def run(keep: bool) -> tuple[str, int]:
        command = [sys.executable, "-c", PROGRAM.format(keep=keep)]
        words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return words[0], int(words[1])

    kept, faults = run(True)
    if kept == "False":
        pytest.skip("the C library is not glibc")
    assert faults < 1000 < run(False)[1]
