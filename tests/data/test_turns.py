"""The loss covers what the assistant writes: templates of fourteen structures against spans marked by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError

from layersift.config.recipe import Columns
from layersift.data.chat.conversation import conversation_of
from layersift.data.chat.template import Template, render
from layersift.data.encode import Encoder
from layersift.data.table import table_of
from layersift.errors import DataError
from layersift.progress import warn_once
from templates import CLOSING, TEMPLATES, marked, plain
from words import tokenizer

MESSAGES = Columns(messages="messages", tools="tools")


def the_tokenizer():
    tok = tokenizer("decoder")
    tok.add_tokens(list(CLOSING))  # not flagged special
    tok.bos_token, tok.eos_token = "<s>", "</s>"
    return tok


TOKENIZER = the_tokenizer()


def says(role, content, **others):
    return {"role": role, "content": content, **others}


def spans_of(name, row, template=plain):
    conversation = conversation_of(row, MESSAGES, "here")
    rendered = render(conversation, Template(template(name), TOKENIZER, "of the test"), "here")
    return rendered.text, [rendered.text[a:b] for a, b in rendered.responses]


def make_selection(name, row):
    """What transformers itself says that the marked template generates, of the turns that count."""
    conversation = conversation_of(row, MESSAGES, "here")
    text, spans = Template(marked(name), TOKENIZER, "of the test").write_marked(conversation)
    turns = [i for i, m in enumerate(conversation.messages) if m["role"] == "assistant"]
    assert len(turns) == len(spans)
    return text, [text[a:b] for turn, (a, b) in zip(turns, spans, strict=True) if conversation.trained[turn]]


ONE = [says("user", "why?"), says("assistant", "because")]
TWO = [*ONE, says("user", "and then?"), says("assistant", "nothing more")]
SYSTEM = [says("system", "be brief"), *TWO]
INSIDE = [says("user", "w1"), says("assistant", "assistant")]  # also the template's own word
THINK = [says("user", "w1"), says("assistant", "<think>\nhm\n</think>\n\nno")]
CALL = {"type": "function", "function": {"name": "look", "arguments": {"x": 1}}}


@pytest.mark.parametrize("messages", [ONE, TWO, SYSTEM, INSIDE, THINK], ids=["one", "two", "system", "inside", "think"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_loss_is_on_what_the_assistant_writes(name, messages):
    if name == "gemma" and messages is SYSTEM:
        with pytest.raises(DataError, match="System role not supported"):
            spans_of(name, {"messages": messages})
        return
    assert spans_of(name, {"messages": messages}) == make_selection(name, {"messages": messages})


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_marks_what_is_generated_is_believed(name):
    assert spans_of(name, {"messages": TWO}, marked) == make_selection(name, {"messages": TWO})


def test_turns_of_no_weight_bear_no_loss():
    row = {"messages": [TWO[0], {**TWO[1], "weight": 0}, *TWO[2:]]}
    for name in TEMPLATES:
        assert len(spans_of(name, row)[1]) == 1
        assert spans_of(name, row) == make_selection(name, row)
        assert spans_of(name, row, marked) == make_selection(name, row)
    with pytest.raises(DataError, match="no turn of the assistant counts"):
        spans_of("chatml", {"messages": [ONE[0], {**ONE[1], "weight": 0}]})


def test_calls_and_reasoning_are_written_and_trained():
    call = says("assistant", None, tool_calls=[CALL])
    row = {"messages": [ONE[0], call, says("tool", "7"), ONE[1]], "tools": [{"name": "look"}]}
    text, spans = spans_of("calls in json", row)
    assert (text, spans) == make_selection("calls in json", row)
    assert spans[0] == '\n<tool_call>\n{"name": "look", "arguments": {"x": 1}}\n</tool_call><|im_end|>'
    assert '[{"name": "look"}]' in text
    spelled = {**CALL, "function": {"name": "look", "arguments": '{"x": 1}'}}
    assert spans_of(
        "calls in json", {**row, "messages": [ONE[0], {**call, "tool_calls": [spelled]}, *row["messages"][2:]]}
    ) == (
        text,
        spans,
    )
    for name, key in (("qwen3", "reasoning_content"), ("channels", "thinking")):
        row = {"messages": [*TWO[:3], says("assistant", "no", **{key: "let me see"})]}
        assert spans_of(name, row) == make_selection(name, row)
        assert "let me see" in spans_of(name, row)[1][-1]


@pytest.mark.parametrize(
    ("messages", "others", "lost"),
    [
        ([ONE[0], says("assistant", "a", reasoning_content="r")], {}, "reasoning_content"),
        ([ONE[0], says("assistant", "a", tool_calls=[CALL])], {}, "tool_calls"),
        (ONE, {"tools": [{"name": "look"}]}, "tools"),
    ],
)
def test_what_a_template_does_not_know_is_refused(messages, others, lost):
    with pytest.raises(DataError, match=f"does not write '{lost}'; give one that does with --chat-template"):
        spans_of("chatml", {"messages": messages, **others})


LONG = [says("user", "why " * 20 + "so"), says("assistant", "since " * 20 + "then")]


@pytest.mark.parametrize(("cut", "place", "role"), [("user", 1, "user"), ("assistant", 2, "assistant")])
def test_a_template_that_cuts_a_message_short_is_refused(cut, place, role):
    """By what the row says: a message that is short enough is written whole."""
    text = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content[:40] if m.role == 'CUT' else m.content }}<|im_end|>\n{% endfor %}"
    ).replace("CUT", cut)
    template = Template(text, TOKENIZER, "of the test")
    with pytest.raises(DataError, match=rf"does not write message {place} \(role '{role}'\) to its end"):
        render(conversation_of({"messages": LONG}, MESSAGES, "here"), template, "here")
    short = [says("user", "why"), says("assistant", "since")]
    assert render(conversation_of({"messages": short}, MESSAGES, "here"), template, "here").responses


def test_a_template_that_marks_what_the_user_says_is_refused():
    text = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>\n{% endfor %}"
    )
    with pytest.raises(DataError, match=r"marks message 1 \(role 'user'\) as generated"):
        render(conversation_of({"messages": TWO}, MESSAGES, "here"), Template(text, TOKENIZER, "of the test"), "here")
    echoed = [says("user", "no"), says("assistant", "you said no")]
    assert spans_of("chatml", {"messages": echoed}, marked)[1] == ["you said no<|im_end|>"]


def test_the_assistant_may_open_and_speak_twice():
    for name in ("chatml", "llama 3", "qwen3", "opens with the assistant", "line end before the closing token"):
        for messages in (
            [says("assistant", "hello"), *TWO],
            [*ONE, says("assistant", "really")],
            [*TWO, says("user", "ok")],
        ):
            row = {"messages": messages}
            assert spans_of(name, row) == make_selection(name, row), name


def test_named_templates():
    tok = the_tokenizer()
    tok.chat_template = {"short": plain("chatml"), "tool_use": plain("calls in json")}
    with pytest.raises(DataError, match=r"templates short, tool_use, none of which is the default; name one"):
        Template.of(None, tok)
    assert Template.of("short", tok).text == plain("chatml")
    assert Template.of(None, tok, tools=True).text == plain("calls in json")


def test_tokens_are_those_of_the_spans():
    tok = the_tokenizer()
    tok.chat_template = marked("chatml")
    rows = [{"messages": TWO}] * 8
    wanted = tok.apply_chat_template(TWO, return_dict=True, tokenize=True, return_assistant_tokens_mask=True)
    tok.chat_template = plain("chatml")
    table = table_of(rows, "rows")
    example, _ = Encoder(tok, table.kind).encode(table, 0)
    assert list(example.input_ids) == wanted["input_ids"]
    assert list(map(int, example.response)) == wanted["assistant_masks"]


TEXTS = st.one_of(
    st.sampled_from(
        ["assistant", "user", "<think>", "h", "a\n", " a", "Bot:", "w1 w2", "[/INST]", "</think>", "1", "Q", "K r"]
    ),
    st.text(st.sampled_from("aQKYqvr \n<|>think/é😀"), min_size=1, max_size=12).filter(str.strip),
)


@st.composite
def conversations(draw):
    turns = [says("system", draw(TEXTS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [says("user", draw(TEXTS)), says("assistant", draw(TEXTS))]
        if draw(st.integers(0, 3)) == 0:
            turns[-1]["weight"] = draw(st.integers(0, 1))
        if draw(st.integers(0, 5)) == 0:
            turns[-1]["reasoning_content"] = draw(TEXTS)
    turns[-1]["weight"] = 1
    return turns


def differs_nowhere(name, messages):
    row = {"messages": messages}
    try:
        wanted = make_selection(name, row)
    except TemplateError:
        return
    if "reasoning_content" not in TEMPLATES[name]:
        for message in messages:
            message.pop("reasoning_content", None)
    assert spans_of(name, row) == make_selection(name, row), wanted


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(sorted(TEMPLATES)), messages=conversations())
def test_any_conversation_is_read_as_marked_by_hand(name, messages):
    differs_nowhere(name, messages)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(name=st.sampled_from(sorted(TEMPLATES)), messages=conversations())
def test_two_thousand_conversations_are_read_as_marked_by_hand(name, messages):
    differs_nowhere(name, messages)


def test_a_template_that_cuts_the_last_answers_reasoning_out_is_told_of(caplog):
    warn_once.cache_clear()
    thought = [says("user", "w1"), says("assistant", "<think>\nw2 w3\n</think>w4")]
    text, (span,) = spans_of("r1", {"messages": thought, "tools": None})
    assert "w2" not in text
    assert span.startswith("w4")
    assert "the chat template of the test leaves the reasoning of answers out: it is not trained" in caplog.text
    spans_of("r1", {"messages": thought, "tools": None})
    assert caplog.text.count("reasoning") == 1  # once for all rows
    caplog.clear()
    warn_once.cache_clear()
    spans_of("qwen3", {"messages": thought, "tools": None})  # writes it
    spans_of("r1", {"messages": [says("user", "w1"), says("assistant", "w4")], "tools": None})
    earlier = [*thought, says("user", "w5"), says("assistant", "w6")]
    spans_of("r1", {"messages": earlier, "tools": None})
    assert not caplog.text
