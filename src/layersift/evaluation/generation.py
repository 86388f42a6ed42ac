"""Answers, generated greedily, each independent of its neighbours in a batch; and what a written answer comes to."""

from __future__ import annotations

import logging
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any
from unicodedata import normalize

import torch
import transformers

from layersift.data.chat.conversation import LETTERS
from layersift.data.encode import Encoder
from layersift.data.examples import Example, collate, wrap_model_errors
from layersift.errors import LayersiftError
from layersift.processes import from_all_processes, own_share
from layersift.represent.hooks import evaluation_mode
from layersift.training.fit import find_stops, greedy_config

log = logging.getLogger(__name__)

GENERATION_BATCH = 16


@contextmanager
def generating_by(model: Any, config: Any) -> Iterator[None]:
    """While active, this is the model's generation config: `generate` fills what one leaves open from the model's."""
    owners = [m for m in model.modules() if "generation_config" in vars(m)]
    before = [m.generation_config for m in owners]
    for owner in owners:
        owner.generation_config = config
    try:
        yield
    finally:
        for owner, was in zip(owners, before, strict=True):
            owner.generation_config = was


def answers_of(
    model: Any,
    encoder: Encoder,
    prompts: Sequence[Example],
    pad_id: int,
    max_new_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> list[str | None]:
    """Greedily generated answers to prompts, in their order; None to one that leaves the model no place for an answer.

    An answer is as long as ``max_new_tokens`` or, where these are fewer, the places that its prompt leaves. What was
    cut or left unanswered so is told.

    Raises:
        ModelError: the model does not run on them.
    """
    answers: list[str | None] = [None] * len(prompts)
    longest = [min(max_new_tokens, _room(encoder, prompt)) for prompt in prompts]
    config, (_, texts) = greedy_config(model, encoder, pad_id), find_stops(model, encoder)
    order = sorted((i for i in range(len(prompts)) if longest[i] > 0), key=lambda i: (longest[i], -len(prompts[i])))
    _say_short(encoder, prompts, longest, max_new_tokens)
    batches: list[list[int]] = []
    for i in order:  # prompts of a batch have equal room, so that no answer depends on its neighbours
        if batches and len(batches[-1]) < GENERATION_BATCH and longest[batches[-1][0]] == longest[i]:
            batches[-1].append(i)
        else:
            batches.append([i])
    answerable = [prompts[i] for i in order]
    with (
        evaluation_mode(model),
        generating_by(model, config),
        wrap_model_errors(model, answerable, "a smaller --max-new-tokens"),
    ):
        for members in (batches[place] for place in own_share(len(batches))):
            for i, text in zip(
                members,
                _generate(model, encoder, [prompts[i] for i in members], pad_id, longest[members[0]], texts),
                strict=True,
            ):
                answers[i] = text
            if progress is not None:
                progress(len(members))
    if progress is not None and len(order) < len(prompts):
        progress(len(prompts) - len(order))
    return [
        next((answer for answer in of if answer is not None), None)
        for of in zip(*from_all_processes(answers), strict=True)
    ]


def _room(encoder: Encoder, prompt: Example) -> int:
    """How many tokens the model has places for behind a prompt; a decoder of its own begins anew."""
    if encoder.places is None:
        return 10**9
    return encoder.places - (1 if encoder.seq2seq else len(prompt))


def _say_short(encoder: Encoder, prompts: Sequence[Example], longest: Sequence[int], wanted: int) -> None:
    without = [i for i, room in enumerate(longest) if room <= 0]
    if without:
        named = ", ".join(f"{i + 1} ({len(prompts[i])} tokens)" for i in without[:5])
        log.warning(
            "%d of %d prompts have no answer: the model has places for %d tokens, and these fill them: %s%s",
            len(without),
            len(prompts),
            encoder.places,
            named,
            ", ..." if len(without) > 5 else "",
        )
    if short := [room for room in longest if 0 < room < wanted]:
        log.warning(
            "%d of %d answers have no more than %s new tokens and not %d: the model has places for %d tokens",
            len(short),
            len(prompts),
            str(min(short)) if min(short) == max(short) else f"{min(short)} to {max(short)}",
            wanted,
            encoder.places,
        )


def _generate(
    model: Any, encoder: Encoder, prompts: list[Example], pad_id: int, max_new_tokens: int, stops: Sequence[str]
) -> list[str]:
    """Greedy continuations. A decoder's prompts are padded on the left, since it goes on from each row's end."""
    inputs = {name: value.to(model.device) for name, value in collate(prompts, pad_id).items()}
    if not encoder.seq2seq:
        width = inputs["input_ids"].shape[1]
        by_token = [name for name, value in inputs.items() if value.shape == (len(prompts), width)]
        shifts = [width - len(prompt) for prompt in prompts]
        for name in by_token:
            rows = [row.roll(shift) for row, shift in zip(inputs[name], shifts, strict=True)]
            inputs[name] = torch.stack(rows)
    ended = {}
    if stops:
        begins = 0 if encoder.seq2seq else inputs["input_ids"].shape[1]
        ended = {"stopping_criteria": transformers.StoppingCriteriaList([_Ended(encoder.tokenizer, stops, begins)])}
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, **ended)
    new = output if encoder.seq2seq else output[:, inputs["input_ids"].shape[1] :]
    texts = encoder.tokenizer.batch_decode(new, skip_special_tokens=True)
    return [text_before(text, stops) for text in texts]


