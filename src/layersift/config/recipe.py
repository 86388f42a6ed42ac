"""A recipe: everything one experiment needs, as a YAML file whose keys are the names of the command line's flags.

Some come with layersift, one file each, named by its path under `recipes/`. A figure's file names several recipes.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from layersift.config.fields import Checked, Seed, json_values, parse_yaml, read_as, read_yaml
from layersift.config.select import SelectSettings, rule_file
from layersift.config.train import AUTO, FULL, TrainSettings
from layersift.config.variants import BASE, CompareSettings, Smoke, parse_variant
from layersift.errors import LayersiftError, ModelError, unknown_key, unknown_name

QUANTIZATIONS = ("4bit", "8bit")
DTYPES = ("float32", "bfloat16", "float16", "float64")
# Of torch's kinds of devices, those that run a model; `meta` holds no numbers.
DEVICE = re.compile(r"(cpu|cuda|mps|xpu|npu|hpu|mlu|musa)(:\d{1,3})?")


@dataclass(frozen=True)
class ModelSource(Checked):
    """Where a model comes from and how its code and numbers are to be treated.

    Examples:
        >>> from layersift import ModelSource
        >>> source = ModelSource("org/model", revision="main", quantization="4bit")
        >>> source.name, source.quantization
        ('org/model', '4bit')
    """

    name: Annotated[str, Meta(description="A local directory, a Hub id or a .gguf file.")]  # as the user gave it
    revision: Annotated[str | None, Meta(description="Revision of a Hub model.")] = None
    # None: float32 on a CPU, the checkpoint's own on a GPU
    dtype: Annotated[str | None, Meta(description="float32, bfloat16 or float16.")] = None
    device: Annotated[str | None, Meta(description="cpu, cuda, cuda:1, ...; else the first GPU, or the CPU.")] = None
    trust_remote_code: Annotated[bool, Meta(description="Run Python code that a model brings.")] = False
    quantization: Annotated[
        str | None, Meta(description="4bit (NF4) or 8bit: quantise the base on loading, by bitsandbytes.")
    ] = None
    stream: Annotated[
        bool, Meta(description="Read a model larger than memory: one block at a time, from its files.")
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name.strip():
            raise ModelError("model '': a local directory, a Hub id or a .gguf file is needed")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise unknown_name("dtype", self.dtype, DTYPES)
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise unknown_name("quantization", self.quantization, QUANTIZATIONS)
        if self.quantization is not None and self.stream:
            raise ModelError("stream reads the blocks from their files as they are; quantization needs them loaded")
        if self.device is not None and not DEVICE.fullmatch(self.device):
            raise ModelError(f"device {self.device!r}: expected cpu, cuda, cuda:1, mps or another kind of accelerator")


TaskKind = Literal["classification", "regression", "instruction", "text"]
TASK_KINDS: tuple[TaskKind, ...] = ("classification", "regression", "instruction", "text")


@dataclass(frozen=True)
class Columns:
    """Which column holds what; None where the task has no such part. Flags of the command line set the same fields."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    prompt: str | None = None
    response: str | None = None
    messages: str | None = None
    context: str | None = None  # what an instruction is about; may be empty in a row (Alpaca's `input`)
    image: str | None = None
    choices: str | None = None  # list of answers among which the response names one, by index, letter or text
    # What a conversation may have beside; found by their names, and may be empty in a row.
    system: str | None = None
    history: str | None = None  # earlier rounds
    tools: str | None = None  # what the assistant may call
    template_values: str | None = None  # further values for the chat template, such as enable_thinking

    OPTIONAL: ClassVar[tuple[str, ...]] = ("context", "system", "history", "tools", "template_values")

    def used(self) -> list[str]:
        """Names of the columns in use."""
        return [name for name in asdict(self).values() if name]

    def needed(self) -> list[str]:
        """Names of the columns that are to be filled in every row."""
        return [name for role, name in self.by_role().items() if role not in self.OPTIONAL]

    def by_role(self) -> dict[str, str]:
        """The columns in use by what they hold."""
        return {part: name for part, name in asdict(self).items() if name}

    def described(self) -> str:
        """The columns in use, for the screen."""
        return ", ".join(f"{part.replace('_', ' ')} = {name!r}" for part, name in self.by_role().items())


