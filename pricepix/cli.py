"""The command line: one command a public function, options named as its keyword arguments.

Commands parse and forward. Whatever they need is imported when they run, so that ``--help`` is instant.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from pricepix._checks import optional_module
from pricepix._version import __version__

CLEAN_ERRORS = (ValueError, TypeError, KeyError, OSError, ImportError)


class Group(click.Group):
    """Turn the library's errors, which are written for people, into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Whoever read the output, `head` for instance, has enough: click ends quietly.
            raise
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
            raise click.BadParameter(f"{value!r} is not of the form {param.metavar}", ctx, param)
        pairs[name] = rest
    return pairs


def panel_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of ``Panel.from_table`` and gather them into the argument `table`."""
    options = {
        "columns": click.option("--column", "columns", multiple=True, callback=_pairs, metavar="NAME=COLUMN",
                                help="Which column of the table is open, high, low, close, volume, ..."),
        "instrument": click.option("--instrument-column", "instrument", help="Column of the instrument."),
        "time": click.option("--time-column", "time", help="Column of the time."),
        "tz": click.option("--tz", help="Zone of the market, for times without one."),
        "time_format": click.option("--time-format", help="How times are written, e.g. %d/%m/%Y."),
        "time_unit": click.option("--time-unit", type=click.Choice(["s", "ms", "us", "ns"]),
                                  help="For times that count since 1970."),
        "null_values": click.option("--null-value", "null_values", multiple=True,
                                    help="Text that marks a missing number; may be repeated."),
        "on_bad": click.option("--on-bad", type=click.Choice(["raise", "drop_bar", "keep"]),
                               help="What becomes of bars with faults; raise by default."),
        "negative_prices": click.option("--negative-prices", type=click.Choice(["error", "midpoint"]),
                                        help="midpoint: take negative prices as CRSP means them."),
        "adjust": click.option("--adjust", type=click.Choice(["multiply", "divide"]),
                               help="Apply the adjustment factor to the prices."),
    }  # fmt: skip

    @functools.wraps(command)
    def gathered(**given: Any) -> Any:
        table = {name: given.pop(name) for name in options}
        return command(table={name: value for name, value in table.items() if value}, **given)

    return functools.reduce(lambda f, option: option(f), reversed(list(options.values())), gathered)


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
    names = (
        "lookback",
        "height",
        "style",
        "chart",
        "ma_warmup",
        "volume",
        "aggregate",
        "scale",
        "rebuild",
        "max_missing",
    )

    @functools.wraps(command)
    def gathered(**options: Any) -> Any:
        from pricepix.spec import ImageSpec

        changes = {name: value for name in names if (value := options.pop(name)) is not None}
        preset, ma, no_ma = options.pop("preset"), options.pop("ma"), options.pop("no_ma")
        if ma and no_ma:
            raise click.UsageError("--ma and --no-ma contradict each other: give one of them")
        if ma or no_ma:
            changes["ma"] = tuple(ma)
        if preset is None and "lookback" not in changes:
            raise click.UsageError(
                "give --preset NAME (see `pricepix-cli presets`), or --lookback and what differs"
            )
        spec = ImageSpec(**changes) if preset is None else ImageSpec.preset(preset).replace(**changes)
        return command(spec=spec, **options)

    return functools.reduce(lambda f, option: option(f), reversed(options), gathered)


def _number_or_text(ctx: click.Context, param: click.Parameter, value: str | None) -> str | int | None:
    return int(value) if value is not None and value.isdecimal() else value


def _settings(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Read repeated NAME=VALUE options whose values are numbers, none, or text."""
    return {name: _scalar(text) for name, text in _pairs(ctx, param, values).items()}


def _augmentations(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any] | None:
    """Read repeated NAME=VALUE options, LOW:HIGH for a range."""
    pairs = _pairs(ctx, param, values)
    read = {name: [_scalar(part) for part in text.split(":")] for name, text in pairs.items()}
    return {name: value if len(value) > 1 else value[0] for name, value in read.items()} or None


