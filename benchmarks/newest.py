"""The newest of every trainer against our exports, callback and adapters, by the trainers' own parsers: a weekly job.

    python benchmarks/newest.py [--only trl axolotl ...]     (or: make newest)

Each trainer's newest packages go, without their dependencies, into a directory of their own; the development
environment stays as it is. The table names what was tried, and the exit status is 1 where a test failed. What is
skipped could not be installed here.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))
import real_trainers  # type: ignore[import-not-found] # noqa: E402

LIBRARIES = "transformers and PEFT"
OURS = ["tests/adapt/test_adapt.py", "tests/adapt/test_methods.py", "tests/step/test_foreign_trainers.py"]
COUNTS = ("passed", "failed", "skipped")


def install(packages: Sequence[str], place: Path) -> str:
    """Put packages into a directory; pip's last words where it cannot, else nothing."""
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place), *packages]
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def run_tests(words: Sequence[str], report: Path, **environment: str) -> dict[str, int]:
    """How many tests passed, failed and were skipped."""
    around = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment}
    subprocess.run([sys.executable, "-m", "pytest", "-q", f"--junit-xml={report}", *words], cwd=ROOT, env=around)
    return count_tests(report.read_text()) if report.is_file() else {"passed": 0, "failed": 1, "skipped": 0}


def count_tests(report: str) -> dict[str, int]:
    """The counts in a report of pytest; errors count as failed."""
    [suite] = ET.fromstring(report).iter("testsuite")
    total, errors, failures, skipped = (int(suite.attrib[n]) for n in ("tests", "errors", "failures", "skipped"))
    return {"passed": total - errors - failures - skipped, "failed": errors + failures, "skipped": skipped}


def try_newest(name: str, work: Path) -> tuple[str, dict[str, int]]:
    """The versions that were tried of one trainer, or of the libraries, and how the tests went."""
    place, report = work / name.replace(" ", "-"), work / f"{name}.xml"
    packages = ["transformers", "peft"] if name == LIBRARIES else real_trainers.newest(name)
    if said := install(packages, place):
        return f"cannot be installed: {said}", {"passed": 0, "failed": 0, "skipped": 1}
    if name == LIBRARIES:
        counts = run_tests(OURS, report, PYTHONPATH=f"{place}:{ROOT / 'src'}")
    else:
        tests = ["-m", "slow", "tests/export/test_real_trainers.py", "-k", f"[{name}]"]
        counts = run_tests(tests, report, LAYERSIFT_TRAINERS=str(work))
    return versions_in(place, packages if name == LIBRARIES else packages[:1]), counts


def versions_in(place: Path, packages: Sequence[str]) -> str:
    """Names and versions of some of the packages in a directory."""
    found = {d.name.lower().replace("_", "-"): d.version for d in distributions(path=[str(place)])}
    return ", ".join(f"{name} {found[name.lower().replace('_', '-')]}" for name in packages)


def main() -> None:
    """Try each, print the table, and end with 1 where a test failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [LIBRARIES, *real_trainers.PACKAGES]
    parser.add_argument("--only", nargs="+", choices=known, default=known)
    names = parser.parse_args().only
    with tempfile.TemporaryDirectory() as directory:
        tried = {name: try_newest(name, Path(directory)) for name in names}
    print(f"| trainer | tried | {' | '.join(COUNTS)} |\n| --- | --- | ---: | ---: | ---: |")
    for name, (versions, counts) in tried.items():
        print(f"| {name} | {versions} | {' | '.join(str(counts[kind]) for kind in COUNTS)} |")
    sys.exit(any(counts["failed"] for _, counts in tried.values()))


if __name__ == "__main__":
    main()
