"""All criteria by name, and how a name, a file or a function becomes one."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from layersift.config.select import BOTTOM, rule_file
from layersift.errors import SelectionError, unknown_name, wrap_library_errors
from layersift.measures import MEASURES, TOKEN_MEASURES
from layersift.represent.positions import get_position
from layersift.score.context import ScoringContext
from layersift.score.criteria import plain
from layersift.score.criteria.alpha_hill import ALPHA_HILL
from layersift.score.criteria.eva import EVA
from layersift.score.criteria.fisher import FISHER, FISHER_SUM
from layersift.score.criteria.gradient_norm import GRADIENT_NORM, RELATIVE_GRADIENT_NORM
from layersift.score.criteria.kappa import KAPPA
from layersift.score.criteria.lora_drop import LORA_DROP
from layersift.score.criteria.pilot import PILOT
from layersift.score.criteria.resnorm import RESNORM
from layersift.score.criteria.signal_to_noise import SNR
from layersift.score.criteria.similarity import similarity_criterion, token_criterion
from layersift.score.criteria.spectrum import SPECTRUM
from layersift.score.criteria.taylor import TAYLOR
from layersift.score.criterion import Criterion
from layersift.score.probe import Undefined

# The closest rival of the paper, under its own name: cosine at the last token of the prompt, with a threshold of its
# own (`--threshold 0.15` for its similarity of 0.85).
LS_LORA = replace(
    token_criterion(TOKEN_MEASURES["cosine"], "last-prompt"),
    name="ls-lora",
    summary="1 - cosine of the last prompt token's state before and behind the block",
    source="Pang et al. 2026, Where to adapt matters (LS-LoRA); adapts where it is above 0.15",
)

CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion
    for criterion in (
        *map(similarity_criterion, MEASURES.values()),
        *map(token_criterion, TOKEN_MEASURES.values()),
        LS_LORA,
        FISHER,
        FISHER_SUM,
        GRADIENT_NORM,
        RELATIVE_GRADIENT_NORM,
        SNR,
        TAYLOR,
        RESNORM,
        SPECTRUM,
        KAPPA,
        ALPHA_HILL,
        EVA,
        LORA_DROP,
        PILOT,
        plain.FIRST,
        plain.LAST,
        plain.MIDDLE,
        plain.ALTERNATE,
        plain.FIRST_AND_LAST,
        plain.RANDOM,
    )
}

Named = str | Criterion | Callable[[ScoringContext], Sequence[Any]]


def find_criterion(named: Named) -> Criterion:
    """The criterion of a name, or of a function of a :class:`ScoringContext` that gives a score (or None) a layer.

    Names may carry a position, ``cka@last``; ``bottom:`` before one turns its order round; ``rules.py:my_rule`` is a
    function of the user's own, whose layers with the highest scores are adapted.

    Args:
        named: a name, a function, or a criterion, which is returned as it is.

    Returns:
        The criterion.

    Raises:
        LayersiftError: no such criterion, position, file or function; a position for a criterion that reads none.

    Examples:
        >>> from layersift import find_criterion
        >>> criterion = find_criterion("cka@last")
        >>> criterion.name, criterion.needs, criterion.direction
        ('cka@last', 'forward', 'high')
    """
    if isinstance(named, Criterion):
        return named
    if not isinstance(named, str) and not callable(named):
        raise SelectionError(f"criterion {named!r}: a name or a function is needed")
    if not isinstance(named, str):
        return _own(named, getattr(named, "__name__", "own"))
    if named.startswith(BOTTOM):
        return _reversed(find_criterion(named.removeprefix(BOTTOM)))
    if (path := rule_file(named)) is not None:
        function = named.rpartition(":")[2]
        return _own(_function(path, function), f"{path.stem}:{function}")
    name, at, position = named.partition("@")
    if name not in CRITERIA:
        raise unknown_name("criterion", name, CRITERIA)
    criterion = CRITERIA[name]
    if not at:
        return criterion
    if criterion.at is None or criterion is LS_LORA:
        raise SelectionError(f"criterion {name!r} reads no position of its own choice; leave @{position} away")
    return criterion.at(get_position(position).name)


def _reversed(criterion: Criterion) -> Criterion:
    direction: Any = "low" if criterion.direction == "high" else "high"
    return replace(
        criterion,
        name=f"{BOTTOM}{criterion.name}",
        summary=f"the layers that {criterion.name} puts last",
        direction=direction,
        at=None if criterion.at is None else lambda position, at=criterion.at: _reversed(at(position)),  # type: ignore[misc]
    )


def _function(path: Path, name: str) -> Callable[[ScoringContext], Sequence[Any]]:
    """The function of a file, which is read now and run once layers are to be scored: a dry run runs no code.

    Raises:
        SelectionError: no such file or function, or no Python.
    """
    if not path.is_file():
        raise SelectionError(f"{path}: no such file; expected Python with a function {name!r}")
    with wrap_library_errors(
        SelectionError, f"{path}: not Python", "a file of this Python's syntax, in UTF-8, is needed"
    ):
        tree = ast.parse(path.read_bytes(), str(path))
    if name not in _bound(tree):
        raise SelectionError(f"{path} has no function {name!r}")

    def function(context: ScoringContext) -> Sequence[Any]:
        rule = _loaded(path, name)
        with wrap_library_errors(
            SelectionError, f"{path}: {name} failed", "it takes a ScoringContext and gives a number or None a layer"
        ):
            return list(rule(context))

    return function


def _bound(tree: ast.Module) -> set[str]:
    """Names that a file defines, imports or assigns, wherever it does."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def _loaded(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"layersift_own_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise SelectionError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    with wrap_library_errors(
        SelectionError, f"{path} cannot be imported", "the file has to run by itself: python FILE"
    ):
        spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise SelectionError(f"{path} has no function {name!r}")
    return function


def _own(function: Callable[[ScoringContext], Sequence[Any]], name: str) -> Criterion:
    def score(context: ScoringContext) -> list[float | Undefined]:
        with wrap_library_errors(
            SelectionError,
            f"criterion {name} gave something else than a number or None for each layer",
            "return a list of these",
        ):
            return [Undefined(f"{name} gives it none") if v is None else float(v) for v in function(context)]

    return Criterion(
        name=name,
        summary="a rule of your own",
        needs="forward",
        direction="high",
        score=score,
        cost="its own",
        source="your own",
        by_sample=False,  # whether it looks at the part of the sample that it is asked about, nobody knows
    )