class _Ended(transformers.StoppingCriteria):  # type: ignore[misc]  # transformers is not typed
    """Which rows have written a text that ends an answer; transformers' own fails on tokens that are whole words."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], begins: int) -> None:
        self.tokenizer, self.stops, self.begins = tokenizer, stops, begins
        self.tokens = 2 * max(len(tokenizer(stop, add_special_tokens=False)["input_ids"]) for stop in stops) + 2

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.begins :][:, -self.tokens :], skip_special_tokens=True)
        return torch.tensor([any(stop in text for stop in self.stops) for text in texts], device=input_ids.device)


def text_before(text: str, stops: Sequence[str]) -> str:
    """The text in front of the first of these."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


TIMEOUT = 5  # seconds, for one expression
LONGEST = 200  # characters of an answer; what is longer, as where a model repeats itself, is none
NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:(?<=\d)\.\d+|(?<![\d.])\.\d+)|\d{1,3}(?:,\d{3})+(?!\d)|\d+"
PLAIN = rf"(?:{NUMBER})(?:[eE][+-]?\d+(?!\w))?"
BRACES = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
COMMAND = (
    rf"\\(?:d?frac|t?frac|sqrt|pi|cdot|times|div|left|right)(?![a-zA-Z])(?:\[\d+\])?(?:\s*{BRACES}|(?<=c)\s*\d\s*\d)*"
)
OTHER = rf"{COMMAND}|(?:sqrt|√)\s*(?:\([^()]*\)|{PLAIN}|{BRACES})|π|\bpi\b|\([^()A-Za-z,]*\d[^()A-Za-z,]*\)"
TERM = rf"(?:{OTHER}|{PLAIN})(?:\^(?:{BRACES}|\(?-?\d+\)?))?"
CURRENCY = "€£¥₹₩"  # beside the dollar
# Terms with an operator between them, or a factor written in front of a root: 3/4, 2\sqrt{3}, 1 + \pi.
EXPRESSION = re.compile(
    rf"(?:(?<![\w)}}])-\s*)?(?:(?:\\?\$|[{CURRENCY}])\s*)?(?:(?<![\w)}}])-\s*)?(?:\d+ (?=\d+/\d))?{TERM}"
    rf"(?:\s*(?:[-+*/·\u00d7]|\\(?:cdot|times|div)(?![a-zA-Z]))\s*(?:{TERM})|\s*(?:{OTHER}))*(?:\s*\\?%)?"
)
MATHS = re.compile(r"[\\^_=<>|{}\[\]()√π∞]|\d|(?<!\w)[a-z](?!\w|')")  # what is no word nor unit
TIME_OR_DATE = re.compile(r"\d\s*:\s*\d|\d{4}-\d\d?-\d\d?|\d\d?/\d\d?/\d{2,4}")  # and ratios: no one number
ALONE = rf"(?!\)?\s*(?:[,/&]|or\b|and\b)?\s*\(?[{LETTERS}]\b(?!\s+\w))(?!\)?\s*(?:[,/&]|or\b|and\b)\s*\(?[{LETTERS}]\b)"
GLUED = re.compile(r"(?<![\\a-zA-Z])[A-Za-z]+$")  # in front of a number that is part of a name, as in GPT2; no command
SIMPLE = re.compile(rf"(-?)(?:(\d+) )?({PLAIN})(?:/({PLAIN}))?")


