"""A campaign: `python -m tests.fuzz [FAMILY ...] [--seconds N] [--seed S] [--case N]`."""

import argparse
import json
import sys
from itertools import count

from tests.fuzz import families
from tests.fuzz.engine import FAMILIES, HEADER, Arena, repeat_command, seconds_for
from tests.fuzz.reporting import seed_of_the_day


def main() -> int:
    families.load()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Hostile cases, family by family.")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"Of {', '.join(FAMILIES)}; by default all.")
    parser.add_argument("--seconds", type=float, default=1200.0, help="For all families together.")
    parser.add_argument("--seed", type=int, default=seed_of_the_day())
    parser.add_argument("--case", type=int, help="Only this one.")
    parser.add_argument("--most-wrong", type=int, default=1000, help="WrongError cases after which a family ends.")
    parser.add_argument("--json", help="A file for all counts and wrong cases.")
    options = parser.parse_args()
    chosen = options.families or list(FAMILIES)
    unknown = [name for name in chosen if name not in FAMILIES]
    if unknown:
        parser.error(f"{unknown[0]}: expected some of {', '.join(FAMILIES)}")
    print(f"seed {options.seed}", HEADER, sep="\n", flush=True)  # noqa: T201
    found = {}
    with Arena(options.seed) as arena:
        for name in chosen:
            numbers = count() if options.case is None else [options.case]
            seconds = seconds_for(name, chosen, options.seconds)
            found[name] = arena.run(name, seconds=seconds, numbers=numbers, most_wrong=options.most_wrong)
            print(found[name].row(name), flush=True)  # noqa: T201
            for number, text in found[name].wrong.items():
                print(f"    {repeat_command(name, options.seed, number)}\n        {text}", flush=True)  # noqa: T201
    if options.json:
        content = {name: {"counts": tally.counts, "wrong": tally.wrong} for name, tally in found.items()}
        with open(options.json, "w") as file:  # noqa: PTH123
            json.dump(content, file, indent=1)
    return int(any(tally.wrong for tally in found.values()))


if __name__ == "__main__":
    sys.exit(main())
