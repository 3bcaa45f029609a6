"""What `python -m replknet` may import: no file of the current folder, where Python would look first.

The package imports this before all else, and this imports nothing that a file there could stand for.
"""

import os
import sys


def _leave_out_current_folder() -> None:
    # The first argument is "-m" just while Python looks for the module that was named.
    if sys.argv[:1] != ["-m"] or sys.orig_argv[-len(sys.argv)].removeprefix("-m") != __package__:
        return
    try:
        here = os.getcwd()  # noqa: PTH109  pathlib could be a file there
    except FileNotFoundError:  # PyTorch would end the process, or hang
        sys.stderr.write("replknet: the current folder was deleted; change to one that is there\n")
        sys.exit(2)
    at_home = here == os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120  in a checkout of the project
    if sys.path[0] == here and not sys.flags.safe_path and not at_home:
        del sys.path[0]


_leave_out_current_folder()
