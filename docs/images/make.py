"""Make the pictures of the documentation from real daily bars; run it from the root of the checkout."""

from pathlib import Path

import pricepix as pp

FOLDER = Path(__file__).parent
IMAGES = {"jkx5": 10, "jkx20": 6, "jkx60": 3}

panel = pp.Panel.from_table(pp.samples.stocks(adjustment_factor=True), adjust="multiply", progress=False)
for preset, n in IMAGES.items():
    store = pp.render_universe(panel, preset, horizons=20, progress=False)
    print(pp.contact_sheet(store, FOLDER / f"{preset}.png", n=n, columns=n, seed=20))
store = pp.render_universe(panel, "jkx20", horizons=(5, 20, 60), progress=False)
print(pp.enlarge(store, "AAPL", "2006-04-13", FOLDER / "enlarged.png", panel=panel))
