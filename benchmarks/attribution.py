"""Attribution against the plain vectorised version, in one run: `python benchmarks/attribution.py`.

A random Llama (10 layers, width 640, FFN 1728, vocabulary 8,000), 20 examples of 128 tokens, all FFN and attention neurons,
one thread. The reference scores each example by itself: all neurons of a layer at once, one matrix product with the
unembedding, one log-softmax. Prints the ratio of times, whether the top sets equal those of float64, and the peak memory
above the model beside the bound.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pkt.extract.attribution import AttributionConfig, _visit, attribute
from pkt.extract.neurons import ranked
from pkt.models.families import KINDS
from pkt.models.lm import LM
from pkt.tasks.base import Example
from pkt.tasks.prompts import encode, strip_trailing

RATE = 0.1


def make(folder: Path, layers: int, width: int, ffn: int, vocabulary: int, heads: int = 10) -> LM:
    """A random Llama and a tokenizer of whole words."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads // 2, max_position_embeddings=512, tie_word_embeddings=False, initializer_range=0.05,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    special = ["<unk>", "<eos>", "<pad>"]
    every = special + [f"w{i}" for i in range(len(special), vocabulary)]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(every)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(folder)
    return LM(folder, device="cpu", dtype="float32")


def make_examples(count: int, tokens: int, vocabulary: int) -> list[Example]:
    gen = torch.Generator().manual_seed(1)
    rows = torch.randint(3, vocabulary, (count, tokens + 1), generator=gen).tolist()
    texts = [" ".join(f"w{i}" for i in row) for row in rows]
    return [Example(str(i), *text.rsplit(" ", 1), "", str(i)) for i, text in enumerate(texts)]


@torch.no_grad()
def plain(lm: LM, examples: list[Example], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The reference: (L, N) scores summed over the examples, each example by itself."""
    total = {kind: torch.zeros(lm.dims.layers, lm.dims.neurons(kind), dtype=dtype) for kind in KINDS}
    with lm.loaded() as model:
        unembed, norm = model.lm_head.weight.to(dtype), model.model.norm.weight.to(dtype)
        for example in examples:
            ids = strip_trailing(encode(example, "plain", lm.tokenizer, lm.dims.context), lm.tokenizer, example)
            (site,) = _visit(model, lm, [ids], AttributionConfig())
            for kind, (_, writer) in KINDS.items():
                for layer in range(lm.dims.layers):
                    value_ND = model.get_submodule(lm.family.module(writer, layer)).weight.T.to(dtype)
                    base_D, act_N = site.before[kind][layer].to(dtype), site.act[kind][layer].to(dtype)
                    total[kind][layer] += _gain(
                        base_D, act_N, value_ND, site.scale.to(dtype) * norm, unembed, site.answer
                    )
    return total


def _gain(base_D, act_N, value_ND, factor_D, unembed_VD, answer):
    states = torch.cat([base_D[None], base_D + act_N[:, None] * value_ND]) * factor_D
    logp = (states @ unembed_VD.T).log_softmax(-1)[:, answer]
    return logp[1:] - logp[0]


def overlap(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> tuple[int, int]:
    """How many (kind, layer) top sets are equal, of how many."""
    same = total = 0
    for kind in KINDS:
        k = int(one[kind].shape[1] * RATE)
        for a, b in zip(ranked(one[kind], k)[0].tolist(), ranked(two[kind], k)[0].tolist(), strict=True):
            same, total = same + (set(a) == set(b)), total + 1
    return same, total


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--memory-mib", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--skip-float64", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        lm = make(Path(folder), args.layers, 640, 1728, 8000)
        examples = make_examples(args.examples, args.tokens, 8000)
        with lm.loaded() as model, torch.no_grad():
            model(torch.zeros(1, args.tokens, dtype=torch.long))  # the model's own memory, before the measurement
            before = peak_mib()
            fast_seconds = []
            for _ in range(args.repeats):
                start = time.perf_counter()
                fast = attribute(lm, examples, "plain", memory=args.memory_mib << 20)
                fast_seconds.append(time.perf_counter() - start)
            above = peak_mib() - before
            start = time.perf_counter()
            slow = plain(lm, examples)
            slow_seconds = time.perf_counter() - start
            scores = {kind: t[0] for kind, t in fast.neurons.items()}
            print(
                f"pkt {min(fast_seconds):.1f} s, plain {slow_seconds:.1f} s, ratio {slow_seconds / min(fast_seconds):.1f}"
            )
            print(f"peak memory above the model {above:.0f} MiB, bound {args.memory_mib} MiB")
            print("top sets equal to plain float32: {} of {}".format(*overlap(scores, slow)))
            if not args.skip_float64:
                exact = plain(lm, examples, torch.float64)
                print("top sets equal to float64: pkt {} of {}".format(*overlap(scores, exact)), end=", ")
                print("plain float32 {} of {}".format(*overlap(slow, exact)))
                error = max(float((scores[k] - exact[k]).abs().max()) for k in KINDS)
                plain_error = max(float((slow[k] - exact[k]).abs().max()) for k in KINDS)
                print(f"largest error of a summed score, nats: pkt {error:.1e}, plain float32 {plain_error:.1e}")


if __name__ == "__main__":
    main()
