"""Checkpoints: one file per run, written whole or not at all, refused unless intact and its own.

The file is sealed (see `visweep.sealed`) and holds `torch.save`'s bytes. It is read with
`weights_only=True`, so that a foreign file cannot run code.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from visweep.errors import CheckpointError
from visweep.sealed import read_sealed, write_sealed
from visweep.training.memory import is_out_of_memory

Result = TypeVar("Result")


def write(
    path: Path, identity: Mapping[str, Any], history: Sequence[Any], tensors: Mapping[str, Any]
) -> None:
    """Write a checkpoint: after this returns, it is on the disk under `path`, complete.

    Args:
        identity: what run it belongs to; JSON values.
        history: dataclasses of JSON values, one per epoch.
        tensors: nested mappings and lists of tensors.
    """
    buffer = io.BytesIO()
    described = json.dumps(
        {"identity": identity, "history": [dataclasses.asdict(r) for r in history]}
    )
    # In one piece from the start: what grows bit by bit takes a multiple of its size.
    buffer.seek(_bytes(tensors))
    buffer.write(b"\0")
    buffer.seek(0)
    torch.save({"described": described, "tensors": tensors}, buffer)
    buffer.truncate()
    write_sealed(path, buffer.getbuffer())


def _bytes(tensors: Any) -> int:
    """Of nested mappings and lists of tensors."""
    if isinstance(tensors, torch.Tensor):
        return tensors.nbytes
    if isinstance(tensors, Mapping):
        tensors = list(tensors.values())
    return sum(map(_bytes, tensors)) if isinstance(tensors, list | tuple) else 0


def read(
    path: Path, identity: Mapping[str, Any], result: type[Result], device: torch.device
) -> tuple[list[Result], dict[str, Any]]:
    """The history and tensors of a checkpoint.

    Raises:
        CheckpointError: it is damaged, or was written by a run of another identity.
    """
    payload = read_sealed(path)
    try:
        saved = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
        described, tensors = json.loads(saved["described"]), saved["tensors"]
        found, epochs = dict(described["identity"]), described["history"]
        history = [
            result(**{**_tuples(values), "replayed": index < len(epochs) - 1})
            for index, values in enumerate(epochs)
        ]
    except Exception as error:  # a foreign file may fail in any way
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"{path}: not a checkpoint that this version can read") from error
    for field, value in json.loads(json.dumps(identity)).items():
        if found.get(field) != value:
            raise CheckpointError(f"{path}: belongs to another run (its {field} differs)")
    return history, tensors


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
