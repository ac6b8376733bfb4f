"""Make the picture of the explorer; needs playwright and a Chromium. Run it from the root of the checkout."""

import os
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

import pricepix as pp

TARGET = Path(__file__).parent / "explorer.png"
CHROMIUM = os.environ.get("PRICEPIX_CHROMIUM") or shutil.which("chromium")

panel = pp.Panel.from_table(pp.samples.bundled(), adjust="multiply", progress=False)
store = pp.render_universe(panel, "jkx20", horizons=(5, 20, 60), progress=False)


def falling(images: np.ndarray) -> np.ndarray:
    """Score an image by where its ink lies: no model, but something to show."""
    left, right = (part.mean(axis=(1, 2)) for part in np.array_split(images / 255, 2, axis=2))
    return np.clip(0.5 + 3 * (right - left), 0, 1)


scores = pp.factor.score(store, falling, None, model_id="example", progress=False)
with store.explore(panel=panel, factor=scores) as explorer, sync_playwright() as started:
    browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
    page = browser.new_page(viewport={"width": 1200, "height": 960})
    page.goto(f"{explorer.url}#instrument=OAK&time=2022-10-14&lookback=40&height=96")
    page.wait_for_selector("#redrawn canvas")
    shot = Image.open(BytesIO(page.screenshot(full_page=True)))
    browser.close()
# A palette is enough for lines and text, and a third of the bytes.
small = shot.convert("RGB").quantize(128, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
small.save(TARGET, optimize=True)
print(TARGET, TARGET.stat().st_size)
