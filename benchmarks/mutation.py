"""How many small faults put into the maths the tests notice: a seeded random sample of mutmut's mutants.

    python benchmarks/mutation.py --sample 500 --seed 0
    python benchmarks/mutation.py --sample 500 --seed 0 --again            # the survivors, after writing tests
    python benchmarks/mutation.py --sample 250 --seed 1 --not-in 0         # others, drawn after that; 2 is not in 0 1
    python benchmarks/mutation.py --sample 250 --seed 1 --not-in 0 --control 25      # nothing fails without a fault

`pip install mutmut==3.8.1` first; [tool.mutmut] in pyproject.toml says which packages are mutated and which tests run.
mutmut makes the mutants (into mutants/) and measures once which tests reach each function, minutes both. A mutant gets
the tests that reach its function, fastest first until the first fails, and of those at most --seconds' worth: what a
slower test alone would notice counts as survived. A mutant that no test reaches survived, one that hangs until its time
is up or kills its process did not. The tests run in forks of a process that has imported everything, so where a
function runs as its module is imported, what survived is tried once more in a process of its own, with all the tests of
its stage and tests/test_api.py.

Left out, since they say nothing about maths: mutants whose only change is inside a string literal, in what a raised
exception is given, or in what a warning or a log line is given. mutmut itself mutates neither properties and other
decorated functions nor what stands outside of functions. Nothing of layersift may be imported here before its mutants
are: the tests would see it unmutated.
"""

from __future__ import annotations

import argparse
import ast
import bisect
import importlib.metadata
import itertools
import json
import math
import os
import random
import subprocess
import sys
import textwrap
import time
from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import mutmut.__main__ as tool
from mutmut.mutation.data import SourceFileMutationData
from mutmut.utils.format_utils import orig_function_and_class_names_from_key
from scipy import stats

RESULT = Path(__file__).parent / "results" / "mutation.json"
LEFT_OUT = "only change inside a string literal, or in what a raised exception, a warning or a log line is given"
BEFORE, LIMIT, WITHOUT = "before writing tests", "seconds of tests at most", "without the samples of seeds"
BIASED = "tests were written after looking at the survivors of this sample; a sample drawn after that is not biased"
SPEAKING = {"warn", "debug", "info", "warning", "error", "exception"}


@dataclass
class Mutant:
    """One mutant: where it is, what it changes, and whether only words."""

    name: str
    source: SourceFileMutationData
    line: int
    before: str
    after: str
    words: bool

    @property
    def package(self) -> str:
        """The package of layersift, or the module where only some of a package's are mutated."""
        inside = Path(self.source.path).relative_to("src/layersift")
        return str(inside) if inside.parts[0] == "step" else inside.parts[0]

    @property
    def verdict(self) -> str:
        """What the tests said, in one of four words; empty where they were not asked."""
        known = {"killed": "killed", "survived": "survived", "no tests": "survived", "timeout": "timed out"}
        status = tool.status_by_exit_code[self.source.exit_code_by_key[self.name]]
        return (known | {"not checked": ""}).get(status, "crashed")


class Wordless(ast.NodeTransformer):
    """Takes out of a tree what only says something to a person."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """Any string literal is as good as another."""
        return ast.Constant("") if isinstance(node.value, str) else node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """Which exception counts, not what it is given."""
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """That there is a warning or a log line counts, not what it says."""
        if isinstance(node.func, ast.Attribute) and node.func.attr in SPEAKING:
            return node.func
        return self.generic_visit(node)


def prepared() -> tuple[Any, set[str]]:
    """A runner of mutants, made where they are not there yet, and the functions that run as modules are imported."""
    tool.set_mutant_under_test("mutant_generation")
    Path("mutants").mkdir(exist_ok=True)
    with tool.CatchOutput(spinner_title="mutants"):
        tool.copy_src_dir()
        tool.copy_also_copy_files()
        tool.setup_source_paths()
        tool.create_mutants(1)
    tool.set_mutant_under_test("stats")
    for path in tool.walk_mutatable_files():
        importlib.import_module(".".join(path.relative_to("src").with_suffix("").parts).removesuffix(".__init__"))
    importing = set(tool.state()._stats)
    tool.state()._stats.clear()
    runner = tool.get_mutant_runner(1)
    tool.collect_or_load_stats(runner, apply_config_invalidation=True)
    tool.run_forced_fail_test(runner)
    return runner, importing


def definition(code: str, name: str) -> tuple[list[str], ast.FunctionDef]:
    """The lines of a generated function from its `def` on and its tree, both without its generated name."""
    code = textwrap.dedent(code).replace(name, "f", 1)
    node = next(node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef))
    return code.splitlines()[node.lineno - 1 :], node


def first_lines(path: Path) -> dict[tuple[str | None, str], int]:
    """The line of each function's `def`, by class and name."""
    tree = ast.parse(path.read_text())
    owners: list[tuple[str | None, Any]] = [(None, tree)]
    owners += [(node.name, node) for node in tree.body if isinstance(node, ast.ClassDef)]
    return {(name, f.name): f.lineno for name, owner in owners for f in owner.body if isinstance(f, ast.FunctionDef)}


