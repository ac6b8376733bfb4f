"""Commands that look before work is begun: at a build to come, at this machine, at images that others drew."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from pricepix.cli.group import main, result, say
from pricepix.cli.options import (
    choice_option,
    complete_files,
    end,
    layout_help,
    number_or_text,
    panel_options,
    repeated,
    spec_options,
    start,
    table_argument,
)


@main.command()
@table_argument
@spec_options
@repeated("--horizon", "horizons", type=int, default=(5, 20, 60), help="Bars of a forward return")
@click.option(
    "--every", default="bar", callback=number_or_text, help="bar, day, week, month, quarter or a number."
)
@start
@end
@click.option("--sample", type=float, help="Share of the windows to keep.")
@click.option("--max-gap", help="No window across a hole longer than this, e.g. 10d.")
@choice_option("--layout", "uint8", "bits", default="uint8", help=layout_help)
@click.option("--store", help="Where the store is to be; its disk is asked for room.")
@panel_options
def estimate(table_path: str, table: dict[str, Any], **options: Any) -> None:
    """Say what a build of TABLE will take: images, bytes, minutes, memory. Exit code 1 if the disk is too small.

    TABLE is what build-store takes, or the folder of a market cache.
    """
    from pricepix.bars.panel import Panel
    from pricepix.workflow.estimate import estimate as run
    from pricepix.workflow.estimate import is_market_cache

    given = {name: value for name, value in options.items() if value is not None}
    source: Any = table_path
    if not is_market_cache(table_path):
        source = Panel.from_table(table_path, **table)
    elif table:
        raise click.UsageError(f"{table_path} is a market cache: leave out the options of tables")
    found = run(source, **given)
    result(found)
    sys.exit(0 if found.fits else 1)


@main.command()
@click.option("--folder", help="Measure the disk of this folder; the current one by default.")
def doctor(folder: str | None) -> None:
    """Look at this machine: versions, CPU, compiled kernels, disk, GPU, optional parts and how to install them."""
    from pricepix.workflow.doctor import doctor as run

    result(run(folder))


@main.command("which-script")
@click.argument("file", shell_complete=complete_files)
@click.option("--n", type=int, default=500, help="Images to look at, evenly spread.")
def which_script(file: str, n: int) -> None:
    """Say which published renderer can have drawn the images of FILE, an .npy of (n, height, width).

    Exit code 1 if none can.
    """
    from pricepix.workflow.which_script import which_script as run

    found = run(file, n)
    result(found)
    sys.exit(0 if found.possible else 1)


@main.command()
@click.argument("path")
def sample(path: str) -> None:
    """Write the sample bars that come with pricepix to PATH, a .csv or .parquet file."""
    from pricepix.samples import bundled

    target = Path(path)
    kinds = {".csv": "write_csv", ".parquet": "write_parquet"}
    if target.suffix.lower() not in kinds:
        raise click.UsageError(f"{path!r} ends in neither .csv nor .parquet")
    bars = bundled()
    getattr(bars, kinds[target.suffix.lower()])(target)
    told = f"{target}: pricepix-cli build-store {target} bars.zarr --preset jkx20 --adjust multiply"
    say(told, path=target, bars=len(bars))
