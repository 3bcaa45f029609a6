"""`python -m replknet`: the command line."""

from analysis.cli import main

main()
