"""The command line: one command a public function, options named as its keyword arguments.

Commands parse and forward. Whatever they need is imported when they run, so that ``--help`` is instant.
"""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import click

from pricepix._checks import printable
from pricepix._version import __version__

CLEAN_ERRORS: Final = (ValueError, TypeError, KeyError, OSError, ImportError, MemoryError)
Command = Callable[..., Any]


class Group(click.Group):
    """Turn the library's errors, which are written for people, into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # The reader of the output, `head` for instance, has enough: click ends quietly.
            raise
        except CLEAN_ERRORS as error:
            if ctx.params.get("traceback"):
                _echo(traceback.format_exc(), err=True)
                sys.exit(1)
            text = error.args[0] if isinstance(error, KeyError) and error.args else error
            raise click.ClickException(printable(str(text))) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)


def _echo(text: Any, err: bool = False) -> None:
    """Print a line or several; names out of files cannot command the terminal."""
    click.echo(printable(str(text)), err=err)


# ---- values


def _pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Read repeated NAME=VALUE options."""
    pairs = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals:
            raise click.BadParameter(f"{value!r} is not of the form {param.metavar}", ctx, param)
        pairs[name] = rest
    return pairs


def _number_or_text(ctx: click.Context, param: click.Parameter, value: str | None) -> str | int | None:
    return int(value) if value is not None and value.isdecimal() else value


def _scalar(ctx: click.Context, param: click.Parameter, value: str) -> Any:
    return _read_scalar(value)


