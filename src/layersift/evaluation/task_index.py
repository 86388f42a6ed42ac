"""Tasks of lm-evaluation-harness by name, layersift's own among them, and whether they may run what a model writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersift.errors import DataError, LayersiftError, closest
from layersift.evaluation import own_tasks
from layersift.evaluation.execution import LIMITS, require_posix

try:
    from lm_eval.tasks import TaskManager
except ModuleNotFoundError as error:
    if error.name != "lm_eval":
        raise
    raise LayersiftError("benchmarks need lm-evaluation-harness: pip install 'layersift[harness]'") from None

OWN_TASKS = Path(__file__).with_name("tasks")
OWN_FUNCTIONS = own_tasks.__name__


@dataclass(frozen=True)
class Tasks:
    """Tasks that were found and may run; nothing of them is loaded yet."""

    names: tuple[str, ...]
    manager: Any  # lm_eval's TaskManager
    running_code: tuple[str, ...]  # those that run what the model wrote


def find_tasks(
    names: Sequence[str],
    task_path: Path | None = None,
    data: Mapping[str, str] | None = None,
    allow_code_execution: bool = False,
    merged: str = "RUN/merged",
) -> Tasks:
    """Find tasks by name: those in ``task_path`` first, then layersift's own, then lm_eval's.

    Args:
        names: of tasks, groups or tags.
        task_path: a directory with task files in lm_eval's YAML.
        data: for tasks whose documents come from a file, where they are.
        allow_code_execution: whether programs that the model writes may be run.
        merged: the model as another tool would load it, for the line that hands over to lmms-eval.

    Raises:
        LayersiftError: an unknown name; data for a task that reads none; a task with images or sound; a task that runs
            code where that is not allowed, or by other means than :func:`layersift.evaluation.execution.run_tests`.
    """
    if task_path is not None and not task_path.is_dir():
        raise LayersiftError(f"{task_path}: no such directory; expected one with task files (.yaml)")
    where = [OWN_TASKS] if task_path is None else [OWN_TASKS, task_path]
    metadata = {"data": dict(data)} if data else {}
    manager = TaskManager(include_path=where, include_defaults=False, metadata=metadata)
    if not set(names) <= set(manager.all_tasks):  # reading lm_eval's thousands of files takes many seconds
        manager = TaskManager(include_path=where, metadata=metadata)
    leaves: dict[str, dict[str, Any]] = {}
    for name in names:
        if name not in manager.task_index:
            raise _unknown_task(name, manager, merged)
        leaves |= dict(_leaves(name, manager))
    for name, config in leaves.items():
        if config.get("doc_to_image") or config.get("doc_to_audio"):
            raise LayersiftError(f"{name} has images or sound. {hand_over(name, merged)}")
    for name in data or ():
        if name not in leaves or not _is_ours(leaves[name], "custom_dataset"):
            raise LayersiftError(f"--data {name}=...: {name} is no task here that reads a file")
    return Tasks(tuple(names), manager, _running_code(leaves, allow_code_execution))


def _running_code(leaves: Mapping[str, Mapping[str, Any]], allowed: bool) -> tuple[str, ...]:
    """The tasks that run what a model wrote, after making sure that they may."""
    running = []
    for name, config in leaves.items():
        under_limits = _is_ours(config, "process_results", "passes_")
        if config.get("unsafe_code") and not under_limits:
            raise LayersiftError(
                f"{name} runs programs that the model writes, by lm_eval's means and without limits; layersift runs "
                "only those scored by its own functions (humaneval, mbpp; see docs/benchmarks.md)"
            )
        if under_limits:
            running.append(name)
    if running:
        require_posix()
        if not allowed:
            raise LayersiftError(
                f"{', '.join(running)}: programs that the model writes would be run on this machine; "
                "--allow-code-execution permits it"
            )
    return tuple(running)


def _leaves(name: str, manager: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and configurations of the tasks behind a task, group or tag. Functions in them are still names."""
    entry = manager.task_index[name]
    members = (entry.cfg or {}).get("task") if entry.kind.name == "GROUP" else sorted(entry.tags)
    if entry.kind.name not in ("GROUP", "TAG"):
        yield name, entry.cfg or {}
        return
    for member in members or ():
        config = member if isinstance(member, dict) else {}
        inner = config.get("group", config.get("task")) if config else member
        if isinstance(inner, str) and inner in manager.task_index:
            for leaf, leaf_config in _leaves(inner, manager):
                yield leaf, {**leaf_config, **{k: v for k, v in config.items() if k not in ("group", "task")}}
        else:  # written out inside the group
            yield str(inner), config


def _is_ours(config: Mapping[str, Any], key: str, start: str = "") -> bool:
    """Whether a task's function is one of ``own_tasks``; unresolved, it reads DIRECTORY/module.function."""
    return Path(str(config.get(key, ""))).name.startswith(f"{OWN_FUNCTIONS}.{start}")


def _unknown_task(name: str, manager: Any, merged: str) -> LayersiftError:
    close = closest(name, manager.all_tasks)
    hint = f" Did you mean {close!r}?" if close else ""
    own = ", ".join(sorted(path.stem for path in OWN_TASKS.glob("*.yaml")))
    return LayersiftError(
        f"unknown task {name!r}.{hint} layersift's own: {own}; `lm-eval ls tasks` lists lm_eval's. For a task with "
        f"images or sound: {hand_over(name, merged)}"
    )


def hand_over(tasks: str, merged: str) -> str:
    """How to run tasks with images or sound, which need another tool."""
    return (
        "lmms-eval runs such tasks on a model with its adapters merged in (train --merge): python -m lmms_eval --model "
        f"huggingface --model_args pretrained={merged} --tasks {tasks} --batch_size 1"
    )


def load_tasks(tasks: Tasks) -> Any:
    """Load the tasks' documents, as lm_eval's mapping of tasks and groups.

    Raises:
        LayersiftError: they cannot be loaded.
    """
    try:
        return tasks.manager.load(list(tasks.names))
    except LayersiftError:
        raise
    except Exception as error:  # task files load data and call functions, which fail in any way they like
        reason = f"{type(error).__name__}: {error}"
        raise DataError(
            f"cannot load {', '.join(tasks.names)} ({reason[:240]}); see its file, and the data it names"
        ) from None


def limits_notice(tasks: Tasks) -> str:
    """What will happen to the programs that the model writes, for the screen."""
    return (
        f"{', '.join(tasks.running_code)}: programs that the model writes will be run on this machine, one at a time, "
        f"each in a process of its own with at most {LIMITS.described()}, in an empty temporary directory, killed with "
        "its children. This is no sandbox: they may read your files and use the network."
    )
