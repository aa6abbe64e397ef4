"""`ServeSettings`: where the service listens, and its limits; each is an option of ``anomalyclip serve``."""

import re
from dataclasses import dataclass
from pathlib import Path

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.settings import Settings, option

LIMITS, ACCESS, JOBS, LABEL_STUDIO = "Limits", "Access", "Jobs", "Label Studio"
"""Groups of options in ``--help``."""

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Addresses that only this machine can reach."""

_MEGA = 1_000_000


@dataclass(frozen=True)
class ServeSettings(Settings):
    """Where the service listens, who may use it, and how much it takes.

    Examples
    --------
    >>> ServeSettings(host="0.0.0.0")
    Traceback (most recent call last):
    anomalyclip.errors.AnomalyCLIPError: --host 0.0.0.0 can be reached from other machines: give --key-file FILE with...
    """

    host: str = option(
        "127.0.0.1", "Address to listen on. Any other than this machine's own needs --key-file."
    )
    port: int = option(8000, "Port to listen on; 0: any free one.", minimum=0)
    batch_size: int = option(8, "Images per batch at most; callers share batches.", minimum=1)
    key_file: Path | None = option(
        None,
        "File with a key of at least 16 characters; callers send it as 'Authorization: Bearer KEY'.",
        group=ACCESS,
    )
    allowed_host: tuple[str, ...] | None = option(
        None,
        "Name by which callers may address the service, besides localhost and numbers; repeat for several.",
        group=ACCESS,
    )
    tls_certificate: Path | None = option(None, "Certificate (PEM) for HTTPS; needs --tls-key.", group=ACCESS)
    tls_key: Path | None = option(None, "Private key (PEM) of the certificate.", group=ACCESS)
    models: int = option(
        4,
        "Models that callers may have besides the service's own, made with their words or references; the one that was "
        "not used for the longest time makes room.",
        group=LIMITS,
        minimum=0,
    )
    offer: tuple[str, ...] | None = option(
        None,
        "Backbone that callers may choose besides this service's own and micro (its weights are downloaded when it is "
        "first chosen); repeat for several.",
        group=ACCESS,
    )
    queue: int = option(
        128,
        "Requests that may wait for the model; more are told to come back (429).",
        group=LIMITS,
        minimum=1,
    )
    time_limit: float = option(
        60.0,
        "Seconds that a request may wait for its answer once it has been received.",
        group=LIMITS,
        minimum=0.1,
    )
    receive_limit: float = option(
        20.0,
        "Seconds that a request may take to arrive, plus one second per 10 kB; slower senders are cut off (408).",
        group=LIMITS,
        minimum=0.1,
    )
    max_request: float = option(
        100.0, "Megabytes of a request, and of the maps in an answer, at most.", group=LIMITS, minimum=0.001
    )
    max_held: float = option(
        1000.0,
        "Megabytes of all requests together that are held in memory at most.",
        group=LIMITS,
        minimum=0.001,
    )
    max_files: int = option(100, "Files in a request at most.", group=LIMITS, minimum=1)
    max_images: int = option(
        500,
        "Images in a request at most: pages, frames and members of archives count.",
        group=LIMITS,
        minimum=1,
    )
    max_unpacked: float = option(
        500.0, "Megabytes of an archive's files at most, when they are unpacked.", group=LIMITS, minimum=0.001
    )
    max_pixels: float = option(
        100.0, "Megapixels of an image at most; checked before it is decoded.", group=LIMITS, minimum=0.001
    )

    jobs: int = option(
        8, "Jobs that are kept at most; finished ones make room for new ones.", group=JOBS, minimum=1
    )
    jobs_folder: Path | None = option(
        None,
        "Folder for the files of jobs until they are scored; the service deletes them. Default: they stay in memory.",
        group=JOBS,
    )
    max_job: float = option(500.0, "Megabytes of a job at most.", group=JOBS, minimum=0.001)
    max_job_files: int = option(10_000, "Files in a job at most.", group=JOBS, minimum=1)
    max_job_images: int = option(100_000, "Images in a job at most.", group=JOBS, minimum=1)
    label_studio: str | None = option(
        None,
        "Address of the one Label Studio whose pictures may be fetched, such as http://localhost:8080. Default: none; "
        "tasks have to contain their pictures.",
        group=LABEL_STUDIO,
    )
    label_studio_token: Path | None = option(
        None, "File with the access token for that Label Studio.", group=LABEL_STUDIO
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.port > 65535:
            raise AnomalyCLIPError(f"--port {self.port}: expected 0 to 65535")
        if self.host not in LOOPBACK and self.key_file is None:
            raise AnomalyCLIPError(
                f"--host {self.host} can be reached from other machines: give --key-file FILE with a key that callers "
                "have to send"
            )
        if self.label_studio is not None and not re.fullmatch(
            r"https?://[^/?#@]+", self.label_studio.rstrip("/")
        ):
            raise AnomalyCLIPError(
                f"--label-studio {self.label_studio}: expected an address without a path, such as http://localhost:8080"
            )
        if self.label_studio_token is not None and self.label_studio is None:
            raise AnomalyCLIPError("--label-studio-token is for --label-studio ADDRESS: give it too")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise AnomalyCLIPError("HTTPS needs both: give --tls-certificate and --tls-key")

    @property
    def request_bytes(self) -> int:
        """Bytes of a request at most."""
        return int(self.max_request * _MEGA)

    @property
    def held_bytes(self) -> int:
        """Bytes of all requests together at most."""
        return int(self.max_held * _MEGA)

    @property
    def job_bytes(self) -> int:
        """Bytes of a job at most."""
        return int(self.max_job * _MEGA)

    @property
    def unpacked_bytes(self) -> int:
        """Bytes of an archive's files at most."""
        return int(self.max_unpacked * _MEGA)

    def check_tls(self) -> None:
        """Check that certificate and key of HTTPS, if there are any, can be used.

        Raises
        ------
        AnomalyCLIPError
            One of the files cannot be read, or they do not belong together.
        """
        if self.tls_certificate is None:
            return
        import ssl

        try:  # with a password, for otherwise a key that has one is asked for on the terminal
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                self.tls_certificate, self.tls_key, "none"
            )
        except OSError as error:
            raise AnomalyCLIPError(
                f"--tls-certificate {self.tls_certificate} with --tls-key {self.tls_key} cannot be used "
                f"({error.strerror or error}): expected PEM files, a certificate and its own key without a password"
            ) from None

    def key(self) -> bytes | None:
        """Return the key that callers have to send; None: none is needed.

        Raises
        ------
        AnomalyCLIPError
            The file cannot be read, or its key is too short.
        """
        if self.key_file is None:
            return None
        try:
            key = self.key_file.read_bytes().strip()
        except OSError as error:
            raise AnomalyCLIPError(f"key file {self.key_file} cannot be read ({error.strerror})") from None
        if len(key) < 16 or not key.isascii() or len(key.split()) != 1:
            raise AnomalyCLIPError(
                f"key file {self.key_file}: expected one key of at least 16 ASCII characters, such as `openssl rand "
                "-hex 32` prints"
            )
        return key
