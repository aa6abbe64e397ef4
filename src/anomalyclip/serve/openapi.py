"""What ``/openapi.json`` says of errors and of the key: for each route the statuses that it really answers with."""

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from anomalyclip.serve.guard import OPEN
from anomalyclip.serve.schemas import ErrorOut, ProtocolErrorOut

_SAID = {
    400: "Damaged form, JSON or tensor.",
    401: "No key, or another than this service's.",
    403: "A page of another site asks.",
    404: "No such model or job here (any more).",
    408: "The request arrived too slowly.",
    409: "The service's own model stays.",
    413: "Too many bytes, files, images, pixels or JSON values, or larger maps than an answer may have.",
    415: "Not an image of a known kind, not a form or JSON, or compressed.",
    421: "This service does not answer under that name.",
    422: "A field or an image that cannot be used.",
    429: "The queue, the memory or the jobs are full; come back later.",
    500: "An error nobody foresaw; the log has it under the request's id.",
    503: "Not answered within the time limit.",
}

_HEADERS = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}}},
    429: {"Retry-After": {"required": True, "schema": {"type": "integer", "minimum": 1}}},
    503: {"Retry-After": {"schema": {"type": "integer", "minimum": 1}}},
}

ANYWHERE = (403, 421, 500)
"""Errors of every route."""

UPLOADING = (*ANYWHERE, 400, 408, 413, 415, 422, 429)
"""Errors of every route that takes a body."""

SCORING = (*UPLOADING, 404, 503)
"""Errors of every route that takes images and waits for a model."""

_KEY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "The key of `--key-file`."},
    "basic": {"type": "http", "scheme": "basic", "description": "The key as the password of any user."},
}

_FASTAPI_S = ("HTTPValidationError", "ValidationError")
"""Schemas of errors that FastAPI would answer with; this service has its own."""


def refused(
    *statuses: int, form: type[Any] = ErrorOut, more: Mapping[int, type[Any]] | None = None
) -> dict[int | str, dict[str, Any]]:
    """Return the answers of a route that are errors, for FastAPI.

    Parameters
    ----------
    *statuses : int
    form : type
        Their schema.
    more : mapping of int to type, optional
        Schemas of single statuses.

    Examples
    --------
    >>> refused(409)
    {409: {'model': <class 'anomalyclip.serve.schemas.ErrorOut'>, 'description': "The service's own model stays."}}
    """
    forms = {**dict.fromkeys(statuses, form), **(more or {})}
    return {
        status: {"model": forms[status], "description": _SAID[status]}
        | ({"headers": _HEADERS[status]} if status in _HEADERS else {})
        for status in sorted(forms)
    }


def describing(app: FastAPI, *, has_key: bool) -> Callable[[], dict[str, Any]]:
    """Return what makes the document of an application.

    Parameters
    ----------
    app : FastAPI
    has_key : bool
        Whether callers have to send a key.
    """

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = get_openapi(
                title=app.title,
                version=app.version,
                summary="Scores images and draws where they are anomalous.",
                routes=app.routes,
            )
            _complete(app.openapi_schema, has_key=has_key)
        return app.openapi_schema

    return described


def _complete(document: dict[str, Any], *, has_key: bool) -> None:
    """Take out what FastAPI assumes of errors, and add the key."""
    for path, operations in document["paths"].items():
        for operation in operations.values():
            answers = operation["responses"]
            if _names(answers.get("422")) in _FASTAPI_S:
                del answers["422"]
            if has_key and path not in OPEN:
                form = ProtocolErrorOut if path.startswith("/v2") else ErrorOut
                answers["401"] = _without_key(form.__name__)
            elif has_key:
                operation["security"] = []
            operation["responses"] = dict(sorted(answers.items()))
    for name in _FASTAPI_S:
        document["components"]["schemas"].pop(name, None)
    if has_key:
        document["components"]["securitySchemes"] = _KEY
        document["security"] = [{name: []} for name in _KEY]


def _names(answer: dict[str, Any] | None) -> str:
    """Return the name of the schema of an answer."""
    content = (answer or {}).get("content", {}).get("application/json", {})
    return str(content.get("schema", {}).get("$ref", "")).rpartition("/")[2]


def _without_key(form: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{form}"}
    return {
        "description": _SAID[401],
        "headers": _HEADERS[401],
        "content": {"application/json": {"schema": schema}},
    }
