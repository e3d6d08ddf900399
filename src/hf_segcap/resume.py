# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""How long jobs go on after an interruption: only with the model and the settings that they were started with."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from .files import atomic_path


def fingerprint(model: Any, processor: Any, *more: Any) -> str:
    """SHA-256 of all that decides about a model's results: its weights, its configuration, the settings of the processor.

    Args:
        model: a model of PyTorch, or one that names the `files` it runs.
        processor: of the model, or a part of it, such as the image processor.
        more: what else results depend on; JSON.
    """
    digest = hashlib.sha256()
    for settings in (_deciding(processor.to_dict()), _deciding(model.config.to_dict()), *more):
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    for path in getattr(model, "files", ()):
        with open(path, "rb") as file:
            while block := file.read(2**24):
                digest.update(block)
    return digest.hexdigest()


def _deciding(settings: Any) -> Any:
    """Without what decides nothing: what every configuration has (dtype, version, names, ...), the backend of images and of
    attention, and where the settings were read from."""
    if not isinstance(settings, dict):
        return settings
    return {
        name: _deciding(value)
        for name, value in settings.items()
        if name not in _undecisive() and not name.startswith("_")
    }


@cache
def _undecisive() -> frozenset[str]:
    return frozenset((*PreTrainedConfig().to_dict(), "image_processor_type", "processor_class"))


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


__all__ = ["check_settings", "fingerprint"]