@dataclass(frozen=True)
class DataSettings(Checked):
    """Where the samples are and what their columns mean; columns that are None are found by their names.

    Examples:
        >>> from layersift import DataSettings
        >>> data = DataSettings("rows.jsonl", text_column="text", max_length=256)
        >>> data.split, data.columns().used()
        ('train', ['text'])
    """

    data: Annotated[
        str,
        Meta(
            description="A .jsonl, .json, .csv or .parquet file, a directory saved by `datasets` or of images, or a "
            "Hub id."
        ),
    ]
    task: Annotated[
        TaskKind | None, Meta(description="classification, regression, instruction or text; else found out.")
    ] = None
    text_column: Annotated[str | None, Meta(description="Column of the text.")] = None
    text_pair_column: Annotated[str | None, Meta(description="Column of the second text of a pair.")] = None
    label_column: Annotated[str | None, Meta(description="Column of the class, or of the number to predict.")] = None
    prompt_column: Annotated[str | None, Meta(description="Column of the prompt.")] = None
    response_column: Annotated[
        str | None, Meta(description="Column of the response. [of preferences: the chosen side]")
    ] = None
    messages_column: Annotated[str | None, Meta(description="Column of chat messages.")] = None
    image_column: Annotated[str | None, Meta(description="Column of the image or images: paths, or encoded bytes.")] = (
        None
    )
    choices_column: Annotated[str | None, Meta(description="Column of a list of answers; the response names one.")] = (
        None
    )
    split: Annotated[str, Meta(description="Split of a directory or Hub dataset.")] = "train"
    max_length: Annotated[int, Meta(ge=1, le=10**8, description="Longest sequence in tokens; the rest is cut off.")] = (
        512
    )
    chat_template: Annotated[
        str | None, Meta(description="A Jinja file, instead of the model's own chat template.")
    ] = None
    source_language: Annotated[
        str | None, Meta(description="Language of the prompts, as a translation model's tokenizer names it (en_XX).")
    ] = None
    target_language: Annotated[str | None, Meta(description="Language of the responses, likewise (de_DE).")] = None

    def __post_init__(self) -> None:
        if self.task is not None and self.task not in TASK_KINDS:
            raise unknown_name("task", str(self.task), TASK_KINDS)
        super().__post_init__()

    def columns(self) -> Columns:
        """The columns that were given."""
        roles = ("text", "text_pair", "label", "prompt", "response", "messages", "image", "choices")
        return Columns(**{role: getattr(self, f"{role}_column") for role in roles})


@dataclass(frozen=True)
class EvaluateSettings(Checked):
    """What the variants of a run, or the choices of a comparison, are judged on.

    Examples:
        >>> from layersift import EvaluateSettings
        >>> settings = EvaluateSettings({"news": "news.jsonl", "forum": "org/forum@validation"})
        >>> settings.sources()
        {'news': ('news.jsonl', 'test'), 'forum': ('org/forum', 'validation')}
    """

    # One source, or several by name, each with its split behind an @; None: a fifth of the training data is held back
    # by the seed.
    data: Annotated[
        str | dict[str, str] | None, Meta(description="Test data; else a fifth of the training rows is held back.")
    ] = None
    split: Annotated[str, Meta(description="Split of a directory or Hub dataset.")] = "test"
    max_samples: (
        Annotated[int, Meta(ge=1, le=10**9, description="Samples of each source, drawn at random. [all]")] | None
    ) = None
    metrics: (
        Annotated[list[str], Meta(min_length=1, description="Metrics to report, the first being the score. [all]")]
        | None
    ) = None
    exact_match: Annotated[
        int,
        Meta(ge=0, le=10**9, description="For this many prompts, generate answers and compare their final numbers."),
    ] = 0
    max_new_tokens: Annotated[int, Meta(ge=1, le=10**6, description="Longest generated answer in tokens.")] = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        sources = self.data.values() if isinstance(self.data, dict) else [self.data]
        if self.data == {} or "" in sources:
            raise LayersiftError("evaluate.data is empty; name test data, or leave it away to hold rows back")

    def sources(self) -> dict[str, tuple[str, str]]:
        """Source and split by name; a single one has no name."""
        if self.data is None:
            return {}
        given = {"": self.data} if isinstance(self.data, str) else self.data
        parts = {name: source.rpartition("@") for name, source in given.items()}
        return {name: (before or after, after if at else self.split) for name, (before, at, after) in parts.items()}


log = logging.getLogger(__name__)
# A text in the place of a section is its main entry: `model: roberta-base`.
MAIN_KEY = {"model": "name", "data": "data", "evaluate": "data", "smoke": "model_type"}


