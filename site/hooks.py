"""What the site has beside docs/: README, CHANGELOG, CONTRIBUTING, pictures of benchmarks/, generated references."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from layersift.config.fields import Checked, default_of, help_of, types_of
from layersift.report.page import MASK

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
MASK_CELL = re.compile(rf"(<td[^>]*>(?:[a-z]+ )?)({MASK.pattern})</td>")
ROLE = re.compile(r":(?:class|data|func|meth|mod):(?=<code)")
PICTURES = re.compile(r"\]\((?:\.\./)?(benchmarks/results/[^)]*\.png)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add what lies outside of docs/."""
    for name, source in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text()))
    files.append(File.generated(config, "reference.md", content=_reference()))
    files.append(File.generated(config, "commands.md", content=_commands()))
    files.append(File.generated(config, "site.css", abs_src_path=str(ROOT / "site" / "site.css")))
    texts = [(ROOT / "README.md").read_text(), *(path.read_text() for path in (ROOT / "docs").rglob("*.md"))]
    for picture in sorted({found for text in texts for found in PICTURES.findall(text)}):
        files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links between docs/ and its surroundings, as they are on the site."""
    if page.file.src_uri in PAGES:
        markdown = markdown.replace("](docs/", "](").replace("](CONTRIBUTING.md", "](contributing.md")
        markdown = markdown.replace("](CHANGELOG.md", "](changelog.md").replace("](LICENSE)", "](index.md)")
    above = "../" * page.file.src_uri.count("/")
    for name, source in PAGES.items():
        markdown = markdown.replace(f"](../{above}{source}", f"]({above}{name}")
    left = re.findall(r"\]\((?:\.\./)+(?:[A-Z]+\.md|src|tests)[^)]*", markdown)
    if left:  # which MkDocs passes over
        raise PluginError(f"{page.file.src_uri}: links that leave the site: {', '.join(left)}")
    return markdown.replace("](../benchmarks/", "](benchmarks/")


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Masks in tables as rows of cells, as reports draw them; names in docstrings without their Sphinx role."""
    return MASK_CELL.sub(_drawn, ROLE.sub("", html))


def _drawn(found: re.Match[str]) -> str:
    before, _, mask, rest = found.groups()
    cells = "".join('<i class="on"></i>' if digit == "1" else "<i></i>" for digit in mask)
    return f'{before}<span class="mask" role="img" title="{mask}" aria-label="{mask}">{cells}</span>{rest}</td>'


def _reference() -> str:
    """Every public name, from its docstring."""
    import layersift

    homes = dict(sorted(layersift._HOMES.items(), key=lambda home: (home[0][0].islower(), home[0].lower())))
    parts = [
        "# Every public name\n\nEach is had by `from layersift import NAME`; [the tour](api.md) shows them at work. "
        "Tests run each example, beside a small BERT in `model`, labelled texts in `rows.jsonl` and a finished `run`.\n"
    ]
    constants = ("CRITERIA", "MEASURES", "POSITIONS", "TOKEN_MEASURES")
    for name, home in homes.items():
        if name not in constants:
            parts += [f"::: layersift.{home}.{name}\n", _settings(getattr(layersift, name))]
    return "\n".join(parts)


def _settings(value: Any) -> str:
    """The settings of a class, where they say themselves what they are: name, default, help."""
    if not (isinstance(value, type) and issubclass(value, Checked)):
        return ""
    helps, rows = {name: help_of(hint) for name, hint in types_of(value).items()}, []
    for each in fields(value):
        default = default_of(each)
        shown = "required" if default is MISSING else f"`{default!r}`"
        rows += [f"| `{each.name}` | {shown} | {helps[each.name]} |"] if helps[each.name] else []
    return "\n".join(["| Setting | Default | |", "| --- | --- | --- |", *rows, ""]) if rows else ""


def _commands() -> str:
    """The help of every subcommand."""
    import typer.main
    from typer.testing import CliRunner

    from layersift.__main__ import app

    parts = ["# Every command\n"]
    for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "100"}).output
        parts.append(f"## layersift {name}\n\n```text\n{shown.strip()}\n```\n")
    return "\n".join(parts)