def change(old: list[str], new: list[str]) -> tuple[int, str, str]:
    """The first changed line, counted from 0, and the changed lines before and after, each as one."""
    changes = [code for code in SequenceMatcher(None, old, new, autojunk=False).get_opcodes() if code[0] != "equal"]
    low, high = changes[0], changes[-1]
    before, after = old[low[1] : high[2]], new[low[3] : high[4]]
    return low[1], " ".join(line.strip() for line in before), " ".join(line.strip() for line in after)


def mutants_of(path: Path) -> list[Mutant]:
    """Every mutant of a file."""
    data = SourceFileMutationData(path=path)
    data.load()
    names = list(data.exit_code_by_key)
    generated = [name.rpartition(".")[2] for name in names]
    originals = sorted({f"{tool.mangled_name_from_mutant_name(name)}__mutmut_orig" for name in generated})
    spans = tool.MutantLineSpans.load(path)
    if not names or spans is None:
        return []
    codes = dict(zip([*originals, *generated], spans.read_function_sources([*originals, *generated]), strict=True))
    unchanged = {name: definition(codes[name], name) for name in originals}
    wordless = {name: ast.dump(Wordless().visit(node)) for name, (_, node) in unchanged.items()}
    starts = first_lines(path)
    found = []
    for name, short in zip(names, generated, strict=True):
        original = f"{tool.mangled_name_from_mutant_name(short)}__mutmut_orig"
        lines, node = definition(codes[short], short)
        offset, before, after = change(unchanged[original][0], lines)
        function, owner = orig_function_and_class_names_from_key(name)
        words = ast.dump(Wordless().visit(node)) == wordless[original]
        found.append(Mutant(name, data, starts[owner, function] + offset, before, after, words))
    return found


def packages(mutants: list[Mutant]) -> dict[str, int]:
    """How many there are of each package."""
    return dict(sorted(Counter(mutant.package for mutant in mutants).items()))


def draw(population: list[Mutant], count: int, seed: int) -> list[Mutant]:
    """A random sample in which every package has its share; a larger one of the same seed holds a smaller one."""
    exact = {package: count * size / len(population) for package, size in packages(population).items()}
    shares = {package: math.floor(share) for package, share in exact.items()}
    for package in sorted(exact, key=lambda package: shares[package] - exact[package])[: count - sum(shares.values())]:
        shares[package] += 1
    sample = []
    for package, share in shares.items():
        members = [mutant for mutant in population if mutant.package == package]
        random.Random(f"{seed} {package}").shuffle(members)
        sample += members[:share]
    return sample


def fresh(population: list[Mutant], without: list[int], samples: dict[str, Any]) -> list[Mutant]:
    """The mutants that are not in the samples of those seeds, which are drawn again as they were."""
    past: set[str] = set()
    for seed in without:
        known = samples[str(seed)]
        past |= {m.name for m in draw(fresh(population, known[WITHOUT], samples), known["drawn"], seed)}
    return [mutant for mutant in population if mutant.name not in past]


def affordable(tests: set[str], seconds: float) -> list[str]:
    """The fastest of the tests whose times add up to the seconds at most; always one."""
    durations = tool.state().duration_by_test
    ordered = sorted(tests, key=lambda test: (durations[test], test))
    totals = list(itertools.accumulate(durations[test] for test in ordered))
    return ordered[: max(1, bisect.bisect_right(totals, seconds))]


def alone(mutant: Mutant) -> int:
    """1 if a test of the stage or of the API notices the mutant in a process that imports it, else 0."""
    tests = [f"tests/{Path(mutant.source.path).parts[2]}", "tests/test_api.py"]
    plain = ["-x", "-q", "-p", "no:randomly", "-p", "no:xdist", "-p", "no:cacheprovider"]
    active = {"MUTANT_UNDER_TEST": mutant.name, "PYTHONPATH": str(Path("mutants/src").resolve())}
    command = [sys.executable, "-m", "pytest", *plain, *tests]
    done = subprocess.run(command, cwd="mutants", env={**os.environ, **active}, capture_output=True, timeout=900)
    return int(done.returncode != 0)


