"""A process that has loaded everything and forks one ``pyro-vsm`` a request: real processes without the wait.

Reads one JSON object a line: ``argv``, ``out`` and ``err`` (files), and optionally ``largest`` (no file may grow
beyond so many bytes), ``user`` (number of the user to become), ``watch`` (a folder) with ``die_at`` or ``fail_at``:
at the n-th time that something is opened for writing, renamed, linked or removed there, the process kills itself, or
the operation fails as on a full disk. Pictures are drawn only if asked for with ``draw``, as they take longer than
the rest. Answers ``{"pid"}`` at once and ``{"status"}`` at the end (negative: the signal); the number of operations
seen is in the file ``count`` if one was asked for.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import resource
import signal
import sys
from pathlib import Path


def watch(folder: str, die_at: int, fail_at: int, count: str) -> None:
    """Count what changes the folder."""
    seen = 0
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def hook(event: str, args: tuple) -> None:
        nonlocal seen
        if event == "open":
            path, mode, flags = args
            if not ((isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & writing):
                return
        elif event in ("os.rename", "os.link", "os.remove"):
            path = args[0]
        else:
            return
        if not isinstance(path, (str, os.PathLike)) or not os.path.abspath(path).startswith(folder):
            return
        if os.fspath(path) == count:
            return
        seen += 1
        if count:
            Path(count).write_text(str(seen))
        if seen == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if seen == fail_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sys.addaudithook(hook)


def serve_one(request: dict) -> int:
    """In the child: be a ``pyro-vsm`` process."""
    for name, number in (("out", 1), ("err", 2)):
        handle = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(handle, number)
    if "largest" in request:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does at its start
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest"],) * 2)
    if "user" in request:
        os.setuid(request["user"])
    if "watch" in request:
        asked = request.get("die_at", 0), request.get("fail_at", 0), request.get("count", "")
        watch(os.path.abspath(request["watch"]), *asked)
    from pyro_vsm import jobs
    from pyro_vsm.cli import main

    if not request.get("draw"):
        jobs.draw_run = lambda folder: []
    return main(request["argv"])


def main() -> None:
    import torch

    from pyro_vsm import cli

    torch.set_num_threads(1)
    # what the command imports where it needs it
    modules = ["pyro_vsm.jobs", "torch._dynamo", "torch.utils.tensorboard", "torchmetrics", "pyro_vsm.figures"]
    for module in modules:
        importlib.import_module(module)
    cli._parsers("train")
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 70  # an exception that nobody caught, or a problem of this file
            try:
                status = serve_one(request)
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else 1
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        print(json.dumps({"pid": pid}), flush=True)
        ended = os.waitpid(pid, 0)[1]
        print(json.dumps({"status": os.waitstatus_to_exitcode(ended)}), flush=True)


if __name__ == "__main__":
    main()
