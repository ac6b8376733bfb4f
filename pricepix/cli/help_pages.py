"""What ``--help`` looks like: commands and options in sections, and examples under every command."""

from __future__ import annotations

from typing import Any, Final

import click

__all__ = ["COMMANDS", "EXAMPLES", "OPTIONS", "Command", "write_commands"]

COMMANDS: Final = {
    "To try it": ("sample", "demo", "presets"),
    "Stores": ("estimate", "build-store", "append", "info", "preview", "explore", "verify", "import-jkx"),
    "Models and factors": ("train", "score", "evaluate", "export", "audit"),
    "Whole studies": ("init-config", "run", "update", "replicate"),
    "This machine, and images of others": ("doctor", "warm-up", "which-script"),
}
"""Commands by section, in the order in which they are first needed."""

READING: Final = "Reading TABLE"

OPTIONS: Final = {
    "The image": (
        "preset", "lookback", "height", "style", "chart", "ma", "no_ma", "ma_warmup", "volume", "aggregate", "scale",
        "rebuild", "max_missing",
    ),
    "Which windows": (
        "every", "start", "end", "sample", "seed", "max_gap", "exchange", "complete", "asof", "share",
    ),
    "Forward returns": ("horizons", "delay", "price", "delisting"),
    READING: (
        "vendor", "vendor_options", "columns", "instrument", "time", "tz", "time_format", "time_unit", "null_values",
        "on_bad", "negative_prices", "adjust", "anchor", "gaps",
    ),
    "Devices": ("device", "accelerator", "devices", "precision", "threads", "channels_last", "compile"),
}  # fmt: skip
"""Options by section, by their names in Python. A command shows a section if it has three of it."""

_FEW: Final = 3

EXAMPLES: Final[dict[str, tuple[str, ...]]] = {
    "sample": ("sample bars.parquet",),
    "demo": ("demo",),
    "presets": ("presets",),
    "estimate": ("estimate bars.parquet --preset jkx20 --adjust multiply --layout bits",),
    "build-store": (
        "build-store bars.parquet us20.zarr --preset jkx20 --adjust multiply --layout bits",
        "build-store bars.parquet us20.zarr --preset jkx20 --every week --horizon 5 --mode resume",
        "build-store crsp.csv crsp20.zarr --preset jkx20 --rebuild returns --vendor crsp",
    ),
    "append": ("append us20.zarr bars.parquet --adjust multiply",),
    "info": ("info us20.zarr",),
    "preview": ("preview us20.zarr sheet.png --instrument AAPL --n 24",),
    "explore": (
        "explore us20.zarr",
        "explore us20.zarr --factor factor.zarr --model runs/jkx20_h20_1 --panel bars.parquet",
    ),
    "verify": ("verify us20.zarr", "verify us20.zarr --panel bars.parquet --adjust multiply"),
    "import-jkx": ("import-jkx monthly_20d jkx20.zarr --year 1993 --year 1994",),
    "train": (
        "train us20.zarr --model jkx20 --horizon 20 --train 1993:2000 --test 2001:2019 --ensemble 5",
        "train bars.parquet --spec jkx5 --model jkx5 --horizon 5 --set epochs=5 --set lr=1e-4",
    ),
    "score": (
        "score us20.zarr runs/jkx20_h20_1 factor.zarr",
        "score us20.zarr runs/jkx20_h20_1 factor.zarr --append",
    ),
    "evaluate": ("evaluate factor.zarr bars.parquet report.html --adjust multiply --start 2001-01-01",),
    "export": (
        "export factor.zarr factor.parquet --last 1",
        "export runs/jkx20_h20_1 jkx20.onnx --check us20.zarr",
    ),
    "audit": ("audit bars.parquet us20.zarr --cache factor.zarr --adjust multiply",),
    "init-config": ("init-config config.yaml --like jkx",),
    "run": ("run config.yaml",),
    "update": ("--json --log-file update.log update live.yaml",),
    "replicate": ("replicate crsp.parquet paper --vendor crsp", "replicate --demo paper"),
    "doctor": ("doctor --folder stores",),
    "warm-up": ("warm-up",),
    "which-script": ("which-script images.npy --n 2000",),
}
"""Command lines of each command, without the name of the program."""


class Command(click.Command):
    """A command whose options stand in sections, with examples below."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [p for p in self.get_params(ctx) if isinstance(p, click.Option) and not p.hidden]
        sections: dict[str, list[click.Option]] = {}
        for title, names in OPTIONS.items():
            # `--columns` of a sheet of images is not the columns of a table.
            own = [option for option in options if option.name in names]
            if len(own) >= _FEW:
                sections[title] = own
                options = [option for option in options if option not in own]
        # What most calls need not know, how a table is read, comes after the command's own options.
        reading = sections.pop(READING, [])
        for title, own in {**sections, "Options": options, READING: reading}.items():
            rows = [record for option in own if (record := option.get_help_record(ctx)) is not None]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        lines = EXAMPLES.get(self.name or "", ())
        if lines:
            with formatter.section("Examples" if len(lines) > 1 else "Example"):
                for line in lines:
                    formatter.write(f"{'':{formatter.current_indent}}pricepix-cli {line}\n")


def write_commands(group: click.Group, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Write the commands of a group by section; those that no section names come last."""
    names = [name for name in group.list_commands(ctx) if not group.commands[name].hidden]
    named = {name for section in COMMANDS.values() for name in section}
    sections: dict[str, Any] = {**COMMANDS, "More": [name for name in names if name not in named]}
    # One width for all of them, so that the sections read as one table.
    limit = formatter.width - 6 - max(map(len, names), default=0)
    widest = max(map(len, names), default=0)
    for title, section in sections.items():
        rows = [
            (f"{name:{widest}}", group.commands[name].get_short_help_str(limit))
            for name in section
            if name in names
        ]
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)
