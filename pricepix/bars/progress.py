"""Progress bars."""

from __future__ import annotations

from typing import Any

__all__ = ["progress_bar"]

_SCALED_FROM = 10_000


def progress_bar(
    total: int, what: str, unit: str = "it", on: bool = True, *, done: int = 0, brief: bool = False
) -> Any:
    """Return a progress bar: a context manager with the method ``update(n=1)``.

    Parameters
    ----------
    total : int
        Units of work.
    what : str
        What is done, in front of the bar.
    unit : str
        What is counted: ``img``, ``chunk``, ``day``.
    on : bool
        Whether it is shown, on a terminal or in a notebook; the argument `progress` of public functions. Logs and
        pipes get none.
    done : int
        Units that an earlier run did.
    brief : bool
        For steps that are mostly over in no time: shown after a second, and wiped away at the end.
    """
    # tqdm takes a tenth of a second to import, and most of its bars are never shown.
    from tqdm.auto import tqdm

    return tqdm(
        total=total, initial=done, desc=what, unit=unit, unit_scale=total >= _SCALED_FROM,
        disable=None if on else True,
        delay=1.0 if brief else 0.0, leave=not brief,
    )  # fmt: skip