def _scalar(text: str) -> Any:
    """Read a whole number, a number, none, or text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None if text.lower() == "none" else text


PROGRESS = click.option("--progress/--no-progress", default=True, help="Show progress bars.")


@main.command("build-store")
@click.argument("table_path", metavar="TABLE")
@click.argument("store")
@spec_options
@click.option(
    "--horizon",
    "horizons",
    type=int,
    multiple=True,
    default=(5, 20, 60),
    show_default=True,
    help="Bars of a forward return; may be repeated.",
)
@click.option("--delay", type=int, default=0, show_default=True, help="Bars from decision to entry.")
@click.option(
    "--every",
    default="bar",
    show_default=True,
    callback=_number_or_text,
    help="bar, day, week, month, quarter, or a number.",
)
@click.option("--start", help="First time at which a window may end.")
@click.option("--end", help="Last time (inclusive) at which a window may end.")
@click.option("--sample", type=float, help="Share of the windows to keep.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sample.")
@click.option("--max-gap", help="No window across a hole longer than this, e.g. 10d.")
@click.option(
    "--price",
    type=click.Choice(["auto", "close", "total_return"]),
    default="auto",
    show_default=True,
    help="What forward returns are computed from.",
)
@click.option(
    "--layout",
    type=click.Choice(["uint8", "bits"]),
    default="uint8",
    show_default=True,
    help="bits: a third of the bytes, several times faster.",
)
@click.option(
    "--mode",
    type=click.Choice(["create", "resume", "overwrite"]),
    default="create",
    show_default=True,
    help="resume: go on with a build that was stopped.",
)
@click.option("--chunk", type=int, help="Windows a chunk.")
@click.option(
    "--shard",
    callback=_number_or_text,
    help="Windows of an object of several chunks, or its size such as 256MB.",
)
@click.option("--workers", type=int, help="Threads that draw, compress and write; all by default.")
@click.option("--scheduler", help="Address of a dask scheduler whose workers build the store.")
@PROGRESS
@panel_options
def build_store(
    table_path: str, table: dict[str, Any], scheduler: str | None, progress: bool, **options: Any
) -> None:  # fmt: skip
    """Draw every window of TABLE into the store STORE.

    TABLE is a CSV, Parquet or Feather file, a glob, or a folder of such files.
    """
    from pricepix.bars.panel import Panel
    from pricepix.build.universe import render_universe

    panel = Panel.from_table(table_path, progress=progress, **table)
    click.echo(str(panel.report), err=True)
    with _client(scheduler) as client:
        store = render_universe(panel, client=client, progress=progress, **options)
    _describe(store)


@contextlib.contextmanager
def _client(scheduler: str | None) -> Iterator[Any]:
    if scheduler is None:
        yield None
        return
    distributed = optional_module("distributed", "distributed", "--scheduler")
    with distributed.Client(scheduler) as client:
        yield client


@main.command()
@click.argument("store")
@click.argument("table_path", metavar="TABLE")
@click.option(
    "--on-revision",
    type=click.Choice(["raise", "rebuild"]),
    default="raise",
    show_default=True,
    help="rebuild: draw again the instruments whose history was revised.",
)
@click.option("--workers", type=int, help="Threads; all by default.")
@PROGRESS
@panel_options
def append(store: str, table_path: str, table: dict[str, Any], progress: bool, **options: Any) -> None:
    """Add to STORE the windows of TABLE that came since, and the returns that became known.

    TABLE holds the whole history, old bars and new.
    """
    from pricepix.bars.panel import Panel
    from pricepix.build.append import append as run

    _describe(
        run(store, Panel.from_table(table_path, progress=progress, **table), progress=progress, **options)
    )


@main.command()
@click.argument("store")
def info(store: str) -> None:
    """Say what is in STORE."""
    from pricepix.store.image_store import open_store

    _describe(open_store(store))


def _describe(store: Any) -> None:
    import numpy as np

    from pricepix.bars.times import to_series

    attrs = store.attrs
    height, width = store.spec.shape
    horizons = ", ".join(map(str, store.horizons)) or "none"
    rows = {
        "store": store.location,
        "images": f"{len(store):,} of {height}x{width} (rows x columns), layout {store.layout}",
        "spec": ", ".join(f"{name}={value}" for name, value in attrs["spec"].items()),
        "instruments": f"{len(store.instruments):,}",
        "dropped": ", ".join(f"{name} {count:,}" for name, count in attrs["drop_counts"].items()) or "none",
        "horizons": f"{horizons} bars, delay {store.delay}, on {attrs['label_price']}",
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
        known = returns[~np.isnan(returns)]
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
@click.option("--horizon", type=int, help="Show the forward return over these bars alone.")
@click.option("--columns", type=int, help="Images a row.")
def preview(store: str, path: str, **options: Any) -> None:
    """Write a contact sheet of STORE to the PNG file PATH."""
    from pricepix.preview import contact_sheet
    from pricepix.store.image_store import open_store

    click.echo(contact_sheet(open_store(store), path, **options))


@main.command()
@click.argument("store")
@click.option(
    "--depth",
    type=click.Choice(["metadata", "checksums", "render"]),
    help="How deep to look; render needs --panel.",
)
@click.option("--panel", "table_path", metavar="TABLE", help="Render again from these bars and compare.")
@click.option("--sample", type=int, help="Images to render again; all by default.")
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses the sample.")
@click.option("--workers", type=int, help="Threads; all by default.")
@PROGRESS
@panel_options
def verify(store: str, table_path: str | None, table: dict[str, Any], **options: Any) -> None:
    """Check that STORE is whole and, given its bars, that its images are right. Exit code 1 if not."""
    from pricepix.bars.panel import Panel
    from pricepix.store.image_store import open_store

    panel = Panel.from_table(table_path, **table) if table_path else None
    report = open_store(store).verify(panel, **options)
    click.echo(str(report))
    sys.exit(report.exit_code)


@main.command()
def presets() -> None:
    """List the image presets."""
    from pricepix.spec import ImageSpec

    click.echo(f"{'preset':9} {'size':>8} {'lookback':>8}  style")
    for name, spec in ImageSpec.presets().items():
        drawn = [f"MA {n}" for n in spec.ma] + (["volume"] if spec.volume else [])
        size = f"{spec.height}x{spec.width}"
        click.echo(f"{name:9} {size:>8} {spec.lookback:>8}  {spec.style}: {', '.join(['OHLC', *drawn])}")


@main.command()
@click.argument("store")
@click.option("--model", default="jkx20", show_default=True, help="Network preset, cnn1d or logistic.")
@click.option("--horizon", type=int, help="Bars of the forward return to learn.")
@click.option("--out", help="Folder of the run; the next free one below runs/ by default.")
@click.option("--split", type=click.Choice(["time", "random", "walk"]), default="time", show_default=True)
@click.option("--train", help="Training period FIRST:LAST, or its length for walk, e.g. 1993:2000 or 2y.")
@click.option(
    "--validation", default="0.3", show_default=True, help="Share of the training period, or a period."
)
@click.option("--test", help="Test period, or its length for walk.")
@click.option("--embargo", default="0", show_default=True, help="Time kept free behind the training part.")
@click.option("--target", default="up", show_default=True, help="up, terciles, quantiles:K, return or rank.")
@click.option(
    "--balance", type=click.Choice(["none", "weights", "undersample"]), default="none", show_default=True
)
@click.option(
    "--hyper",
    default="paper",
    show_default=True,
    help="Hyper-parameters: paper, cnn_for_trading or image_trading.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    callback=_settings,
    metavar="NAME=VALUE",
    help="Change one hyper-parameter, e.g. lr=1e-4; may be repeated.",
)
@click.option("--ensemble", type=int, default=1, show_default=True, help="Networks to average.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--instrument", "instruments", multiple=True, help="Train on these alone; may be repeated.")
@click.option("--panel", metavar="TABLE", help="The store's bars; needed by cnn1d and logistic.")
@click.option("--spec", metavar="PRESET", help="STORE is a table of bars: draw its images while training.")
@click.option(
    "--augment",
    multiple=True,
    callback=_augmentations,
    metavar="NAME=VALUE",
    help="With --spec: change windows, e.g. invert=0.5 or rescale_volume=0.8:1.25; may be repeated.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--device", help="cpu, cuda or cuda:1: short for --accelerator and --devices.")
@click.option("--threads", type=int, help="Threads that read, or draw, images.")
@click.option("--accelerator", default="auto", show_default=True)
@click.option("--devices", default="auto", show_default=True, callback=_number_or_text)
@click.option("--precision", default="32-true", show_default=True, help="e.g. bf16-mixed.")
@click.option("--channels-last", is_flag=True)
@click.option("--compile", is_flag=True, help="Use torch.compile.")
@PROGRESS
@panel_options
def train(
    store: str, table: dict[str, Any], panel: str | None, spec: str | None, validation: str, embargo: str,
    settings: dict[str, Any], **options: Any,
) -> None:  # fmt: skip
    """Train a network, or an ensemble, on STORE, or on a table with --spec."""
    from pricepix.bars.panel import Panel
    from pricepix.images.panel_images import PanelImages
    from pricepix.spec import ImageSpec
    from pricepix.train import fit
    from pricepix.train.hyper import is_first_rank

    if (panel is None) == (spec is None) and (panel or table):
        raise click.UsageError(
            "give --panel TABLE with a store, or --spec PRESET with a table, and options of the table with them"
        )
    images: Any = store
    bars = store if spec is not None else panel
    if bars is not None:
        options["panel"] = Panel.from_table(bars, progress=options["progress"], **table)
    if spec is not None:
        drawn = ImageSpec.preset(spec)
        images = PanelImages(options["panel"], drawn, (options["horizon"] or drawn.lookback,))
    options["instruments"] = list(options["instruments"]) or None
    found = fit(images, validation=_scalar(validation), embargo=_scalar(embargo), **options, **settings)
    if not is_first_rank():
        return
    click.echo(f"run       {found.out}")
    for fold in found.folds:
        figures = [
            f"{name} {value:{'.4f' if isinstance(value, float) else ','}}"
            for name, value in fold.test.items()
        ]
        click.echo(f"fold      {fold.fold.name}: {', '.join(figures) or 'no test part'}")


@main.command()
@click.argument("store")
@click.argument("model")
@click.argument("location", metavar="CACHE")
@click.option(
    "--shift",
    type=int,
    default=0,
    show_default=True,
    help="Bars from the image's close to the bar at which a value may be traded.",
)
@click.option("--spread", is_flag=True, help="Keep the spread over an ensemble's members.")
@click.option("--batch", type=int, default=256, show_default=True, help="Images a forward pass.")
@click.option("--device", help="cpu or cuda.")
@click.option("--precision", default="32-true", show_default=True, help="e.g. bf16-mixed.")
@click.option("--start", help="First time of the images to score.")
@click.option("--end", help="Last time of the images to score.")
@click.option(
    "--panel", metavar="TABLE", help="Bars whose calendar the cache takes; the store's times by default."
)
@click.option("--append", is_flag=True, help="Score what the store has gained since.")
@PROGRESS
def score(store: str, model: str, location: str, panel: str | None, **options: Any) -> None:
    """Score every image of STORE with MODEL (a checkpoint or a run) into the factor cache CACHE."""
    from pricepix.bars.panel import Panel
    from pricepix.factor import score as run

    bars = Panel.from_table(panel) if panel else None
    click.echo(repr(run(store, model, location, panel=bars, **options)))


@main.command()
@click.argument("cache")
@click.argument("table_path", metavar="TABLE")
@click.argument("report")
@click.option(
    "--horizon", type=int, help="Bars of the forward return; those that the model learned by default."
)
@click.option("--delay", type=int, help="Bars to the entry; those of the images' returns by default.")
@click.option("--quantiles", type=int, default=10, show_default=True, help="Number of portfolios.")
@click.option(
    "--rebalance", callback=_number_or_text, help="bar, day, week, month, quarter, horizon or a number."
)
@click.option(
    "--untradable",
    default="exclude",
    show_default=True,
    help="exclude, delay or ignore entries at a limit or without a trade.",
)
@click.option(
    "--delisting",
    type=click.Choice(["auto", "hold", "missing"]),
    default="auto",
    show_default=True,
    help="Returns of instruments whose rows end within the horizon.",
)
@click.option(
    "--convention",
    type=click.Choice(["pricepix", "paper"]),
    default="pricepix",
    show_default=True,
    help="paper: portfolios as the authors of the paper compute them.",
)
@click.option("--cost", "costs", type=float, multiple=True, help="Cost a side, e.g. 0.001; may be repeated.")
@click.option("--baseline", "baselines", multiple=True, help="STR, WSTR, MOM or TREND; all by default.")
@click.option("--start", help="First time.")
@click.option("--end", help="Last time.")
@click.option("--store", help="Image store, for sheets of the highest- and lowest-scored images.")
@click.option("--model", help="Checkpoint or run, for attribution maps.")
@PROGRESS
@panel_options
def evaluate(
    cache: str, table_path: str, table: dict[str, Any], report: str, store: str | None, model: str | None,
    progress: bool, **options: Any,
) -> None:  # fmt: skip
    """Judge the factor CACHE on the bars of TABLE and write the HTML file REPORT.

    TABLE may be a store that import-jkx made: its monthly returns are the bars.
    """
    import warnings

    from pricepix.bars.panel import Panel
    from pricepix.factor import DifferentPanelWarning, write_report
    from pricepix.factor import evaluate as run
    from pricepix.store.image_store import open_store

    for name in ("costs", "baselines"):
        if not options[name]:
            del options[name]
    if Path(f"{table_path}.labels").is_dir() and not table:
        from pricepix.build import jkx_panel

        bars = jkx_panel(table_path)
    else:
        bars = Panel.from_table(table_path, progress=progress, **table)
        click.echo(str(bars.report), err=True)
    with warnings.catch_warnings():
        # What is printed says it.
        warnings.simplefilter("ignore", DifferentPanelWarning)
        found = run(cache, bars, progress=progress, **options)
    click.echo(repr(found))
    click.echo(write_report(found, report, store=open_store(store) if store else None, model=model))


@main.command()
@click.argument("table_path", metavar="TABLE")
@click.argument("store")
@click.option("--cache", help="Factor cache to audit, too.")
@click.option("--model", help="Checkpoint or run that made the cache.")
@click.option("--date", help="Bars after it become garbage; the middle of the store by default.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the garbage.")
@PROGRESS
@panel_options
def audit(table_path: str, table: dict[str, Any], store: str, **options: Any) -> None:
    """Show that nothing in STORE depends on bars of TABLE that came later. Exit code 1 if something does."""
    from pricepix.bars.panel import Panel
    from pricepix.workflow.audit import audit as run

    found = run(Panel.from_table(table_path, progress=options["progress"], **table), store, **options)
    click.echo(str(found))
    sys.exit(0 if found.ok else 1)


@main.command("import-jkx")
@click.argument("folder")
@click.argument("store")
@click.option("--year", "years", type=int, multiple=True, help="Take this year alone; may be repeated.")
@click.option("--month", type=int, help="Keep the return of the month, as one over so many days.")
@click.option("--layout", type=click.Choice(["bits", "uint8"]), default="bits", show_default=True)
@click.option(
    "--mode", type=click.Choice(["create", "resume", "overwrite"]), default="create", show_default=True
)
@PROGRESS
def import_jkx(years: tuple[int, ...], **options: Any) -> None:
    """Make the store STORE of the paper's public images in FOLDER."""
    from pricepix.build import import_jkx as run

    _describe(run(years=years or None, **options))


