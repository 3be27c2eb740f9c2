"""A small byte-level tokenizer and template, made here so that text tests need no checkpoint."""

from __future__ import annotations

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from lingflash.text.chat_template import ChatTemplate
from lingflash.text.tokenizer import Tokenizer as LingTokenizer

SPECIAL = [
    "<|startoftext|>",
    "<|endoftext|>",
    "<|role_end|>",
    "<role>",
    "</role>",
    "<tool_call>",
    "</tool_call>",
]
ORDINARY = ['"type": "string"', "detailed thinking off"]

TEMPLATE = """
{%- for message in messages -%}
{{ '<role>' + message.role + '</role>' + message.content }}
{%- for call in message.tool_calls or [] -%}
{{ '<tool_call>' + (call.function.arguments | tojson) + '</tool_call>' }}
{%- endfor -%}
{{ '<|role_end|>' }}
{%- endfor -%}
{%- if tools %}{{ tools | tojson }}{% endif -%}
{%- if mood is defined %}{{ mood }}{% endif -%}
{%- if add_generation_prompt %}{{ '<role>assistant</role>' }}{% endif -%}
"""


def toy_definition() -> str:
    """tokenizer.json of a tokenizer with all 256 bytes, some merges and the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=SPECIAL,
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["the weather in Zürich is fine", "héllo wörld 你好"] * 8, trainer
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ORDINARY])
    return json.dumps(json.loads(tokenizer.to_str()))


def toy_tokenizer() -> LingTokenizer:
    """The tokenizer itself."""
    return LingTokenizer(toy_definition())


def toy_template() -> ChatTemplate:
    """A short template in the manner of Ling's."""
    return ChatTemplate(TEMPLATE)
