# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Rows and arguments shared by the training tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainingArguments

from modeling_tests.tiny import random_image

COLOURS = ("red", "green", "blue", "yellow")


def make_rows(count: int = 6, regions: int = 3, seed: int = 0) -> list[dict[str, Any]]:
    """Images with `regions` regions each, of random boxes and captions."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        image = random_image(seed * 100 + index)
        boxes = np.sort(rng.uniform(0, 40, (regions, 2, 2)), axis=1).reshape(-1, 4) + [0, 0, 4, 4]
        phrases = [[f"a {COLOURS[rng.integers(4)]} {noun}", "the cat"] for noun in ("disc", "square", "cup")]
        rows.append(
            {
                "image": image,
                "image_id": index,
                "regions": [
                    {"box": box.tolist(), "phrases": phrases[i % 3], "mask": None} for i, box in enumerate(boxes)
                ],
            }
        )
    return rows


def arguments(output: Path | str, **options: Any) -> TrainingArguments:
    """Training arguments for a few quick steps on the CPU."""
    defaults = {
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 0,
    }
    return TrainingArguments(output_dir=str(output), **{**defaults, **options})


def logged_losses(trainer: Any) -> list[float]:
    """The loss of every logged step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
