"""Chromium, driven by Playwright: a person in front of the page of `anomalyclip serve`."""

import base64
import mimetypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
DESKTOP = {"viewport": {"width": 1280, "height": 860}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True}


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; a test that wants one is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright, of the extra [dev]")
    if not CHROMIUM.exists():
        pytest.skip(f"needs Chromium as {CHROMIUM} (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, url: str, *, wait: str = "html.ready", **options: Any) -> Iterator[Any]:
    """The page in a fresh profile; whatever it complains of in the console fails the test."""
    context = browser.new_context(**(options or DESKTOP))
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda said: complaints.append(said.text) if "Content Security Policy" in said.text else None,
    )
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(f"{url}/")
    page.wait_for_selector(wait)
    yield page
    assert complaints == []
    context.close()


def drop(page: Any, *files: tuple[str, bytes], on: str = "body") -> None:
    """Drop files on the page, as from a folder's window."""
    sent = [
        [
            name,
            base64.b64encode(content).decode(),
            mimetypes.guess_type(name)[0] or "application/octet-stream",
        ]
        for name, content in files
    ]
    transfer = page.evaluate_handle(
        """(files) => {
            const transfer = new DataTransfer();
            for (const [name, content, type] of files) {
                const bytes = Uint8Array.from(atob(content), (sign) => sign.charCodeAt(0));
                transfer.items.add(new File([bytes], name, { type }));
            }
            return transfer;
        }""",
        sent,
    )
    page.dispatch_event(on, "drop", {"dataTransfer": transfer})


def scored(page: Any, count: int) -> None:
    """Wait until so many pictures are scored, and none waits."""
    page.wait_for_selector("#overview:not([hidden])")
    page.wait_for_selector("#progress", state="hidden")
    assert page.inner_text("#counts div:first-child b") == str(count)


def names(page: Any) -> list[str]:
    """The names of the pictures that are shown, in their order."""
    return page.locator("#cards bdi").all_inner_texts()


def downloaded(page: Any, kind: str) -> bytes:
    """Download one of the kinds, and return what the browser saved."""
    if page.locator("#download[open]").count() == 0:
        page.click("#downloads")
    with page.expect_download() as download:
        page.click(f"[data-kind={kind}]")
    return Path(download.value.path()).read_bytes()
