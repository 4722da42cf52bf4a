"""Handles that show a source's values as something else, for control arms. All else, location above all, is the real source's.

K lines, D their length.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from pkt.errors import DataError, UnsupportedModelError
from pkt.models.checkpoint import Checkpoint
from pkt.models.lm import LM

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from pkt.models.generation import Decoding
    from pkt.models.teacher import Teacher


class Control(LM):
    """The real source behind another name for its values.

    Args:
        source: the real source. seed: of the arm's random draws.
    """

    def __init__(self, source: LM, seed: int) -> None:
        super().__init__(
            source.name, revision=source.revision, device=source.device, dtype=source.dtype, memo=source.memo
        )
        self.source, self.seed = source, seed

    @property
    def real(self) -> LM:
        return self.source

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, seed={self.seed})"

    @property
    def config(self) -> Any:
        return self.real.config

    @property
    def checkpoint(self) -> Checkpoint:
        return self.real.checkpoint

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self.real.tokenizer

    def for_location(self) -> AbstractContextManager[PreTrainedModel]:
        return self.real.loaded()

    def loaded(self) -> AbstractContextManager[PreTrainedModel]:
        """Refused: the weights in memory would be the real source's.

        Raises:
            UnsupportedModelError: always.
        """
        raise UnsupportedModelError(
            f"{self.name} stands for {type(self).__name__} here, whose weights cannot be loaded: a method reads values through "
            f"`slices` and `tensor`, asks through `generate` and `teacher`, and locates through `for_location`"
        )

    def private(self, dtype: str | None = None) -> AbstractContextManager[PreTrainedModel]:
        """Refused, as `loaded` is."""
        return self.loaded()

    def generator(self, *names: object) -> Generator:
        """A generator for one piece of the model: the same in every call."""
        import torch

        return torch.Generator().manual_seed(self.seed_of(*names))

    def seed_of(self, *names: object) -> int:
        """The seed of that generator."""
        text = " ".join(map(str, (self.seed, *names)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


class RandomSource(Control):
    """Normal noise with the mean and variance of what it stands for, per module and layer.

    Every line has its own noise, whatever lines are asked for together with it. Answers and logits come from a model of the
    source's config whose weights are new: transformers' own initial ones (linear maps and embeddings normal with the config's
    `initializer_range`, norms one, biases zero), drawn on the CPU.
    """

    def generate(self, texts: Sequence[str], how: Decoding) -> list[str]:
        from pkt.models.generation import answers

        return answers(self, texts, how, self.initialised, ("initialised", self.seed))

    def teacher(self, prompts: Sequence[Sequence[int]]) -> AbstractContextManager[Teacher]:
        from pkt.models.teacher import teaching

        return teaching(self.initialised(), prompts)

    @contextmanager
    def initialised(self) -> Iterator[PreTrainedModel]:
        """The new model, in the source's dtype, on one device."""
        import torch
        from transformers import AutoModelForCausalLM

        dtype = self.config.dtype or torch.float32 if self.dtype == "auto" else getattr(torch, self.dtype)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed_of("initialised"))
            # a copy, for transformers writes the dtype into the config
            model = AutoModelForCausalLM.from_config(copy.deepcopy(self.config), dtype=torch.float32)
        yield model.to(self.torch_device, dtype).eval().requires_grad_(False)

    def slices(self, part: str, lines: Mapping[int, Sequence[int]]) -> dict[int, Tensor]:
        import torch

        found = {}
        for layer, real_KD in self.real.slices(part, lines).items():
            noise_KD = torch.empty_like(real_KD)
            for noise_D, line in zip(noise_KD, lines[layer], strict=True):
                noise_D.normal_(generator=self.generator(part, layer, line))
            found[layer] = real_KD.mean() + real_KD.std(correction=0) * noise_KD if len(noise_KD) else noise_KD
        return found

    def block(self, name: str, corner: tuple[int, int], shape: tuple[int, int]) -> Tensor:
        import torch

        real = self.real.block(name, corner, shape)
        noise = torch.randn(real.shape, generator=self.generator(name, *corner, *shape))
        return real.mean() + real.std(correction=0) * noise

    def tensor(self, name: str) -> Tensor:
        import torch

        real = self.real.tensor(name)
        return real.mean() + real.std(correction=0) * torch.randn(real.shape, generator=self.generator(name))

    def residuals(self, ids: Sequence[Sequence[int]], layers: Sequence[int]) -> dict[int, Tensor]:
        """Noise with the mean and variance of each layer's states; a text has its own, whatever texts are asked for with it."""
        import torch

        found = {}
        for layer, real_PD in self.real.residuals(ids, layers).items():
            parts = [
                torch.randn(len(text), real_PD.shape[1], generator=self.generator("residuals", layer, *text))
                for text in ids
            ]
            found[layer] = real_PD.mean() + real_PD.std(correction=0) * torch.cat(parts)
        return found


class ShuffledSource(Control):
    """The real lines in other places: permuted over all neurons and layers of a call, each module by its own permutation.

    A whole tensor or a block has its entries permuted. Answers are the real ones to other prompts; logits are those of the same
    text after another prompt.
    """

    def generate(self, texts: Sequence[str], how: Decoding) -> list[str]:
        real = self.real.generate(texts, how)
        return [real[i] for i in self.elsewhere("answers", len(real))]

    def teacher(self, prompts: Sequence[Sequence[int]]) -> AbstractContextManager[Teacher]:
        from pkt.models.teacher import teaching

        return teaching(self.real.loaded(), prompts, self.elsewhere("prompts", len(prompts)))

    def elsewhere(self, name: str, count: int) -> list[int]:
        """A permutation in which nothing keeps its place: one cycle through all, in random order.

        Raises:
            DataError: there is but one prompt.
        """
        import torch

        if count == 1:
            raise DataError("one prompt alone has no other to be exchanged with; give the shuffled source two at least")
        cycle = torch.randperm(count, generator=self.generator(name)).tolist()
        following = dict(zip(cycle, [*cycle[1:], *cycle[:1]], strict=True))
        return [following[i] for i in range(count)]

    def slices(self, part: str, lines: Mapping[int, Sequence[int]]) -> dict[int, Tensor]:
        import torch

        real = self.real.slices(part, lines)
        every_KD = torch.cat(list(real.values()))
        mixed_KD = every_KD[torch.randperm(len(every_KD), generator=self.generator(part))]
        return dict(zip(real, mixed_KD.split([len(real_KD) for real_KD in real.values()]), strict=True))

    def tensor(self, name: str) -> Tensor:
        import torch

        real = self.real.tensor(name)
        return real.flatten()[torch.randperm(real.numel(), generator=self.generator(name))].view(real.shape)

    def block(self, name: str, corner: tuple[int, int], shape: tuple[int, int]) -> Tensor:
        import torch

        real = self.real.block(name, corner, shape)
        return real.flatten()[torch.randperm(real.numel(), generator=self.generator(name, *corner))].view(real.shape)

    def residuals(self, ids: Sequence[Sequence[int]], layers: Sequence[int]) -> dict[int, Tensor]:
        """The real states at other positions, of all texts, each layer by its own permutation."""
        import torch

        found = {}
        for layer, real_PD in self.real.residuals(ids, layers).items():
            found[layer] = real_PD[torch.randperm(len(real_PD), generator=self.generator("residuals", layer))]
        return found
