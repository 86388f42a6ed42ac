"""The data's path is the order of the folders: every import goes one way along it, and nothing grows too large."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import layersift

ROOT = Path(layersift.__file__).parent
ORDER = [
    ["compat", "errors", "files", "processes", "progress", "provenance", "quiet", "_version"],
    ["measures", "statistics", "draw"],
    ["config"],
    ["models"],
    ["data"],
    ["represent"],
    ["adapt"],
    ["step"],
    ["plan"],
    ["records"],
    ["score"],
    ["select"],
    ["task"],
    ["select_in_memory"],
    ["training"],
    ["evaluation"],
    ["experiment"],
    ["advise"],
    ["report"],
    ["export"],
    ["api"],
    ["commands", "__main__"],
]
STAGE = {name: place for place, names in enumerate(ORDER) for name in names}
LONGEST = 500  # lines of a module


def sources(root=ROOT):
    """Every module by its dotted name; the package itself, which finds the public names lazily, apart."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts != ("__init__",):
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(path, module, modules):
    """Modules of ours that a file imports, wherever the statement stands: in a function, or for the type checker."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name.removeprefix("layersift.") for a in node.names if a.name.startswith("layersift."))
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "import_module":
            raise AssertionError(f"{module} imports by name, which nobody can follow")
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            around = package.split(".") if package else []
            base = ".".join([*around[: len(around) - node.level + 1], *([node.module] if node.module else [])])
        elif (node.module or "").split(".")[0] == "layersift":
            base = (node.module or "").removeprefix("layersift").removeprefix(".")
        else:
            continue
        for alias in node.names:
            inner = f"{base}.{alias.name}".removeprefix(".")
            yield inner if inner in modules else base


def test_every_module_has_its_place_and_imports_only_what_comes_before():
    modules = sources()
    assert len(modules) > 100
    for module, path in modules.items():
        own = module.split(".")[0]
        assert own in STAGE, f"{own} has no place in the order"
        for other in imports(path, module, modules):
            assert STAGE[other.split(".")[0]] <= STAGE[own], f"{module} imports {other}, which comes later"


def test_no_modules_import_one_another_in_a_circle():
    modules = sources()
    after = {name: {o for o in imports(path, name, modules) if o != name} for name, path in modules.items()}
    done = set()

    def visit(name, way):
        assert name not in way, f"a circle: {' -> '.join([*way, name])}"
        if name in done:
            return
        for other in sorted(after.get(name, ())):
            if modules[other].name != "__init__.py":  # a package that is imported for one of its modules
                visit(other, [*way, name])
        done.add(name)

    for name in modules:
        visit(name, [])


def test_imports_inside_functions_and_for_types_are_seen(tmp_path):
    (tmp_path / "training").mkdir()
    text = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from layersift.report.page import Page\n"
        "def f():\n    from layersift.commands.run import run\n    from ..evaluation import metrics\n"
        "    import layersift.api\n"
    )
    (tmp_path / "training" / "x.py").write_text(text)
    names = {"training.x", "report.page", "commands.run", "evaluation.metrics", "api"}
    assert set(imports(tmp_path / "training" / "x.py", "training.x", names)) == names - {"training.x"}


def test_modules_fit_on_a_few_screens():
    long = {module: len(path.read_text().splitlines()) for module, path in sources().items()}
    assert {module: lines for module, lines in long.items() if lines > LONGEST} == {}


@pytest.mark.parametrize("package", ["measures", "statistics"])
def test_maths_is_pure(package):
    pure = {"__future__", "collections", "dataclasses", "functools", "math", "numpy", "scipy", "torch", "typing"}
    for path in (ROOT / package).glob("*.py"):
        tree = ast.parse(path.read_text())
        absolute = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level == 0]
        plain = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        relative = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level > 1]
        assert {name.split(".")[0] for name in [*absolute, *plain]} <= pure, path
        assert not relative, path


def test_only_the_command_line_prints():
    for path in ROOT.rglob("*.py"):
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], path


def test_tests_mirror_the_stages_and_do_not_import_one_another():
    tests = Path(__file__).parent
    folders = {path.name for path in tests.iterdir() if path.is_dir() and not path.name.startswith(("_", "."))}
    assert folders <= {*STAGE, "helpers"}
    for path in tests.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            assert not [n for n in names if n.split(".")[-1].startswith("test_")], f"{path} imports {names}"


def test_config_waits_for_nothing_heavy():
    heavy = "('torch', 'transformers', 'numpy')"
    code = f"import sys, layersift.config.recipe; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert shown.stdout.strip() == "[]"
