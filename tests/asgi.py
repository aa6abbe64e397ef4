"""The service in this process, without sockets: what a test of its memory or of its document needs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.serving import Answer


@asynccontextmanager
async def living(app: Any) -> AsyncIterator[None]:
    """A service between its start and its end."""
    steps: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    life = asyncio.create_task(app({"type": "lifespan"}, steps.get, said.put))
    await steps.put({"type": "lifespan.startup"})
    assert (await said.get())["type"] == "lifespan.startup.complete"
    yield
    await steps.put({"type": "lifespan.shutdown"})
    await life


async def answered(
    app: Any,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    *,
    more: bool = False,
) -> Answer:
    """An answer; the caller stays until it is there, and may announce more of the body than it ever sends."""
    given = {"host": "localhost", **(headers or {})}
    raw = [(name.lower().encode(), value.encode()) for name, value in given.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw, "query_string": b""}
    sent, stays = [{"type": "http.request", "body": body, "more_body": more}], asyncio.Event()
    said: list[dict[str, Any]] = []

    async def receive() -> Any:
        return sent.pop() if sent else await stays.wait()

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    await app(scope, receive, send)
    found = {name.decode().lower(): value.decode() for name, value in said[0]["headers"]}
    return Answer(said[0]["status"], found, b"".join(message.get("body", b"") for message in said[1:]))
