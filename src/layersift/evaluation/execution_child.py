"""The process in which one program runs. Started by `execution.py` as a file; imports nothing of layersift."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import types


def _limit(seconds: float, memory_bytes: int, file_bytes: int) -> None:
    wanted = {
        resource.RLIMIT_CPU: (math.ceil(seconds), math.ceil(seconds) + 1),  # a signal that can be told apart, then KILL
        resource.RLIMIT_AS: (memory_bytes, memory_bytes),
        resource.RLIMIT_FSIZE: (file_bytes, file_bytes),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_NOFILE: (64, 64),
        resource.RLIMIT_NPROC: (0, 0),  # no further process or thread; the kernel does not hold root to it
    }
    for kind, (soft, hard) in wanted.items():
        ceiling = resource.getrlimit(kind)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        try:
            resource.setrlimit(kind, (soft, hard))
        except (ValueError, OSError):
            if sys.platform != "darwin":  # which has no working limit of address space
                raise


def main() -> None:
    """Read the program and its limits from standard input, run it, and write the token if it comes to its end."""
    task = json.loads(sys.stdin.buffer.read())
    token = task.pop("token").encode()
    source = task.pop("program")
    verdict = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    sys.path.pop(0)  # this file's directory
    # A module, but not __main__: HumanEval's programs run under a name at which `if __name__ == ...` does nothing.
    module = types.ModuleType("program")
    sys.modules["program"] = module
    _limit(**task)
    exec(compile(source, "program.py", "exec"), module.__dict__)
    os.write(verdict, token)


if __name__ == "__main__":
    main()