@dataclass(frozen=True)
class Recipe(Checked):
    """One experiment: choose layers, train every variant, judge.

    Args:
        model: the base model.
        data: the rows to choose and to train on.
        output: the directory that the experiment is kept in.
        select: how layers are chosen.
        train: how adapters are trained.
        evaluate: what they are judged on.
        variants: what is trained, by name.
        seed: of samples, adapters and trainings.
        about: a note for people.
        smoke: a tiny model that stands in for the real one in ``layersift run --smoke``.
        compare: what :func:`layersift.compare` trains beside.

    Examples:
        >>> from layersift import DataSettings, ModelSource, Recipe
        >>> recipe = Recipe(model=ModelSource("model"), data=DataSettings("rows.jsonl"), output="out")
        >>> recipe.variants
        ('selected', 'all', 'random', 'base')
    """

    model: ModelSource
    data: DataSettings
    output: Annotated[str, Meta(description="The directory that the experiment is kept in, from the current one.")]
    select: SelectSettings = field(default_factory=SelectSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    variants: Annotated[
        tuple[str, ...],
        Meta(description="selected, base, all, random, first, last, top-N, NAME=MASK, NAME=LAYERS."),
    ] = ("selected", "all", "random", "base")  # none: only select
    seed: Seed = 0
    # For people: what is reported of it, and what it needs.
    about: Annotated[str, Meta(description="For people.")] = ""
    smoke: Smoke | None = None
    compare: CompareSettings = field(default_factory=CompareSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train.learning_rate == AUTO and self.compare.learning_rates:
            raise LayersiftError(
                "train.learning_rate auto and compare.learning_rates are two ways to choose a rate; leave one away"
            )
        if len({parse_variant(variant).name for variant in self.variants}) < len(self.variants):
            raise LayersiftError("variants: each can be named once")

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those that a comparison trains with."""
        return tuple(self.seed + i for i in range(self.compare.seeds))

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        values: dict[str, Any] = json_values(self)
        return values


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
        place[key] = parse_yaml(value, f"--set {assignment}")


def read_recipe(path: Path, assignments: list[str] | None = None, output: str | None = None) -> Recipe:
    """The recipe of a YAML file with overrides.

    Args:
        path: the YAML file.
        assignments: overrides, each ``section.key=value``.
        output: the output directory, in place of the file's.

    Returns:
        The recipe, each value checked.

    Raises:
        LayersiftError: the file, a key or a value cannot be used; or the file allows foreign code.

    Examples:
        >>> from pathlib import Path
        >>> from layersift import read_recipe
        >>> recipe = read_recipe(Path("recipe.yaml"), ["train.epochs=1"])
        >>> recipe.model.name, recipe.train.epochs
        ('model', 1.0)
    """
    values = read_yaml(path)
    _require_no_trust(values, assignments or [], path)
    override(values, assignments or [])
    if output is not None:
        values["output"] = output
    if isinstance(values.get("output"), str):
        values["output"] = os.path.expanduser(values["output"])
    recipe = recipe_of(values, str(path))
    for name in (recipe.select.criterion, *recipe.compare.criteria):
        if rule_file(name) is not None:
            log.warning("%s: criterion %s runs that file's Python code", path, name)
    return recipe


def _require_no_trust(values: dict[str, Any], assignments: list[str], path: Path) -> None:
    """Whether foreign code may run is said on the command line alone: recipes are passed on.

    Raises:
        LayersiftError: the file would allow it, and the command line does not say so, too.
    """
    model = values.get("model")
    allowed = any(a.partition("=")[0] == "model.trust_remote_code" for a in assignments)
    if isinstance(model, dict) and model.get("trust_remote_code") and not allowed:
        raise LayersiftError(
            f"{path}: model.trust_remote_code runs Python code that the model brings, and counts only on the command "
            "line: --set model.trust_remote_code=true"
        )


def recipe_of(values: dict[str, Any], where: str) -> Recipe:
    """The recipe of keys and values as people write them; ``where`` names the file in messages.

    Raises:
        LayersiftError: a key or a value cannot be used.
    """
    given = {key: value for key, value in values.items() if value is not None or key not in _SECTIONS}
    for section, key in MAIN_KEY.items():
        if isinstance(given.get(section), str):
            given[section] = {key: given[section]}
    chosen = given.setdefault("select", {})
    if isinstance(chosen, dict):
        if "seed" in chosen:  # the seed is the recipe's
            raise unknown_key(f"{where}, select", "seed", [k for k in SelectSettings.__annotations__ if k != "seed"])
        given["select"] = chosen | ({"seed": given["seed"]} if "seed" in given else {})
    if isinstance(given.get("arms"), list) and "variants" not in given:  # as older versions wrote it
        given["variants"] = [BASE if name == "untouched" else name for name in given.pop("arms")]
    recipe = read_as(Recipe, given, where)
    if useless := _without_effect(recipe):
        raise LayersiftError(f"{where}: {useless}; leave it away")
    return recipe


def _without_effect(recipe: Recipe) -> str | None:
    """The first key whose value nothing would read, and why; None where there is none."""
    train, plain, test = recipe.train, TrainSettings(), recipe.evaluate
    if test.split != EvaluateSettings.split and test.data is None:
        return "evaluate.split has no effect without evaluate.data"
    if test.max_new_tokens != EvaluateSettings.max_new_tokens and not test.exact_match:
        return "evaluate.max_new_tokens has no effect without evaluate.exact_match"
    if train.warmup_ratio not in (plain.warmup_ratio, 0) and train.scheduler == "constant":
        return "train.warmup_ratio has no effect with train.scheduler constant, which has no warm-up"
    if train.method == FULL and not recipe.compare.methods:
        names = ("rank", "alpha", "dropout", "target_modules")
        if name := next((n for n in names if getattr(train, n) != getattr(plain, n)), None):
            return f"train.{name} has no effect with train.method full, which trains the blocks themselves"
    if recipe.model.revision is not None and Path(recipe.model.name).expanduser().exists():
        return f"model.revision has no effect on {recipe.model.name}, which lies on this disk"
    return None


_SECTIONS = ("model", "data", "select", "train", "evaluate", "smoke", "compare")


DIRECTORY = Path(__file__).parent.parent / "recipes"


def recipe_names() -> list[str]:
    """All of them, sorted: ``glue/roberta-base/sst2`` and so on."""
    return sorted(path.relative_to(DIRECTORY).with_suffix("").as_posix() for path in DIRECTORY.rglob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The recipe's file: a file of the user's, or else one of ours by name, with or without ``recipes/`` and ``.yaml``.

    Raises:
        LayersiftError: neither; the message names the nearest.
    """
    if Path(name).is_file():
        return Path(name)
    plain = name.removesuffix(".yaml").removeprefix("recipes/")
    known = recipe_names()
    if plain in known:
        return DIRECTORY / f"{plain}.yaml"
    if name.endswith((".yaml", ".yml")) and not name.startswith("recipes/"):
        return Path(name)  # the reader says that there is no such file
    raise unknown_name("recipe", name, known)


FigureKind = Literal["tradeoff", "similarity", "variants", "sweep"]
FIGURE_KINDS: tuple[FigureKind, ...] = ("tradeoff", "similarity", "variants", "sweep")


@dataclass(frozen=True)
class FigureRecipe(Checked):
    """Several recipes, drawn together."""

    figure: Annotated[FigureKind, Meta(description="What is drawn.")]
    recipes: Annotated[tuple[str, ...], Meta(description="Files, or names from `layersift recipes`.")]
    variants: Annotated[tuple[str, ...], Meta(description="The variants that each of them is carried out with.")]
    output: Annotated[str, Meta(description="The directory that all of it is kept in.")] = ""
    about: Annotated[str, Meta(description="For people.")] = ""

    def __post_init__(self) -> None:
        if self.figure not in FIGURE_KINDS:
            raise unknown_name("figure", str(self.figure), FIGURE_KINDS)
        super().__post_init__()


def is_figure(path: Path) -> bool:
    """Whether a recipe's file describes a figure."""
    return "figure" in read_yaml(path)


def read_figure(path: Path, output: str | None = None) -> FigureRecipe:
    """The figure of a YAML file.

    Raises:
        LayersiftError: the file, a key or a value cannot be used.
    """
    values = read_yaml(path) | ({"output": output} if output else {})
    if (kind := values.get("figure")) not in FIGURE_KINDS:
        raise unknown_name("figure", str(kind), FIGURE_KINDS)
    figure = read_as(FigureRecipe, values, str(path))
    if not figure.output:
        raise LayersiftError(f"{path}: 'output' is missing")
    return figure
