"""Starts commands as real processes that need not import torch each: it is forked from here.

`conftest.py` runs this file and talks to it in lines of JSON. A command is a Python script, or
`visweep`, with its arguments; it gets a session, a folder, an environment and files of its own
for its input and output, as a shell would give it.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import traceback
from typing import Any

PRELOADED = (
    "torch",
    "torch._dynamo",
    "torch._inductor",
    "optuna",
    "optuna.storages",
    "scipy.stats.qmc",
    "visweep.cli.app",
    "visweep.cli.prepare",
    "visweep.cli.dry_run",
    "visweep.cli.search",
    "visweep.cli.studies",
    "visweep.cli.train",
)


def serve() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    children: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            answer = _poll(request["poll"], children)
        else:
            answer = _start(request)
            children.add(answer)
        print(json.dumps(answer), flush=True)
    for pid in children:
        os.kill(pid, 9)


def _poll(pid: int, children: set[int]) -> int | None:
    found, status = os.waitpid(pid, os.WNOHANG)
    if found == 0:
        return None
    children.discard(pid)
    return os.waitstatus_to_exitcode(status)


def _start(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        _redirect(request)
        status = _run(request["argv"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        if not sys.stderr.closed:
            sys.stderr.flush()
        os._exit(status)


def _redirect(request: dict[str, Any]) -> None:
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    flags = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT)
    for target, (path, flag) in enumerate(zip(request["files"], flags, strict=True)):
        opened = os.open(path, flag)
        os.dup2(opened, target)
        os.close(opened)
    for target, mode in ((0, "r"), (1, "w"), (2, "w")):
        name = ("stdin", "stdout", "stderr")[target]
        stream = os.fdopen(target, mode, buffering=1, encoding="utf-8")
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _run(argv: list[str]) -> int:
    sys.argv = argv
    try:
        if argv[0] == "visweep":
            from visweep.cli import main

            main()
        else:
            sys.path[0] = os.path.dirname(argv[0])  # noqa: PTH120
            runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    return 0


if __name__ == "__main__":
    serve()
