"""What the command line shows: results on standard output, progress on standard error."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import console as rich_console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from layersift.errors import visible
from layersift.processes import is_main_process
from layersift.progress import Reporter

GAP = "  "  # between the columns of a table


def next_step(purpose: str, *words: object) -> str:
    """A command's last line: what to do next, ready to be copied. What is to be filled in is in capitals."""
    return f"To {purpose}: {shlex.join(map(str, words))}"


class _Rate(TextColumn):
    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Any) -> Any:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "")


class Console(Reporter):
    """Prints for people, or with ``as_json`` one JSON value for machines; ``quiet`` leaves only errors.

    Of several processes the main one prints.
    """

    def __init__(self, quiet: bool = False, as_json: bool = False) -> None:
        self.silent = quiet or as_json or not is_main_process()
        self.as_json = as_json and is_main_process()
        self.out = rich_console.Console(highlight=False, soft_wrap=True)
        self.err = rich_console.Console(stderr=True, highlight=False)
        self.draws_bars = self.err.is_terminal
        self._bars: Progress | None = None  # those of the outermost stage, which the others join
        show_warnings(self)

    def say(self, text: str) -> None:
        """A line for people."""
        if not self.silent:
            self.out.print(visible(text), markup=False)

    def warn(self, text: str) -> None:
        """What the library logs, on standard error: something was done otherwise than one would think."""
        if not self.silent:
            self.err.print(f"note: {visible(text)}", markup=False, soft_wrap=True)

    def result(self, value: Any) -> None:
        """The command's result as JSON, where it was asked for."""
        if self.as_json:
            whole = (sys.stdout.encoding or "").lower().startswith("utf")  # else every letter is spelled in ASCII
            sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=not whole) + "\n")

    def table(self, rows: Sequence[Sequence[str]], whole: object = None) -> None:
        """A table whose first row is the header; words to the left, figures to the right.

        Args:
            whole: a file with the same table. On a narrow screen the last columns are left to it.
        """
        if self.silent:
            return
        rows = [[visible(cell) for cell in row] for row in rows]
        left: list[str] = []
        if whole is not None and self.out.is_terminal:
            rows, left = narrowed(rows, self.out.width)
        table = Table(*map(escape, rows[0]), box=None, pad_edge=False, header_style="bold")
        for place, column in enumerate(table.columns):
            column.overflow = "fold"
            figures = [row[place][:1] in "+-0123456789" for row in rows[1:] if row[place]]
            if place and figures and sum(figures) > len(figures) / 2:
                column.justify = "right"
        for row in rows[1:]:
            table.add_row(*map(Text, row))
        rich_console.Console(highlight=False, width=None if self.out.is_terminal else 200).print(table)
        if left:
            self.say(f"on a wider screen, and in {whole}: {', '.join(left)}")

    @contextmanager
    def stage(self, label: str, total: int, unit: str = "samples") -> Iterator[Callable[[int], None]]:
        """A progress bar with a rate and the time left; in a log, one line at the start."""
        hidden = self.silent or not self.err.is_terminal
        if hidden:
            self.say(f"{label}, {total} {unit}")
            yield lambda done: None
            return
        if self._bars is not None:
            bar = self._bars.add_task(label, total=total)
            bars = self._bars
            try:
                yield lambda done: bars.advance(bar, done)
            finally:
                bars.remove_task(bar)
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.err, transient=True) as progress:
            self._bars, bar = progress, progress.add_task(label, total=total)
            try:
                yield lambda done: progress.advance(bar, done)
            finally:
                self._bars = None


def narrowed(rows: Sequence[Sequence[str]], width: int) -> tuple[list[list[str]], list[str]]:
    """The rows without the last columns that a screen is too narrow for, three at least kept; and those columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    count = len(widths)
    while count > 3 and sum(widths[:count]) + len(GAP) * (count - 1) > width:
        count -= 1
    return [list(row[:count]) for row in rows], list(rows[0][count:])


class _Noting(logging.Handler):
    """Shows the library's warnings on a console."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.warn(record.getMessage())


def show_warnings(console: Console) -> None:
    """Let the library's warnings come to this console, and to no earlier one."""
    library = logging.getLogger("layersift")
    for handler in [h for h in library.handlers if isinstance(h, _Noting)]:
        library.removeHandler(handler)
    library.addHandler(_Noting(console))
    library.propagate = False
