"""Time and memory of listing a store with many objects: ``python benchmarks/listing.py --objects 1000000``.

The store is a small server in another process, on loopback, that answers ``ListObjectsV2`` as S3 does, in pages of
1,000, with names that it makes up: what is measured is the client. The names are taken one by one, as `predict` takes
them. ``--as-list`` keeps them all, for comparison.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PAGE = 1000
_OBJECT = (
    "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    '<ETag>"d41d8cd98f00b204e9800998ecf8427e"</ETag><Size>123456</Size><StorageClass>STANDARD</StorageClass></Contents>'
)


class Store(BaseHTTPRequestHandler):
    """Answers requests for the names of a bucket."""

    protocol_version = "HTTP/1.1"
    objects = 0

    def do_GET(self) -> None:
        """List a page."""
        query = parse_qs(urlsplit(self.path).query)
        start = int(query.get("continuation-token", ["0"])[0])
        stop = min(start + PAGE, self.objects)
        if query.get("prefix", [""])[0] not in (
            "",
            "line/",
        ):  # is there such a folder, or a run's results in it?
            start = stop = self.objects
        contents = "".join(
            _OBJECT.format(f"line/{number // 5000:05}/{number:08}.png") for number in range(start, stop)
        )
        more = stop < self.objects
        token = f"<NextContinuationToken>{stop}</NextContinuationToken>" if more else ""
        body = (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>parts</Name><KeyCount>{stop - start}</KeyCount><MaxKeys>{PAGE}</MaxKeys>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}</ListBucketResult>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        """Say that there is no such object."""
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def serve(objects: int) -> None:
    """Serve until the process is ended; print the port first."""
    Store.objects = objects
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    print(server.server_port, flush=True)
    server.serve_forever()


def megabytes() -> float:
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def listed(*, as_list: bool) -> int:
    """Return how many images there are."""
    from anomalyclip.inputs import find_images

    images = find_images(["s3://parts/line"])
    return len(list(images)) if as_list else sum(1 for _ in images)


def main() -> None:
    """List, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--as-list", action="store_true", help="keep all names")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.objects)
        return
    command = [sys.executable, __file__, "--serve", "--objects", str(options.objects)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            os.environ |= {
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            os.environ["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{server.stdout.readline().strip()}"
            before = peak_after_first()
            begun = time.perf_counter()
            count = listed(as_list=options.as_list)
            took = time.perf_counter() - begun
        finally:
            server.terminate()
    print(f"{count:,} objects in {took:.0f} s ({count / took:,.0f} per second)")
    print(f"peak memory {before:.0f} MB after the first page, {megabytes():.0f} MB at the end")


def peak_after_first() -> float:
    """Return the peak memory once the libraries are loaded and one page was listed."""
    from anomalyclip.inputs import find_images

    next(find_images(["s3://parts/line"]))
    return megabytes()


if __name__ == "__main__":
    main()
