"""Time and memory of listing a data set of many files.

Creates an MVTec-like tree of empty files, lists it in a new process, writes its meta.json and reads it again:

    python benchmarks/listing.py --files 100000
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

MEASURE = """
import json, resource, sys, time
from anomalyclip.data.listing import list_samples
from anomalyclip.data.meta import read_meta, write_meta
start = time.perf_counter()
meta = list_samples(sys.argv[1])
listed = time.perf_counter()
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_meta(meta)
written = time.perf_counter()
assert read_meta(sys.argv[1]).phases == meta.phases
read = time.perf_counter()
print(json.dumps({
    "samples": sum(map(len, meta.phases.values())),
    "masks": sum(sample.mask is not None for sample in meta),
    "list_s": round(listed - start, 2),
    "list_peak_mib": memory // 1024,
    "write_meta_s": round(written - listed, 2),
    "read_meta_s": round(read - written, 2),
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
}))
"""

CLASSES = 20
FOLDERS = {
    "train/good": "",
    "test/bent": "",
    "test/rust": "",
    "ground_truth/bent": "_mask",
    "ground_truth/rust": "_mask",
}


def plant(root: Path, files: int) -> None:
    for number in range(CLASSES):
        for folder, mark in FOLDERS.items():
            path = root / f"class{number}" / folder
            path.mkdir(parents=True)
            for index in range(files // CLASSES // len(FOLDERS)):
                os.close(os.open(path / f"{index:04}{mark}.png", os.O_CREAT))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=100_000)
    files = parser.parse_args().files
    with tempfile.TemporaryDirectory() as root:
        plant(Path(root), files)
        command = [sys.executable, "-c", MEASURE, root]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    print(json.dumps({"files": files, **json.loads(done.stdout)}))


if __name__ == "__main__":
    main()
