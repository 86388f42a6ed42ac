"""Write docs/results/: one page a question of the protocol, from files that are committed.

    python benchmarks/evidence_pages.py [--output docs/results]

Trains nothing and reads no model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from layersift.draw import picture
from layersift.files import write_bytes, write_text
from pages import advised, conditions, decoders, defaults, half, rewarded, rules, settles, subsets, ways
from pages.measured import done
from pages.page import Page, table

DOCS = Path(__file__).resolve().parents[1] / "docs" / "results"
# The protocol's ten questions, in its order.
QUESTIONS = (
    "half",
    "conditions",
    "rules",
    "published",
    "position",
    "samples",
    "task-or-model",
    "ways",
    "advice",
    "reinforcement",
)

INDEX = (
    "# Evidence",
    "Ten questions were asked in [a protocol](protocol.md) before the first training. Every page has its figures with "
    "intervals, the commands that made them, and what would change the answer.",
    "**These trainings are older than the corrected rates** ([their faults](protocol.md#what-is-wrong-with-it)). "
    "[Learning rates](../learning-rates.md) compares half of the layers with all of them at rates of their own. "
    "[The defaults](defaults.md) follow from these pages, [older tables](older-tables.md) are kept.",
)
FOOT = "Made by `python benchmarks/evidence_pages.py` from committed files, which tests hold these pages against."


def pages() -> list[Page]:
    """A page for each question."""
    tasks = done()
    return [
        half.page(tasks),
        conditions.page(),
        rules.page(tasks),
        subsets.published_page(),
        subsets.position_page(),
        settles.settling_page(),
        settles.task_page(),
        ways.page(tasks),
        advised.page(),
        rewarded.page(),
    ]


def index(found: list[Page]) -> str:
    """What was asked, and what was answered."""
    by_name = {page.name: page for page in found}
    rows = []
    for number, name in enumerate(QUESTIONS, start=1):
        page = by_name[name]
        rows.append([str(number), f"[{page.question}]({name}.md)", page.answer])
    tasks = ", ".join(f"{task.name} ({task.model})" for task in done())
    many = ", ".join(dict.fromkeys(task.words for task, _ in subsets.each()))
    other = ", ".join(f"{task.model} on {task.name}" for task in decoders.others())
    trained = table(
        ["what is trained", "on"], [["tasks", tasks], ["other numbers of layers", other], ["many subsets", many]]
    )
    return "\n\n".join([*INDEX, trained, table(["", "question", "answer"], rows), FOOT]) + "\n"


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DOCS)
    output = parser.parse_args().output
    found = pages()
    for page in found:
        write_text(output / f"{page.name}.md", page.text())
        for name, chart in page.charts.items():
            write_bytes(output / "charts" / f"{name}.png", picture(chart, ".png"))
    write_text(output / "index.md", index(found))
    write_text(output / "defaults.md", defaults.text(done(), found))


if __name__ == "__main__":
    main()
