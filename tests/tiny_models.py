"""Sizes and families of the tiny random models."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

SOURCE = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
TARGET = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


CAPS = {"final_logit_softcapping": 6.0, "attn_logit_softcapping": 4.0}
FAMILIES: dict[str, dict] = {
    "llama": {},
    "mistral": {"sliding_window": 7},
    "qwen2": {},
    "qwen3": {"head_dim": 12},
    "gemma": {"head_dim": 12},
    "gemma2": {"head_dim": 12, "query_pre_attn_scalar": 20, "sliding_window": 7, **CAPS},
    "gemma3_text": {"head_dim": 12, "query_pre_attn_scalar": 20, "sliding_window": 7, "sliding_window_pattern": 2},
    "phi3": {"sliding_window": 7},
}
"""Every supported family, with what makes its tiny model a special one: windows shorter than a prompt, caps that are felt."""


def make_model(folder: Path, tokenizer: PreTrainedTokenizerFast, family: str, sizes: dict, seed: int, **more) -> Path:
    """A random model with weights large enough that its parts matter."""
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, initializer_range=0.2,
        **{**sizes, "max_position_embeddings": 512, "tie_word_embeddings": False, **more},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