@dataclass(frozen=True)
class Answer:
    """What a text comes to: an exact number, or an expression that math-verify has read."""

    values: tuple[Any, ...]  # of a percentage both readings

    def equals(self, other: Answer | None) -> bool:
        """Whether both are the same in mathematics.

        Raises:
            LayersiftError: that takes math-verify, and it is not installed.
        """
        return other is not None and any(_equal(a, b) for a in self.values for b in other.values)


def final_answer(text: str) -> Answer | None:
    """The answer that a text ends in: behind GSM8K's last ``####``, in the last ``\\boxed{}``, or else the last
    number or expression of the text. None where there is none that can be read.

    Raises:
        LayersiftError: it takes math-verify, and that is not installed.
    """
    text = _plain_signs(text)
    _, marker, behind = text.rpartition("####")
    boxed = _boxed(text)
    if marker:
        lines = behind.strip().splitlines()
        return _whole(_boxed(behind) or (lines[0] if lines else ""))
    if boxed is not None:
        return _whole(boxed)
    standing = (match for match in EXPRESSION.finditer(text) if not GLUED.search(text[: match.start()]))
    last = next(iter(deque(standing, maxlen=1)), None)
    if last is None or any(m.end() > last.start() for m in TIME_OR_DATE.finditer(text)):
        return None
    return _read(last[0])


def _plain_signs(text: str) -> str:
    """Minus signs and fractions of one character in ASCII, without LaTeX's spaces."""
    text = re.sub("[\u2212\uff0d\ufe63]", "-", text)
    text = re.sub(r"(?<![\w)}])[\u2013\u2014](?=[\d.$\\])", "-", text)  # a dash in front of a number alone
    text = re.sub(r"(\d?)([¼-¾⅐-⅞])", lambda m: f"{m[1]}{' ' * bool(m[1])}{normalize('NFKC', m[2])}", text)
    return text.replace("\u2044", "/").replace("\\!", "").replace("\\,", "").replace("\\ ", " ")


def _whole(said: str) -> Answer | None:
    """An answer that stands by itself, with a unit or words beside it at most."""
    said = re.sub(r"(?<=\d)[ \u2009\u202f](?=\d{3}(?!\d))", "", said.strip().strip("$").strip())
    if re.search(r"\d\s+\d(?!\d*/\d)", said) or TIME_OR_DATE.search(said):
        return None  # several numbers, or none that anybody would write so
    expressions = EXPRESSION.findall(said)
    rest = EXPRESSION.sub(" ", said)
    if re.search(r"(?<![\\a-zA-Z])[A-Za-z]{2,}\d", said):  # a name, as GPT2
        return None
    if len(expressions) > 1 and re.search(r"\b(?:or|and)\b", rest):
        return None
    if (
        expressions
        and (len(expressions) == 1 or re.search(r"[A-Za-z]{2}", rest))
        and not MATHS.search(_words_away(rest))
    ):
        return _read(expressions[0])
    return _parsed(said) if 0 < len(said) <= LONGEST and MATHS.search(said) else None


def _words_away(rest: str) -> str:
    """What is left beside words and units in braces."""
    return re.sub(
        r"\\(?:text|mbox|mathrm)\s*\{[^{}]*\}|\\(?:circ|degree|\$|%)|\^\s*\\circ|[A-Za-z]{2,}(?:\^?[23])?", " ", rest
    )


