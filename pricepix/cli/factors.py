"""Commands that train, score, evaluate and audit."""

from __future__ import annotations

import sys
from typing import Any

import click

from pricepix.cli.group import echo, main, say
from pricepix.cli.options import (
    augmentations,
    choice_option,
    delisting,
    device,
    end,
    number_or_text,
    panel,
    panel_options,
    precision,
    progress,
    read_pairs,
    read_panel,
    repeated,
    scalar,
    scheduler,
    seed,
    settings,
    several,
    start,
    store_argument,
    table_argument,
    universe,
)


@main.command()
@store_argument
@click.option("--model", default="jkx20", help="Network preset, cnn1d or logistic.")
@click.option("--horizon", type=int, help="Bars of the forward return to learn.")
@click.option("--out", help="Folder of the run; the next free one below runs/ by default.")
@choice_option("--split", "time", "random", "walk", default="time", help="How periods are cut.")
@click.option("--train", help="Training period FIRST:LAST, or its length for walk, e.g. 1993:2000 or 2y.")
@click.option("--validation", default="0.3", callback=scalar, help="Share of training, or a period.")
@click.option("--test", help="Test period, or its length for walk.")
@click.option("--embargo", default="0", callback=scalar, help="Time kept free behind the training part.")
@click.option("--target", default="up", help="up, terciles, quantiles:K, return or rank.")
@choice_option(
    "--balance", "none", "weights", "undersample", default="none", help="How classes are balanced."
)
@click.option("--hyper", default="paper", help="Hyper-parameters: paper, cnn_for_trading or image_trading.")
@repeated(
    "--set",
    "settings",
    callback=settings,
    metavar="NAME=VALUE",
    help="Change one hyper-parameter, e.g. lr=1e-4",
)
@click.option("--ensemble", type=int, default=1, help="Networks to average.")
@seed
@repeated("--instrument", "instruments", callback=several, help="Train only on these")
@panel
@click.option("--spec", metavar="PRESET", help="STORE is a table of bars: draw its images while training.")
@repeated(
    "--augment",
    callback=augmentations,
    metavar="NAME=VALUE",
    help="With --spec: change windows, e.g. invert=0.5 or rescale_volume=0.8:1.25",
)
@click.option("--resume", is_flag=True, help="Resume the run in --out.")
@device
@click.option("--threads", type=int, help="Threads that read, or draw, images.")
@click.option("--accelerator", default="auto", help="Where to train, in place of --device.")
@click.option("--devices", default="auto", callback=number_or_text, help="How many of them.")
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
        options["panel"] = read_panel(source, table, options["progress"])
    if spec is not None:
        drawn = ImageSpec.preset(spec)
        images = PanelImages(options["panel"], drawn, (options["horizon"] or drawn.lookback,))
    found = fit(images, **options, **settings)
    if not is_first_rank():
        return
    lines = [f"run       {found.out}"]
    lines += [f"fold      {fold.fold.name}: {_metrics(fold.test) or 'no test part'}" for fold in found.folds]
    if len(found.folds) > 1 and found.test:
        lines.append(f"all folds {_metrics(found.test)}")
    folds = [{"fold": fold.fold.name, "test": _plain(fold.test)} for fold in found.folds]
    say("\n".join(lines), run=found.out, folds=folds, test=_plain(found.test or {}))


def _metrics(test: dict[str, Any]) -> str:
    """The metrics of a test part in one line."""
    return ", ".join(
        f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v:,}" for k, v in _plain(test).items()
    )


def _plain(test: dict[str, Any]) -> dict[str, int | float]:
    return {name: value for name, value in test.items() if isinstance(value, int | float)}


