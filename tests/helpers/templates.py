# ruff: noqa: E501 - templates and rows are as they are
"""Chat templates of the structures that are about, with what the assistant writes marked by hand: «...»."""

import re

THINK = (
    "{%- set ns = namespace(last=-1) %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
)
TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
        "«{{ m.content + '<|im_end|>' }}»{{ '\n' }}{% else %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama 2": (
        "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}"
        "{% endif %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + m.content | trim"
        " + ' [/INST]' }}{% else %}«{{ ' ' + m.content | trim + ' ' + eos_token }}»{% endif %}{% endfor %}"
    ),
    "llama 3": (
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
        "{% if m.role == 'assistant' %}«{{ m.content | trim + '<|eot_id|>' }}»{% else %}"
        "{{ m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "mistral v0.3": (
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}"
        "{% else %}{% set rest = messages %}{% endif %}{% set ns = namespace(last=-1) %}{% for m in rest %}"
        "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{{ bos_token }}"
        "{% for m in rest %}{% if m.role == 'user' %}{{ '[INST] ' }}{% if loop.index0 == ns.last and system is defined %}"
        "{{ system + '\n\n' }}{% endif %}{{ m.content + '[/INST]' }}{% else %}«{{ ' ' + m.content + eos_token }}»"
        "{% endif %}{% endfor %}"
    ),
    "gemma": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ '<start_of_turn>model\n' }}"
        "«{{ m.content | trim + '<end_of_turn>' }}»{{ '\n' }}{% else %}"
        "{{ '<start_of_turn>user\n' + m.content | trim + '<end_of_turn>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "qwen3": (
        THINK + "{%- for m in messages %}{%- if m.role != 'assistant' %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- else %}{%- set content = m.content %}"
        "{%- set r = m.reasoning_content or '' %}{%- if '</think>' in content %}"
        "{%- set r = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
        "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}{{ '<|im_start|>assistant\n' }}"
        "«{%- if loop.index0 > ns.last %}{{ '<think>\n' + r + '\n</think>\n\n' + content }}{%- else %}{{ content }}"
        "{%- endif %}{{ '<|im_end|>' }}»{{ '\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\n' }}{%- if enable_thinking is defined and not enable_thinking %}"
        "{{ '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
    ),
    "r1": (
        "{% for m in messages %}{% if m.role != 'assistant' %}{{ '<|user|>' + m.content }}{% else %}"
        "{% set c = m.content %}{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}"
        "{{ '<|assistant|>' }}«{{ c + eos_token }}»{% endif %}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|assistant|><think>\n' }}{% endif %}"
    ),
    "channels": (
        "{% for m in messages %}{% if m.role != 'assistant' %}"
        "{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% else %}{{ '<|start|>assistant' }}"
        "«{% if m.thinking and loop.last %}{{ '<|channel|>analysis<|message|>' + m.thinking + "
        "'<|end|><|start|>assistant' }}{% endif %}{{ '<|channel|>final<|message|>' + m.content }}"
        "{% if loop.last %}{{ '<|return|>' }}{% else %}{{ '<|end|>' }}{% endif %}»{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
    ),
    "calls in json": (
        "{% if tools %}{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}«{{ m.content or '' }}"
        '{% for call in m.tool_calls or [] %}{{ \'\n<tool_call>\n{"name": "\' + call.function.name + '
        "'\", \"arguments\": ' + call.function.arguments | tojson + '}\n</tool_call>' }}{% endfor %}"
        "{{ '<|im_end|>' }}»{{ '\n' }}{% else %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') + '<|im_end|>\n' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "line end before the closing token": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' }}{% if m.role == 'assistant' %}"
        "«{{ m.content + '\n' + eos_token }}»{{ '\n' }}{% else %}{{ m.content + '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "opens with the assistant": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ 'Bot: ' }}«{{ m.content + eos_token }}»{{ '\n' }}"
        "{% else %}{{ m.role | capitalize + ': ' + m.content + '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Bot: ' }}{% endif %}"
    ),
    "cuts earlier turns short": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|bot|>' }}«{% if loop.last %}{{ m.content }}"
        "{% else %}{{ m.content[:12] }}{% endif %}{{ '<|end|>' }}»{% else %}{{ '<|me|>' + m.content + '<|end|>' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|bot|>' }}{% endif %}"
    ),
    "counts its messages": (
        "{{ '[' ~ messages | length ~ ']' }}{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|start|>assistant' }}"
        "«{{ '<|channel|>final<|message|>' + m.content + '<|end|>' }}»{% else %}"
        "{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
    ),
    "numbers its turns": (
        "{% for m in messages %}{{ '[' ~ loop.index ~ '] ' + m.role + ': ' }}{% if m.role == 'assistant' %}"
        "«{{ m.content + eos_token }}»{{ ' ' }}{% else %}{{ m.content + ' ' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[' ~ (messages | length + 1) ~ '] assistant: ' }}{% endif %}"
    ),
}
CLOSING = (
    *("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>"),
    *("<end_of_turn>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<tool_call>"),
    *("</tool_call>", "<|user|>", "<|assistant|>", "<|system|>", "<|me|>", "<|bot|>", "<think>", "</think>"),
)


def plain(name):
    """The template as models have it."""
    return re.sub("[«»]", "", TEMPLATES[name])


def marked(name):
    """The template as one that says itself what is generated."""
    return TEMPLATES[name].replace("«", "{% generation %}").replace("»", "{% endgeneration %}")
