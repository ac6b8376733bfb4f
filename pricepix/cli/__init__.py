"""The command line: one command a public function, options named as its keyword arguments.

Commands parse and forward. Whatever they need is imported when they run, so that ``--help`` is instant.
"""

from pricepix.cli import explore, factors, paper, runs, stores, tools
from pricepix.cli.group import main

__all__ = ["explore", "factors", "main", "paper", "runs", "stores", "tools"]
