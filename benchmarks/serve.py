"""Load on `anomalyclip serve`: many callers at once on loopback, beside `predict` on the same images.

    python benchmarks/serve.py [--callers 64] [--seconds 60] [--batch-size 8]

The model is the micro backbone. Each caller sends one image, waits for the answer, and sends the next; a caller that is
told to come back (429) does. Printed are the start-up time, the throughput of `predict` on the same images (its mean
before and after the service ran) and of the service, its latency, and its memory before, in the middle and at the end.
Callers and service share the machine, so the processor's time of each is printed too.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from anomalyclip import DetectorSpec

BOUNDARY = "b"


def pictures(folder: Path, count: int) -> list[Path]:
    """Write pictures of a camera's kind: 640 x 480, JPEG."""
    noise = np.random.default_rng(0)
    paths = []
    for number in range(count):
        small = noise.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        paths.append(folder / f"{number:04d}.jpg")
        Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def alone(paths: list[Path], batch_size: int) -> float:
    """Return how many images per second the detector scores without a service."""
    detector = DetectorSpec("micro").load(threshold=0.5)
    list(detector.stream(paths[:16], batch_size=batch_size))
    repeats = 5
    start = time.perf_counter()
    for _ in range(repeats):
        for prediction in detector.stream(paths, batch_size=batch_size):
            prediction.to_dict()
    return repeats * len(paths) / (time.perf_counter() - start)


def memory(process: int) -> int:
    """Return the megabytes that a process has in memory."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) // 1000


def processor_time(process: int) -> float:
    """Return the seconds of all cores that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Load:
    """Callers of the service, and what they saw."""

    def __init__(self, port: int, bodies: list[bytes]) -> None:
        self.port, self.bodies = port, bodies
        self.latencies: list[float] = []
        self.statuses: dict[int, int] = {}

    async def run(self, callers: int, seconds: float) -> float:
        """Return the seconds it took until the last caller had its last answer."""
        start = time.perf_counter()
        await asyncio.gather(*(self._caller(number, start + seconds) for number in range(callers)))
        return time.perf_counter() - start

    async def _caller(self, number: int, end: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        while time.perf_counter() < end:
            body = self.bodies[number % len(self.bodies)]
            number += 1
            start = time.perf_counter()
            writer.write(
                b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary="
                + f"{BOUNDARY}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            head = await reader.readuntil(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:] if line)
            await reader.readexactly(int(fields["content-length"]))
            status = int(head.split()[1])
            self.statuses[status] = self.statuses.get(status, 0) + 1
            if status == 200:
                self.latencies.append(time.perf_counter() - start)
            else:
                await asyncio.sleep(int(fields.get("retry-after", "0")))
        writer.close()


def form(path: Path) -> bytes:
    """Return the form with one picture."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'
    return head.encode() + path.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--batch-size", type=int, default=8)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        paths = pictures(Path(name), 200)
        before = alone(paths, given.batch_size)
        start = time.perf_counter()
        command = ["serve", "--backbone", "micro", "--port", "0", "--threshold", "0.5"]
        with open(Path(name) / "log", "w") as log:
            service = subprocess.Popen(
                [sys.executable, "-m", "anomalyclip", *command, "--batch-size", str(given.batch_size)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert service.stdout is not None
        try:
            address = service.stdout.readline().split()[1]
            print(f"start-up: {time.perf_counter() - start:.2f} s; idle memory: {memory(service.pid)} MB")
            load = Load(int(address.rstrip("/").rpartition(":")[2]), [form(path) for path in paths])
            asyncio.run(load.run(given.callers, given.seconds / 4))
            middle, load.latencies, load.statuses = memory(service.pid), [], {}
            used = processor_time(service.pid), time.process_time()
            took = asyncio.run(load.run(given.callers, given.seconds))
            used = processor_time(service.pid) - used[0], time.process_time() - used[1]
            end = memory(service.pid)
        finally:
            service.terminate()
            service.wait()
        after = alone(paths, given.batch_size)
    rate = len(load.latencies) / took
    p50, p99 = np.quantile(load.latencies, (0.5, 0.99))
    each = [1000 * seconds / len(load.latencies) for seconds in used]
    print(
        f"predict alone, before and after: {before:.1f} and {after:.1f} images/s in batches of {given.batch_size}"
    )
    print(
        f"service: {rate:.1f} images/s from {given.callers} callers, {2 * rate / (before + after):.2f} of predict"
    )
    print(f"processor: {each[0]:.1f} ms per image for the service, {each[1]:.1f} ms for its callers")
    print(f"latency: p50 {1000 * p50:.0f} ms, p99 {1000 * p99:.0f} ms; answers by status: {load.statuses}")
    print(f"memory: {middle} MB after a quarter of the time, {end} MB at the end")


if __name__ == "__main__":
    main()
