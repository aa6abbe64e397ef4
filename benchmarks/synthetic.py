"""Images per second of the generator, per class and in total, on all cores.

python benchmarks/synthetic.py [--workers 2]
"""

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from anomalyclip.data.synthetic import CLASSES, DEFECTS, generate


def draw(job: tuple[str, int], *, defects: bool) -> float:
    name, index = job
    start = time.perf_counter()
    generate(name, seed=0, index=index, defect=list(DEFECTS)[index % len(DEFECTS)] if defects else None)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--images", type=int, default=20, help="images per class")
    arguments = parser.parse_args()
    jobs = [(name, index) for name in CLASSES for index in range(arguments.images)]
    with ProcessPoolExecutor(arguments.workers) as pool:
        list(pool.map(partial(draw, defects=True), jobs[:64]))  # start the processes and warm their caches
        for defects in (False, True):
            start = time.perf_counter()
            times = list(pool.map(partial(draw, defects=defects), jobs, chunksize=10))
            rate = len(jobs) / (time.perf_counter() - start)
            kind = "with and without a defect, in pairs" if defects else "flawless"
            print(f"{kind}: {rate:.0f} scenes per second with {arguments.workers} processes")
            by_class = [sum(times[i : i + arguments.images]) for i in range(0, len(times), arguments.images)]
            slowest = max(range(len(by_class)), key=by_class.__getitem__)
            print(
                f"  slowest class: {list(CLASSES)[slowest]}, {1000 * by_class[slowest] / arguments.images:.0f} ms"
            )


if __name__ == "__main__":
    main()
