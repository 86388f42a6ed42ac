"""A command killed at random moments and started again, in processes that find everything imported already.

    python tests/helpers/killing.py OUTPUT KILLS SEED ARGUMENTS...

The command writes to OUTPUT. It runs undisturbed first, which says how long it takes, then is killed with all of its
workers and started again until it was killed KILLS times, and as often as it comes to its end it begins anew. What
it wrote is moved to OUTPUT-0 (undisturbed), OUTPUT-1 and so on; says as JSON how often it was killed and what it said.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

SECONDS = 240  # for one attempt


def started(arguments, said):
    """Fork, and run the command as the leader of a group of its own; its process id."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork  # workers, too, find everything imported
    sys.argv = ["layersift", *arguments]
    try:
        from layersift.__main__ import main

        main()
    except SystemExit as end:
        os._exit(end.code or 0)
    os._exit(99)


def ended(child, seconds):
    """Its exit code, or None where it runs on after so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def main():
    output, kills, seed, arguments = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    import layersift.__main__
    import layersift.api  # noqa: F401 - so that every child has it

    said = output.with_suffix(".stderr")
    chance, moments, finished = random.Random(seed), [], 0

    def put_away(code):
        if code != 0:
            sys.exit(f"ended with {code} after kills at {moments}: {said.read_text()[-600:]}")
        output.rename(output.with_name(f"{output.name}-{finished}"))

    began = time.monotonic()
    put_away(ended(started(arguments, said), SECONDS))
    takes = time.monotonic() - began
    while len(moments) < kills or not finished:
        moment = chance.uniform(0, takes / 4)
        child = started(arguments, said)
        code = ended(child, moment if len(moments) < kills else SECONDS)
        if code is None:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            moments.append(round(moment, 2))
            continue
        finished += 1
        put_away(code)
    sys.stdout.write(json.dumps({"kills": len(moments), "finished": finished, "seconds": round(takes, 1)}))


if __name__ == "__main__":
    main()
