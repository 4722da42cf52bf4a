"""Prompts in the chat templates of the families: one beginning of sequence, an open turn, the same text every day."""

from __future__ import annotations

import pytest
from chat_tokenizers import KINDS, chat_tokenizer
from tokenizers import processors

from pkt.errors import UnsupportedModelError
from pkt.models.lm import LM
from pkt.tasks.base import Example
from pkt.tasks.prompts import DATE, adds_special_tokens, encode, encode_prompt, render, strip_trailing

EXAMPLE = Example("e", " Where does Tom live?\n", "Paris.", "Paris", "Tom")
QUESTION = "Where does Tom live?"
OPENED = {
    "llama3": f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: {DATE}\n\n<|eot_id|>"
    f"<|start_header_id|>user<|end_header_id|>\n\n{QUESTION}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": f"<bos><start_of_turn>user\n{QUESTION}<end_of_turn>\n<start_of_turn>model\n",
    "chatml": f"<|im_start|>user\n{EXAMPLE.prompt}<|im_end|>\n<|im_start|>assistant\n",
    "brackets": f"<s>[INST] {QUESTION} [/INST] ",
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def speaker(kind):
    return chat_tokenizer(kind)


def test_the_prompt_ends_where_the_answer_starts(kind, speaker):
    """Whether the template strips a question, writes a date, refuses a system role, or looks at no generation prompt."""
    assert render(EXAMPLE, "chat_template", speaker) == OPENED[kind]


THINKING = """{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"""
"""As Qwen3 has it."""
ALWAYS = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}"


def test_nothing_is_thought():
    speaker = chat_tokenizer("chatml")
    speaker.chat_template += THINKING
    opened = OPENED["chatml"] + "<think>\n\n</think>\n\n"
    assert render(EXAMPLE, "chat_template", speaker) == opened
    speaker.chat_template = speaker.chat_template.removesuffix(THINKING) + ALWAYS
    with pytest.raises(
        UnsupportedModelError, match=r"opens an answer with thoughts \(<think>\).*use prompt style tulu or plain"
    ):
        render(EXAMPLE, "chat_template", speaker)


@pytest.mark.parametrize("style", ["chat_template", "tulu", "plain"])
def test_one_beginning_of_sequence_where_the_model_has_one(kind, speaker, style):
    found = encode(EXAMPLE, style, speaker)
    asked = encode_prompt(EXAMPLE, style, speaker)
    bos = speaker.bos_token_id
    assert (bos is None) == (kind == "chatml")
    for ids in (found.ids, asked):
        assert ids.count(bos) == (bos is not None)
        assert bos is None or ids[0] == bos
    space = (
        " " if (kind, style) == ("brackets", "chat_template") else ""
    )  # of the template, in the answer's first token
    assert speaker.decode(found.ids[found.response_start :]) == f"{space}Paris."
    assert speaker.decode(strip_trailing(found, speaker, EXAMPLE)[found.response_start :]) == f"{space}Paris"
    text = render(EXAMPLE, style, speaker)
    assert asked == speaker(text, add_special_tokens=adds_special_tokens(style))["input_ids"]
    turns = [t for t in speaker.all_special_tokens if t in text]
    assert speaker.decode(found.ids).count(turns[-1] if turns else "Paris") == (text + "Paris.").count(
        turns[-1] if turns else "Paris"
    ), "special tokens of the template are tokens"


def test_the_end_of_sequence_is_part_of_the_response(speaker):
    found = encode(EXAMPLE, "chat_template", speaker, eos=True)
    assert found.ids[-1] == speaker.eos_token_id
    assert strip_trailing(found, speaker, EXAMPLE)[-1] == encode(EXAMPLE, "chat_template", speaker).ids[-2]


def test_a_template_that_takes_no_question_is_refused(speaker):
    kept = speaker.chat_template
    speaker.chat_template = "{{ raise_exception('a system message must come first') }}"
    try:
        with pytest.raises(UnsupportedModelError, match="a system message must come first.*tulu or plain"):
            render(EXAMPLE, "chat_template", speaker)
    finally:
        speaker.chat_template = kept


def test_a_tokenizer_that_ends_every_text_is_refused(make_lm, tmp_path):
    tokenizer = chat_tokenizer("llama3")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|eot_id|>", special_tokens=[("<|eot_id|>", tokenizer.eos_token_id)]
    )
    tokenizer.save_pretrained(tmp_path)
    make_lm().config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"ends every text with <\|eot_id\|>.*add_eos_token to false"):
        _ = LM(tmp_path).tokenizer