@main.command()
@store_argument
@click.argument("model")
@click.argument("location", metavar="CACHE")
@click.option("--shift", type=int, default=0, help="Bars from an image to where its score may be traded.")
@click.option("--spread", is_flag=True, help="Keep the spread over an ensemble's members.")
@click.option("--batch", type=int, help="Images a forward pass; by default what fits into the cache.")
@choice_option(
    "--engine", "torch", "openvino", "onnxruntime", default="torch", help="What runs networks on a CPU."
)
@device
@precision
@start
@end
@panel
@click.option("--append", is_flag=True, help="Score what is new or revised in the store since.")
@choice_option(
    "--on-revision", "rescore", "keep", "raise", default="rescore",
    help="With --append: what to do with scores whose images changed, or are gone.",
)  # fmt: skip
@repeated("--rename", callback=read_pairs, metavar="OLD=NEW", help="With --append: an instrument's new name")
@click.option("--known", help="When the scores become known; by default the time of the last bar.")
@scheduler
@progress
def score(
    store: str, model: str, location: str, panel: str | None, scheduler: str | None, **options: Any
) -> None:
    """Score every image of STORE with MODEL (a checkpoint or a run) into the factor cache CACHE.

    The cache takes the calendar of --panel, and the times of STORE without it.
    """
    from pricepix.build.cluster import client_of
    from pricepix.factor import open_cache
    from pricepix.factor import score as run

    bars = read_panel(panel, {}) if panel else None
    try:
        before = len(open_cache(location).scored_at)
    except (FileNotFoundError, ValueError):
        # None, or one that is not finished.
        before = 0
    with client_of(scheduler) as client:
        cache = run(store, model, location, panel=bars, client=client, **options)
    history = cache.scored_at[before:]
    say(
        repr(cache),
        cache=cache.location,
        windows=cache.attrs["windows"] - cache.attrs["skipped"],
        **{f"scores_{name}": int(history[name].sum()) for name in ("added", "revised", "removed")},
        scores_kept=cache.attrs["kept"],
        without_value=cache.attrs["without_value"],
        model=cache.attrs["model"]["name"],
    )


@main.command()
@click.argument("cache")
@click.argument("out")
@choice_option(
    "--format",
    "parquet",
    "csv",
    "qlib",
    "alphalens",
    "image_trading",
    help="Which columns; by the name of OUT by default.",
)
@start
@end
@click.option("--as-of", help="The factor as it was known then.")
@click.option("--last", type=click.IntRange(1), help="Only so many of the newest times.")
@click.option("--partition", is_flag=True, help="OUT is a folder with a Parquet file a day.")
@click.option("--check", metavar="IMAGES", help="Of a model: images that OUT must score as it does.")
@click.option("--horizon", type=int, help="Of a model that learned several: the one that OUT answers for.")
def export(cache: str, out: str, check: str | None, horizon: int | None, **options: Any) -> None:
    """Write the factor CACHE to the file OUT for other programs: .parquet or .csv.

    With OUT in .onnx or .pt2, CACHE is a model, a checkpoint or a run, to be run without pricepix.
    """
    if out.endswith((".onnx", ".pt2")):
        if given := [f"--{name.replace('_', '-')}" for name, value in options.items() if value]:
            raise click.UsageError(f"{', '.join(given)}: of a factor cache, and {out} is to hold a model")
        from pricepix.train import export_model

        about = export_model(cache, out, horizon=horizon, check=check)
        say(
            f"{out}: {about['members']} x {about['model']}, {about['output']['is']}; differs by at most "
            f"{about['largest_difference']:.1e} from torch",
            out=out,
            model=about["model"],
            members=about["members"],
            largest_difference=about["largest_difference"],
        )
        return
    if check is not None or horizon is not None:
        raise click.UsageError("--check and --horizon are of a model: let OUT end in .onnx or .pt2")
    from pricepix.factor import export as run

    written = run(cache, out, **options)
    say(written, out=written)


@main.command()
@click.argument("cache")
@table_argument
@click.argument("report")
@click.option("--horizon", type=int, help="Bars of the forward return; by default what the model learned.")
@click.option("--delay", type=int, help="Bars to the entry; those of the images' returns by default.")
@click.option("--quantiles", type=int, default=10, help="Number of portfolios.")
@click.option("--rebalance", callback=number_or_text, help="bar, day, ..., quarter, horizon or a number.")
@click.option("--untradable", default="exclude", help="exclude, delay or ignore entries without a trade.")
@delisting
@choice_option(
    "--convention", "pricepix", "paper", default="pricepix", help="paper: as the paper's authors compute."
)
@click.option(
    "--universe",
    callback=universe,
    metavar="CONDITIONS",
    help="Only these names: top=500,min_price=5,min_dollar_volume=1e6,min_age=250, any of them.",
)
@repeated("--cost", "costs", type=float, help="Cost a side, e.g. 0.001")
@repeated("--baseline", "baselines", help="STR, WSTR, MOM or TREND (default: all)")
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
    echo(str(bars.report), err=True)
    found, path = report_on(cache, bars, report, **given)
    say(f"{found!r}\n{path}", report=path, json=path.with_suffix(".json"), evaluation=repr(found))


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

    found = run(read_panel(table_path, table, options["progress"]), store, **options)
    checks = {
        check.name: {"result": check.result, "problems": check.problems, "seen": check.seen}
        for check in found.checks
    }
    say(str(found), ok=found.ok, dates=found.dates, problems=found.problems, checks=checks)
    sys.exit(0 if found.ok else 1)
