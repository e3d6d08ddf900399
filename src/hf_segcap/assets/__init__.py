# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Files that come with the package: one small model per task, and photographs for demos."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

_ROOT = Path(str(files(__name__)))


def bundled_tasks() -> list[str]:
    """Tasks that have a bundled model."""
    return sorted(path.parent.name for path in _ROOT.glob("*/config.json"))


def bundled_model(task: str) -> str:
    """Folder of the small model that `pipeline(task)` uses when no model is named.

    Raises:
        ValueError: no model is bundled for this task.
    """
    if task not in bundled_tasks():
        raise ValueError(
            f"No model is bundled for the task {task!r}. Bundled: {', '.join(bundled_tasks()) or 'none'}."
        )
    return str(_ROOT / task)


def bundled_photograph(name: str) -> str:
    """Path of a bundled photograph, by its name without the ending. Sources and licences: `photographs/README.md`.

    Raises:
        ValueError: there is no photograph of this name.
    """
    photographs = {path.stem: path for path in (_ROOT / "photographs").glob("*.jpg")}
    if name not in photographs:
        raise ValueError(f"No photograph {name!r} is bundled. Bundled: {', '.join(sorted(photographs)) or 'none'}.")
    return str(photographs[name])


def bundled_alpha(name: str) -> str:
    """Path of the alpha matte of a bundled photograph: a grey PNG of the same size.

    Raises:
        ValueError: there is no matte of a photograph of this name.
    """
    suffix = "_alpha"
    alphas = {path.stem.removesuffix(suffix): path for path in (_ROOT / "photographs").glob(f"*{suffix}.png")}
    if name not in alphas:
        raise ValueError(
            f"No matte of a photograph {name!r} is bundled. Bundled: {', '.join(sorted(alphas)) or 'none'}."
        )
    return str(alphas[name])