def _boxed(text: str) -> str | None:
    """What the last ``\\boxed{...}`` or ``\\fbox{...}`` holds."""
    begins = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if begins < 0:
        return None
    depth, start = 0, text.index("{", begins)
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + 1 : place]
    return None


def _read(expression: str) -> Answer | None:
    """A number or expression as it is matched, with its sign, a currency or a percent sign."""
    said = expression.strip()
    if len(said) > LONGEST:
        return None
    percent = said.endswith("%")
    said = said.rstrip("%").rstrip("\\").strip().replace("\\$", "").replace("$", "")
    said = said.translate(dict.fromkeys(map(ord, CURRENCY)))
    said = re.sub(r"\s*/\s*", "/", re.sub(r"^-\s+", "-", said.strip()))
    if not re.search(r"\d|\{|pi|π", said):  # a command that is given nothing to work on
        return None
    simple = SIMPLE.fullmatch(said)
    if simple is None or (simple[2] and not simple[4]):
        return _parsed(said)
    value = _number(simple[3])
    if simple[4]:
        below = _number(simple[4])
        if not below:
            return None
        value = int(simple[2] or 0) + value / below
    value = -value if simple[1] else value
    return Answer((value, value / 100) if percent else (value,))


def _number(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def _parsed(said: str) -> Answer | None:
    """What math-verify makes of an expression, written as LaTeX."""
    parse = _math_verify().parse
    latex = re.sub(r"(?:sqrt|√)\s*\(([^()]*)\)", r"\\sqrt{\1}", re.sub(r"\\sqrt(?![a-z])", "√", said))
    latex = re.sub(rf"(?:sqrt|√)\s*({PLAIN})", r"\\sqrt{\1}", latex).replace("√", "\\sqrt")
    latex = re.sub(r"π|(?<!\\)\bpi\b", r"\\pi ", latex).replace("·", "\\cdot ").replace("\u00d7", "\\times ")
    parsed = parse(f"${latex}$", parsing_timeout=_seconds())
    return Answer((tuple(parsed),)) if any(not isinstance(value, str) for value in parsed) else None


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    library, seconds = _math_verify(), _seconds()
    gold, given = (
        library.parse(f"${v}$", parsing_timeout=seconds) if isinstance(v, Fraction) else list(v) for v in (a, b)
    )
    return bool(library.verify(gold, given, timeout_seconds=seconds))


def _seconds() -> int | None:
    """How long math-verify may take; its alarm works in the main thread alone."""
    main = threading.current_thread() is threading.main_thread()
    return TIMEOUT if main and hasattr(signal, "SIGALRM") else None


def _math_verify() -> Any:
    try:
        import math_verify
    except ModuleNotFoundError:
        raise LayersiftError(
            "exact match of roots, LaTeX and other expressions needs math-verify: pip install math-verify"
        ) from None
    return math_verify


def letter_of(text: str) -> str | None:
    """The letter of a choice where it stands as the answer: ``B``, ``(B)``, ``B. because``, ``the answer is B``.

    A capital that begins a sentence, as in "I think" or "A dog", is none.
    """
    said = (_boxed(text) or re.sub(r"</?\w+>", " ", text)).strip().strip("*_\"'` \n")
    first = re.match(rf"\(?([{LETTERS}])(?:\)|[.:,;\n*]|\s*$){ALONE}", said)
    first = first or re.match(rf"\(?([B-HJ])\)?(?=\s){ALONE}", said)
    if first:
        return first[1]
    named = re.findall(
        rf"(?:\b(?i:answer|option|choice)\b(?:\s+is|:|\s+-)?|\bis)[\s:*\"'`(]*([{LETTERS}])(?=[)\"'`]*(?:[.,;:*\n]|\s*$|\s+"
        rf"(?:because|since|as)\b)){ALONE}",
        said,
    )
    return named[-1] if named else None
