"""What the command line shows: results on standard output, progress on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from layersift.progress import Reporter


class _Rate(TextColumn):
    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Any) -> Any:
        from rich.text import Text

        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "")


class Screen(Reporter):
    """Prints for people, or with ``as_json`` one JSON value for machines; ``quiet`` leaves only errors."""

    def __init__(self, quiet: bool = False, as_json: bool = False) -> None:
        self.silent, self.as_json = quiet or as_json, as_json
        self.out, self.err = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        """A line for people."""
        if not self.silent:
            self.out.print(text, markup=False)

    def result(self, value: Any) -> None:
        """The command's result as JSON, where it was asked for."""
        if self.as_json:
            sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """A table whose first row is the header; words to the left, figures to the right."""
        if self.silent:
            return
        table = Table(*rows[0], box=None, pad_edge=False, header_style="bold")
        for place, column in enumerate(table.columns):
            figures = [row[place][:1] in "+-0123456789" for row in rows[1:] if row[place]]
            if place and figures and sum(figures) > len(figures) / 2:
                column.justify = "right"
        for row in rows[1:]:
            table.add_row(*row)
        Console(highlight=False, width=None if self.out.is_terminal else 160).print(table)

    @contextmanager
    def stage(self, label: str, total: int, unit: str = "samples") -> Iterator[Callable[[int], None]]:
        """A progress bar with a rate and the time left; in a log, one line at the start."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
        )
        hidden = self.silent or not self.err.is_terminal
        if hidden:
            self.say(f"{label}, {total} {unit}")
        with Progress(*columns, console=self.err, transient=True, disable=hidden) as progress:
            bar = progress.add_task(label, total=total)
            yield lambda done: progress.advance(bar, done)
