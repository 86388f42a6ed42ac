"""Generated answers: what ends them, what they are cut to, and that nothing of the base's own settings acts."""

import json

import pytest
import torch
import transformers as tf

from layersift.api import train
from layersift.config.recipe import Columns, DataSettings
from layersift.config.train import TrainSettings
from layersift.data.encode import Encoder
from layersift.data.examples import Example
from layersift.data.rows import read_rows
from layersift.data.table import Table
from layersift.evaluation.generation import answers_of
from layersift.evaluation.load_run import load_run
from layersift.evaluation.predict import predict, rows_to_predict
from layersift.models.stacks import find_stack
from layersift.records.reading import DataRecord
from layersift.records.selection import make_selection
from layersift.training.fit import find_stops, greedy_config
from tiny import tiny
from words import CHAT, tokenizer

END, EOS = 7, 2  # <|end|>, and [SEP] as a base model's end of text


def reader(template=CHAT, eos="[SEP]"):
    made = tokenizer("decoder")
    made.chat_template, made.eos_token = template, eos
    return made


def encoder(template=CHAT, given=None, places=None):
    return Encoder(reader(template), "instruction", chat_template=given, places=places)


def model_ending_at(eos=EOS):
    model = tiny("llama")
    model.generation_config.eos_token_id = eos
    return model


PLAIN_END = CHAT.replace("<|end|>", "z z")  # no token of its own: words


@pytest.mark.parametrize(
    ("template", "given", "tokens", "texts"),
    [
        (CHAT, None, [EOS, END], []),
        (None, None, [EOS], []),
        (None, CHAT, [EOS, END], []),
        (
            CHAT.replace("<|end|>", ""),
            None,
            [EOS, 4],
            [],
        ),  # what closes a turn there is <|user|>, which begins the next
        (PLAIN_END, None, [EOS], ["z z"]),
        (  # the last turn is closed by another token than those before it
            "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if loop.last %}[CLS]{% else %}<|end|>{% endif %}"
            "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
            None,
            [1, EOS, END],
            [],
        ),
    ],
)
def test_answers_end_at_whatever_closes_a_trained_turn(template, given, tokens, texts):
    assert find_stops(model_ending_at(), encoder(template, given)) == (tokens, texts)
    assert find_stops(model_ending_at([EOS, 5]), encoder(template, given)) == (sorted({*tokens, 5}), texts)


class Written(torch.nn.Module):
    """A head that says the same tokens whatever it reads."""

    def __init__(self, said, vocabulary):
        super().__init__()
        self.said, self.vocabulary, self.calls = said, vocabulary, 0

    def forward(self, hidden):
        logits = torch.zeros(*hidden.shape[:2], self.vocabulary)
        logits[..., self.said[min(self.calls, len(self.said) - 1)]] = 1.0
        self.calls += 1
        return logits


def saying(words, **generation):
    model = model_ending_at()
    model.lm_head = Written(reader().convert_tokens_to_ids(words), 120)
    for name, value in generation.items():
        setattr(model.generation_config, name, value)
    return model


def prompt(length):
    return Example(tuple(range(10, 10 + length)), (True,) * length)


@pytest.mark.parametrize(
    ("template", "words", "answer"),
    [
        (CHAT, ["a", "b", "<|end|>", "c"], "a b"),
        (CHAT, ["a", "b", "[SEP]", "c"], "a b"),
        (PLAIN_END, ["a", "b", "z", "z", "c"], "a b"),
    ],
)
def test_an_answer_ends_there(template, words, answer):
    (found,) = answers_of(saying(words), encoder(template), [prompt(4)], 0, 8)
    assert found.strip() == answer


SETTINGS = [
    {"repetition_penalty": 5.0},
    {"no_repeat_ngram_size": 1},
    {"min_new_tokens": 6},
    {"min_length": 12},
    {"num_beams": 3, "length_penalty": 2.0},
    {"forced_eos_token_id": 5},
    {"forced_bos_token_id": 5},
    {"suppress_tokens": [8]},
    {"begin_suppress_tokens": [8]},
    {"bad_words_ids": [[8]]},
    {"exponential_decay_length_penalty": (1, 9.0)},
    {"renormalize_logits": True, "guidance_scale": 2.0},
    {"do_sample": True, "temperature": 5.0},
    {"num_return_sequences": 2, "do_sample": True},
    {"encoder_repetition_penalty": 4.0},
    {"stop_strings": ["a"]},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: ",".join(s))
