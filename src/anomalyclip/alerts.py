"""Calling a command or a webhook for each anomalous image of a run, once, also when the run is killed in between."""

import io
import json
import os
import shlex
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import urlsplit

from anomalyclip.clip.download import trusted
from anomalyclip.errors import AnomalyCLIPError, reason
from anomalyclip.files import parse_json, replacing, writing
from anomalyclip.writers import PREDICTIONS

ALERTS = "alerts.jsonl"
"""Name of the file with one line for each call that came to its end."""

_TIMEOUT = 30.0
_ATTEMPTS = 4


class Hook(Protocol):
    """What is called for an anomalous image."""

    @property
    def name(self) -> str:
        """What it is called in messages and in alerts.jsonl."""
        ...

    def call(self, record: dict[str, Any], stop: Event) -> None:
        """Call it with a line of predictions.jsonl; `stop` ends the waiting between attempts.

        Raises
        ------
        AnomalyCLIPError
            It failed.
        """
        ...


@dataclass(frozen=True)
class Command:
    """A command, run without a shell: its words, the image's absolute path, the score; the JSON line is its input.

    Parameters
    ----------
    words : sequence of str
        The program and its first arguments.
    timeout : float
        Seconds after which it is killed.

    Raises
    ------
    AnomalyCLIPError
        There is no such program.
    """

    words: Sequence[str]
    timeout: float = _TIMEOUT

    def __post_init__(self) -> None:
        if not self.words or shutil.which(self.words[0]) is None:
            raise AnomalyCLIPError(
                f"command {self.words[0] if self.words else ''!r}: no such program; name one that can be run"
            )

    @classmethod
    def from_text(cls, text: str) -> "Command":
        """Return the command that a line of words means; quotes hold a word together.

        Raises
        ------
        AnomalyCLIPError
            A quote is not closed, or there is no such program.

        Examples
        --------
        >>> Command.from_text("echo 'found one'").words
        ('echo', 'found one')
        """
        try:
            return cls(tuple(shlex.split(text)))
        except ValueError as error:
            raise AnomalyCLIPError(f"command {text!r}: {error}") from None

    @property
    def name(self) -> str:
        """The program."""
        return f"command {self.words[0]}"

    def call(self, record: dict[str, Any], stop: Event) -> None:
        """Run it once."""
        arguments = [*self.words, os.path.abspath(record["image_path"]), f"{record['pred_score']:.4f}"]
        try:
            done = subprocess.run(
                arguments,
                input=json.dumps(record).encode() + b"\n",
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=self.timeout,
                start_new_session=True,  # Ctrl-C is for this program: the command ends by itself
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise AnomalyCLIPError(f"did not end within {self.timeout:g} s and was killed") from None
        except OSError as error:
            raise AnomalyCLIPError(f"cannot be run ({error.strerror or error})") from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise AnomalyCLIPError(f"exit code {done.returncode}{f': {said[-1][:200]}' if said else ''}")


@dataclass(frozen=True)
class Webhook:
    """An address to which the JSON line is posted; it is tried again after 1, 2 and 4 seconds.

    Parameters
    ----------
    url : str
        http or https. A redirection is an error: the line is sent to this address and to no other.
    timeout : float
        Seconds for each attempt.
    pause : float
        Seconds before the second attempt; doubled each time.

    Raises
    ------
    AnomalyCLIPError
        It is no such address.

    Examples
    --------
    >>> Webhook("https://line.example/alerts?key=secret").name
    'webhook https://line.example'
    """

    url: str
    timeout: float = _TIMEOUT
    pause: float = 1.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise AnomalyCLIPError("webhook: expected an address that starts with http:// or https://")

    @property
    def name(self) -> str:
        """Scheme and host: the rest of an address may be a secret."""
        parts = urlsplit(self.url)
        return f"webhook {parts.scheme}://{parts.hostname}"

    def call(self, record: dict[str, Any], stop: Event) -> None:
        """Post a line; an answer that says that another attempt is of no use is final."""
        pause = self.pause
        for attempt in range(1, _ATTEMPTS + 1):
            final, failure = self._attempt(record)
            if failure is None:
                return
            if final or attempt == _ATTEMPTS or stop.wait(pause):
                raise AnomalyCLIPError(f"{failure} ({attempt} attempt{'s' * (attempt > 1)})")
            pause *= 2

    def _attempt(self, record: dict[str, Any]) -> tuple[bool, str | None]:
        """Return whether the answer is final, and what failed."""
        request = urllib.request.Request(
            self.url,
            json.dumps(record).encode(),
            {"Content-Type": "application/json", "User-Agent": "anomalyclip"},
            method="POST",
        )
        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=trusted()), _NoRedirection)
        try:
            with opener.open(request, timeout=self.timeout):
                return True, None
        except urllib.error.HTTPError as error:
            with error:
                return error.code < 500 and error.code not in (408, 429), f"answered {error.code}"
        except (OSError, ValueError) as error:
            return False, reason(getattr(error, "reason", None) or error)


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


