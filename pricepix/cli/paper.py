"""The command that replicates the paper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pricepix.cli.group import echo, main, say
from pricepix.cli.options import (
    choice_option,
    device,
    panel_options,
    read_pairs,
    read_panel,
    repeated,
    scalar,
    several,
)
from pricepix.cli.options import settings as read_settings

if TYPE_CHECKING:
    from pricepix.paper import Replication


@main.command()
@click.argument("paths", metavar="[TABLE] OUT", nargs=-1, required=True)
@click.option("--demo", is_flag=True, help="A simulated market in place of TABLE: some minutes on two cores.")
@choice_option("--like", "jkx", default="jkx", help="Whose work is replicated.")
@repeated(
    "--cell", "cells", callback=several, help="Images and horizon, e.g. I20/R5 (default: the nine of jkx)"
)
@click.option("--seeds", type=int, help="Networks a cell; 5 by default, 2 in the demo.")
@repeated(
    "--split",
    "splits",
    callback=several,
    type=click.Choice(["paper", "time", "walk", "expanding"]),
    help="How time is split (default: paper)",
)
@repeated("--table", "tables", callback=several, help="Number of a table to write, e.g. II (default: all)")
@repeated(
    "--control",
    "controls",
    callback=several,
    help="Model on the numbers, e.g. cnn1d:return (default: cnn1d and logistic)",
)
@click.option("--top", type=int, help="Only so many of the largest names.")
@click.option("--min-price", type=float, help="Only names with a close of at least this.")
@click.option("--min-dollar-volume", type=float, help="Only names that trade this much a bar.")
@click.option("--min-age", type=int, help="Only names with so many bars.")
@choice_option("--every", "period", "bar", default="period", help="Which windows train and are scored.")
@click.option("--channels", default="1", callback=scalar, help="Share of the authors' channels.")
@repeated("--set", "hyper", callback=read_settings, metavar="NAME=VALUE", help="Change one hyper-parameter")
@repeated(
    "--store",
    "stores",
    callback=read_pairs,
    metavar="IMAGE=STORE",
    help="Read images, e.g. I20, from a store",
)
@device
@click.option("--threads", type=int, help="Threads that compute.")
@click.option("--scheduler", help="Address of a dask scheduler, on whose workers networks are trained.")
@panel_options
def replicate(
    paths: tuple[str, ...],
    table: dict[str, Any],
    demo: bool,
    like: str,
    scheduler: str | None,
    **options: Any,
) -> None:
    """Replicate the paper on TABLE, into the folder OUT: train every network, write every table.

    A call that was interrupted is resumed by the same call.
    """
    from pricepix.build.cluster import client_of
    from pricepix.paper import Training
    from pricepix.paper import demo as run_demo
    from pricepix.paper import replicate as run
    from pricepix.train.hyper import Hyper

    if len(paths) != (1 if demo else 2):
        raise click.UsageError("give TABLE and OUT, or --demo and OUT")
    out = paths[-1]
    chosen = {name: value for name, value in options.items() if value not in (None, {}, [])}
    if demo:
        if table or set(chosen) - {"seeds", "every", "channels"}:
            raise click.UsageError(
                "--demo brings its own bars, cells and training: only --seeds goes with it"
            )
        with client_of(scheduler) as client:
            found = run_demo(
                out, client=client, echo=echo, **{name: chosen[name] for name in ("seeds",) if name in chosen}
            )
        _tell(found)
        return
    training = Training(
        every=chosen.pop("every"),
        channels=chosen.pop("channels"),
        hyper=Hyper.of("paper", **chosen.pop("hyper", {})),
        device=chosen.pop("device", None),
        threads=chosen.pop("threads", None),
        stores=chosen.pop("stores", {}),
    )
    conditions = ("top", "min_price", "min_dollar_volume", "min_age")
    universe = {name: chosen.pop(name) for name in conditions if name in chosen}
    with client_of(scheduler) as client:
        found = run(
            read_panel(paths[0], table, report=True),
            out,
            **({"cells": like} | chosen),
            universe=universe or None,
            training=training,
            client=client,
            echo=echo,
        )
    _tell(found)


def _tell(found: Replication) -> None:
    """With ``--json``, say on a line what was made; otherwise it was said while it was made."""
    skipped = [{"split": split, "cell": cell, "why": why} for (split, cell), why in found.skipped.items()]
    say("", page=found.page, tables=len(found.tables), skipped=skipped)
