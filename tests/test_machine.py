"""What the command line settles about memory."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource
from anomalyclip.machine import keep_memory
if {kept}:
    keep_memory()
import numpy as np
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    before = faults()
    blocks = [np.ones(3_600_000) for _ in range(3)]
    del blocks
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU's allocator")
def test_memory_that_one_image_freed_serves_the_next():
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}

    def counted(kept: bool) -> int:
        program = [sys.executable, "-c", FAULTS.format(kept=kept)]
        return int(subprocess.run(program, capture_output=True, text=True, check=True, env=plain).stdout)

    assert counted(kept=True) < 20 < 30 < counted(kept=False)  # pages, which may be of 4 kB or of 2 MB
