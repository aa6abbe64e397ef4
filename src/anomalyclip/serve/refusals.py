"""What a caller is told when a request cannot be answered: one shape, and the right status."""

import re
from typing import Any, TypeVar

from anomalyclip.errors import AnomalyCLIPError

E = TypeVar("E", bound=BaseException)

CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    409: "conflict",
    413: "too_large",
    415: "unsupported",
    421: "wrong_host",
    422: "unusable",
    429: "busy",
    500: "internal",
    503: "unavailable",
}
"""The code of each status that this service answers with."""


class Refusal(AnomalyCLIPError):
    """A request that is not answered as it was asked.

    Parameters
    ----------
    status : int
        An HTTP status in `CODES`.
    message : str
        What is wrong and what to do, for a person.
    retry_after : int, optional
        Seconds after which another attempt makes sense.
    more : dict, optional
        Further members of the answer, such as the predictions of a request in which every image failed.

    Examples
    --------
    >>> Refusal(429, "the queue is full", retry_after=2).headers()
    {'retry-after': '2'}
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        retry_after: int | None = None,
        more: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.retry_after, self.more = status, retry_after, more or {}

    def headers(self) -> dict[str, str]:
        """Return the headers of the answer."""
        found = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return found | ({"www-authenticate": "Bearer"} if self.status == 401 else {})

    def content(self, request_id: str, path: str = "") -> dict[str, Any]:
        """Return the answer to a request for a path, JSON-ready; the Open Inference Protocol has its own form."""
        if path.startswith("/v2"):
            return {"error": str(self)}
        return {**error_content(self.status, str(self), request_id), **self.more}


def error_content(status: int, message: str, request_id: str) -> dict[str, Any]:
    """Return the JSON of an error.

    Examples
    --------
    >>> error_content(404, "no such model", "7f")
    {'error': {'code': 'not_found', 'message': 'no such model', 'request_id': '7f'}}
    """
    return {"error": {"code": CODES.get(status, "error"), "message": message, "request_id": request_id}}


def without_folders(error: Exception) -> str:
    """Return the message of an error, with the names of this machine's files and not their folders.

    Examples
    --------
    >>> without_folders(FileNotFoundError("/opt/models/a.pt: no such file (read 1/2)"))
    'a.pt: no such file (read 1/2)'
    """
    return re.sub(r"(?<![\w:/])/(?:[^\s/'\"(),;:]+/)+", "", str(error))


def without_frames(error: E) -> E:
    """Return an error without the frames that it and the errors before it have passed.

    Frames hold what a caller has sent. Where one of them also leads to the error, that stays in memory until Python
    looks for cycles, which may be many requests later.

    Examples
    --------
    >>> try:
    ...     1 / 0
    ... except ZeroDivisionError as error:
    ...     without_frames(error).__traceback__ is None
    True
    """
    before = error.__cause__, error.__context__
    error.__traceback__ = error.__cause__ = error.__context__ = None
    for other in before:
        if other is not None:
            without_frames(other)
    return error
