"""Where a checkpoint is, and what its safetensors headers say. Weights are fetched when first needed, and read line by line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from pkt.errors import DataError, ShapeError, UnsupportedModelError

if TYPE_CHECKING:
    from torch import Tensor

NANO = Path(__file__).parents[1] / "nano" / "models"
TOKENIZER_FILES = (
    "*token*.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "generation_config.json",
)
SIDE_FILES = ("*.json", "*.jinja", "tokenizer.model", "*.txt")
CARD = "README.md"
"""The model card, which names the licence."""
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
Headers = dict[str, tuple[list[int], str]]
"""Tensor name -> shape, and stored dtype as safetensors names it."""


def is_nano(name: str) -> bool:
    """Whether a model or task name means the embedded world."""
    return name.startswith("nano/")


def resolve(name: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """The folder of a checkpoint. `nano/...` is embedded, what exists here is a folder, the rest is a hub name.

    Args:
        weights: fetch the safetensors files too, and not only config, tokenizer and card.

    Raises:
        DataError: nothing is there, or the hub cannot be reached.
        UnsupportedModelError: the repository is gated.
    """
    return _here(name) or _download(name, revision, ("model*.safetensors", *SIDE_FILES) if weights else SIDE_FILES)


def _here(name: str) -> Path | None:
    """The folder of a checkpoint that is embedded or exists; None for a hub name."""
    if is_nano(name):
        folder = NANO / name.removeprefix("nano/")
        if not (folder / "config.json").is_file():
            found = ", ".join(sorted(f"nano/{p.parent.name}" for p in NANO.glob("*/config.json")))
            raise DataError(f"there is no embedded model {name!r}; embedded models: {found or 'none were built'}")
        return folder
    local = Path(name).expanduser()
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise DataError(f"{local}: no config.json in this folder; expected a checkpoint saved by transformers")
        return local
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise DataError(f"model folder {name} does not exist; give an existing folder, a hub name or nano/...")
    return None


def _download(name: str, revision: str | None, patterns: Iterable[str]) -> Path:
    """The cache's folder, with the files of some patterns and the card."""
    from huggingface_hub import errors, snapshot_download

    with _hub_errors(name, revision):
        try:
            return Path(snapshot_download(name, revision=revision, allow_patterns=[*patterns, CARD]))
        except errors.LocalEntryNotFoundError:  # out of reach: a cache that lacks the card alone will do
            return Path(
                snapshot_download(name, revision=revision, allow_patterns=list(patterns), local_files_only=True)
            )


def _hub_headers(name: str, revision: str | None) -> Headers | None:
    """What the hub reads from the headers of a repository's weight files; None where it cannot, and the files must tell."""
    from huggingface_hub import errors, get_safetensors_metadata

    with _hub_errors(name, revision):
        try:
            files = get_safetensors_metadata(name, revision=revision).files_metadata.values()
        except (errors.NotASafetensorsRepoError, errors.SafetensorsParsingError, errors.RemoteEntryNotFoundError):
            return None
    return {tensor: (list(info.shape), info.dtype) for file in files for tensor, info in file.tensors.items()}


@contextmanager
def _hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """What the hub's library raises, as one line."""
    from huggingface_hub import errors

    at = f"{name} at revision {revision}" if revision else name
    try:
        yield
    except errors.GatedRepoError as e:
        raise UnsupportedModelError(
            f"{name} is a gated repository: accept its terms on its hub page, then log in with `hf auth login` or set HF_TOKEN"
        ) from e
    except errors.RevisionNotFoundError as e:
        raise DataError(f"{name}: the hub has no revision {revision!r} of it; check the recipe's revision") from e
    except errors.RepositoryNotFoundError as e:
        raise DataError(f"{name} is neither a folder here nor a repository on the hub that you can read") from e
    except errors.HFValidationError as e:
        raise DataError(f"{name!r} is neither a folder here nor a valid hub name") from e
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HTTPError, OSError) as e:
        raise DataError(
            f"{at} is neither a folder here nor in the hub cache, and the hub could not be reached; "
            f"download it first or give a folder"
        ) from e


