"""Commands that make, change and look at stores."""

from __future__ import annotations

import sys
from typing import Any

import click

from pricepix.cli.group import main, say
from pricepix.cli.options import (
    asof,
    changed_chunks,
    choice_option,
    delisting,
    describe,
    end,
    known_returns,
    layout_help,
    mode,
    number_or_text,
    panel,
    panel_options,
    progress,
    read_panel,
    repeated,
    scheduler,
    seed,
    several,
    spec_options,
    start,
    store_argument,
    table_argument,
    workers,
)


@main.command("build-store")
@table_argument
@store_argument
@spec_options
@repeated("--horizon", "horizons", type=int, default=(5, 20, 60), help="Bars of a forward return")
@click.option("--delay", type=int, default=0, help="Bars from decision to entry.")
@click.option(
    "--every", default="bar", callback=number_or_text, help="bar, day, week, month, quarter or a number."
)
@start
@end
@click.option("--sample", type=float, help="Share of the windows to keep.")
@seed
@click.option("--max-gap", help="No window across a hole longer than this, e.g. 10d.")
@choice_option(
    "--price", "auto", "close", "total_return", default="auto", help="Prices of the forward returns."
)
@delisting
@click.option("--exchange", help="Calendar that tells when a week or month is over, e.g. XNYS.")
@click.option("--complete", is_flag=True, help="The last week, month or quarter of TABLE is over.")
@asof
@click.option("--period-share", "share", type=float, default=0.5, help="Share with a bar at a period's end.")
@choice_option("--layout", "uint8", "bits", default="uint8", help=layout_help)
@mode
@click.option("--chunk", type=int, help="Windows a chunk.")
@click.option("--shard", callback=number_or_text, help="Windows an object, or its size such as 256MB.")
@workers
@scheduler
@progress
@panel_options
def build_store(
    table_path: str,
    table: dict[str, Any],
    scheduler: str | None,
    exchange: str | None,
    complete: bool,
    asof: str | None,
    share: float,
    progress: bool,
    **options: Any,
) -> None:
    """Draw every window of TABLE into the store STORE.

    TABLE is a CSV, Parquet or Feather file, a glob, or a folder of such files.
    """
    from pricepix.build.cluster import client_of
    from pricepix.build.universe import render_universe

    panel = read_panel(table_path, table, progress, report=True)
    periods = {"share": share, "exchange": exchange, "complete": complete, "asof": asof}
    with client_of(scheduler) as client:
        store = render_universe(panel, client=client, periods=periods, progress=progress, **options)
    describe(store)


@main.command()
@store_argument
@table_argument
@choice_option(
    "--on-revision", "raise", "rebuild", default="raise", help="rebuild: draw revised instruments again."
)
@asof
@workers
@progress
@panel_options
def append(store: str, table_path: str, table: dict[str, Any], progress: bool, **options: Any) -> None:
    """Add to STORE the windows of TABLE that came since, and the returns that became known.

    TABLE holds the whole history, old bars and new.
    """
    from pricepix.build.append import append as run
    from pricepix.store.image_store import open_store

    panel = read_panel(table_path, table, progress)
    before = open_store(store)
    known = known_returns(before)
    after = run(store, panel, progress=progress, **options)
    describe(
        after,
        windows_added=len(after) - len(before),
        returns_filled=known_returns(after) - known,
        chunks_written=changed_chunks(before, after),
    )


@main.command()
@store_argument
def info(store: str) -> None:
    """Say what is in STORE, an image store or a factor cache."""
    from pricepix.factor.cache import is_factor_cache, open_cache
    from pricepix.store.image_store import open_store

    if is_factor_cache(store):
        cache = open_cache(store)
        days, instruments, intervals = cache.shape
        say(
            cache.summary(),
            cache=cache.location,
            days=days,
            instruments=instruments,
            intervals=intervals,
            windows=cache.attrs["windows"] - cache.attrs["skipped"],
            model=cache.attrs["model"]["name"],
            scorings=len(cache.scored_at),
        )
    else:
        describe(open_store(store))


@main.command()
@store_argument
@click.argument("path")
@click.option("--instrument", help="Only images of this instrument.")
@click.option("--n", type=int, default=24, help="How many images.")
@seed
@click.option("--horizon", type=int, help="Show only the forward return over these bars.")
@click.option("--columns", type=int, help="Images a row.")
def preview(store: str, path: str, **options: Any) -> None:
    """Write a contact sheet of STORE to the PNG file PATH."""
    from pricepix.preview import contact_sheet

    written = contact_sheet(store, path, **options)
    say(written, path=written)


@main.command()
@store_argument
@choice_option("--depth", "metadata", "checksums", "render", help="How deep to look; render needs --panel.")
@panel
@click.option("--sample", type=int, help="Images to draw again, with --panel; all by default.")
@seed
@workers
@progress
@panel_options
def verify(store: str, panel: str | None, table: dict[str, Any], **options: Any) -> None:
    """Check that STORE is whole and, given its bars, that its images are right. Exit code 1 if not.

    STORE is an image store, a factor cache, an embedding, a checkpoint, or the folder of a training run or of a
    pipeline, all of whose products are checked. What it was is in what is printed.
    """
    from pricepix.workflow.verification import verify_location

    found = verify_location(store, (lambda: read_panel(panel, table)) if panel else None, **options)
    text = "\n".join(f"{kind} {report}" for kind, report in found)
    reports = [{"kind": kind, "ok": report.ok, **vars(report)} for kind, report in found]
    say(text, ok=all(report.ok for _, report in found), reports=reports)
    sys.exit(max((report.exit_code for _, report in found), default=0))


@main.command()
def presets() -> None:
    """List the image presets."""
    from pricepix.spec import ImageSpec

    lines = [f"{'preset':9} {'size':>8} {'lookback':>8}  style"]
    for name, spec in ImageSpec.presets().items():
        drawn = [f"MA {n}" for n in spec.ma] + (["volume"] if spec.volume else [])
        size = f"{spec.height}x{spec.width}"
        lines.append(f"{name:9} {size:>8} {spec.lookback:>8}  {spec.style}: {', '.join(['OHLC', *drawn])}")
    say("\n".join(lines), **{name: spec.to_dict() for name, spec in ImageSpec.presets().items()})


@main.command("import-jkx")
@click.argument("folder")
@store_argument
@repeated("--year", "years", type=int, callback=several, help="Take only this year")
@click.option("--month", type=int, help="Keep the return of the month, as one over so many days.")
@choice_option("--layout", "bits", "uint8", default="bits", help=layout_help)
@mode
@progress
def import_jkx(**options: Any) -> None:
    """Make the store STORE of the paper's public images in FOLDER."""
    from pricepix.build import import_jkx as run

    describe(run(**options))