@main.command("init-config")
@click.argument("path")
@click.option(
    "--like",
    type=click.Choice(["jkx", "image_trading", "cnn_for_trading"]),
    default="jkx",
    show_default=True,
    help="Whose work the configuration reproduces.",
)
def init_config(path: str, like: str) -> None:
    """Write a commented configuration to the file PATH."""
    from pricepix.workflow.other_projects import init_config as run

    run(like, path)
    click.echo(f"{path}: edit it, then pricepix-cli run {path}")


@main.command()
@click.argument("config")
@click.option("--data", help="The bars, instead of those that a foreign CONFIG names.")
@click.option("--out", help="Folder of the run, instead of the one that a foreign CONFIG names.")
@PROGRESS
def run(config: str, data: str | None, out: str | None, progress: bool) -> None:
    """Execute the YAML file CONFIG: build, train, score, evaluate; what is done already is skipped.

    CONFIG may be one of ImageTrading or CNN-for-Trading: it is translated, and the translation printed and
    saved beside the results.
    """
    from pricepix.workflow.config import load_config, read_yaml
    from pricepix.workflow.other_projects import foreign_kind, run_foreign
    from pricepix.workflow.pipeline import run as run_config

    if foreign_kind(read_yaml(config)) is not None:
        run_foreign(config, data=data, out=out, echo=click.echo, progress=progress)
        return
    if data or out:
        raise click.UsageError("--data and --out are for foreign configurations: edit CONFIG instead")
    run_config(load_config(config), echo=click.echo, progress=progress)


@main.command()
@click.argument("folder", default="demo")
def demo(folder: str) -> None:
    """Run the whole road on sample data into FOLDER."""
    from pricepix.workflow.demo import demo as run_demo

    run_demo(folder, echo=click.echo)


if __name__ == "__main__":
    main()