def test_no_setting_of_the_base_changes_an_answer(settings, caplog):
    model = saying(["a", "a", "a", "<|end|>"], **settings)
    before = model.generation_config
    (found,) = answers_of(model, encoder(), [prompt(4)], 0, 8)
    assert found.split() == ["a", "a", "a"]
    assert model.generation_config is before
    config = greedy_config(model, encoder(), 0)
    assert config.eos_token_id == [EOS, END]
    assert not {name for name in settings if name not in ("do_sample", "temperature")} & set(config.to_diff_dict())


def test_new_tokens_are_cut_to_the_places_left_and_one_long_prompt_costs_its_own_answer_alone(caplog):
    torch.manual_seed(0)
    config = tf.GPT2Config(n_embd=32, n_head=4, n_layer=2, vocab_size=120, n_positions=24, eos_token_id=EOS)
    model = tf.GPT2LMHeadModel(config).eval()
    prompts = [prompt(length) for length in (5, 20, 24, 60, 6)]
    found = answers_of(model, encoder(places=24), prompts, 0, 256)
    assert found[2] is None
    assert found[3] is None
    assert "2 of 5 prompts have no answer" in caplog.text
    assert "3 (24 tokens), 4 (60 tokens)" in caplog.text
    assert "model has places for 24 tokens" in caplog.text
    for i in (0, 1, 4):  # each as it is alone
        assert answers_of(model, encoder(places=24), [prompts[i]], 0, 256) == [found[i]]
    assert len(reader()(found[1], add_special_tokens=False)["input_ids"]) <= 4


SYSTEM_LAST = (
    "{% if messages[0].role == 'system' %}{% set sys = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}<|user|>"
    "{% if loop.last and sys is defined %}{{ sys }} {% endif %}{{ m.content }}[SEP]{% else %}{{ m.content }}<|end|>"
    "{% endif %}{% endfor %}"
)


def test_a_prompt_is_what_training_read_before_the_answer():
    turns = [("system", "w9"), ("user", "w1"), ("assistant", "w2")]
    rows = ({"messages": [{"role": role, "content": said} for role, said in turns]},)
    for template in (CHAT, SYSTEM_LAST):
        table, reading = Table(rows, "rows", "instruction", Columns(messages="messages")), encoder(template)
        example, _ = reading.encode(table, 0)
        begins = example.response.index(True)
        assert reading.prompt(table, 0).input_ids == example.input_ids[:begins]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("stops")
    model = model_ending_at()
    model.generation_config.repetition_penalty = 1.5
    model.save_pretrained(place / "base")
    reader(None).save_pretrained(place / "base")
    (place / "given.jinja").write_text(CHAT)
    rows = [
        {"messages": [{"role": "user", "content": f"w{i}"}, {"role": "assistant", "content": "w2"}]} for i in range(12)
    ]
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    selection = make_selection(str(place / "base"), "weights:0", find_stack(model), [2, 3], DataRecord(), "picked")

    train(
        str(place / "base"),
        DataSettings(str(place / "rows.jsonl"), chat_template=str(place / "given.jinja")),
        selection,
        place / "run",
        TrainSettings(epochs=1),
        merge=True,
    )
    return place / "run"


def test_template_and_endings_are_saved_with_the_run_and_the_merged_model_and_told_on_the_card(trained):
    for where in (trained, trained / "merged"):
        saved = tf.AutoTokenizer.from_pretrained(where)
        assert saved.chat_template == CHAT
        config = tf.GenerationConfig.from_pretrained(where)
        assert config.eos_token_id == [EOS, END]
        assert config.repetition_penalty in (None, 1.0)
        assert not config.do_sample
    card = (trained / "README.md").read_text()
    assert "--chat-template" in card
    assert "`[SEP]`, `<|end|>`" in card


@pytest.mark.parametrize(
    ("turns", "read"),
    [
        (["user w1"], "w1"),
        (["user w1", "assistant w5", "user w2", "tool w7"], "w7"),
        (["user w1", "assistant w5", "system w9"], "w9"),
        (["user w1", "assistant w5", "user w8", "assistant w3"], "w8"),
    ],
)
def test_whatever_does_not_end_in_an_answer_waits_for_one(trained, turns, read, tmp_path):
    record, loaded, reading = load_run(trained)
    messages = [dict(zip(("role", "content"), turn.split(), strict=True)) for turn in turns]
    (tmp_path / "new.jsonl").write_text(json.dumps({"messages": messages}))
    table = rows_to_predict(record, read_rows(str(tmp_path / "new.jsonl"), "train"), "new.jsonl")
    asked = loaded.tokenizer.decode(reading.prompt(table, 0).input_ids).split()
    assert asked[-1] == "<|assistant|>"
    assert [word for word in asked if word.startswith("w")][-1] == read
    ((found,), _) = predict(loaded.model, reading, table, 0, 4)
    assert found["row"] == 1
