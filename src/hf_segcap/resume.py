# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""How long jobs go on after an interruption: only with the model and the settings that they were started with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from .files import atomic_path


def hash_weights(model: torch.nn.Module, digest: Any = None) -> Any:
    """Adds all weights of a model, with their names, to a digest of `hashlib` (default: a new SHA-256); returns it."""
    digest = hashlib.sha256() if digest is None else digest
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest


def check_settings(file: Path, settings: dict[str, Any]) -> None:
    """Compares with what the first run into a folder wrote, or writes it.

    Args:
        file: in that folder.
        settings: all that decides about the results; JSON, numbers of numpy as well.

    Raises:
        ValueError: the folder belongs to a run with other settings, or its file is damaged.
    """
    settings = json.loads(json.dumps(settings, default=lambda value: value.item()))  # tuples become lists
    if not file.exists():
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps(settings), encoding="utf-8")
        return
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({error}): name another folder") from error
    if stored != settings:
        changed = sorted(name for name in {*stored, *settings} if stored.get(name) != settings.get(name))
        raise ValueError(
            f"{file.parent} holds results of a run with other settings ({', '.join(changed)}; {file.name} says {stored}, "
            f"this run {settings}): name another folder"
        )


__all__ = ["check_settings", "hash_weights"]