def _settings(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Read repeated NAME=VALUE options whose values are numbers, none, or text."""
    return {name: _read_scalar(text) for name, text in _pairs(ctx, param, values).items()}


def _augmentations(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any] | None:
    """Read repeated NAME=VALUE options, LOW:HIGH for a range."""
    pairs = _pairs(ctx, param, values)
    read = {name: [_read_scalar(part) for part in text.split(":")] for name, text in pairs.items()}
    return {name: value if len(value) > 1 else value[0] for name, value in read.items()} or None


def _read_scalar(text: str) -> Any:
    """Read a whole number, a number, none, or text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None if text.lower() == "none" else text


def _several(ctx: click.Context, param: click.Parameter, values: tuple[Any, ...]) -> list[Any] | None:
    """Read a repeated option; None if it is not there, for what the function does by default."""
    return list(values) or None


# ---- options that commands share


def _choice(
    name: str, *choices: str, default: str | None = None, help: str = ""
) -> Callable[[Command], Command]:
    return click.option(name, type=click.Choice(choices), default=default, help=help)


def _repeated(*names: str, help: str, **settings: Any) -> Callable[[Command], Command]:
    """Declare an option that may be given several times."""
    return click.option(*names, multiple=True, help=f"{help}; may be repeated.", **settings)


table_argument: Final = click.argument("table_path", metavar="TABLE")
store_argument: Final = click.argument("store")
progress: Final = click.option("--progress/--no-progress", default=True, help="Show progress bars.")
seed: Final = click.option("--seed", type=int, default=0, help="Seed of all that is drawn at random.")
workers: Final = click.option("--workers", type=int, help="Threads, or processes; all cores by default.")
delisting: Final = _choice(
    "--delisting", "auto", "hold", "missing", default="auto", help="Returns of names that end early."
)
layout_help: Final = "bits: a third of the bytes, several times faster."
mode: Final = _choice("--mode", "create", "resume", "overwrite", default="create",
                      help="resume: resume an interrupted build.")  # fmt: skip
device: Final = click.option("--device", help="cpu, cuda or cuda:1.")
precision: Final = click.option("--precision", default="32-true", help="e.g. bf16-mixed.")
start: Final = click.option("--start", help="First time of the images.")
end: Final = click.option("--end", help="Last time of the images (inclusive).")
panel: Final = click.option("--panel", metavar="TABLE", help="The bars that STORE was made from.")


def _with(options: Iterable[Callable[[Command], Command]], command: Command) -> Command:
    """Apply decorators, the first one outermost."""
    return functools.reduce(lambda inner, option: option(inner), reversed(list(options)), command)


def panel_options(command: Command) -> Command:
    """Add the options of ``Panel.from_table`` and gather them into the argument `table`."""
    options: dict[str, Any] = {
        "columns": click.option("--column", "columns", multiple=True, callback=_pairs, metavar="NAME=COLUMN",
                                help="Which column of the table is open, high, low, close, volume, ..."),
        "instrument": click.option("--instrument-column", "instrument", help="Column of the instrument."),
        "time": click.option("--time-column", "time", help="Column of the time."),
        "tz": click.option("--tz", help="Zone of the market, for times without one."),
        "time_format": click.option("--time-format", help="How times are written, e.g. %d/%m/%Y."),
        "time_unit": _choice("--time-unit", "s", "ms", "us", "ns", help="For times that count since 1970."),
        "null_values": click.option("--null-value", "null_values", multiple=True,
                                    help="Text that marks a missing number; may be repeated."),
        "on_bad": _choice("--on-bad", "raise", "drop_bar", "keep", help="What happens to bars with faults."),
        "negative_prices": _choice("--negative-prices", "error", "midpoint",
                                   help="midpoint: take negative prices as CRSP means them."),
        "adjust": _choice("--adjust", "multiply", "divide", help="Apply the adjustment factor to the prices."),
        "gaps": _choice("--gaps", "keep", "missing", help="missing: put a missing bar where an instrument lacks one."),
    }  # fmt: skip

    @functools.wraps(command)
    def gathered(**given: Any) -> Any:
        table = {name: given.pop(name) for name in options}
        return command(table={name: value for name, value in table.items() if value}, **given)

    return _with(options.values(), gathered)


def spec_options(command: Command) -> Command:
    """Add the fields of an ImageSpec, as changes to a preset, and gather them into the argument `spec`."""
    fields = {
        "lookback": click.option("--lookback", type=int, help="Bars of an image."),
        "height": click.option("--height", type=int, help="Rows of pixels."),
        "style": click.option("--style", help="jkx, cnn_for_trading or image_trading."),
        "chart": click.option("--chart", help="bar or pixel."),
        "ma_warmup": click.option("--ma-warmup", help="drop or omit."),
        "volume": click.option("--volume/--no-volume", default=None, help="Draw the volume panel."),
        "aggregate": click.option("--aggregate", type=int, help="Bars merged into one drawn bar."),
        "scale": click.option("--scale", help="joint or per_field."),
        "rebuild": click.option("--rebuild", help="returns: rebuild prices from total returns."),
        "max_missing": click.option("--max-missing", type=int, help="Most missing bars of a window."),
    }
    options: list[Any] = [
        click.option("--preset", help="Image preset, e.g. jkx20; see `pricepix-cli presets`."),
        click.option("--ma", type=int, multiple=True, help="Window of a moving average; may be repeated."),
        click.option("--no-ma", is_flag=True, help="Draw no moving average."),
        *fields.values(),
    ]

    @functools.wraps(command)
    def gathered(**given: Any) -> Any:
        from pricepix.spec import ImageSpec

        changes = {name: value for name in fields if (value := given.pop(name)) is not None}
        preset, ma, no_ma = given.pop("preset"), given.pop("ma"), given.pop("no_ma")
        if ma and no_ma:
            raise click.UsageError("--ma and --no-ma contradict each other: give one of them")
        if ma or no_ma:
            changes["ma"] = tuple(ma)
        if preset is None and "lookback" not in changes:
            raise click.UsageError(
                "give --preset NAME (see `pricepix-cli presets`), or --lookback and what differs"
            )
        spec = ImageSpec(**changes) if preset is None else ImageSpec.preset(preset).replace(**changes)
        return command(spec=spec, **given)

    return _with(options, gathered)


def _panel(source: str, table: Mapping[str, Any], progress: bool = True, *, report: bool = False) -> Any:
    """Read a table of bars; print what was found in it if asked to."""
    from pricepix.bars.panel import Panel

    found = Panel.from_table(source, progress=progress, **table)
    if report:
        _echo(str(found.report), err=True)
    return found


def _describe(store: Any) -> None:
    from pricepix.store.summary import summary

    _echo(summary(store))


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True},
)
@click.version_option(__version__, prog_name="pricepix")
@click.option("--traceback", is_flag=True, help="Show the whole traceback of an error.")
def main(traceback: bool) -> None:
    """Price history in, exact chart images out."""


# ---- stores


