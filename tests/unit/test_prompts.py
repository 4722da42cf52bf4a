"""Prompt styles, token ids, and where the response starts."""

from dataclasses import replace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pkt.errors import ConfigError, DataError, UnsupportedModelError
from pkt.tasks.base import Example
from pkt.tasks.prompts import STYLES, Encoded, encode, render, strip_trailing

EXAMPLE = Example(id="e/1", prompt="Where is Ana?", response="The answer is: Paris", answer="Paris", unit="Ana")


@pytest.fixture(scope="module")
def merging() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that merges across the line end between prompt and response; no BOS, no chat template."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(["\nThe answer is: ", "\nThe "] * 50, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tok, pad_token="<pad>", eos_token="</s>")


def test_render(tokenizer) -> None:
    assert render(EXAMPLE, "tulu", tokenizer) == "<|user|>\nWhere is Ana?\n<|assistant|>\n"
    assert render(EXAMPLE, "plain", tokenizer) == "Where is Ana?\n"
    messages = [{"role": "user", "content": EXAMPLE.prompt}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert render(EXAMPLE, "chat_template", tokenizer) == expected


def test_render_refuses(tokenizer, merging) -> None:
    with pytest.raises(ConfigError, match="alpaca.*tulu"):
        render(EXAMPLE, "alpaca", tokenizer)
    with pytest.raises(ConfigError, match="no chat template"):
        render(EXAMPLE, "chat_template", merging)


@pytest.mark.parametrize("style", STYLES)
def test_encode_is_the_whole_text_at_once(style, tokenizer) -> None:
    text = render(EXAMPLE, style, tokenizer)
    found = encode(EXAMPLE, style, tokenizer, None)
    bos = [] if style == "chat_template" else [tokenizer.bos_token_id]
    assert found.ids == bos + tokenizer(text + EXAMPLE.response, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(found.ids[found.response_start :]) == EXAMPLE.response
    assert encode(EXAMPLE, style, tokenizer, None, eos=True) == Encoded(
        [*found.ids, tokenizer.eos_token_id], found.response_start
    )


def test_a_template_that_writes_its_own_bos_gets_no_second(tokenizer) -> None:
    template = tokenizer.chat_template
    tokenizer.chat_template = "<s>" + template
    try:
        ids = encode(EXAMPLE, "chat_template", tokenizer, None).ids
    finally:
        tokenizer.chat_template = template
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_a_token_across_the_boundary_counts_as_response(merging) -> None:
    found = encode(EXAMPLE, "plain", merging, None)
    first = merging.decode([found.ids[found.response_start]])
    assert first.startswith("\nThe"), "the fixture must merge across the boundary"
    before = merging.decode(found.ids[: found.response_start])
    assert before + first == f"{EXAMPLE.prompt}{first}"


def test_encode_refuses(tokenizer) -> None:
    length = len(encode(EXAMPLE, "tulu", tokenizer, None).ids)
    assert len(encode(EXAMPLE, "tulu", tokenizer, length).ids) == length
    with pytest.raises(DataError, match=rf"e/1.* {length} .*{length - 1}"):
        encode(EXAMPLE, "tulu", tokenizer, length - 1)
    with pytest.raises(DataError, match=rf"e/1.* {length + 1} .*{length}"):
        encode(EXAMPLE, "tulu", tokenizer, length, eos=True)
    with pytest.raises(DataError, match="e/1.*no token"):
        encode(replace(EXAMPLE, response=""), "tulu", tokenizer, None, eos=True)


def test_encode_refuses_tokenizers_that_cannot_do_it(tokenizer) -> None:
    class Slow:
        is_fast = False
        name_or_path = "some/model"
        chat_template = None

    with pytest.raises(UnsupportedModelError, match="some/model.*fast"):
        encode(EXAMPLE, "tulu", Slow(), None)  # type: ignore[arg-type]
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(UnsupportedModelError, match="end of sequence"):
        encode(EXAMPLE, "plain", bare, None, eos=True)


@pytest.mark.parametrize(
    ("response", "kept"),
    [
        ("So the answer is 12.", "So the answer is 12"),
        ('("blue")].\n, ', '("blue'),
        ("The answer is: Paris", "The answer is: Paris"),
        ("f(x)))", "f(x"),
        ("He said so!", "He said so!"),
    ],
)
def test_strip_trailing(response, kept, tokenizer) -> None:
    example = replace(EXAMPLE, response=response)
    for eos in (False, True):
        encoded = encode(example, "plain", tokenizer, None, eos=eos)
        assert tokenizer.decode(strip_trailing(encoded, tokenizer, example)[encoded.response_start :]) == kept
        assert encoded == encode(example, "plain", tokenizer, None, eos=eos), "the ids given are not changed"


def test_strip_trailing_never_reaches_the_prompt(tokenizer) -> None:
    example = replace(EXAMPLE, response='. ")')
    with pytest.raises(DataError, match="e/1.*no scorable token"):
        strip_trailing(encode(example, "plain", tokenizer, None, eos=True), tokenizer, example)
