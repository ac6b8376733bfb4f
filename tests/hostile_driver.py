"""Runs code on files that mean harm, each time in a fresh fork of a warm process, and tells how it ended.

A line of JSON in, ``[code, path, options]``; a line out: the error, its message, the file that raised it, seconds, and
megabytes of memory above those that the process had before. A fork knows every module already, so what is measured is
the reading of the file.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

import pricepix as pp
import pricepix.bars.panel
import pricepix.build.append
import pricepix.build.universe
import pricepix.factor
import pricepix.store.image_store
import pricepix.workflow.config

with suppress(ImportError):
    import pricepix.train.checkpoints
    import pricepix.train.run_verify

# A mistake must not take the machine along.
ADDRESS_SPACE = 16 << 30


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def perform(code: str, path: str, options: dict) -> dict:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    for name, value in options.get("environment", {}).items():
        os.environ[name] = value
    answer: dict = {"error": None, "message": "", "raised_in": ""}
    try:
        exec(code, {"pp": pp, "path": path, **options.get("names", {})})
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        answer = {"error": type(error).__name__, "message": str(error), "raised_in": last.filename}
        if options.get("traceback"):
            answer["traceback"] = traceback.format_exc()[-3000:]
    return answer


def attempt(code: str, path: str, options: dict) -> dict:
    read, write = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            with os.fdopen(write, "w") as pipe:
                # A fork has fewer pages than its parent: those of files come when they are touched.
                print(resident(), file=pipe, flush=True)
                json.dump(perform(code, path, options), pipe)
        finally:
            os._exit(0)
    os.close(write)
    limit, usage = options.get("timeout", 60), None
    while time.monotonic() < start + limit:
        done, _, found = os.wait4(child, os.WNOHANG)
        if done:
            usage = found
            break
        time.sleep(0.005)
    if usage is None:
        os.kill(child, signal.SIGKILL)
        _, _, usage = os.wait4(child, 0)
    seconds = time.monotonic() - start
    with os.fdopen(read) as pipe:
        before, text = int(pipe.readline() or 0), pipe.read()
    answer = json.loads(text) if text else {"error": "no answer", "message": "", "raised_in": ""}
    return {**answer, "seconds": seconds, "megabytes": (usage.ru_maxrss * 1024 - before) / 1e6}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(attempt(*json.loads(line))), flush=True)
