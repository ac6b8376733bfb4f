"""Run a notebook in a process of its own: ``python run_notebook.py SCRIPT.py RESULT.ipynb``.

IPython runs the cells, as a notebook's kernel would, but without a server and without sockets.
"""

from __future__ import annotations

import base64
import sys
import traceback
from pathlib import Path

import jupytext
import nbformat
from IPython.core.displayhook import DisplayHook
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output


class _Shell(InteractiveShell):
    """A shell that leaves the last value of a cell to us: a notebook shows its richest form, a terminal its text."""

    class displayhook_class(DisplayHook):  # noqa: N801
        def __call__(self, result: object = None) -> None:
            if result is not None:
                self.fill_exec_result(result)

    def enable_gui(self, gui: object = None) -> None:
        """Figures go into the page: there is no window whose events would have to be served."""


def run(script: Path, setup: str) -> nbformat.NotebookNode:
    """Return the notebook with what its cells gave, the last one what failed."""
    shell = _Shell.instance()
    shell.colors = "nocolor"
    shell.run_cell(setup, silent=True).raise_error()
    found = jupytext.read(script, fmt="py:percent")
    for number, cell in enumerate(found.cells):
        cell.id = f"cell-{number}"
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        with capture_output() as seen:
            ended = shell.run_cell(cell.source)
        cell.outputs = [
            nbformat.v4.new_output("stream", name=name, text=text)
            for name, text in (("stdout", seen.stdout), ("stderr", seen.stderr))
            if text
        ]
        parts = [shown.data for shown in seen.outputs]
        if ended.result is not None:
            parts.append(shell.display_formatter.format(ended.result)[0])
        for part in parts:
            data = {kind: _text(value) for kind, value in part.items() if isinstance(value, str | bytes)}
            cell.outputs.append(nbformat.v4.new_output("display_data", data=data))
        error = ended.error_before_exec or ended.error_in_exec
        if error is not None:
            told = "".join(traceback.format_exception(error))
            raise SystemExit(f"{script.name}, cell {number}:\n{cell.source}\n\n{told}")
    return found


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else base64.b64encode(value).decode()


if __name__ == "__main__":
    script, result = map(Path, sys.argv[1:])
    nbformat.write(run(script.resolve(), sys.stdin.read()), result)
