"""Damages files with seeds of its own: ``python -m tests.fuzz --seed 7 --count 2000 [--only image ...]``."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.hunt import hunt, make_corpus, mutations, report
from tests.fuzz.targets import TARGETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--only", action="append", help="A target; repeat for several.")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir(), "fuzz-faults"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        chosen = [target for target in TARGETS if target.name in (options.only or target.name)]
        corpus = make_corpus(Path(folder), chosen)
        jobs = mutations(chosen, seed=options.seed, count=options.count)
        begun = time.perf_counter()
        faults = hunt(jobs, corpus, processes=options.processes)
        print(f"{len(jobs)} damaged files in {time.perf_counter() - begun:.0f} s")
        if faults:
            print(report(faults, corpus, options.keep, chosen))
            sys.exit(1)


if __name__ == "__main__":
    main()
