"""Options that commands share, and how their values are read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from pricepix.cli.group import echo, say

Command = Callable[..., Any]


def read_pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Read repeated NAME=VALUE options."""
    pairs = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals:
            raise click.BadParameter(f"{value!r} is not of the form {param.metavar}", ctx, param)
        pairs[name] = rest
    return pairs


def number_or_text(ctx: click.Context, param: click.Parameter, value: str | None) -> str | int | None:
    return int(value) if value is not None and value.isdecimal() else value


def scalar(ctx: click.Context, param: click.Parameter, value: str) -> Any:
    return _read_scalar(value)


def settings(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Read repeated NAME=VALUE options whose values are numbers, none, or text."""
    return {name: _read_scalar(text) for name, text in read_pairs(ctx, param, values).items()}


def vendor_settings(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Read repeated NAME=VALUE options whose values are text, none, or whole numbers with commas between."""
    found: dict[str, Any] = {}
    for name, text in read_pairs(ctx, param, values).items():
        parts = [_read_scalar(part) for part in text.split(",") if part.strip()]
        found[name] = parts if all(isinstance(part, int) for part in parts) else _read_scalar(text)
    return found


def universe(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """Read the conditions of a universe, NAME=NUMBER with commas between."""
    from pricepix.factor import Universe

    if value is None:
        return None
    try:
        return Universe.parse(value)
    except (TypeError, ValueError) as error:
        raise click.BadParameter(str(error), ctx, param) from None


def augmentations(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any] | None:
    """Read repeated NAME=VALUE options, LOW:HIGH for a range."""
    pairs = read_pairs(ctx, param, values)
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


def several(ctx: click.Context, param: click.Parameter, values: tuple[Any, ...]) -> list[Any] | None:
    """Read a repeated option; None if it is not there, for what the function does by default."""
    return list(values) or None


# ---- options that commands share


def choice_option(
    name: str, *choices: str, default: str | None = None, help: str = ""
) -> Callable[[Command], Command]:
    return click.option(name, type=click.Choice(choices), default=default, help=help)


def repeated(*names: str, help: str, **settings: Any) -> Callable[[Command], Command]:
    """Declare an option that may be given several times."""
    return click.option(*names, multiple=True, help=f"{help}; may be repeated.", **settings)


def complete_files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete paths."""
    return [CompletionItem(incomplete, type="file")]


def complete_presets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the names of image presets, with their sizes where the shell shows such."""
    from pricepix.spec import ImageSpec

    return [
        CompletionItem(name, help=f"{spec.style}, {spec.height}x{spec.width}")
        for name, spec in ImageSpec.presets().items()
        if name.startswith(incomplete)
    ]


table_argument: Final = click.argument("table_path", metavar="TABLE", shell_complete=complete_files)
store_argument: Final = click.argument("store", shell_complete=complete_files)
progress: Final = click.option("--progress/--no-progress", default=True, help="Show progress bars.")
seed: Final = click.option("--seed", type=int, default=0, help="Seed of all that is drawn at random.")
workers: Final = click.option("--workers", type=int, help="Threads, or processes; all cores by default.")
scheduler: Final = click.option(
    "--scheduler", help="Address of a dask scheduler whose workers do it, e.g. tcp://host:8786."
)
delisting: Final = choice_option(
    "--delisting", "auto", "hold", "missing", default="auto", help="Returns of names that end early."
)
layout_help: Final = "bits: a third of the bytes, several times faster."
mode: Final = choice_option("--mode", "create", "resume", "overwrite", default="create",
                      help="resume: resume an interrupted build.")  # fmt: skip
device: Final = click.option("--device", help="cpu, cuda or cuda:1.")
precision: Final = click.option("--precision", default="32-true", help="e.g. bf16-mixed.")
start: Final = click.option("--start", help="First time of the images.")
end: Final = click.option("--end", help="Last time of the images (inclusive).")
asof: Final = click.option(
    "--asof", help="TABLE holds all bars until then: a week whose other days are over is over."
)
panel: Final = click.option("--panel", metavar="TABLE", help="The bars that STORE was made from.")


def _with(options: Iterable[Callable[[Command], Command]], command: Command) -> Command:
    """Apply decorators, the first one outermost."""
    return functools.reduce(lambda inner, option: option(inner), reversed(list(options)), command)


def panel_options(command: Command) -> Command:
    """Add the options of ``Panel.from_table`` and gather them into the argument `table`."""
    options: dict[str, Any] = {
        "vendor": choice_option("--vendor", "crsp", "compustat", "csmar",
                                help="TABLE is this vendor's daily file, as it is delivered."),
        "vendor_options": click.option("--vendor-option", "vendor_options", multiple=True, callback=vendor_settings,
                                       metavar="NAME=VALUE",
                                       help="How to read it, e.g. missing_delisting_returns=shumway; may be repeated."),
        "columns": click.option("--column", "columns", multiple=True, callback=read_pairs, metavar="NAME=COLUMN",
                                help="Which column of the table is open, high, low, close, volume, ..."),
        "instrument": click.option("--instrument-column", "instrument", help="Column of the instrument."),
        "time": click.option("--time-column", "time", help="Column of the time."),
        "tz": click.option("--tz", help="Zone of the market, for times without one."),
        "time_format": click.option("--time-format", help="How times are written, e.g. %d/%m/%Y."),
        "time_unit": choice_option("--time-unit", "s", "ms", "us", "ns", help="For times that count since 1970."),
        "null_values": click.option("--null-value", "null_values", multiple=True,
                                    help="Text that marks a missing number; may be repeated."),
        "on_bad": choice_option("--on-bad", "raise", "drop_bar", "keep", help="What happens to bars with faults."),
        "negative_prices": choice_option("--negative-prices", "error", "midpoint",
                                   help="midpoint: take negative prices as CRSP means them."),
        "adjust": choice_option("--adjust", "multiply", "divide", help="Apply the adjustment factor to the prices."),
        "anchor": choice_option("--anchor", "given", "first",
                                help="first: count factors from each first bar, so that later splits change nothing."),
        "gaps": choice_option("--gaps", "keep", "missing",
                              help="missing: put a missing bar where an instrument lacks one."),
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
        click.option(
            "--preset",
            shell_complete=complete_presets,
            help="Image preset, e.g. jkx20; see `pricepix-cli presets`.",
        ),
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


def read_panel(source: str, table: Mapping[str, Any], progress: bool = True, *, report: bool = False) -> Any:
    """Read a table of bars; print what was found in it if asked to."""
    from pricepix._checks import BadBarsError
    from pricepix.bars.vendors.by_name import read_bars

    try:
        found = read_bars(source, progress=progress, **table)
    except ValueError as error:
        raise BadBarsError(str(error)) from error
    if report:
        echo(str(found.report), err=True)
    return found


def describe(store: Any, **values: Any) -> None:
    """Print what is in a store; as JSON, what machines ask for, and further values."""
    from pricepix.store.summary import summary

    found = {
        "store": store.location,
        "windows": len(store),
        "instruments": len(store.instruments),
        "horizons": list(store.horizons),
        "layout": store.layout,
        "dropped": store.attrs["drop_counts"],
        "digest": store.digest,
    }
    say(summary(store), **found, **values)


def known_returns(store: Any) -> int:
    """Return how many forward returns of a store are known."""
    import numpy as np

    return sum(int(np.count_nonzero(~np.isnan(store.returns(h)))) for h in store.horizons)


def changed_chunks(before: Any, after: Any) -> int | None:
    """Return how many image chunks of a store are new or others than before; None for one without checksums."""
    sums = []
    for store in (before, after):
        objects = store.objects
        if not objects.checked:
            return None
        sums.append(objects.checksums[objects.geometry.checksum_slices()["images"]])
    shared = min(len(part) for part in sums)
    return int((sums[0][:shared] != sums[1][:shared]).sum()) + len(sums[1]) - shared
