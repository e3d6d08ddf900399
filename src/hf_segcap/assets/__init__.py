# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Files that come with the package: one small model per task, and photographs for demos."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

_ROOT = Path(str(files(__name__)))


def bundled_tasks() -> list[str]:
    """Tasks that have a bundled model."""
    return sorted(path.parent.name for path in _ROOT.glob("*/config.json"))


def bundled_model(task: str, variant: str = "") -> str:
    """Folder of the small model that `pipeline(task)` uses when no model is named, or of another one of the task.

    Args:
        task: one of `bundled_tasks()`.
        variant: "" for the default; `"text"` of `"promptable-segmentation"` takes words as prompts, for generated scenes.

    Raises:
        ValueError: no such model is bundled.
    """
    folder = _ROOT / task / variant
    if task not in bundled_tasks() or not (folder / "config.json").exists():
        wanted = f"the task {task!r}" + (f" with the variant {variant!r}" if variant else "")
        found = sorted(path.parent.relative_to(_ROOT).as_posix() for path in _ROOT.rglob("config.json"))
        raise ValueError(f"No model is bundled for {wanted}. Bundled: {', '.join(found) or 'none'}.")
    return str(folder)


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
