"""The command that opens the explorer."""

from __future__ import annotations

from typing import Any

import click

from pricepix.cli.group import echo, main
from pricepix.cli.options import complete_files, panel, panel_options, read_panel, store_argument


@main.command()
@store_argument
@click.option(
    "--factor", metavar="CACHE", shell_complete=complete_files, help="Factor cache of the scores of STORE."
)
@click.option(
    "--model", metavar="RUN", shell_complete=complete_files, help="Run or checkpoint that explains windows."
)
@panel
@click.option("--embedding", shell_complete=complete_files, help="Embeddings of STORE, for what is similar.")
@click.option("--horizon", type=int, help="Horizon that a model of several is asked about.")
@click.option("--port", type=int, default=0, help="Port of 127.0.0.1; 0 for any that is free.")
@click.option("--browser/--no-browser", default=True, help="Open the page in a browser.")
@panel_options
def explore(store: str, panel: str | None, table: dict[str, Any], browser: bool, **options: Any) -> None:
    """Look through STORE in a browser: windows among their bars, scores, sheets, other specs. Ctrl-C ends it.

    The page is served to this machine alone, under the address that is printed. --panel takes the table, or the folder
    of the market cache, that STORE was made from. STORE is only read.
    """
    from pricepix.explore.explorer import prepare
    from pricepix.workflow.estimate import is_market_cache

    bars: Any = panel
    if panel is not None and not is_market_cache(panel):
        bars = read_panel(panel, table)
    elif table:
        raise click.UsageError("options of tables go with --panel TABLE: leave them out")
    explorer = prepare(store, panel=bars, **options)
    for note in explorer.notes:
        echo(f"note: {note}", err=True)

    def opened() -> None:
        # The address is all that the command says: --quiet keeps it.
        click.echo(explorer.url)
        echo("Ctrl-C ends it", err=True)
        if browser:
            explorer.open()

    explorer.serve(opened)
