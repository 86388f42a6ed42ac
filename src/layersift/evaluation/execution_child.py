"""The two processes of one check: what a model wrote runs in one, the tests and the verdict are the other's.

Started by `execution.py` as a file; imports nothing of layersift.
"""

from __future__ import annotations

import ast
import builtins
import json
import math
import operator
import os
import resource
import sys
import types
from collections.abc import Callable
from typing import Any

from program_values import Remote, pack, unpack  # type: ignore[import-not-found]  # beside this file

sys.path.pop(0)  # this file's directory


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


def _answer(source: str, requests: int, replies: int) -> None:
    """Run what a model wrote, and then do what the tests ask of it."""
    # A module, but not __main__: HumanEval's programs run under a name at which `if __name__ == ...` does nothing.
    module = types.ModuleType("program")
    sys.modules["program"] = module
    exec(compile(source, "program.py", "exec"), module.__dict__)
    objects: list[Any] = []

    def keep(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    def named(name: Any) -> Any:
        return objects[name] if isinstance(name, int) else module.__dict__[name]

    with os.fdopen(requests) as asked, os.fdopen(replies, "w") as said:
        said.write(READY)
        said.flush()
        for line in asked:
            operation, name, arguments, keywords = json.loads(line)
            try:
                subject = named(name)
                given = [unpack(value, named) for value in arguments]
                value = OPERATIONS[operation](subject, *given, **{k: unpack(v, named) for k, v in keywords.items()})
                reply = {"value": pack(value, keep)}
            except Exception as error:
                reply = {"error": [type(error).__name__, str(error)[:200]]}
            said.write(json.dumps(reply) + "\n")
            said.flush()


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda subject, *given, **named: subject(*given, **named),
    "getattr": getattr,
    "getitem": operator.getitem,
    "eq": operator.eq,
    "list": list,
    "len": len,
    "bool": bool,
    "str": str,
}


def _test(context: str, tests: str, name: str | None, requests: int, replies: int) -> None:
    """Run the tests, in which every name that they do not bind themselves is the answer's.

    Args:
        context: what the answer was to continue, whose helpers tests may use.
        name: of the function under test, which is the answer's even where the context defines it.
    """
    asked, said = os.fdopen(requests, "w"), os.fdopen(replies)
    if said.readline() != READY:
        raise RuntimeError("the answer did not come to its end")

    def ask(request: list[Any]) -> Any:
        operation, subject, arguments, keywords = request
        packed = [pack(value, name_of) for value in arguments]
        named = {key: pack(value, name_of) for key, value in keywords.items()}
        asked.write(json.dumps([operation, subject, packed, named]) + "\n")
        asked.flush()
        reply = json.loads(said.readline())
        if "error" in reply:
            kind, text = reply["error"]
            error = getattr(builtins, kind, RuntimeError)
            raise (error if isinstance(error, type) and issubclass(error, Exception) else RuntimeError)(text)
        return unpack(reply["value"], lambda name: Remote(ask, name))

    def name_of(value: Any) -> Any:
        if not isinstance(value, Remote):
            raise TypeError(f"{type(value).__name__} cannot be handed to the answer")
        return value.__dict__["_name"]

    module = types.ModuleType("tests")
    sys.modules["tests"] = module
    exec(compile(context, "context.py", "exec"), module.__dict__)
    tree = ast.parse(tests)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    bound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    bound |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    bound |= {a.asname or a.name for node in ast.walk(tree) if isinstance(node, IMPORTS) for a in node.names}
    for free in used - bound - set(dir(builtins)) - set(module.__dict__) | ({name} if name else set()):
        module.__dict__[free] = Remote(ask, free)
    exec(compile(tree, "tests.py", "exec"), module.__dict__)


IMPORTS = (ast.Import, ast.ImportFrom)
READY = "ready\n"


def main() -> None:
    """Take part in one check as the answer or as the tests, by what standard input says.

    The tests' process writes the token if it comes to their end. It runs nothing that a model wrote.
    """
    task = json.loads(sys.stdin.buffer.read())
    token, limits = task.pop("token", "").encode(), task.pop("limits")
    verdict = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    _limit(**limits)
    if not token:
        os.close(verdict)
        _answer(**task)
        return
    _test(**task)
    os.write(verdict, token)


if __name__ == "__main__":
    main()