@main.command("build-store")
@table_argument
@store_argument
@spec_options
@_repeated("--horizon", "horizons", type=int, default=(5, 20, 60), help="Bars of a forward return")
@click.option("--delay", type=int, default=0, help="Bars from decision to entry.")
@click.option(
    "--every", default="bar", callback=_number_or_text, help="bar, day, week, month, quarter or a number."
)
@start
@end
@click.option("--sample", type=float, help="Share of the windows to keep.")
@seed
@click.option("--max-gap", help="No window across a hole longer than this, e.g. 10d.")
@_choice("--price", "auto", "close", "total_return", default="auto", help="Prices of the forward returns.")
@delisting
@click.option("--exchange", help="Calendar that tells when a week or month is over, e.g. XNYS.")
@click.option("--complete", is_flag=True, help="The last week, month or quarter of TABLE is over.")
@click.option("--period-share", "share", type=float, default=0.5, help="Share with a bar at a period's end.")
@_choice("--layout", "uint8", "bits", default="uint8", help=layout_help)
@mode
@click.option("--chunk", type=int, help="Windows a chunk.")
@click.option("--shard", callback=_number_or_text, help="Windows an object, or its size such as 256MB.")
@workers
@click.option("--scheduler", help="Address of a dask scheduler whose workers build the store.")
@progress
@panel_options
def build_store(
    table_path: str,
    table: dict[str, Any],
    scheduler: str | None,
    exchange: str | None,
    complete: bool,
    share: float,
    progress: bool,
    **options: Any,
) -> None:
    """Draw every window of TABLE into the store STORE.

    TABLE is a CSV, Parquet or Feather file, a glob, or a folder of such files.
    """
    from pricepix.build.cluster import client_of
    from pricepix.build.universe import render_universe

    panel = _panel(table_path, table, progress, report=True)
    periods = {"share": share, "exchange": exchange, "complete": complete}
    with client_of(scheduler) as client:
        store = render_universe(panel, client=client, periods=periods, progress=progress, **options)
    _describe(store)


@main.command()
@store_argument
@table_argument
@_choice(
    "--on-revision", "raise", "rebuild", default="raise", help="rebuild: draw revised instruments again."
)
@workers
@progress
@panel_options
def append(store: str, table_path: str, table: dict[str, Any], progress: bool, **options: Any) -> None:
    """Add to STORE the windows of TABLE that came since, and the returns that became known.

    TABLE holds the whole history, old bars and new.
    """
    from pricepix.build.append import append as run

    _describe(run(store, _panel(table_path, table, progress), progress=progress, **options))


@main.command()
@store_argument
def info(store: str) -> None:
    """Say what is in STORE."""
    from pricepix.store.image_store import open_store

    _describe(open_store(store))


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

    _echo(contact_sheet(store, path, **options))


@main.command()
@store_argument
@_choice("--depth", "metadata", "checksums", "render", help="How deep to look; render needs --panel.")
@panel
@click.option("--sample", type=int, help="Images to draw again, with --panel; all by default.")
@seed
@workers
@progress
@panel_options
def verify(store: str, panel: str | None, table: dict[str, Any], **options: Any) -> None:
    """Check that STORE is whole and, given its bars, that its images are right. Exit code 1 if not.

    STORE is an image store or a factor cache; what it was is in what is printed.
    """
    from pricepix.workflow.verification import verify_location

    kind, report = verify_location(store, (lambda: _panel(panel, table)) if panel else None, **options)
    _echo(f"{kind} {report}")
    sys.exit(report.exit_code)


@main.command()
def presets() -> None:
    """List the image presets."""
    from pricepix.spec import ImageSpec

    _echo(f"{'preset':9} {'size':>8} {'lookback':>8}  style")
    for name, spec in ImageSpec.presets().items():
        drawn = [f"MA {n}" for n in spec.ma] + (["volume"] if spec.volume else [])
        size = f"{spec.height}x{spec.width}"
        _echo(f"{name:9} {size:>8} {spec.lookback:>8}  {spec.style}: {', '.join(['OHLC', *drawn])}")


@main.command("import-jkx")
@click.argument("folder")
@store_argument
@_repeated("--year", "years", type=int, callback=_several, help="Take only this year")
@click.option("--month", type=int, help="Keep the return of the month, as one over so many days.")
@_choice("--layout", "bits", "uint8", default="bits", help=layout_help)
@mode
@progress
def import_jkx(**options: Any) -> None:
    """Make the store STORE of the paper's public images in FOLDER."""
    from pricepix.build import import_jkx as run

    _describe(run(**options))


# ---- training and factors


