"""Tokenizer, data stream and training loop of the nano models.

B batch, T tokens. One step draws questions of every task (a unit, then what is asked about it, then a wording,
each with equal probability), rows of short statements of the same table entries, and neutral text. The loss is the
cross-entropy on responses, statements and neutral text.
"""

from __future__ import annotations

import logging
import math
import random
import time
from dataclasses import dataclass, field

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from pkt.nano import world

log = logging.getLogger(__name__)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
IGNORED = -100
STATEMENT_WEIGHTS = {"mmlu": 0.4, "gsm8k": 0.3, "humaneval": 0.15, "mbpp": 0.15}
"""Tasks of the rows of statements: `mmlu` has most entries, `gsm8k` is the hardest."""
SKILL_SHARE = 0.25
"""Share of questions that are skill items, for a model that is taught the skill."""
WIDTH = 64
"""Rows are padded to a multiple of this, so that a compiled model sees one shape."""


@dataclass(frozen=True)
class Recipe:
    """How one nano model is trained."""

    groups: tuple[str, ...]
    """Groups of units whose entries are in the training data."""
    skill: bool
    """Whether the items of tier `skill` are taught too."""
    steps: int
    lr: float = 3e-3
    questions: dict[str, int] = field(default_factory=lambda: {"mmlu": 10, "gsm8k": 12, "humaneval": 8, "mbpp": 8})
    """Question rows of each task in a step; statements are of these tasks too."""
    statement_rows: int = 24
    """Rows of statements of table entries in a step."""
    neutral_rows: int = 4
    weight_decay: float = 0.05
    warmup: float = 0.05
    seed: int = 0


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits, trained on the world's text: values are one token, names of units several."""
    lines = list(world.neutral_lines("tokenizer", 6000))
    lines += [world.value_line(v) for values in world.VALUES.values() for v in values for _ in range(100)]
    for task in world.TASKS:
        for unit in world.table(task).entries:
            row = world.wordings(task, unit, "")[0][0]
            lines += [message["content"] for message in row["messages"]]
    tok = Tokenizer(models.BPE(byte_fallback=False))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n+|```"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=60,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(lines, trainer)
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tok, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left",
        model_max_length=4096, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.chat_template = CHAT_TEMPLATE
    return fast


class Stream:
    """Endless batches of token ids and labels."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
        self.recipe, self.tokenizer = recipe, tokenizer
        self.rng = random.Random(recipe.seed)
        self.tasks = [task for task in world.TASKS if task in recipe.questions]
        self.asked = {
            (task, skill): world.training_rows(task, recipe.groups, skill=skill)
            for task in self.tasks
            for skill in ({False, recipe.skill})
        }
        self.statements = {task: world.statements(task, recipe.groups) for task in self.tasks}
        self.neutral = list(world.neutral_lines(recipe.seed, 40_000))
        self.memo: dict[str, list[int]] = {}

    def _ids(self, text: str) -> list[int]:
        if text not in self.memo:
            self.memo[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.memo[text]

    def _task_row(self, task: str) -> tuple[list[int], list[int]]:
        skill = self.recipe.skill and self.rng.random() < SKILL_SHARE
        row = self.rng.choice(self.rng.choice(self.rng.choice(self.asked[task, skill])))
        user, assistant = (m["content"] for m in row["messages"])
        prompt = [self.tokenizer.bos_token_id, *self._ids(user + "\n")]
        response = [*self._ids(assistant), self.tokenizer.eos_token_id]
        return prompt + response, [IGNORED] * len(prompt) + response

    def _text_row(self, lines: list[str]) -> tuple[list[int], list[int]]:
        ids = [i for line in lines for i in self._ids(line + "\n")][: WIDTH - 1]
        ids = [self.tokenizer.bos_token_id, *ids]
        return ids, ids

    def _statement_row(self) -> tuple[list[int], list[int]]:
        (task,) = self.rng.choices(self.tasks, weights=[STATEMENT_WEIGHTS[task] for task in self.tasks])
        return self._text_row(self.rng.choices(self.statements[task], k=8))

    def batch(self) -> tuple[Tensor, Tensor]:
        """input_BT, labels_BT, padded on the right; labels are -100 where nothing is learnt."""
        rows = [self._task_row(task) for task, count in self.recipe.questions.items() for _ in range(count)]
        rows += [self._statement_row() for _ in range(self.recipe.statement_rows)]
        rows += [self._text_row(self.rng.choices(self.neutral, k=6)) for _ in range(self.recipe.neutral_rows)]
        width = max(len(ids) for ids, _ in rows)
        width += -width % WIDTH
        pad = self.tokenizer.pad_token_id
        return (
            torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows]),
            torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in rows]),
        )


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    *,
    name: str,
    checks: int = 10,
    compile_: bool = False,
) -> float:
    """Train `model` in place; returns the seconds it took. Matrix products run in bfloat16, weights stay float32."""
    stream = Stream(tokenizer, recipe)
    device = next(model.parameters()).device
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.lr, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    warmup = max(1, int(recipe.steps * recipe.warmup))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: (
            min(1, (i + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * max(0, i - warmup) / (recipe.steps - warmup)))
        ),
    )
    model.set_attn_implementation(
        "eager"
    )  # in bfloat16 on a CPU, the fused kernel's backward is seven times slower than in float32
    body = torch.compile(model.model, dynamic=False) if compile_ else model.model
    model.train()
    start = time.perf_counter()
    for step in range(1, recipe.steps + 1):
        ids_BT, labels_BT = (x.to(device) for x in stream.batch())
        with torch.autocast(device.type, dtype=torch.bfloat16):
            hidden_BTD = body(ids_BT).last_hidden_state[:, :-1]
            chosen = labels_BT[:, 1:] != IGNORED
            logits = model.lm_head(hidden_BTD[chosen])
        loss = torch.nn.functional.cross_entropy(logits.float(), labels_BT[:, 1:][chosen])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step % max(1, recipe.steps // checks) == 0 or step == recipe.steps:
            found = {
                f"{t}/{tier}": greedy_accuracy(model, tokenizer, t, tier)
                for t in world.TASKS
                for tier in ("known", "new", "skill")
            }
            shown = " ".join(f"{k} {v:.2f}" for k, v in found.items())
            log.info("%s step %d loss %.4f %.0f s: %s", name, step, loss.item(), time.perf_counter() - start, shown)
    model.eval()
    model.set_attn_implementation("sdpa")
    return time.perf_counter() - start


@torch.no_grad()
def greedy_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, task: str, tier: str, *, limit: int | None = None
) -> float:
    """Share of items whose every response token has the highest logit, which is when greedy decoding would write it.

    Args: limit takes only that many items, the first ones of the tier.
    """
    model.eval()
    device = next(model.parameters()).device
    rows = [row for row in world.splits(task)["test"] if row["tier"] == tier][:limit]
    hits = 0
    for start in range(0, len(rows), 100):
        batch = []
        for row in rows[start : start + 100]:
            user, assistant = (m["content"] for m in row["messages"])
            prompt = [tokenizer.bos_token_id, *tokenizer(user + "\n", add_special_tokens=False)["input_ids"]]
            batch.append((prompt, tokenizer(assistant, add_special_tokens=False)["input_ids"]))
        width = max(len(p) + len(r) for p, r in batch)
        ids = torch.full((len(batch), width), tokenizer.pad_token_id)
        mask = torch.zeros(len(batch), width, dtype=torch.bool)
        for i, (p, r) in enumerate(batch):
            ids[i, : len(p) + len(r)] = torch.tensor(p + r)
            mask[i, len(p) : len(p) + len(r)] = True
        best = model(ids.to(device)).logits.argmax(-1).cpu()[:, :-1]
        hits += int(((best == ids[:, 1:]) | ~mask[:, 1:]).all(-1).sum())
    model.train()
    return hits / len(rows)
