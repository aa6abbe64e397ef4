"""`Measures`: what the service did, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TENTHS = tuple(number / 20 for number in range(1, 21))


class Measures:
    """Counts and times, in a registry of its own.

    Examples
    --------
    >>> measures = Measures()
    >>> measures.batch(4, 0.02)
    >>> b"anomalyclip_images_total 4.0" in measures.text()
    True
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "anomalyclip_requests_total", "Requests answered.", ["route", "status"], registry=registry
        )
        self._latency = Histogram(
            "anomalyclip_request_seconds",
            "From the head of a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "anomalyclip_stage_seconds",
            "Time of each stage: decode (per image), model (per batch), answer (per image).",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._images = Counter("anomalyclip_images", "Images scored.", registry=registry)
        self._failed = Counter(
            "anomalyclip_failed_images", "Images that could not be used.", registry=registry
        )
        self._batches = Histogram(
            "anomalyclip_batch_images",
            "Images per batch.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )
        self._scores = Histogram("anomalyclip_score", "Scores of images.", buckets=_TENTHS, registry=registry)
        self.waiting = Gauge(
            "anomalyclip_waiting_images", "Decoded images that wait for the model.", registry=registry
        )
        self.requests_waiting = Gauge(
            "anomalyclip_waiting_requests", "Requests that wait for their answer.", registry=registry
        )
        self.held = Gauge("anomalyclip_held_bytes", "Bytes of requests in memory.", registry=registry)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def took(self, stage: str, seconds: float) -> None:
        """Note the time of a stage."""
        self._stages.labels(stage).observe(seconds)

    def batch(self, images: int, seconds: float) -> None:
        """Count a batch."""
        self._images.inc(images)
        self._batches.observe(images)
        self.took("model", seconds)

    def scored(self, score: float) -> None:
        """Note a score."""
        self._scores.observe(score)

    def failed(self) -> None:
        """Count an image that could not be used."""
        self._failed.inc()

    def text(self) -> bytes:
        """Return all of it in Prometheus's format."""
        text: bytes = generate_latest(self._registry)
        return text
