# ruff: noqa: E501 - templates and rows are as they are
"""Every layout of rows that is read, with a two-row example and what is read of it: docs/layouts.md.

python tests/helpers/layouts.py        # writes the page
"""

import json
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "layouts.md"
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}


def says(role, content, **others):
    return {"role": role, "content": content, **others}


ASKED = [says("user", "Which is larger, 3 or 4?")]
ANSWERED = [says("assistant", "4")]
SHORT = [says("user", "Hello"), says("assistant", "Good morning.")]
LAYOUTS = {
    "Text and a label": [{"text": "A fine film.", "label": "good"}, {"text": "Far too long.", "label": "bad"}],
    "Two texts and a label": [
        {"premise": "It rains.", "hypothesis": "It is wet.", "label": 0},
        {"premise": "It rains.", "hypothesis": "It is dry.", "label": 1},
    ],
    "Two texts and a number": [
        {"sentence1": "A cat.", "sentence2": "A kitten.", "score": 4.2},
        {"sentence1": "A cat.", "sentence2": "A car.", "score": 0.5},
    ],
    "Plain text": [{"text": "Once upon a time"}, {"text": "there was a king."}],
    "Prompt and completion": [
        {"prompt": "Which is larger, 3 or 4?", "completion": "4"},
        {"prompt": "Hello", "completion": "Good morning."},
    ],
    "Prompt and completion as messages (TRL)": [
        {"prompt": ASKED, "completion": ANSWERED},
        {"prompt": SHORT[:1], "completion": SHORT[1:]},
    ],
    "Preferences: the chosen side": [
        {"prompt": ASKED, "chosen": ANSWERED, "rejected": [says("assistant", "3")]},
        {"prompt": SHORT[:1], "chosen": SHORT[1:], "rejected": [says("assistant", "What?")]},
    ],
    "Preferences whose sides are whole conversations": [
        {"chosen": ASKED + ANSWERED, "rejected": [*ASKED, says("assistant", "3")]},
        {"chosen": SHORT, "rejected": [SHORT[0], says("assistant", "What?")]},
    ],
    "Messages (OpenAI)": [
        {
            "messages": [
                says("system", "Be brief."),
                *ASKED,
                *ANSWERED,
                says("user", "Sure?"),
                says("assistant", "Yes."),
            ]
        },
        {"messages": [*SHORT, says("user", "And?"), says("assistant", "Nothing.", weight=0), *SHORT]},
    ],
    "Messages in parts": [
        {"messages": [says("user", [{"type": "text", "text": "Hello"}]), *SHORT[1:]]},
        {
            "messages": [
                says("user", [{"type": "text", "text": "Who "}, {"type": "text", "text": "are you?"}]),
                *SHORT[1:],
            ]
        },
    ],
    "Tools and calls": [
        {
            "messages": [
                says("user", "Is it warm in Rome?"),
                says("assistant", None, tool_calls=[CALL]),
                says("tool", "28 degrees"),
                says("assistant", "Yes."),
            ],
            "tools": [{"type": "function", "function": {"name": "weather"}}],
        },
        {"messages": SHORT, "tools": None},
    ],
    "Reasoning": [
        {"messages": [*ASKED, says("assistant", "4", reasoning_content="4 - 3 is positive")]},
        {"messages": SHORT},
    ],
    "ShareGPT": [
        {
            "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Good morning."}],
            "system": "Be kind.",
        },
        {
            "conversations": [
                {"from": "gpt", "value": "Ask me."},
                {"from": "human", "value": "Why?"},
                {"from": "gpt", "value": "So."},
            ]
        },
    ],
    "Alpaca": [
        {"instruction": "Name a colour.", "output": "Red."},
        {"instruction": "Translate.", "input": "rouge", "output": "red"},
    ],
    "Dolly": [
        {"instruction": "Who reigns?", "context": "Ann is queen.", "response": "Ann.", "category": "closed_qa"},
        {"instruction": "Name a colour.", "context": "", "response": "Red.", "category": "open_qa"},
    ],
    "OpenOrca": [
        {"system_prompt": "Be brief.", "question": "Why?", "response": "So."},
        {"system_prompt": "", "question": "Hello", "response": "Good morning."},
    ],
    "LLaMA-Factory": [
        {
            "instruction": "And of 5 and 6?",
            "input": "",
            "output": "6",
            "system": "Be brief.",
            "history": [["Which is larger, 3 or 4?", "4"]],
        },
        {"instruction": "Hello", "input": "", "output": "Good morning.", "history": []},
    ],
    "Input and output": [{"input": "Hello", "output": "Good morning."}, {"input": "Why?", "output": "So."}],
    "Document and summary": [
        {"document": "It rained all day.", "summary": "Rain."},
        {"document": "It was warm.", "summary": "Warm."},
    ],
    "SQuAD": [
        {"context": "Ann is queen.", "question": "Who reigns?", "answers": {"text": ["Ann"], "answer_start": [0]}},
        {"context": "It rains.", "question": "How is it?", "answers": {"text": ["wet"], "answer_start": [0]}},
    ],
    "ARC": [
        {"question": "Which is hot?", "choices": {"text": ["ice", "fire"], "label": ["1", "2"]}, "answerKey": "2"},
        {"question": "Which is wet?", "choices": {"text": ["water", "sand"], "label": ["A", "B"]}, "answerKey": "A"},
    ],
    "Choices": [
        {"question": "Which is hot?", "choices": ["ice", "fire"], "answer": 1},
        {"question": "Which is wet?", "choices": ["water", "sand"], "answer": 0},
    ],
}
HEAD = """# Layouts

Rows come from a file, `.jsonl`, `.json`, `.csv` (all also `.gz`) or `.parquet`, or from several of them by `*`. They
come from a directory of such files, one saved by `datasets` or one of images (a folder a class), or from the Hub. Columns
are found by their names, in all rows. `--text-column`, `--prompt-column` and the other flags name them where they are
called otherwise. A cell that is empty, or neither text nor a layout below,
is refused with its row.

Below is what is read of two rows in each layout, «marked» where the loss is taken. That is each turn of the assistant
with its reasoning and calls, up to and with the token that ends it. Conversations are
written by the model's own chat template or `--chat-template`, here by one like ChatML. Without a template a prompt and a response are
written in Alpaca's words. See your own rows so before you train:

```
layersift inspect MODEL --data FILE --show 3
```

| part of a conversation | what happens |
| --- | --- |
| a turn, call, tool or reasoning that the template does not write | refused with its row and role |
| a `developer`'s turn where the template knows only `system` | written as the system's, and said |
| `weight`, `loss`, `train`, `trainable`, `training`, `loss_mask`, `loss_scale` beside a turn | 0 or false leaves it out of the loss; other numbers are refused |
| `function_call`, `functions` and the role `function` (OpenAI's older form) | read as calls, tools and a tool's result |
| messages or tools as JSON text, nulls that Arrow adds | read as the same messages |
| reasoning that the template cuts out of the last answer | said |

Messages may hold images, as parts or in a column `image` or `images`, with LLaVA's `<image>` in the text or without,
all in front of the first answer. Photographs are turned as their EXIF orientation says. Of unpaired preferences (a
prompt, a completion, and `label` true or false, as for KTO) the completions that are wanted are read. Names of classes
that `datasets` keeps beside their numbers (`ClassLabel`) are read. Models that translate between many languages need
`--source-language` and `--target-language`. Several labels a row (multi-label), token classification and extractive question
answering are not supported, and are refused.
"""
TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>tools\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' }}{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>\n' }}"
    "{% endif %}{{ m.content or '' }}{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def what_is_read(rows):
    """What the screen says of the columns, and each row as the model reads it."""
    from layersift.data.chat.conversation import conversation_of
    from layersift.data.chat.template import Template, render
    from layersift.data.table import table_of
    from words import tokenizer

    tok = tokenizer("decoder")
    tok.add_tokens(["<|im_start|>", "<|im_end|>"])
    table = table_of(rows, "rows")
    texts = [table.described()]
    for index, row in enumerate(table.rows):
        if table.kind != "instruction":
            columns = table.columns
            read = " + ".join(row[name] for name in (columns.text, columns.text_pair) if name)
            texts.append(f"«{read}»" if columns.label is None else f"{read} -> «{row[columns.label]}»")
            continue
        conversation = conversation_of(row, table.columns, table.where(index))
        rendered = render(conversation, Template(TEMPLATE, tok, "here"), table.where(index))
        text, shift = rendered.text, 0
        for start, end in rendered.responses:
            text = f"{text[: start + shift]}«{text[start + shift : end + shift]}»{text[end + shift :]}"
            shift += 2
        texts.append(text.rstrip("\n"))
    return "\n\n".join(texts)


def page():
    text = HEAD
    for name, rows in LAYOUTS.items():
        lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        text += f"\n## {name}\n\n```json\n{lines}\n```\n\n```text\n{what_is_read(rows)}\n```\n"
    return text


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    PAGE.write_text(page())
