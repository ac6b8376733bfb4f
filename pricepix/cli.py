"""The command line: one command a public function, options named as its keyword arguments.

Commands parse and forward. Whatever they need is imported when they run, so that ``--help`` is instant.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import click

from pricepix import __version__

CLEAN_ERRORS = (ValueError, TypeError, KeyError, OSError, ImportError)


class Group(click.Group):
    """Turn the library's errors, which are written for people, into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CLEAN_ERRORS as error:
            if ctx.params.get("traceback"):
                raise
            text = error.args[0] if isinstance(error, KeyError) and error.args else error
            raise click.ClickException(str(text)) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pricepix")
@click.option("--traceback", is_flag=True, help="Show the whole traceback of an error.")
def main(traceback: bool) -> None:
    """Price history in, exact chart images out."""


def _pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Read repeated NAME=VALUE options."""
    pairs = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals:
            raise click.BadParameter(f"{value!r} is not of the form NAME=COLUMN", ctx, param)
        pairs[name] = rest
    return pairs


def panel_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of ``Panel.from_table`` and gather them into the argument `table`."""
    options = [
        click.option("--column", "columns", multiple=True, callback=_pairs, metavar="NAME=COLUMN",
                     help="Which column of the table is open, high, low, close, volume, ..."),
        click.option("--instrument-column", "instrument", help="Column that names the instrument."),
        click.option("--time-column", "time", help="Column that holds the time."),
        click.option("--tz", help="Zone of the market, for times without one."),
        click.option("--on-bad", type=click.Choice(["raise", "drop_bar", "keep"]), default="raise", show_default=True,
                     help="What becomes of bars with faults."),
        click.option("--negative-prices", type=click.Choice(["error", "midpoint"]), default="error", show_default=True,
                     help="midpoint: take negative prices as CRSP means them."),
        click.option("--adjust", type=click.Choice(["multiply", "divide"]), help="Apply the adjustment factor."),
    ]  # fmt: skip
    names = ("columns", "instrument", "time", "tz", "on_bad", "negative_prices", "adjust")

    @functools.wraps(command)
    def gathered(**options: Any) -> Any:
        table = {name: options.pop(name) for name in names}
        return command(table={name: value for name, value in table.items() if value}, **options)

    return functools.reduce(lambda f, option: option(f), reversed(options), gathered)


