"""The data's path is the order of the folders, and imports go one way along it."""

import ast
from pathlib import Path

import layersift

ROOT = Path(layersift.__file__).parent
ORDER = [
    ["errors", "files", "progress", "provenance", "_version"],
    ["measures"],
    ["load"],
    ["represent"],
    ["score"],
    ["select"],
    ["adapt"],
    ["train"],
    ["evaluate"],
    ["compare"],
    ["commands", "__main__"],
]
STAGE = {name: place for place, names in enumerate(ORDER) for name in names}


def imported_on_loading(tree):
    """Modules of ours imported by the module's own statements; those inside functions are calls, not structure."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("layersift"):
            yield node.module.split(".")[1] if "." in node.module else node.names[0].name
        if isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("layersift."))


def test_every_module_has_its_place_and_imports_only_what_comes_before():
    files = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]
    assert len(files) > 40
    for path in files:
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        assert own in STAGE, f"{own} has no place in the order"
        for other in imported_on_loading(ast.parse(path.read_text())):
            assert STAGE[other] <= STAGE[own], f"{path.relative_to(ROOT)} imports {other}, which comes later"


def test_measures_are_pure_maths():
    for path in (ROOT / "measures").glob("*.py"):
        tree = ast.parse(path.read_text())
        absolute = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level == 0]
        plain = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        roots = {name.split(".")[0] for name in [*absolute, *plain]}
        assert roots <= {"__future__", "collections", "dataclasses", "functools", "math", "scipy", "torch", "typing"}


def test_only_the_command_line_prints():
    for path in ROOT.rglob("*.py"):
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], path
