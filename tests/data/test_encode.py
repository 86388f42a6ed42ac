"""Texts, pairs, prompts and conversations as tokens, with the response marked."""

import pytest

from layersift.data.encode import Encoder, encode_rows, random_order
from layersift.data.table import table_of
from layersift.errors import DataError
from words import tokenizer


def encode(rows, kind, tok, **settings):
    table = table_of(rows, "file", kind=kind)
    return encode_rows(table, Encoder(tok, kind, **settings), range(len(rows)))


def words(tok, example, flags):
    return [w for w, flag in zip(tok.convert_ids_to_tokens(example.input_ids), flags, strict=True) if flag]


def test_pairs_carry_types_and_labels():
    tok = tokenizer()
    rows = [{"premise": "a b", "hypothesis": "c", "label": "yes"}, {"premise": "d", "hypothesis": "e", "label": "no"}]
    first = encode(rows, "classification", tok, classes=("no", "yes")).examples[0]
    assert tok.convert_ids_to_tokens(first.input_ids) == ["[CLS]", "a", "b", "[SEP]", "c", "[SEP]"]
    assert first.types["token_type_ids"] == (0, 0, 0, 0, 1, 1)
    assert words(tok, first, first.content) == ["a", "b", "c"]
    assert first.label == 1
    assert first.response is None


def test_a_chat_template_marks_every_answer_with_its_closing_token():
    tok = tokenizer("decoder", chat=True)
    turns = [("user", "a b"), ("assistant", "c d"), ("user", "e"), ("assistant", "f\ng")]
    rows = [{"messages": [{"role": r, "content": c} for r, c in turns]}]
    example = encode(rows, "instruction", tok).examples[0]
    assert words(tok, example, example.response) == ["c", "d", "<|end|>", "f", "\n", "g", "<|end|>"]
    assert words(tok, example, example.content) == ["a", "b", "c", "d", "e", "f", "g"]


def test_sharegpt_and_prompt_columns_say_the_same():
    tok = tokenizer("decoder", chat=True)
    share = [{"conversations": [{"from": "human", "value": "a b"}, {"from": "gpt", "value": "c"}]}]
    plain = [{"instruction": "a", "input": "b", "output": "c"}, {"instruction": "a b", "input": "", "output": "c"}]
    encoded = [encode(rows, "instruction", tok).examples for rows in (share, plain)]
    assert encoded[0][0] == encoded[1][1]
    assert words(tok, encoded[1][0], encoded[1][0].content) == ["a", "b", "c"]


def test_without_a_template_the_plain_prompt_and_an_end():
    tok = tokenizer("decoder")
    example = encode([{"prompt": "a", "response": "b c"}], "instruction", tok).examples[0]
    assert words(tok, example, example.response) == ["b", "c", "<|end|>"]
    given = encode(
        [{"prompt": "a", "response": "b c"}], "instruction", tok, chat_template=tokenizer(chat=True).chat_template
    )
    assert words(tok, given.examples[0], given.examples[0].response) == ["b", "c", "<|end|>"]
    assert len(given.examples[0]) < len(example)


def test_truncation_is_counted_and_prompts_without_room_are_left_out():
    tok = tokenizer("decoder", chat=True)
    rows = [{"prompt": "a " * n, "response": "b c d"} for n in (2, 7, 40)]
    encoded = encode(rows, "instruction", tok, max_length=12)
    assert (encoded.rows, encoded.truncated, encoded.left_out) == ((0, 1), 2, 1)
    assert encoded.notice == "2 of 3 samples cut to 12 tokens; 1 left out, their prompt alone being longer"
    with pytest.raises(DataError, match="no sample leaves room for a response within 12 tokens"):
        encode(rows[2:], "instruction", tok, max_length=12)


def test_a_cut_text_keeps_its_closing_special_token():
    tok = tokenizer()
    encoded = encode([{"text": "a " * 30}], "text", tok, max_length=6)
    assert tok.convert_ids_to_tokens(encoded.examples[0].input_ids) == ["[CLS]", *"aaaa", "[SEP]"]
    assert encoded.truncated == 1


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ({"text": "  ", "label": 0}, "classification", "row 1: the text '  ' tokenises to nothing"),
        ({"text": "a", "label": 7}, "classification", "label 7 in column 'label' is not among the 2 classes"),
        ({"text": "a", "label": "high"}, "regression", "column 'label' holds 'high'; regression needs numbers"),
        ({"prompt": "a", "response": " "}, "instruction", "the text of 'assistant' is empty"),
        ({"messages": [{"role": "user", "content": "a"}]}, "instruction", "in which the assistant answers"),
        ({"messages": "a"}, "instruction", "expected a list of messages, got 'a'"),
        ({"messages": [{"who": "a"}]}, "instruction", "messages with 'role' and 'content'"),
    ],
)
def test_rows_that_cannot_be_used(row, kind, message):
    with pytest.raises(DataError, match=message):
        encode([row], kind, tokenizer("encoder"), classes=("0", "1"))


def test_several_turns_need_a_template():
    messages = [{"role": r, "content": "a"} for r in ("user", "assistant", "user", "assistant")]
    with pytest.raises(DataError, match="no chat template"):
        encode([{"messages": messages}], "instruction", tokenizer("decoder"))


def test_a_template_that_does_not_write_the_response_is_refused():
    template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match="does not write message 2"):
        encode([{"prompt": "a", "response": "b"}], "instruction", tokenizer("decoder"), chat_template=template)
    refusing = "{{ raise_exception('system first') }}"
    with pytest.raises(DataError, match=r"does not write these messages \(system first"):
        encode([{"prompt": "a", "response": "b"}], "instruction", tokenizer("decoder"), chat_template=refusing)


def test_random_order_is_a_permutation_that_follows_the_seed():
    assert sorted(random_order(50, 1)) == list(range(50))
    assert random_order(50, 1) == random_order(50, 1) != random_order(50, 2)
