"""The compiled code that tests use: none of it stale, and all of it there before workers would each compile it.

Run before the tests, ``python tests/compiled_code.py`` compiles every kernel by as many processes as there are cores.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "pricepix"


def forget_stale_kernels(package: Path = PACKAGE) -> None:
    """Delete compiled code beside the sources if it was compiled from others.

    Numba notices an edit of the file that defines a function, and not of the files that it calls into: the tests
    would pass on code that is no longer there.
    """
    sources = [path.read_bytes() for path in sorted(package.rglob("*.py"))]
    digest = hashlib.sha256(b"".join(source for source in sources if b"numba" in source or b"jit" in source))
    seen = package / "__pycache__" / "compiled-from"
    if seen.is_file() and seen.read_text() == digest.hexdigest():
        return
    for compiled in [*package.rglob("__pycache__/*.nbi"), *package.rglob("__pycache__/*.nbc")]:
        compiled.unlink(missing_ok=True)
    seen.parent.mkdir(exist_ok=True)
    seen.write_text(digest.hexdigest())


if __name__ == "__main__":
    if "NUMBA_CACHE_DIR" not in os.environ:
        forget_stale_kernels()
    from pricepix import warm_up

    print(warm_up(echo=print))
