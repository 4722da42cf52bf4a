"""A copy of a model whose LM head is a matrix of its own, for methods that change embedding and head by different amounts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file

from pkt.errors import DataError, UnsupportedModelError
from pkt.files import replacing_folder, save_tensors, write_json
from pkt.models.checkpoint import INDEX
from pkt.models.lm import LM


def untie(model: LM, out: Path) -> None:
    """Write `model` to the folder `out` with its embedding as LM head too; it says the same. Nothing is left behind if it fails.

    Raises:
        UnsupportedModelError: its embeddings are not tied.
        DataError: `out` holds files.
    """
    if not model.config.tie_word_embeddings:
        raise UnsupportedModelError(f"{model.name}: embedding and LM head are not tied; use it as it is")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not an empty folder; give a new one")
    embed, unembed = (f"{path}.weight" for path in (model.family.embed, model.family.unembed))
    folder, shard = model.checkpoint.folder, model.checkpoint.files[embed]
    with replacing_folder(out) as temporary:
        shutil.copytree(folder, temporary, ignore=shutil.ignore_patterns(shard.name, INDEX, ".*"), dirs_exist_ok=True)
        tensors = load_file(shard)
        save_tensors(temporary / shard.name, tensors | {unembed: tensors[embed].clone()}, {"format": "pt"})
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        write_json(temporary / "config.json", config | {"tie_word_embeddings": False})
        if index := model.checkpoint.index:
            known = json.loads(index.read_text(encoding="utf-8"))
            write_json(temporary / index.name, known | {"weight_map": {**known["weight_map"], unembed: shard.name}})