def tried(name: str, runner: Any, seconds: float) -> int:
    """The exit code of the affordable tests of a mutant's function while it is active."""
    tests = affordable(tool.state().tests_by_mangled_function_name[tool.mangled_name_from_mutant_name(name)], seconds)
    estimate = sum(tool.state().duration_by_test[test] for test in tests)
    runner.submit(name, tests, math.ceil(4 * estimate + 60), estimate)
    return int(runner.wait_for_result().exit_code)


def judge(mutants: list[Mutant], runner: Any, importing: set[str], seconds: float) -> float:
    """Run the tests of each mutant, quickest mutants first, and keep each verdict at once; the minutes it took."""
    start = time.monotonic()
    for number, mutant in enumerate(sorted(mutants, key=lambda m: tool.estimated_worst_case_time(m.name)), 1):
        codes = mutant.source.exit_code_by_key
        codes[mutant.name] = tried(mutant.name, runner, seconds)
        if mutant.verdict == "survived" and tool.mangled_name_from_mutant_name(mutant.name) in importing:
            codes[mutant.name] = alone(mutant)
        mutant.source.save()
        print(f"{number}/{len(mutants)} {time.monotonic() - start:.0f} s {mutant.verdict} {mutant.name}", flush=True)
    return (time.monotonic() - start) / 60


def control(mutants: list[Mutant], runner: Any, count: int, seconds: float) -> dict[str, int]:
    """How often the tests of one of so many functions fail although nothing is changed: kills that were none."""
    drawn = random.Random(0).sample(sorted({tool.mangled_name_from_mutant_name(m.name) for m in mutants}), count)
    failed = [name for name in drawn if tried(f"{name}__mutmut_none", runner, seconds) not in (0, 33)]
    return {"functions": count, "failed": len(failed)}


def figures(mutants: list[Mutant]) -> dict[str, Any]:
    """How many were killed, with Wilson's interval."""
    verdicts = Counter(mutant.verdict for mutant in mutants)
    killed = stats.binomtest(len(mutants) - verdicts["survived"], len(mutants))
    share, interval = killed.statistic, killed.proportion_ci(0.95, "wilson")
    counts = {verdict: verdicts[verdict] for verdict in ("killed", "timed out", "crashed", "survived")}
    return counts | {"share killed": round(share, 4), "interval": [round(float(edge), 4) for edge in interval]}


def main() -> None:
    """Draw, run what was not run yet, write down."""
    parser = argparse.ArgumentParser(description="Share of mutants of the maths that the tests kill.")
    parser.add_argument("--sample", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0, help="of tests a mutant gets at most")
    parser.add_argument("--again", action="store_true", help="run those that survived again")
    parser.add_argument("--not-in", type=int, nargs="*", default=[], help="leave out the samples of these seeds")
    parser.add_argument("--control", type=int, default=0, help="so many functions as they are, which must not fail")
    asked = parser.parse_args()
    os.chdir(Path(__file__).parent.parent)
    runner, importing = prepared()
    everything = [mutant for path in sorted(tool.walk_mutatable_files()) for mutant in mutants_of(path)]
    population = [mutant for mutant in everything if not mutant.words]
    known: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"samples": {}}
    samples = known["samples"]
    drawn = draw(fresh(population, asked.not_in, samples), asked.sample, asked.seed)
    entry = samples.get(str(asked.seed), {})
    if asked.again and BEFORE not in entry:
        entry[BEFORE] = {LIMIT: entry.get(LIMIT), **figures(drawn)}
    left = [m for m in drawn if not m.verdict or (asked.again and m.verdict == "survived")]
    minutes = judge(left, runner, importing, asked.seconds)
    living = sorted((str(m.source.path), m.line, m.before, m.after) for m in drawn if m.verdict == "survived")
    samples[str(asked.seed)] = {
        "seed": asked.seed,
        "drawn": len(drawn),
        "drawn by package": packages(drawn),
        "survived by package": packages([mutant for mutant in drawn if mutant.verdict == "survived"]),
        WITHOUT: asked.not_in,
        LIMIT: asked.seconds if left else entry.get(LIMIT),
        "minutes": round(entry.get("minutes", 0) + minutes, 1),
        **({BEFORE: entry[BEFORE], "note": BIASED} if BEFORE in entry else {}),
        **figures(drawn),
        "survivors": [dict(zip(("file", "line", "before", "after"), place, strict=True)) for place in living],
    }
    result = {
        "tool": f"mutmut {importlib.metadata.version('mutmut')}",
        "counted": "what timed out or crashed counts as killed; intervals are Wilson's of 95 %",
        "mutants": len(everything),
        "left out": {"rule": LEFT_OUT, "mutants": len(everything) - len(population)},
        "population by package": packages(population),
        "control": control(population, runner, asked.control, asked.seconds) if asked.control else known.get("control"),
        "samples": samples,
    }
    RESULT.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    print(figures(drawn))


if __name__ == "__main__":
    main()
