"""A recipe: everything one run needs, as a YAML file whose keys are the names of the command line's flags."""

from __future__ import annotations

import difflib
import types
import typing
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from layersift.adapt.methods import find_method
from layersift.errors import LayersiftError
from layersift.load.models import ModelSource
from layersift.load.task import DataSettings
from layersift.score.table import find_criterion
from layersift.select.baselines import arm_name, check_arm
from layersift.select.settings import SelectSettings
from layersift.train.settings import TrainSettings


@dataclass(frozen=True)
class EvaluateSettings:
    """What the arms are judged on."""

    # One source, or several by name, each with its split behind an @; None: a fifth of the training data is held back
    # by the seed.
    data: str | dict[str, str] | None = None
    split: str = "test"
    max_samples: int | None = None  # of each source; None: all
    metrics: list[str] | None = None  # those to report, the first being the score; None: all
    exact_match: int = 0  # rows for which answers are generated and their final numbers compared
    max_new_tokens: int = 256

    def sources(self) -> dict[str, tuple[str, str]]:
        """Source and split by name; a single one has no name."""
        if self.data is None:
            return {}
        given = {"": self.data} if isinstance(self.data, str) else self.data
        parts = {name: source.rpartition("@") for name, source in given.items()}
        return {name: (before or after, after if at else self.split) for name, (before, at, after) in parts.items()}

    def __post_init__(self) -> None:
        for name, fewest in (("max_samples", 1), ("exact_match", 0), ("max_new_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < fewest:
                raise LayersiftError(f"evaluate.{name} {value} is out of range; at least {fewest} is needed")


@dataclass(frozen=True)
class Smoke:
    """What stands in for the model when a recipe is only to be tried out; see `layersift.compare.smoke`."""

    model_type: str  # of transformers: the class is the real one, the size is tiny
    classes: int = 2  # of a classification task


DEFAULT_CRITERIA = (
    "cka",
    "cka-robust",
    "cosine",
    "ls-lora",
    "fisher",
    "gradient-norm",
    "spectrum",
    "lora-drop",
    "first",
    "last",
    "middle",
    "alternate",
    "first-and-last",
    "bottom:cka",
)


@dataclass(frozen=True)
class CompareSettings:
    """The grid of `layersift compare` and `layersift oracle`."""

    criteria: list[str] = field(default_factory=lambda: list(DEFAULT_CRITERIA))
    sizes: list[int] = field(default_factory=list)  # numbers of layers; none: half of them
    seeds: int = 3  # of training, counted up from the recipe's
    methods: list[str] = field(default_factory=list)  # none: the recipe's
    random: int = 5  # random subsets of each size
    # Of which one is chosen for each number of layers, on rows held back from training; none: the recipe's.
    learning_rates: list[float] = field(default_factory=list)
    retention: str | None = None  # text of another kind, on which the loss is taken before and after
    probe_share: float = 0.1  # of the steps of a training, what criteria may take that train

    def __post_init__(self) -> None:
        names = [find_criterion(name).name for name in self.criteria]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise LayersiftError(f"compare.criteria: {', '.join(twice)}: each can be named once")
        for name, fewest in (("seeds", 1), ("random", 1)):
            if getattr(self, name) < fewest:
                raise LayersiftError(
                    f"compare.{name} {getattr(self, name)} is out of range; at least {fewest} is needed"
                )
        if not 0 < self.probe_share <= 1:
            raise LayersiftError(
                f"compare.probe_share {self.probe_share} is out of range; above 0 and at most 1 is possible"
            )
        try:  # YAML 1.1 takes 1e-3 for a text
            rates = [float(rate) for rate in self.learning_rates]
        except (TypeError, ValueError):
            raise LayersiftError(f"compare.learning_rates {self.learning_rates}: expected numbers") from None
        object.__setattr__(self, "learning_rates", rates)
        for method in self.methods:
            find_method(method)
        if not all(isinstance(size, int) and size > 0 for size in self.sizes):
            raise LayersiftError(f"compare.sizes {self.sizes}: expected numbers of layers")
        for key in ("sizes", "methods"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise LayersiftError(f"compare.{key} {getattr(self, key)}: each can be named once")


@dataclass(frozen=True)
class Recipe:
    """One comparison: choose layers, train every arm, evaluate."""

    model: ModelSource
    data: DataSettings
    output: str
    select: SelectSettings = field(default_factory=SelectSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    arms: tuple[str, ...] = ("selected", "all", "random", "untouched")  # none: only select
    seed: int = 0
    about: str = ""  # for people: what is reported of it, and what it needs
    smoke: Smoke | None = None
    compare: CompareSettings = field(default_factory=CompareSettings)

    def __post_init__(self) -> None:
        for arm in self.arms:
            check_arm(arm)
        if len({arm_name(arm) for arm in self.arms}) < len(self.arms):
            raise LayersiftError("arms: each can be named once")

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"arms": list(self.arms)}


def recipe_of(values: dict[str, Any]) -> Recipe:
    """The recipe that :meth:`Recipe.to_json` was made of."""
    sections = {name: cls(**values[name]) for name, cls in SECTIONS.items() if values.get(name) is not None}
    return Recipe(**values | sections | {"arms": tuple(values["arms"])})


SECTIONS: dict[str, Any] = {
    "model": ModelSource,
    "data": DataSettings,
    "select": SelectSettings,
    "train": TrainSettings,
    "evaluate": EvaluateSettings,
    "smoke": Smoke,
    "compare": CompareSettings,
}
# A text in the place of a section is its main entry: `model: roberta-base`.
MAIN_KEY = {"model": "name", "data": "data", "evaluate": "data", "smoke": "model_type"}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        LayersiftError: no such file, or it holds something else.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LayersiftError(f"{path}: cannot read this file ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LayersiftError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise LayersiftError(f"{path}: expected keys and values, got {type(values).__name__}")
    return values


def unknown_key(where: str, key: str, known: typing.Iterable[str]) -> LayersiftError:
    """The error for a key that nothing reads."""
    names = sorted(known)
    close = difflib.get_close_matches(key, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"
    return LayersiftError(f"{where}: unknown key {key!r}{hint}")


def override(values: dict[str, Any], assignments: list[str]) -> None:
    """Apply ``section.key=value`` to the values of a recipe; the value is read as YAML.

    Raises:
        LayersiftError: an assignment of another form.
    """
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        *sections, key = path.split(".")
        if not equals or not key or len(sections) > 1:
            raise LayersiftError(f"--set {assignment}: expected key=value or section.key=value")
        place = values
        for section in sections:
            inner = place.get(section)
            if not isinstance(inner, dict):
                inner = {MAIN_KEY[section]: inner} if inner is not None and section in MAIN_KEY else {}
                place[section] = inner
            place = inner
        place[key] = yaml.safe_load(value)


def read_recipe(path: Path, assignments: list[str] | None = None, output: str | None = None) -> Recipe:
    """The recipe of a YAML file with overrides.

    Raises:
        LayersiftError: the file, a key or a value cannot be used.
    """
    values = read_yaml(path)
    override(values, assignments or [])
    if output is not None:
        values["output"] = output
    known = {f.name for f in fields(Recipe)}
    for key in values:
        if key not in known:
            raise unknown_key(str(path), str(key), known)
    for key in ("model", "data", "output"):
        if values.get(key) is None:
            raise LayersiftError(f"{path}: {key!r} is missing")
    seed = values.get("seed", 0)
    sections = {name: _section(path, name, values[name], seed) for name in SECTIONS if values.get(name) is not None}
    sections.setdefault("select", SelectSettings(seed=seed))
    arms = values.get("arms", Recipe.arms)
    if not isinstance(arms, list | tuple) or not all(isinstance(arm, str) for arm in arms):
        raise LayersiftError(f"{path}: 'arms' is to be a list of names")
    return Recipe(
        output=str(values["output"]),
        arms=tuple(arms),
        seed=_checked(path, "seed", seed, int),
        about=_checked(path, "about", values.get("about", ""), str),
        **sections,
    )


def _section(path: Path, name: str, given: Any, seed: int) -> Any:
    cls = SECTIONS[name]
    if not isinstance(given, dict):
        if name not in MAIN_KEY or not isinstance(given, str):
            raise LayersiftError(f"{path}: {name!r} is to hold keys and values, got {type(given).__name__}")
        given = {MAIN_KEY[name]: given}
    hints = typing.get_type_hints(cls)
    own = {f.name: f for f in fields(cls) if not (name == "select" and f.name == "seed")}  # the seed is the recipe's
    for key in given:
        if key not in own:
            raise unknown_key(f"{path}, {name}", str(key), own)
    for key, entry in own.items():
        if entry.default is MISSING and entry.default_factory is MISSING and key not in given:
            raise LayersiftError(f"{path}, {name}: {key!r} is missing")
    values = {key: _checked(path, f"{name}.{key}", value, hints[key]) for key, value in given.items()}
    return cls(**values, **({"seed": seed} if name == "select" else {}))


def _checked(path: Path, key: str, value: Any, wanted: Any) -> Any:
    """``value`` if it is of the field's type; whole numbers serve as fractions, and YAML 1.1's 1e-3 as a number."""
    options = typing.get_args(wanted) if typing.get_origin(wanted) in (typing.Union, types.UnionType) else (wanted,)
    origins = (typing.get_origin(option) or option for option in options)
    simple = tuple(str if o is typing.Literal else o for o in origins)  # the settings themselves check the names
    if float in simple and not isinstance(value, bool):
        try:
            return float(value) if value is not None else None
        except (TypeError, ValueError):
            pass
    elif isinstance(value, simple) and (bool in simple or not isinstance(value, bool)):
        return value
    names = " or ".join("nothing" if o is type(None) else o.__name__ for o in simple)
    raise LayersiftError(f"{path}: {key} is {value!r}; expected {names}")
