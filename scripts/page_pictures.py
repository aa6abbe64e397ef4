"""Screenshots of the page of `anomalyclip serve` for the docs: ``python -m scripts.page_pictures``.

The pictures in them are generated: `anomalyclip synth parts --classes slate --normal 12 --anomalous 8 --seed 1
--size 384`. Flawless ones make the model and the threshold, as a person would do it.
"""

import io
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from tests.browsing import DESKTOP, PHONE, chromium, opened, scored
from tests.serving import service

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def main() -> None:
    """Write docs/images/page*.jpg."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        synth = "synth parts --classes slate --normal 12 --anomalous 8 --seed 1 --size 384"
        subprocess.run([sys.executable, "-m", "anomalyclip", *synth.split()], cwd=folder, check=True)
        with chromium() as browser, service(folder) as running:
            desktop(browser, running.url, folder)
            phone(browser, running.url, folder)


def prepared(page, folder):
    """Drop the pictures, remember the flawless ones, and find a threshold."""
    pictures = sorted((folder / "parts/slate/test").rglob("*.png"))
    named = [
        {"name": f"{path.parent.name}_{path.name}", "mimeType": "image/png", "buffer": path.read_bytes()}
        for path in pictures
    ]
    page.set_input_files("#files", named)
    scored(page, len(pictures))
    page.click("#model")
    page.set_input_files("#reference-files", sorted((folder / "parts/slate/train/good").glob("*.png")))
    page.click("#remember")
    page.wait_for_selector("#model-message:text('flawless pictures now')")
    page.click("#calibrate")
    page.wait_for_selector("#model-message:text('Threshold ')")
    page.wait_for_selector("#progress", state="hidden")


def desktop(browser, url, folder):
    """Take the list, and one picture half under the curtain."""
    with opened(browser, url, **DESKTOP) as page:
        prepared(page, folder)
        page.keyboard.press("Escape")
        page.evaluate("document.activeElement.blur()")
        settle(page)
        save(page, "page.jpg")
        page.click("#cards button[aria-label^=crack]")
        page.wait_for_selector("#regions li")
        page.keyboard.press("1")
        page.fill("#compare", "76")
        page.evaluate("document.activeElement.blur()")
        settle(page)
        save(page, "page_picture.jpg")


def phone(browser, url, folder):
    """Take the list, a picture and the model's dialog, side by side."""
    with opened(browser, url, **PHONE, color_scheme="dark") as page:
        prepared(page, folder)
        settle(page)
        shots = [page.screenshot()]
        page.keyboard.press("Escape")
        page.evaluate("document.activeElement.blur()")
        settle(page)
        shots.insert(0, page.screenshot())
        page.click("#cards li:first-child button")
        page.wait_for_selector("#regions li")
        settle(page)
        shots.insert(1, page.screenshot())
    pictures = [Image.open(io.BytesIO(shot)) for shot in shots]
    gap = 24
    sheet = Image.new("RGB", (sum(one.width for one in pictures) + 2 * gap, pictures[0].height), "white")
    for index, one in enumerate(pictures):
        sheet.paste(one, (index * (one.width + gap), 0))
    sheet.resize((sheet.width // 2, sheet.height // 2)).save(IMAGES / "page_phone.jpg", quality=80)


def settle(page):
    """Wait until everything that can be seen is drawn."""
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(800)


def save(page, name):
    """Write what is on the screen."""
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(IMAGES / name, quality=80)


if __name__ == "__main__":
    main()
