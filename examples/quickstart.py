"""Daily bars of twelve stocks, a sample that comes with pricepix, to images, a store, a check and a contact sheet.

    pip install ".[report]"
    python examples/quickstart.py [FOLDER]

Writes us20.zarr and us20.png into FOLDER, quickstart/ by default.
"""

import sys
from pathlib import Path
from time import perf_counter

import pricepix as pp


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)

    # The factor turns prices as traded into prices adjusted for splits.
    bars = pp.samples.bundled()
    panel = pp.Panel.from_table(bars, adjust="multiply", progress=False)
    print(panel)

    began = perf_counter()
    store = pp.render_universe(
        panel, "jkx20", folder / "us20.zarr", horizons=(5, 20, 60), mode="overwrite", progress=False
    )
    print(f"{len(store):,} images in {perf_counter() - began:.1f} s, compiling or loading kernels included")
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in store.attrs["drop_counts"].items())
    print(f"windows without an image: {dropped}")

    print("\nA window is named by its last bar; returns that are not known yet are missing:")
    print(store.index.drop("exit_time_5", "exit_time_20", "exit_time_60").tail(5))

    instrument, day = "OAK", "2022-10-14"
    print(f"\n{instrument}, the 20 days to {day}:")
    for row in store.image(instrument, day):
        print("".join("#" if pixel else "." for pixel in row))

    report = store.verify(panel)
    print(f"\nverify: {report}")
    print("contact sheet:", pp.contact_sheet(store, folder / "us20.png", n=24))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "quickstart"))
