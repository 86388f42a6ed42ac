"""Flags that have no effect beside others, or on what is given: one table for all commands. They are refused.

Only flags that were given count, on the command line or by --config; a default is nobody's wish. With --dry-run nothing
is refused on its account: it is added to the command that it is about.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from layersift.config.quantities import parse_layers
from layersift.config.recipe import DataSettings
from layersift.config.select import rule_file
from layersift.config.train import FULL, SKIPPING, STATIC, parse_strategy
from layersift.errors import LayersiftError
from layersift.files import new_outputs
from layersift.processes import is_main_process

from .help import example_of, in_groups
from .options import key_of


@dataclass(frozen=True)
class Given:
    """The flags of one call by the names of their parameters."""

    values: Mapping[str, Any]  # defaults included
    names: tuple[str, ...]  # of those that were given

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name)


Why = Callable[[Given], str | None]  # behind "has no effect"; None where the flag has one


@dataclass(frozen=True)
class Refusal:
    """Flags of some commands that have no effect under one condition."""

    commands: tuple[str, ...]  # none: all that have the flags
    flags: tuple[str, ...]
    why: Why


MOST_LAYERS = 10_000  # of any model
OUTPUTS = ("output", "picture")  # flags that name what a command writes
# Commands that write something new; others carry on with theirs.
NEW_OUTPUTS = ("advise", "select", "evaluate", "predict", "export", "prune", "push", "benchmark")


class RefusingCommand(TyperCommand):
    """A subcommand that refuses flags without effect before it begins."""

    def invoke(self, ctx: Any) -> Any:
        """Carry the command out.

        Raises:
            LayersiftError: a flag was given that has no effect.
        """
        options = {parameter.name: parameter for parameter in ctx.command.params}
        for name, value in ctx.params.items():
            ctx.params[name] = _from_home(value)
        names = tuple(name for name, option in options.items() if _was_given(ctx, option))
        given = Given(ctx.params, names)
        for refusal in refusals_of(str(ctx.command.name)):
            for name in refusal.flags:
                if name in names and (why := refusal.why(given)) is not None:
                    flag = key_of(ctx, name) or max(options[name].opts, key=len)
                    raise LayersiftError(f"{flag} has no effect {why}; leave it away")
        # Older versions of typer turn words into paths only as they call the command.
        outputs = [Path(path) for name in OUTPUTS if (path := ctx.params.get(name)) is not None]
        if ctx.command.name not in NEW_OUTPUTS or not is_main_process():
            outputs = []
        with new_outputs(str(ctx.command.name), *outputs):
            return super().invoke(ctx)

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """The example behind the text."""
        super().format_help_text(ctx, formatter)
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(example_of(str(self.name)))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The arguments, and the flags in groups."""
        arguments = [p for p in self.get_params(ctx) if p.param_type_name == "argument"]
        if arguments:
            with formatter.section("Arguments"):
                formatter.write_dl([record for p in arguments if (record := p.get_help_record(ctx)) is not None])
        in_groups(self, ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line.

        Raises:
            LayersiftError: a word of it is empty, which as a path would be the current directory.
        """
        for place, word in enumerate(args):
            flag, equals, value = word.partition("=")
            if word == "" or (equals and not value and flag.startswith("--")):
                before = args[place - 1] if place else ""
                named = flag if equals else before if before.startswith("-") else _argument(self)
                raise LayersiftError(f"{named} is empty; give a value, or leave it away")
        return super().parse_args(ctx, args)


def _from_home(value: Any) -> Any:
    """A path that begins with ~, which shells leave as it is in --output=~/run, from the home directory on."""
    if isinstance(value, list | tuple):
        return type(value)(map(_from_home, value))
    return type(value)(os.path.expanduser(value)) if isinstance(value, str | Path) else value


def _argument(command: Any) -> str:
    """The first argument of a command, as its help names it."""
    return next(
        (str(p.metavar or p.name).upper() for p in command.params if p.param_type_name == "argument"), "an argument"
    )


def refusals_of(command: str) -> Iterator[Refusal]:
    """The part of the table that is about a command."""
    return (refusal for refusal in REFUSALS if not refusal.commands or command in refusal.commands)


def _was_given(ctx: Any, option: Any) -> bool:
    """Whether a value comes from the user; a switch that --config turns off is not there."""
    source = ctx.get_parameter_source(option.name)
    value = ctx.params.get(option.name)
    off = value in (None, [], ()) or (value is False and not option.secondary_opts)
    return source is not None and source.name != "DEFAULT" and not off


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _without(*names: str) -> Why:
    """A flag that needs one of others."""
    needed = " or ".join(map(_flag, names))
    return lambda given: None if any(given[name] not in (None, False, 0) for name in names) else f"without {needed}"


def _beside(name: str, because: str) -> Why:
    return lambda given: f"beside {_flag(name)}, which {because}" if given[name] else None


def _without_splits(data: str) -> Why:
    """Of a split's name, where the data are one whole."""

    def why(given: Given) -> str | None:
        from layersift.data.rows import split_counts

        source = given[data]
        split = given["eval_split" if data == "eval_data" else "split"]
        return None if source is None or split_counts(source, split) else f"on {source}, which has no splits"

    return why


def _on_this_disk(given: Given) -> str | None:
    return f"on {given['model']}, which lies on this disk" if Path(given["model"]).expanduser().exists() else None


def _with_full(given: Given) -> str | None:
    return "with --method full, which trains the blocks themselves" if given["method"] == FULL else None


def _not_of_method(setting: str) -> Why:
    """Of rank, alpha and dropout, where the method's PEFT config has nothing of that kind."""

    def why(given: Given) -> str | None:
        from layersift.adapt.methods import common_fields

        method = given["method"]
        return None if method == FULL or common_fields(method)[setting] else f"with --method {method}"

    return why


def _with_constant(given: Given) -> str | None:
    return "with --scheduler constant, which has no warm-up" if given["scheduler"] == "constant" else None


def _with_modules(given: Given) -> str | None:
    """Beside a selection file that names modules and their ranks."""
    from layersift.records.selection import Selection

    path = Path(given["selection"] or given["source"] or "")
    if not path.is_file() or Selection.load(path).modules is None:
        return None
    return f"beside {path}, which names modules and their ranks itself"


def _nothing_frozen(given: Given) -> str | None:
    """Of what is about frozen blocks below the first trained one, where the very first is trained throughout."""
    from layersift.records.selection import Selection

    if parse_strategy(given["strategy"]).freezes:
        return None
    path, layers = given["selection"], given["layers"]
    everything = path is None and layers is None and given["ratio"] in (None, 1)
    if everything or 0 in _named(layers) or (path and 0 in Selection.load(path).selected_layers):
        return "where layer 0 is trained: no block below it is frozen"
    return None


def _strategy_changes_nothing(given: Given) -> str | None:
    """Of a strategy, where the layers that are trained leave it nothing to do."""
    from layersift.records.selection import Selection

    strategy = parse_strategy(given["strategy"])
    chosen = Selection.load(given["selection"]) if given["selection"] is not None else None
    if strategy.name == SKIPPING:
        no_gap = given["layers"] is None and given["ratio"] in (None, 1)
        if chosen is not None:
            no_gap = len(chosen.selected_layers) == chosen.num_layers - min(chosen.selected_layers)
        return "where every block from the lowest trained layer on carries adapters" if no_gap else None
    counted = len(chosen.selected_layers) if chosen is not None else _count(given["layers"])
    if counted == 1 and strategy.name != STATIC:
        return "where one layer is trained"
    return "where so many layers are trained: all of them are drawn each time" if counted == strategy.size else None


def _count(layers: str | None) -> int | None:
    """How many layers a text names; None where that depends on how many there are."""
    named = _named(layers)
    return len(named) if layers and named and "every" not in layers else None


def _named(layers: str | None) -> tuple[int, ...]:
    """The layers that a text names, of very many; none where it cannot be read, which is refused where it is."""
    with suppress(LayersiftError):
        return () if layers is None else parse_layers(layers, MOST_LAYERS)
    return ()


def _with_rotating(given: Given) -> str | None:
    if parse_strategy(given["strategy"]).keeps_prefix:
        return None
    return f"with --strategy {given['strategy']}, whose frozen blocks change"


def _without_strategy(given: Given) -> str | None:
    return "with --strategy static, whose steps all cost alike" if given["strategy"] == STATIC else None


def _by_own_rule(given: Given) -> str | None:
    """Beside the rules of `select` that name criterion and position themselves."""
    if given["compat"]:
        return f"with --compat {given['compat']}, which has a criterion and a position of its own"
    return "with --modules, which goes by the energy of gradients" if given["modules"] else None


def _of_criterion(reads: Callable[[Any], bool]) -> Why:
    """Where the criterion of `select` has no use for it; what a rule of the user's own reads is not known."""

    def why(given: Given) -> str | None:
        from layersift.score.registry import find_criterion

        name = given["criterion"]
        if given["compat"] or given["modules"] or rule_file(name) is not None or reads(find_criterion(name)):
            return None
        return f"with --criterion {name}"

    return why


def _reads_samples(given: Given) -> str | None:
    """Of how samples are drawn, where nothing looks at them."""
    if given["objective"] is not None:  # the cost is counted on samples
        return None
    return _of_criterion(lambda criterion: criterion.needs not in ("nothing", "weights"))(given)


def _reads_weights(given: Given) -> str | None:
    """Of how weights are loaded, where nothing looks at them."""
    if given["objective"] is not None:  # the cost is that of these weights
        return None
    return _of_criterion(lambda criterion: criterion.needs != "nothing")(given)


def _seed_of_selection(given: Given) -> str | None:
    if given["compat"]:
        return f"with --compat {given['compat']}, which takes the first samples"
    return None if given["criterion"].endswith("random") else _reads_samples(given)


def _not_counted(given: Given) -> str | None:
    """Of the adapters that `select` counts with."""
    if any(given[name] for name in ("budget_params", "objective", "modules")):
        return None
    return "without --budget-params, --objective or --modules"


def _targets_not_counted(given: Given) -> str | None:
    trains = _of_criterion(lambda criterion: criterion.needs == "training")(given) is None
    trains = trains and not given["compat"]
    return None if trains else _not_counted(given)


def _of_task(*kinds: str) -> Why:
    """On a run of a task of another kind."""

    def why(given: Given) -> str | None:
        from layersift.records.runs import RunRecord

        kind = RunRecord.load(given["run"]).encoder.kind
        return None if kind in kinds else f"on {given['run']}, a run of a {kind} task"

    return why


def _is_run(name: str) -> bool:
    from layersift.records.runs import RECORD_FILE

    return (Path(name) / RECORD_FILE).exists()


def _on_a_run(given: Given) -> str | None:
    return f"on {given['run']}, which is loaded as it was trained" if _is_run(given["run"]) else None


def _on_a_model(given: Given) -> str | None:
    return None if _is_run(given["run"]) else f"on {given['run']}, a model without adapters"


def _one_rate(given: Given) -> str | None:
    from layersift.config.recipe import find_recipe, read_recipe

    rates = read_recipe(find_recipe(given["recipe"]), given["assignments"]).compare.learning_rates
    return None if len(rates) > 1 else "without several compare.learning_rates in the recipe"


def _for_serving(given: Given) -> str | None:
    return "with --to serving, which copies an adapter as it is" if given["to"] == "serving" else None


def _for_python(given: Given) -> str | None:
    title = {"peft": "PEFT", "unsloth": "Unsloth"}.get(given["to"])
    return f"with --to {given['to']}: what {title} is told is Python, to be pasted" if title else None


_TRAINING = ("train", "advise")
_OF_DATA = tuple(field.name for field in fields(DataSettings) if field.name != "data")
_OF_LIMITS = ("memory", "device_name", "sharding", "devices")
_OF_PLAN = ("batch_size", "tokens", "gradient_checkpointing", "strategy", "epochs", "dtype", "quantization")
_OF_ADAPTERS = ("rank", "rank_of", "alpha", "dropout", "target_modules")
_OF_MODULES = ("rank", "rank_of", "target_modules")
REFUSALS = (
    Refusal((), ("quiet",), _beside("json", "prints nothing else")),
    Refusal(("inspect", "advise", "select", "train"), ("revision",), _on_this_disk),
    Refusal(("inspect",), (*_OF_DATA, "show", "against"), _without("data")),
    Refusal(("inspect",), (*_OF_PLAN, *_OF_LIMITS), _without("plan")),
    Refusal(("inspect",), ("epochs",), _without_strategy),
    Refusal(("inspect", "advise", "select", "train", "evaluate", "predict"), ("split",), _without_splits("data")),
    Refusal(_TRAINING, ("method_option", *_OF_ADAPTERS), _with_full),
    Refusal(("select",), ("rank", "target_modules"), _with_full),
    *(Refusal(_TRAINING, (name,), _not_of_method(name)) for name in ("rank", "alpha", "dropout")),
    Refusal(_TRAINING, ("rank_of",), _not_of_method("rank")),
    Refusal(("select",), ("rank",), _not_of_method("rank")),
    Refusal(_TRAINING, ("warmup_ratio",), _with_constant),
    Refusal(("train",), ("eval_split",), _without("eval_data")),
    Refusal(("train",), ("patience",), _without("hold_back", "eval_data")),
    Refusal(("train",), ("eval_split",), _without_splits("eval_data")),
    Refusal(("train", "export"), _OF_MODULES, _with_modules),
    Refusal(("train",), ("activation_cache", "prefix_dropout", "shared_prompt"), _nothing_frozen),
    Refusal(("train",), ("activation_cache", "shared_prompt"), _with_rotating),
    Refusal(("train",), ("strategy",), _strategy_changes_nothing),
    Refusal(("select",), ("criterion", "position", "probe_steps", "until_stable"), _by_own_rule),
    Refusal(("select",), ("position",), _of_criterion(lambda c: c.reads_states and c.position is None)),
    Refusal(("select",), ("probe_steps",), _of_criterion(lambda c: c.needs == "training")),
    Refusal(
        ("select",), ("until_stable",), _of_criterion(lambda c: c.by_sample and c.needs in ("forward", "gradients"))
    ),
    Refusal(("select",), ("dtype", "quantization", "stream"), _reads_weights),
    Refusal(("select",), ("max_samples",), _reads_samples),
    Refusal(("select",), ("seed",), _seed_of_selection),
    Refusal(("select",), ("method", "rank"), _not_counted),
    Refusal(("select",), ("target_modules",), _targets_not_counted),
    Refusal(("evaluate",), ("seed",), _without("max_samples")),
    Refusal(("evaluate",), ("exact_match",), _of_task("instruction")),
    Refusal(("evaluate",), ("max_new_tokens",), _without("exact_match")),
    Refusal(("evaluate",), ("wrong",), _of_task("classification")),
    Refusal(("predict",), ("max_new_tokens",), _of_task("instruction")),
    Refusal(("benchmark",), ("quantization",), _on_a_run),
    Refusal(("benchmark",), ("base",), _on_a_model),
    Refusal(("push",), ("output",), _without("dry_run")),
    Refusal(("compare",), ("tune",), _one_rate),
    Refusal(("run", "sweep", "compare", "oracle"), ("jobs",), _beside("on", "trains as many at once as there is room")),
    Refusal(("run", "sweep", "compare", "oracle", "advise"), ("gpus",), _without("on")),
    Refusal(("advise",), ("on",), _without("trial")),
    Refusal(("sweep",), ("sizes",), _beside("ranks", "are of all layers")),
    Refusal(("sweep",), ("seeds", "budget"), _without("ranks")),
    Refusal(("export",), (*_OF_ADAPTERS, "into", "model", "trust_remote_code"), _for_serving),
    Refusal(("export",), ("into",), _for_python),
    Refusal(("export",), ("unfreeze",), _without("spectrum")),
    Refusal(("export",), (*_OF_ADAPTERS, "into"), _beside("unfreeze", "writes no adapters")),
)
