"""Run a script in two processes that find each other over gloo."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path


def run_pair(script, place):
    """The JSON on the last line that each of two processes prints, running ``script`` with the tests importable."""
    path = place / "script.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n{script}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    pair = [
        subprocess.Popen(
            [sys.executable, str(path)],
            env={**os.environ, **address, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    ended = []
    try:
        ended = [process.communicate(timeout=180) for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [0, 0], ended
    return [json.loads(out.splitlines()[-1]) for out, _ in ended]