class Alerts:
    """Calls hooks for the anomalous images of a run, one after the other, while the run goes on.

    Each call that came to its end has a line in ``alerts.jsonl``: image_path, pred_score, hook, and error or null. An
    anomalous image without one is called for when the run goes on: a process that is killed loses no alert, and may
    repeat the one that it was at. Where hooks are used for the first time, what is there already is not called for.

    Parameters
    ----------
    folder : Path
        The run's.
    hooks : sequence of Hook
        Each is called for each image.
    tell : callable
        Called with a message for each call that failed.

    Attributes
    ----------
    called, failed, left : int
        Calls that succeeded, failed, and are left for the next time.
    """

    def __init__(self, folder: Path, hooks: Sequence[Hook], tell: Callable[[str], None]) -> None:
        self.called = self.failed = self.left = 0
        self._folder, self._hooks, self._tell = folder, hooks, tell
        self._calls: SimpleQueue[tuple[Hook, dict[str, Any]] | None] = SimpleQueue()
        self._stop = Event()
        self._refused: AnomalyCLIPError | None = None
        self._thread = Thread(target=self._work, name="alerts", daemon=True)
        path = folder / ALERTS
        with writing(path):
            ended = _ended(path)
            if ended is None:
                earlier = [_line(hook, record, _EARLIER) for record in _anomalous(folder) for hook in hooks]
                with replacing(path) as temporary:
                    temporary.write_bytes(b"".join(earlier))
            self._file = io.FileIO(path, "a")
        for record in _anomalous(folder) if ended is not None else ():
            self._add(record, ended or set())

    def __enter__(self) -> "Alerts":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(finish=False)

    def add(self, record: dict[str, Any]) -> None:
        """Have the hooks called for a line of predictions.jsonl, if it is anomalous.

        Raises
        ------
        AnomalyCLIPError
            An earlier call cannot be recorded.
        """
        if self._refused is not None:
            raise self._refused
        if record["pred_label"]:
            self._add(record, set())

    def close(self, *, finish: bool) -> None:
        """Wait for the call in hand, or with `finish` for all of them; the others are left for the next time."""
        if self._file.closed:
            return
        if not finish:
            self._stop.set()
        self._calls.put(None)
        self._thread.join()
        self._file.close()

    def _add(self, record: dict[str, Any], ended: set[tuple[str, str]]) -> None:
        for hook in self._hooks:
            if (record["image_path"], hook.name) not in ended:
                self._calls.put((hook, record))

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._stop.is_set():
                self.left += 1
                continue
            hook, record = call
            failure = None
            try:
                hook.call(record, self._stop)
            except AnomalyCLIPError as error:
                if self._stop.is_set():  # it had attempts left
                    self.left += 1
                    continue
                failure = str(error)
            try:
                with writing(self._folder / ALERTS):
                    self._file.write(_line(hook, record, failure))
            except AnomalyCLIPError as error:
                self._refused = error
                self._stop.set()
            self.called += failure is None
            self.failed += failure is not None
            if failure is not None:
                self._tell(f"{hook.name}, for {record['image_path']}: {failure}")


_EARLIER = "not called: scored before there was a hook"


def _line(hook: Hook, record: dict[str, Any], failure: str | None) -> bytes:
    said = {"image_path": record["image_path"], "pred_score": record["pred_score"], "hook": hook.name}
    return json.dumps({**said, "error": failure}).encode() + b"\n"


def _anomalous(folder: Path) -> Iterator[dict[str, Any]]:
    with (folder / PREDICTIONS).open("rb") as lines:
        yield from (record for line in lines if (record := parse_json(line))["pred_label"])


def _ended(path: Path) -> set[tuple[str, str]] | None:
    """Return the images and hooks of the calls that came to their end; a last line that is incomplete is removed.

    Raises
    ------
    AnomalyCLIPError
        A line is damaged.
    """
    if not path.exists():
        return None
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        records = [parse_json(line) for line in whole.splitlines()]
        ended = {(str(record["image_path"]), str(record["hook"])) for record in records}
    except (ValueError, KeyError, TypeError) as error:
        raise AnomalyCLIPError(f"{path}: damaged ({error}); delete it, or start in another folder") from None
    os.truncate(path, len(whole))
    return ended