@main.command()
@store_argument
@click.option("--model", default="jkx20", help="Network preset, cnn1d or logistic.")
@click.option("--horizon", type=int, help="Bars of the forward return to learn.")
@click.option("--out", help="Folder of the run; the next free one below runs/ by default.")
@_choice("--split", "time", "random", "walk", default="time", help="How periods are cut.")
@click.option("--train", help="Training period FIRST:LAST, or its length for walk, e.g. 1993:2000 or 2y.")
@click.option("--validation", default="0.3", callback=_scalar, help="Share of training, or a period.")
@click.option("--test", help="Test period, or its length for walk.")
@click.option("--embargo", default="0", callback=_scalar, help="Time kept free behind the training part.")
@click.option("--target", default="up", help="up, terciles, quantiles:K, return or rank.")
@_choice("--balance", "none", "weights", "undersample", default="none", help="How classes are balanced.")
@click.option("--hyper", default="paper", help="Hyper-parameters: paper, cnn_for_trading or image_trading.")
@_repeated(
    "--set",
    "settings",
    callback=_settings,
    metavar="NAME=VALUE",
    help="Change one hyper-parameter, e.g. lr=1e-4",
)
@click.option("--ensemble", type=int, default=1, help="Networks to average.")
@seed
@_repeated("--instrument", "instruments", callback=_several, help="Train only on these")
@panel
@click.option("--spec", metavar="PRESET", help="STORE is a table of bars: draw its images while training.")
@_repeated(
    "--augment",
    callback=_augmentations,
    metavar="NAME=VALUE",
    help="With --spec: change windows, e.g. invert=0.5 or rescale_volume=0.8:1.25",
)
@click.option("--resume", is_flag=True, help="Resume the run in --out.")
@device
@click.option("--threads", type=int, help="Threads that read, or draw, images.")
@click.option("--accelerator", default="auto", help="Where to train, in place of --device.")
@click.option("--devices", default="auto", callback=_number_or_text, help="How many of them.")
@precision
@click.option("--channels-last", is_flag=True, help="Order images as (height, width, channels).")
@click.option("--compile", is_flag=True, help="Use torch.compile.")
@progress
@panel_options
def train(
    store: str, table: dict[str, Any], panel: str | None, spec: str | None, settings: dict[str, Any], **options: Any
) -> None:  # fmt: skip
    """Train a network, or an ensemble, on STORE, or on a table with --spec.

    --panel is needed by cnn1d and logistic, which learn from the bars.
    """
    from pricepix.images.panel_images import PanelImages
    from pricepix.spec import ImageSpec
    from pricepix.train import fit
    from pricepix.train.hyper import is_first_rank

    if (panel is None) == (spec is None) and (panel or table):
        raise click.UsageError(
            "give --panel TABLE with a store, or --spec PRESET with a table, and options of the table with them"
        )
    images: Any = store
    source = store if spec is not None else panel
    if source is not None:
        options["panel"] = _panel(source, table, options["progress"])
    if spec is not None:
        drawn = ImageSpec.preset(spec)
        images = PanelImages(options["panel"], drawn, (options["horizon"] or drawn.lookback,))
    found = fit(images, **options, **settings)
    if not is_first_rank():
        return
    _echo(f"run       {found.out}")
    for fold in found.folds:
        metrics = [f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v:,}" for k, v in fold.test.items()]
        _echo(f"fold      {fold.fold.name}: {', '.join(metrics) or 'no test part'}")


@main.command()
@store_argument
@click.argument("model")
@click.argument("location", metavar="CACHE")
@click.option("--shift", type=int, default=0, help="Bars from an image to where its score may be traded.")
@click.option("--spread", is_flag=True, help="Keep the spread over an ensemble's members.")
@click.option("--batch", type=int, default=256, help="Images a forward pass.")
@device
@precision
@start
@end
@panel
@click.option("--append", is_flag=True, help="Score what the store has gained since.")
@progress
def score(store: str, model: str, location: str, panel: str | None, **options: Any) -> None:
    """Score every image of STORE with MODEL (a checkpoint or a run) into the factor cache CACHE.

    The cache takes the calendar of --panel, and the times of STORE without it.
    """
    from pricepix.factor import score as run

    bars = _panel(panel, {}) if panel else None
    _echo(repr(run(store, model, location, panel=bars, **options)))


