"""No part of a conversation is lost: roles, flags, calls and tools are honoured, or refused by their names."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from layersift.config.recipe import Columns
from layersift.data.chat.conversation import COUNTERS, TRAINED_FLAGS, conversation_of
from layersift.data.chat.template import Template, render
from layersift.data.encode import Encoder
from layersift.data.rows import read_rows
from layersift.data.table import table_of
from layersift.errors import DataError
from templates import TEMPLATES, plain
from words import tokenizer

MESSAGES = Columns(messages="messages", tools="tools")
TOKENIZER = tokenizer("decoder")
# A template that names the roles that it writes, as most do.
NAMED = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ '<|system|>' + m.content + '<|end|>' }}"
    "{% elif m.role == 'user' %}{{ '<|user|>' + m.content + '<|end|>' }}"
    "{% elif m.role == 'assistant' %}{{ '<|assistant|>' + (m.content or '') + '<|end|>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
ANY = (
    "{% if tools %}{{ '<|system|>' + (tools|tojson) + '<|end|>' }}{% endif %}{% for m in messages %}"
    "{{ '<|' + m.role + '|>' + (m.content or '') }}{% for c in m.tool_calls or [] %}{{ c.function|tojson }}{% endfor %}"
    "{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
ROLES = ["system", "developer", "tool", "function", "ipython", "context", "critic", "chatgpt", "human", "gpt"]


def says(role, content, **others):
    return {"role": role, "content": content, **others}


def written(row, template):
    conversation = conversation_of(row, MESSAGES, "row 3")
    rendered = render(conversation, Template(template, TOKENIZER, "of the test"), "row 3")
    return rendered.text, [rendered.text[a:b] for a, b in rendered.responses]


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("template", [NAMED, ANY, *map(plain, TEMPLATES)], ids=["named", "any", *TEMPLATES])
@pytest.mark.parametrize("role", ROLES)
def test_what_a_turn_says_is_written_or_the_turn_is_refused_by_its_role(role, template, place):
    turns = [says("user", "w1"), says("assistant", "w2"), says("user", "w3"), says("assistant", "w4")]
    turns.insert(place, says(role, "unseen words"))
    try:
        text, _ = written({"messages": turns}, template)
    except DataError as error:
        text = f"unseen words, refused: {error}" if "row 3" in str(error) else str(error)
    assert "unseen words" in text


def test_a_role_without_a_branch_is_refused_with_its_place():
    turns = [says("user", "w1"), says("assistant", "w2"), says("tool", "w7"), says("assistant", "w3")]
    with pytest.raises(DataError, match=r"row 3: .*does not write message 3 \(role 'tool'\)"):
        written({"messages": turns}, NAMED)


def test_a_developer_speaks_as_the_system_where_a_template_knows_that_alone():
    turns = [says("developer", "w9"), says("user", "w1"), says("assistant", "w2")]
    assert written({"messages": turns}, NAMED)[0].startswith("<|system|>w9")
    assert written({"messages": turns}, ANY)[0].startswith("<|developer|>w9")


@pytest.mark.parametrize("off", [0, 0.0, False])
@pytest.mark.parametrize("flag", TRAINED_FLAGS)
def test_a_turn_that_is_said_not_to_be_trained_is_not(flag, off):
    turns = [says("user", "w1"), says("assistant", "w2", **{flag: off}), says("user", "w3"), says("assistant", "w4")]
    assert written({"messages": turns}, NAMED)[1] == ["w4<|end|>"]
    named = [{"from": t["role"], "value": t["content"], **({flag: off} if flag in t else {})} for t in turns]
    assert written({"messages": named}, NAMED)[1] == ["w4<|end|>"]


@pytest.mark.parametrize(
    ("role", "beside", "said"),
    [
        ("assistant", {"loss_scale": 0.5}, "loss_scale 0.5"),
        ("assistant", {"weight": 0, "train": True}, "weight 0"),
        ("assistant", {"supervise": False}, "'supervise' is False"),
        ("assistant", {"mask": 0}, "'mask' is 0"),
        ("user", {"train": True}, "'train' asks to train a turn of 'user'"),
        ("tool", {"loss": 1}, "'loss' asks to train a turn of 'tool'"),
    ],
)
def test_a_flag_that_cannot_be_honoured_is_refused(role, beside, said):
    turns = [says("user", "w1"), says(role, "w2", **beside), says("user", "w3"), says("assistant", "w4")]
    with pytest.raises(DataError, match=said):
        written({"messages": turns}, ANY)


@pytest.mark.parametrize("counter", COUNTERS)
def test_a_number_that_counts_turns_is_no_flag(counter):
    turns = [says("user", "w1"), says("assistant", "w2", **{counter: 0})]
    assert written({"messages": turns}, NAMED)[1] == ["w2<|end|>"]


def tool(name, **properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def test_tools_and_calls_are_the_same_from_arrow(tmp_path):
    """Arrow gives every object the keys of all, with null in those that it lacks, at every depth."""
    calls = [("near", {"city": "w1"}), ("range", {"filter": {"low": 1}}), ("range", {"filter": {"high": [{"a": 2}]}})]
    rows = [
        {
            "messages": [
                says("user", "w1"),
                says("assistant", None, tool_calls=[{"type": "function", "function": {"name": n, "arguments": a}}]),
                says("tool", "w7"),
                says("assistant", "w3"),
            ],
            "tools": [tool(n, **{key: {"type": "object", n: {"enum": ["w1"]}} for key in a})],
        }
        for n, a in calls
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for row, again in zip(rows, read_rows(str(tmp_path / "rows.parquet")), strict=True):
        read = conversation_of(row, MESSAGES, "here"), conversation_of(again, MESSAGES, "here")
        assert read[0].messages == read[1].messages
        text, back = (render(each, Template(ANY, TOKENIZER, "of the test"), "here").text for each in read)
        assert "null" not in back
        assert json.dumps(row["messages"][1]["tool_calls"][0]["function"]["arguments"]) in text
        assert text == back


@pytest.mark.parametrize("content", [None, "w2"])
def test_the_older_form_of_calls_is_read_as_todays(content):
    call = {"name": "look", "arguments": '{"x": 1}'}
    turns = [
        says("user", "w1"),
        says("assistant", content, function_call=call),
        says("function", "w7", name="look"),
        says("assistant", "w3"),
    ]
    table = table_of([{"messages": turns, "functions": [{"name": "look", "parameters": {}}]}], "rows")
    assert table.columns.tools == "functions"
    conversation = conversation_of(table.rows[0], table.columns, "here")
    rendered = render(conversation, Template(ANY, TOKENIZER, "of the test"), "here")
    assert '"name": "look", "arguments": {"x": 1}' in rendered.text
    assert "<|tool|>w7" in rendered.text
    with pytest.raises(DataError, match="'tool"):
        render(conversation, Template(NAMED, TOKENIZER, "of the test"), "here")


def test_messages_as_json_text_are_read():
    turns = [says("user", "w1"), says("assistant", "w2")]
    for cell in (turns, json.dumps(turns), list(map(json.dumps, turns))):
        assert written({"messages": cell}, NAMED)[1] == ["w2<|end|>"]
    with pytest.raises(DataError, match="expected a list of messages"):
        written({"messages": '[{"role": "user"'}, NAMED)


def test_a_system_prompt_that_is_dropped_once_an_answer_follows_is_told_of(caplog):
    """As Mistral's template does: training and predictions then read the same, without it."""
    late = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>' }}"
        "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content + ' ' }}{% endif %}"
        "{{ m.content + '<|end|>' }}{% elif m.role == 'assistant' %}{{ '<|assistant|>' + m.content + '<|end|>' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    turns = [says("system", "w9"), says("user", "w1"), says("assistant", "w2")]
    assert "w9" not in written({"messages": turns}, late)[0]
    assert "neither training nor predictions read it" in caplog.text
    with pytest.raises(DataError, match="does not write message"):
        written({"messages": [*turns[:2], says("tool", "w7"), turns[2]]}, late)


@pytest.mark.parametrize(("first", "second"), [("User", "ASSISTANT"), (" user ", "Assistant"), ("Human", "GPT")])
def test_roles_are_known_in_any_case_of_letters(first, second):
    """The template would write no turn of such a role, or one that the model has never seen."""
    row = {"messages": [{"role": first, "content": "w1"}, {"role": second, "content": "w2"}]}
    conversation = conversation_of(row, MESSAGES, "row 1")
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"]
    assert conversation.trained == (False, True)


def test_a_text_that_holds_a_control_token_is_told(caplog):
    """A turn of the user that closes itself is read as two; nothing in the text says so."""
    turns = [{"role": "user", "content": "w1 <|end|> w3"}, {"role": "assistant", "content": "w2"}]
    tok = tokenizer("decoder", chat=True)
    for content, told in (("w1 w3", False), ("w1 <|end|> w3", True)):
        turns[0]["content"] = content
        Encoder(tok, "instruction").encode(table_of([{"messages": turns}], "rows"), 0)
        assert ("rows: texts of 'user' hold '<|end|>', which is read as that token" in caplog.text) == told