class Checkpoint:
    """The safetensors files of one model. Those of a hub model are fetched when one of them is first needed.

    Args:
        name: `nano/...`, a folder, or a name on the hub.
        revision: branch, tag or commit on the hub.
    """

    def __init__(self, name: str | Path, revision: str | None = None) -> None:
        self.name, self.revision = str(name), revision

    @cached_property
    def folder(self) -> Path:
        """The folder that holds them."""
        return resolve(self.name, self.revision)

    @cached_property
    def files(self) -> dict[str, Path]:
        """Tensor name -> file. Reads headers only.

        Raises:
            DataError: no safetensors file, a damaged index, or a shard that the index names is missing.
            UnsupportedModelError: transformers would load an adapter on top of the weights.
        """
        if (self.folder / ADAPTER).is_file():
            raise UnsupportedModelError(
                f"{self.folder} holds a model and an adapter, which transformers would put on top of it; move {ADAPTER} and the adapter's "
                f"weights to a folder of their own"
            )
        names = _index(self.folder)
        if names is not None:
            missing = sorted({path.name for path in names.values() if not path.is_file()})
            if missing:
                raise DataError(
                    f"{self.folder}: the index names {', '.join(missing)}, which is missing; copy the checkpoint again"
                )
            return names
        single = self.folder / SINGLE
        if not single.is_file():
            raise DataError(
                f"{self.folder}: no model.safetensors and no index; expected safetensors weights "
                f"(convert other formats with `save_pretrained`)"
            )
        with _opened(single) as f:
            return dict.fromkeys(f.keys(), single)

    @property
    def index(self) -> Path | None:
        """The file that says where every tensor is; None where one file holds all."""
        return _index_file(self.folder)

    @property
    def shards(self) -> list[Path]:
        """The files, each once, in order of name."""
        return sorted(set(self.files.values()))

    def shape(self, tensor: str) -> list[int]:
        """Shape of a tensor, from the header."""
        if tensor not in self.headers:
            raise self._lacks(tensor)
        return self.headers[tensor][0]

    @cached_property
    def headers(self) -> Headers:
        """Shape and stored dtype of every tensor; told by the hub where its cache does not hold the weights."""
        if _here(self.name) is None and not _has_weights(resolve(self.name, self.revision, weights=False)):
            told = _hub_headers(self.name, self.revision)
            if told is not None:
                return told
        found = {}
        for path in self.shards:
            with _opened(path) as f:
                for name in f.keys():
                    part = f.get_slice(name)
                    found[name] = (list(part.get_shape()), part.get_dtype())
        return found

    def lines(self, tensor: str, index: list[int], axis: int) -> Tensor:
        """Chosen rows (axis 0) or columns (axis 1) of a matrix, as float32 (len(index), length), in the order of `index`."""
        import torch

        order = sorted(set(index))
        with _opened(self._file(tensor)) as f:
            part = f.get_slice(tensor)
            read = part[order] if axis == 0 else part[:, order].T
        where = torch.searchsorted(torch.tensor(order), torch.tensor(index))
        return read.float()[where]

    def block(self, name: str, corner: tuple[int, int], shape: tuple[int, int]) -> Tensor:
        """Rows and columns of a matrix from a corner on, float32."""
        ends = [first + size for first, size in zip(corner, shape, strict=True)]
        have = self.shape(name)
        if min(corner) < 0 or any(end > size for end, size in zip(ends, have, strict=True)):
            raise ShapeError(f"{self.folder}: {name} is {have}, it has no block of {list(shape)} at {list(corner)}")
        with _opened(self._file(name)) as f:
            return f.get_slice(name)[corner[0] : ends[0], corner[1] : ends[1]].float()

    def tensor(self, name: str) -> Tensor:
        """A whole tensor, float32."""
        with _opened(self._file(name)) as f:
            return f.get_tensor(name).float()

    def _file(self, tensor: str) -> Path:
        if tensor not in self.files:
            raise self._lacks(tensor)
        return self.files[tensor]

    def _lacks(self, tensor: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self.name}: no tensor {tensor!r} in its safetensors files")

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the names and contents of the weight files and the config; hub files are named by theirs."""
        total = hashlib.sha256()
        for path in [self.folder / "config.json", *self.shards]:
            blob = path.resolve().name
            known = blob if path.is_symlink() and len(blob) == 64 else file_digest(path)
            total.update(f"{path.name} {known}\n".encode())
        return total.hexdigest()

    @cached_property
    def tokenizer_digest(self) -> str:
        """SHA-256 over the names and contents of the tokenizer's files, and of the one that names the ends of an answer."""
        total = hashlib.sha256()
        for path in sorted({p for pattern in TOKENIZER_FILES for p in self.folder.glob(pattern) if p.is_file()}):
            total.update(f"{path.name} {file_digest(path)}\n".encode())
        return total.hexdigest()


def _index_file(folder: Path) -> Path | None:
    """The index that counts: transformers, too, reads the single file where there are both."""
    path = folder / INDEX
    return path if path.is_file() and not (folder / SINGLE).is_file() else None


def _index(folder: Path) -> dict[str, Path] | None:
    """Tensor name -> file, as a folder's index has it; None where there is none.

    Raises:
        DataError: it is damaged.
    """
    path = _index_file(folder)
    if path is None:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {tensor: folder / file for tensor, file in content["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(
            f"{path}: damaged ({type(e).__name__}: {e}), expected a weight_map of tensors to files; copy the checkpoint again"
        ) from e


def _has_weights(folder: Path) -> bool:
    """Whether all weight files are in a folder."""
    names = _index(folder)
    return all(path.is_file() for path in ([folder / SINGLE] if names is None else names.values()))


def _opened(path: Path) -> Any:
    """A safetensors file.

    Raises:
        DataError: it is damaged, or something else (a Git LFS pointer, say).
    """
    try:
        return safe_open(path, "pt")
    except SafetensorError as e:
        raise DataError(f"{path}: not a whole safetensors file ({e}); copy the checkpoint again") from e


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