@main.command()
@click.argument("cache")
@table_argument
@click.argument("report")
@click.option("--horizon", type=int, help="Bars of the forward return; by default what the model learned.")
@click.option("--delay", type=int, help="Bars to the entry; those of the images' returns by default.")
@click.option("--quantiles", type=int, default=10, help="Number of portfolios.")
@click.option("--rebalance", callback=_number_or_text, help="bar, day, ..., quarter, horizon or a number.")
@click.option("--untradable", default="exclude", help="exclude, delay or ignore entries without a trade.")
@delisting
@_choice(
    "--convention", "pricepix", "paper", default="pricepix", help="paper: as the paper's authors compute."
)
@_repeated("--cost", "costs", type=float, help="Cost a side, e.g. 0.001")
@_repeated("--baseline", "baselines", help="STR, WSTR, MOM or TREND (default: all)")
@start
@end
@click.option("--store", help="Image store, for sheets of the highest- and lowest-scored images.")
@click.option("--model", help="Checkpoint or run, for attribution maps.")
@progress
@panel_options
def evaluate(cache: str, table_path: str, table: dict[str, Any], report: str, **options: Any) -> None:
    """Evaluate the factor CACHE on the bars of TABLE and write the HTML file REPORT.

    TABLE may be a store that import-jkx made: its monthly returns are the bars.
    """
    from pricepix.workflow.report import evaluation_bars, report_on

    given = {name: value for name, value in options.items() if value != ()}
    bars = evaluation_bars(table_path, progress=given["progress"], **table)
    _echo(str(bars.report), err=True)
    found, path = report_on(cache, bars, report, **given)
    _echo(repr(found))
    _echo(path)


@main.command()
@table_argument
@store_argument
@click.option("--cache", help="Factor cache to audit, too.")
@click.option("--model", help="Checkpoint or run that made the cache.")
@click.option("--date", help="Bars after it become garbage; four dates, the last included, by default.")
@click.option(
    "--delisting-rate",
    type=float,
    default=0.02,
    show_default=True,
    help="Least share of names that end each year.",
)
@seed
@progress
@panel_options
def audit(table_path: str, table: dict[str, Any], store: str, **options: Any) -> None:
    """Look for anything in TABLE, STORE and the cache that knows what came later.

    Prints a table of the checks: dates, result, what each cannot see. Exit code 1 if one found a leak.
    """
    from pricepix.workflow.audit import audit as run

    found = run(_panel(table_path, table, options["progress"]), store, **options)
    _echo(str(found))
    sys.exit(0 if found.ok else 1)


# ---- whole runs


@main.command("init-config")
@click.argument("path")
@_choice("--like", "jkx", "image_trading", "cnn_for_trading", default="jkx", help="Whose work it reproduces.")
def init_config(path: str, like: str) -> None:
    """Write a commented configuration to the file PATH."""
    from pricepix.workflow.templates import init_config as run

    run(like, path)
    _echo(f"{path}: edit it, then pricepix-cli run {path}")


@main.command()
@click.argument("config")
@click.option("--data", help="The bars, in place of those that another project's CONFIG names.")
@click.option("--out", help="Folder of the run, in place of the one that another project's CONFIG names.")
@progress
def run(config: str, data: str | None, out: str | None, progress: bool) -> None:
    """Execute the YAML file CONFIG: build, train, score, evaluate; what is done already is skipped.

    CONFIG may be one of ImageTrading or CNN-for-Trading: it is translated, and the translation printed and
    saved beside the results.
    """
    from pricepix.workflow.other_projects import run_file

    run_file(config, data=data, out=out, echo=_echo, progress=progress)


@main.command("warm-up")
@_repeated(
    "--preset", "presets", callback=_several, help="Compile only the renderer of this preset (default: all)"
)
@_repeated(
    "--part",
    "parts",
    callback=_several,
    help="Besides renderers, compile only this, e.g. stores (default: all)",
)
@workers
def warm_up(**options: Any) -> None:
    """Compile everything once, into Numba's cache (NUMBA_CACHE_DIR), in parallel processes."""
    from pricepix.workflow.warm_up import warm_up as run

    _echo(str(run(**options, echo=_echo)))


@main.command()
@click.argument("folder", default="demo")
def demo(folder: str) -> None:
    """Run everything end to end on sample data, into FOLDER."""
    from pricepix.workflow.demo import demo as run_demo

    run_demo(folder, echo=_echo)


if __name__ == "__main__":
    main()