def spec_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the fields of an ImageSpec, as changes to a preset, and gather them into the argument `spec`."""
    options = [
        click.option("--preset", default=None, help="Image preset, e.g. jkx20; see `pricepix-cli presets`."),
        click.option("--lookback", type=int, help="Bars of an image."),
        click.option("--height", type=int, help="Rows of pixels."),
        click.option("--style", help="jkx, cnn_for_trading or image_trading."),
        click.option("--chart", help="bar or pixel."),
        click.option("--ma", type=int, multiple=True, help="Window of a moving average; may be repeated."),
        click.option("--no-ma", is_flag=True, help="Draw no moving average."),
        click.option("--ma-warmup", help="drop or omit."),
        click.option("--volume/--no-volume", default=None, help="Draw the volume panel."),
        click.option("--aggregate", type=int, help="Bars merged into one drawn bar."),
        click.option("--scale", help="joint or per_field."),
        click.option("--rebuild", help="returns: rebuild prices from total returns."),
        click.option("--max-missing", type=int, help="Most missing bars of a window."),
    ]
    names = ("lookback", "height", "style", "chart", "ma_warmup", "volume", "aggregate", "scale", "rebuild", "max_missing")

    @functools.wraps(command)
    def gathered(**options: Any) -> Any:
        from pricepix import ImageSpec

        changes = {name: value for name in names if (value := options.pop(name)) is not None}
        preset, ma, no_ma = options.pop("preset"), options.pop("ma"), options.pop("no_ma")
        if ma and no_ma:
            raise click.UsageError("--ma and --no-ma contradict each other: give one of them")
        if ma or no_ma:
            changes["ma"] = tuple(ma)
        if preset is None and "lookback" not in changes:
            raise click.UsageError("give --preset NAME (see `pricepix-cli presets`), or --lookback and what differs")
        spec = ImageSpec(**changes) if preset is None else ImageSpec.preset(preset).replace(**changes)
        return command(spec=spec, **options)

    return functools.reduce(lambda f, option: option(f), reversed(options), gathered)


def _every(ctx: click.Context, param: click.Parameter, value: str) -> str | int:
    return int(value) if value.isdecimal() else value


@main.command("build-store")
@click.argument("table_path", metavar="TABLE")
@click.argument("store")
@spec_options
@click.option("--horizon", "horizons", type=int, multiple=True, default=(5, 20, 60), show_default=True,
              help="Bars of a forward return; may be repeated.")
@click.option("--delay", type=int, default=0, show_default=True, help="Bars from decision to entry.")
@click.option("--every", default="bar", show_default=True, callback=_every,
              help="bar, day, week, month, quarter, or a number.")
@click.option("--start", help="First time at which a window may end.")
@click.option("--end", help="Last time (inclusive) at which a window may end.")
@click.option("--sample", type=float, help="Share of the windows to keep.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sample.")
@click.option("--max-gap", help="No window across a hole longer than this, e.g. 10d.")
@click.option("--price", type=click.Choice(["auto", "close", "total_return"]), default="auto", show_default=True,
              help="What forward returns are computed from.")
@click.option("--layout", type=click.Choice(["uint8", "bits"]), default="uint8", show_default=True,
              help="bits: a third of the bytes, several times faster.")
@click.option("--mode", type=click.Choice(["create", "overwrite"]), default="create", show_default=True)
@click.option("--chunk", type=int, help="Windows a chunk.")
@click.option("--threads", type=int, help="Threads; all by default.")
@click.option("--progress/--no-progress", default=True)
@panel_options
def build_store(table_path: str, table: dict[str, Any], progress: bool, **options: Any) -> None:
    """Draw every window of TABLE (CSV, Parquet, Feather, a glob or a folder) into the store STORE."""
    from pricepix import Panel, render_universe

    panel = Panel.from_table(table_path, progress=progress, **table)
    click.echo(str(panel.report), err=True)
    store = render_universe(panel, progress=progress, **options)
    _describe(store)


@main.command()
@click.argument("store")
def info(store: str) -> None:
    """Say what is in STORE."""
    from pricepix import open_store

    _describe(open_store(store))


def _describe(store: Any) -> None:
    from pricepix.times import to_series

    attrs = store.attrs
    height, width = store.spec.shape
    rows = {
        "store": store.location,
        "images": f"{len(store):,} of {height}x{width} (rows x columns), layout {store.layout}",
        "spec": ", ".join(f"{name}={value}" for name, value in attrs["spec"].items()),
        "instruments": f"{len(store.instruments):,}",
        "dropped": ", ".join(f"{name} {count:,}" for name, count in attrs["drop_counts"].items()) or "none",
        "horizons": f"{', '.join(map(str, store.horizons)) or 'none'} bars, delay {store.delay}, on {attrs['label_price']}",
        "created by": attrs["created_by"],
        "format": f"version {attrs['format_version']}",
        "spec digest": attrs["spec_digest"],
        "panel digest": attrs["panel_digest"],
    }
    if len(store):
        times = to_series(store.time[[0, -1]], store.tz)
        rows["times"] = f"{times[0]} to {times[1]}"
    for h in store.horizons:
        returns = store.returns(h)
        known = returns[returns == returns]
        up = f"{(known > 0).mean():.1%} up" if len(known) else "none known"
        rows[f"ret_{h}"] = f"{len(known):,} known, {len(returns) - len(known):,} missing, {up}"
    for name, value in rows.items():
        click.echo(f"{name:>13}  {value}")


@main.command()
@click.argument("store")
@click.argument("path")
@click.option("--instrument", help="Images of this instrument alone.")
@click.option("--n", type=int, default=24, show_default=True, help="How many images.")
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses the images.")
def preview(store: str, path: str, **options: Any) -> None:
    """Write a contact sheet of STORE to the PNG file PATH."""
    from pricepix import contact_sheet, open_store

    click.echo(contact_sheet(open_store(store), path, **options))


@main.command()
@click.argument("store")
@click.option("--panel", "table_path", metavar="TABLE", help="Render again from these bars and compare.")
@click.option("--sample", type=int, default=1000, show_default=True, help="Images to render again; 0 for all.")
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses the sample.")
@panel_options
def verify(store: str, table_path: str | None, table: dict[str, Any], sample: int, seed: int) -> None:
    """Check that STORE is whole and, given its bars, that its images are right. Exit code 1 if not."""
    from pricepix import Panel, open_store

    panel = Panel.from_table(table_path, **table) if table_path else None
    report = open_store(store).verify(panel, sample=sample or None, seed=seed)
    for problem in report["problems"]:
        click.echo(problem)
    click.echo(
        f"{report['windows']:,} windows in {report['chunks']:,} chunks read, {report['rendered']:,} rendered again, "
        f"{len(report['problems'])} problems"
    )
    if report["problems"]:
        sys.exit(1)


@main.command()
def presets() -> None:
    """List the image presets."""
    from pricepix import ImageSpec

    click.echo(f"{'preset':9} {'size':>8} {'lookback':>8}  style")
    for name, spec in ImageSpec.presets().items():
        drawn = [f"MA {n}" for n in spec.ma] + (["volume"] if spec.volume else [])
        size = f"{spec.height}x{spec.width}"
        click.echo(f"{name:9} {size:>8} {spec.lookback:>8}  {spec.style}: {', '.join(['OHLC', *drawn])}")


@main.command()
@click.argument("folder", default="demo")
def demo(folder: str) -> None:
    """Run the main job on sample data into FOLDER."""
    from pricepix.demo import demo as run

    run(folder, echo=click.echo)


if __name__ == "__main__":
    main()
