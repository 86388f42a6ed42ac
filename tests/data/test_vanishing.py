"""Roles by templates, and marks of training: no part of a conversation vanishes or is trained without a word."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from layersift.config.recipe import Columns
from layersift.data.chat.conversation import conversation_of
from layersift.data.chat.template import Template, render
from layersift.data.encode import Encoder, read_template
from layersift.data.rows import read_rows
from layersift.data.table import read_table, table_of
from layersift.errors import DataError
from words import tokenizer

EVERY = "{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}"
EVERY += "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}<|end|>{% endfor %}"
EVERY += "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}<assistant>{% endif %}"
TEMPLATES = {  # by the roles that they write
    "two": (
        "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}{% elif m.role == 'assistant' %}"
        "<assistant>{{ m.content }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
        {"user", "assistant"},
    ),
    "three": (
        "{% for m in messages %}{% if m.role in ('user', 'system') %}<{{ m.role }}>{{ m.content }}"
        "{% elif m.role == 'assistant' %}<assistant>{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
        {"user", "assistant", "system"},
    ),
    "all": (EVERY, {"user", "assistant", "system", "developer", "tool"}),
}
ROLES = ("system", "developer", "tool", "function", "ipython", "context", "critic", "observation")


def rendered(messages, template, **columns):
    tok = tokenizer("decoder")
    conversation = conversation_of(
        {"messages": messages, **columns}, Columns(messages="messages", **{c: c for c in columns}), "here"
    )
    return render(conversation, Template(template, tok, "of a test"), "here")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_role_that_a_template_does_not_write_is_refused_by_name(name, role):
    template, known = TEMPLATES[name]
    turns = [
        {"role": role, "content": "w9 w8"},
        {"role": "user", "content": "w1"},
        {"role": "assistant", "content": "w2"},
    ]
    read = {"function": "tool", "observation": "tool"}.get(role, role)
    if read == "developer" and name != "all":  # is written as the system's where that alone is known
        read = "system"
    if read in known or name == "all":  # which writes whatever role there is
        assert "w9 w8" in rendered(turns, template).text
        return
    with pytest.raises(
        DataError, match=rf"here.*does not write message 1.*{role}|here.*does not write message 1.*{read}"
    ):
        rendered(turns, template)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_every_message_is_looked_at(place):
    """A template that leaves one turn out, wherever it stands."""
    template = EVERY.replace(
        "<{{ m.role }}>{{ m.content or '' }}",
        f"<{{{{ m.role }}}}>{{% if loop.index0 != {place} %}}{{{{ m.content }}}}{{% endif %}}",
    )
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"w{i} w{i + 5}"} for i in range(4)]
    with pytest.raises(DataError, match=f"does not write message {place + 1}"):
        rendered(turns, template)


MARKS = ("weight", "loss", "train", "trained", "trainable", "training", "loss_mask", "loss_scale")


def turns_with(**beside):
    return [
        {"role": "user", "content": "w0"},
        {"role": "assistant", "content": "w2", **beside},
        {"role": "user", "content": "w3"},
        {"role": "assistant", "content": "w4"},
    ]


@pytest.mark.parametrize("value", [0, 0.0, False])
@pytest.mark.parametrize("mark", MARKS)
def test_turns_that_are_marked_are_not_trained(mark, value):
    found = rendered(turns_with(**{mark: value}), EVERY)
    assert [found.text[a:b] for a, b in found.responses] == ["w4<|end|>"]
    found = rendered(turns_with(**{mark: True}), EVERY)
    assert len(found.responses) == 2


@pytest.mark.parametrize(
    "beside",
    [
        {"loss": 0.5},
        {"loss_mask": [0, 1]},
        {"train": "no"},
        {"train_detail": [{"begin": 0}]},
        {"masked": True},
        {"mask": 1},
        {"learnable": False},
        {"use": False},
        {"graded": 0},
        {"weight": 0, "train": True},
    ],
)
def test_marks_that_are_not_known_are_refused_by_name(beside):
    with pytest.raises(DataError, match=next(iter(beside))):
        rendered(turns_with(**beside), EVERY)


@pytest.mark.parametrize("beside", [{"id": 0}, {"turn": 0}, {"prefix": True}, {"name": "a"}, {"loss": None}])
def test_what_says_nothing_of_training_is_let_through(beside):
    assert len(rendered(turns_with(**beside), EVERY).responses) == 2


def test_a_users_turn_is_not_trained_by_a_mark():
    with pytest.raises(DataError, match=r"loss.* asks to train a turn of 'user'"):
        rendered([{"role": "user", "content": "w1", "loss": True}, {"role": "assistant", "content": "w2"}], EVERY)


CALLS = [
    {
        "messages": [
            {"role": "user", "content": "w1"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": {"name": "w20", "arguments": arguments}}],
            },
            {"role": "tool", "content": "w7"},
            {"role": "assistant", "content": "w3"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {"name": "w20", "parameters": {"type": "object", "properties": properties}},
            }
        ],
    }
    for arguments, properties in [
        ({"city": "w1"}, {"city": {"type": "string"}}),
        ({"filter": {"low": 1, "deep": [{"a": 1}, {"b": 2}]}}, {"filter": {"type": "object"}}),
        ({"filter": {"high": 2}}, {"filter": {"type": "object", "x": {"y": {"z": "w1"}}}}),
    ]
]


def texts(path):
    table = read_table(str(path))
    encoder = Encoder(tokenizer("decoder"), "instruction", chat_template=EVERY, max_length=4000)
    template = Template(EVERY, encoder.tokenizer, "of a test")
    rows = [conversation_of(row, table.columns, "here") for row in table.rows]
    return [render(row, template, "here").text for row in rows]


@pytest.mark.parametrize("form", ["parquet", "strings in jsonl", "strings in csv", "lists of strings"])
def test_a_conversation_is_the_same_in_every_form(form, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CALLS))
    path = tmp_path / "other.jsonl"
    if form == "parquet":
        path = tmp_path / "rows.parquet"
        pyarrow.parquet.write_table(pa.Table.from_pylist(CALLS), path)
        assert "None" in str(read_rows(str(path)))
    elif form == "strings in jsonl":
        path.write_text("".join(json.dumps({k: json.dumps(v) for k, v in row.items()}) + "\n" for row in CALLS))
    elif form == "lists of strings":
        strings = [{**row, "messages": [json.dumps(m) for m in row["messages"]]} for row in CALLS]
        path.write_text("".join(json.dumps(row) + "\n" for row in strings))
    else:
        import csv

        path = tmp_path / "rows.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["messages", "tools"])
            writer.writerows([json.dumps(row["messages"]), json.dumps(row["tools"])] for row in CALLS)
    assert texts(path) == texts(tmp_path / "rows.jsonl")
    assert "null" not in texts(path)[0]


def test_openais_older_calls_are_read_as_the_newer_ones():
    call = {"name": "w20", "arguments": '{"city": "w1"}'}
    function = {"name": "w20", "parameters": {"type": "object"}}
    older = {
        "messages": [
            {"role": "user", "content": "w1"},
            {"role": "assistant", "content": None, "function_call": call},
            {"role": "function", "name": "w20", "content": "w7"},
            {"role": "assistant", "content": "w3", "function_call": None},
        ],
        "functions": [function],
    }
    newer = {
        "messages": [
            {"role": "user", "content": "w1"},
            {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]},
            {"role": "tool", "name": "w20", "content": "w7"},
            {"role": "assistant", "content": "w3"},
        ],
        "tools": [{"type": "function", "function": function}],
    }
    found = []
    for row in (older, newer):
        table = table_of([row] * 2, "rows")
        found.append(conversation_of(table.rows[0], table.columns, "here"))
    assert found[0] == found[1]
    assert '"city": "w1"' in render(found[0], Template(EVERY, tokenizer("decoder"), "of a test"), "here").text


TWO_CALLS = [{"type": "function", "function": {"name": n, "arguments": {"a": "w7"}}} for n in ("w8", "w9")]
WITH_CALLS = [
    {"role": "user", "content": "w1"},
    {"role": "assistant", "content": "w5", "tool_calls": TWO_CALLS},
    {"role": "tool", "content": "w4"},
    {"role": "assistant", "content": "w2"},
]
SAYS_CALL = "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}"
HALF_WRITTEN = {
    "the first call alone": EVERY.replace(
        SAYS_CALL, "{% for c in (m.tool_calls or [])[:1] %}{{ c | tojson }}{% endfor %}"
    ),
    "no arguments": EVERY.replace(SAYS_CALL, "{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}"),
    "no names": EVERY.replace(SAYS_CALL, "{% for c in m.tool_calls or [] %}{{ c.function.arguments }}{% endfor %}"),
    "no text beside calls": EVERY.replace(
        "{{ m.content or '' }}", "{% if not m.tool_calls %}{{ m.content }}{% endif %}"
    ),
}


@pytest.mark.parametrize("how", HALF_WRITTEN)
def test_a_call_or_a_text_beside_it_that_a_template_drops_is_refused(how):
    assert "w9" in rendered(WITH_CALLS, EVERY).text
    with pytest.raises(DataError, match=r"does not write message 2 .*not all of it"):
        rendered(WITH_CALLS, HALF_WRITTEN[how])


def test_an_empty_chat_template_is_none(tmp_path):
    (tmp_path / "t.jinja").write_text(" \n")
    with pytest.raises(DataError, match="empty chat template"):
        read_template(str(tmp_path / "t.jinja"))
