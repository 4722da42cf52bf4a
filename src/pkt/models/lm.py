"""`LM`: a cheap handle on a decoder of the Hugging Face kind.

Making one reads the config and safetensors headers. Weights are in memory only inside `with lm.loaded()`; single rows and
columns come straight from the files (`lm.slices`). Everything a method takes from a source comes through this handle.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pkt.errors import ConfigError, ShapeError, UnsupportedModelError
from pkt.models.checkpoint import Checkpoint, resolve
from pkt.models.families import LINE_AXIS, Dims, Family, dims_of, family_of, logit_cap
from pkt.models.loading import DEVICE_MAPS, check_device, check_headers, first_line, load, placement, read_tokenizer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from pkt.models.generation import Decoding
    from pkt.models.teacher import Teacher

DTYPES = ("auto", "float32", "bfloat16", "float16")


class LM:
    """A handle on one model.

    Args:
        name: `nano/...`, a folder, or a name on the hub.
        revision: branch, tag or commit on the hub.
        device: `auto` (the first GPU if there is one, else the CPU), a torch device, or a device map of accelerate
            (`balanced`, `sequential`, or `offload`: fill the GPU, then the CPU, then the disk).
        dtype: of the weights in memory: `auto` (as stored), `float32`, `bfloat16` or `float16`.
        memo: folder where located scores of this model are kept between runs, if any.
        any_family: load architectures too that no method can work on, to score them.
    """

    def __init__(
        self,
        name: str | Path,
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        memo: Path | None = None,
        any_family: bool = False,
    ) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"dtype {dtype!r} is not known; expected one of {', '.join(DTYPES)}")
        check_device(device)
        self.name, self.revision, self.device, self.dtype, self.memo = str(name), revision, device, dtype, memo
        self.any_family = any_family
        self._model: PreTrainedModel | None = None
        self._users = 0
        self._offload: tempfile.TemporaryDirectory[str] | None = None

    def __repr__(self) -> str:
        return f"LM({self.name!r})"

    @cached_property
    def config(self) -> Any:
        """The transformers config."""
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig

        folder = resolve(self.name, self.revision, weights=False)
        try:
            return AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as e:
            raise UnsupportedModelError(
                f"{self.name}: transformers cannot read its config: {first_line(e.__cause__ or e)}; "
                f"check its config.json"
            ) from e

    @cached_property
    def family(self) -> Family:
        """Where this architecture keeps its parts."""
        return family_of(self.config, self.name)

    @cached_property
    def dims(self) -> Dims:
        """Sizes."""
        _ = self.family
        return dims_of(self.config)

    @property
    def logit_cap(self) -> float | None:
        """The bound c of its soft-capped logits, c tanh(x / c); None where they are not capped."""
        return logit_cap(self.config)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The weight files."""
        return Checkpoint(self.name, self.revision)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The model's own tokenizer, padding on the left; see `pkt.models.loading.read_tokenizer`."""
        return read_tokenizer(
            resolve(self.name, self.revision, weights=False), self.name, self.config.get_text_config().vocab_size
        )

    @property
    def real(self) -> LM:
        """This model; of a control arm's handle, the source that it stands for."""
        return self

    @property
    def digest(self) -> str:
        """Hash of the weights."""
        return self.checkpoint.digest

    @property
    def identity(self) -> list[str]:
        """Hashes of all that decides what the model says to a text: weights, config and tokenizer."""
        return [self.checkpoint.digest, self.checkpoint.tokenizer_digest]

    @property
    def torch_device(self) -> str:
        """The device on which inputs go and small computations run."""
        import torch

        if self.device in ("auto", *DEVICE_MAPS):
            return "cuda" if torch.cuda.is_available() else "cpu"
        return self.device

    def slices(self, part: str, lines: Mapping[int, Sequence[int]]) -> dict[int, Tensor]:
        """Rows of `up` or `v`, columns of `down` or `o`, read from the files without loading the model.

        One call reads all that is wanted of a part, so that a control arm can permute it as a whole.

        Args:
            lines: layer -> rows of `up_proj` or `v_proj`, columns of `down_proj` or `o_proj`.

        Returns: layer -> (number of lines, width) float32, in the order asked for.

        Raises:
            ShapeError: a line is outside the matrix.
        """
        found = {}
        for layer, index in lines.items():
            tensor, axis = self.family.tensor(layer, part), LINE_AXIS[part]
            size = self.shape(layer, part)[axis]
            if index and not 0 <= min(index) <= max(index) < size:
                raise ShapeError(
                    f"{self.name}: {part} in {tensor} has {size} lines, asked for {min(index)} to {max(index)}"
                )
            first = (self.family.rows(part, self.dims).start or 0) if axis == 0 else 0
            found[layer] = self.checkpoint.lines(tensor, [first + line for line in index], axis)
        return found

    def shape(self, layer: int | None, part: str) -> list[int]:
        """Shape of a part's tensor; where it shares a matrix with others, of its own rows. From the header."""
        height, *rest = self.checkpoint.shape(self.family.tensor(layer, part))
        return [len(range(height)[self.family.rows(part, self.dims)]), *rest]

    def part(self, layer: int | None, part: str) -> Tensor:
        """The whole of a part, float32, read through `tensor`, or through `block` where it shares a matrix."""
        if self.family.whole(part) == part:
            return self.tensor(self.family.tensor(layer, part))
        height, width = self.shape(layer, part)
        return self.part_block(layer, part, (0, 0), (height, width))

    def part_block(self, layer: int | None, part: str, corner: tuple[int, int], shape: tuple[int, int]) -> Tensor:
        """`block` of a part, its rows counted from its own first."""
        first = self.family.rows(part, self.dims).start or 0
        return self.block(self.family.tensor(layer, part), (first + corner[0], corner[1]), shape)

    def block(self, name: str, corner: tuple[int, int], shape: tuple[int, int]) -> Tensor:
        """Contiguous rows and columns of a stored matrix, float32, read without the rest.

        Args:
            name: of the tensor in the checkpoint. corner: first row and column. shape: rows and columns.

        Raises:
            ShapeError: the block is not inside the matrix.
        """
        return self.checkpoint.block(name, corner, shape)

    def tensor(self, name: str) -> Tensor:
        """A whole stored tensor by its name in the checkpoint, float32."""
        return self.checkpoint.tensor(name)

    def generate(self, texts: Sequence[str], how: Decoding) -> list[str]:
        """Greedy continuations of texts, kept in the memo: see `pkt.models.generation.answers`."""
        from pkt.models.generation import answers

        return answers(self, texts, how)

    def teacher(self, prompts: Sequence[Sequence[int]]) -> AbstractContextManager[Teacher]:
        """A module that gives logits for what another model reads: see `pkt.models.teacher`.

        Args:
            prompts: token ids of all prompts of the data set; a row of input names its own by number.
        """
        from pkt.models.teacher import teaching

        return teaching(self.loaded(), prompts)

    @property
    def stored_twice(self) -> str | None:
        """The LM head's tensor, where it is the embedding and some checkpoints store it all the same."""
        head = f"{self.family.unembed}.weight"
        return head if self.config.tie_word_embeddings and head in self.checkpoint.headers else None

    def parameters(self) -> int:
        """Number of parameters, from the headers; tied embeddings count once."""
        import math

        return sum(
            math.prod(shape) for name, (shape, _) in self.checkpoint.headers.items() if name != self.stored_twice
        )

    def check(self) -> None:
        """Compare the headers of the weight files with the model that the config describes, built without weights.

        Raises:
            UnsupportedModelError: it cannot be built, or a tensor is missing or has another shape.
        """
        check_headers(self.config, self.checkpoint, f"{self.family.unembed}.weight", self.name)

    def residuals(self, ids: Sequence[Sequence[int]], layers: Sequence[int]) -> dict[int, Tensor]:
        """The residual stream after some layers at all positions of texts: see `pkt.models.states.residuals`."""
        from pkt.models.states import residuals

        return residuals(self, ids, layers)

    def for_location(self) -> AbstractContextManager[PreTrainedModel]:
        """`loaded`, for a locator: control arms locate on the real source, but show other values."""
        return self.loaded()

    def loaded(self) -> AbstractContextManager[PreTrainedModel]:
        """The model in evaluation mode, no parameter trainable. Nested uses share it; the last one out releases it."""
        return self._shared()

    def private(self, dtype: str | None = None) -> AbstractContextManager[PreTrainedModel]:
        """A model of the caller's own to train, every parameter trainable; the one that `loaded` shares stays as it is.

        Args:
            dtype: of its weights; None means the handle's.

        Raises:
            UnsupportedModelError: offloaded weights cannot be trained.
        """
        if self.device == "offload":
            raise UnsupportedModelError(
                f"{self.name}: offloaded weights cannot be trained; use --device auto, balanced or sequential"
            )
        return nullcontext(self._load(dtype))

    @contextmanager
    def _shared(self) -> Iterator[PreTrainedModel]:
        if self._model is None:
            self._model = self._load().requires_grad_(False)
        self._users += 1
        try:
            yield self._model
        finally:
            self._users -= 1
            if not self._users:
                self._release()

    def _load(self, dtype: str | None = None) -> PreTrainedModel:
        _ = self.any_family or self.family
        return load(self.checkpoint.folder, self.name, dtype or self.dtype, self._placement())

    def _placement(self) -> dict[str, Any]:
        if self.device == "offload":
            self._offload = tempfile.TemporaryDirectory(prefix="pkt-offload-")
        return placement(self.device, self.torch_device, self._offload.name if self._offload else None)

    def _release(self) -> None:
        """Let the weights go, so that the next model finds the memory free."""
        import gc

        import torch

        self._model = None
        if self._offload is not None:
            self._offload.cleanup()
            self._offload = None
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()
