"""Log-likelihoods of a text, window by window: together they are the perplexity."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch

from pkt.evaluation.perplexity import perplexity, window_losses
from pkt.nano.world import neutral_lines

TEXT = "\n".join(neutral_lines("windows", 4))


@pytest.mark.parametrize(("window", "stride"), [(512, 256), (16, 5), (16, 15), (7, 1)])
def test_every_token_but_the_first_counts_once_and_the_sums_give_the_perplexity(tiny_target, window, stride):
    tokenizer = tiny_target.tokenizer
    ids = torch.tensor(tokenizer(TEXT)["input_ids"])
    assert 30 < len(ids) < 200
    with tiny_target.loaded() as model:
        found = window_losses(model, tokenizer, TEXT, window=window, stride=stride)
        whole = perplexity(model, tokenizer, TEXT, window=window, stride=stride)
        counts = [count for count, _ in found]
        assert sum(counts) == len(ids) - 1
        assert counts[0] == min(window, len(ids)) - 1
        assert all(count == stride for count in counts[1:-1])
        assert whole == pytest.approx(math.exp(sum(loss for _, loss in found) / (len(ids) - 1)))
        end = 1
        for count, loss in found:
            start, done, end = max(0, end + count - window), end, end + count
            with torch.no_grad():
                logp = model(ids[None, start:end]).logits[0].log_softmax(-1)
            expected = -sum(float(logp[at - 1 - start, ids[at]]) for at in range(done, end))
            assert loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("scale", "said"), [(math.nan, "nan"), (1e6, r"\d+\.\d"), (math.inf, "nan")])
def test_a_perplexity_that_is_no_number_is_none(tiny_target, caplog, scale, said):
    with tiny_target.loaded() as loaded:
        model = copy.deepcopy(loaded)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(scale)
    assert perplexity(model, tiny_target.tokenizer, TEXT) is None
    (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert re.search(f"a token's mean loss is {said}", warning)
