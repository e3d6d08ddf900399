# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Rows, arguments and runs of several processes shared by the training tests."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
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


def assert_loss_is_the_plain_mean(
    trainer: Any, rows: list[dict[str, Any]], collator: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]
) -> None:
    """One step over two micro-batches of two rows reports the mean of their losses, not a sum or a count of labels."""
    model = trainer.model.train()
    with torch.no_grad():
        expected = np.mean([model(**collator(rows[i : i + 2])).loss.item() for i in (0, 2)])
    trainer.train()
    assert logged_losses(trainer)[0] == pytest.approx(expected, rel=1e-4)


# For `assert_loss_is_the_plain_mean`, with batches of two.
ONE_STEP_OF_TWO = {"max_steps": 1, "gradient_accumulation_steps": 2, "train_sampling_strategy": "sequential"}


def run_two_processes(folder: Path, script: str, *options: str | Path) -> None:
    """Runs Python code with `options` as its arguments in two gloo processes, and fails with what it printed."""
    path = folder / "script.py"
    hangs = "import faulthandler\nfaulthandler.dump_traceback_later(280, exit=True)\n"  # says where
    path.write_text(hangs + script)
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONFAULTHANDLER": "1",  # says where a process was aborted
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(path)]
    done = subprocess.run(
        [*command, *map(str, options)], env=environment, capture_output=True, text=True, timeout=300, cwd=folder
    )
    assert done.returncode == 0, done.stderr


# The end of a script for `run_two_processes`, after a `trainer` was made: what `assert_ranks_agree` reads.
TRAIN_AND_REPORT = """
    from modeling_tests.training.data import assert_ends_gloo

    trainer.train()
    metrics = trainer.evaluate()
    weights = sum(p.double().sum().item() for p in trainer.model.parameters())
    with open(f"{sys.argv[1]}/rank{trainer.args.process_index}.json", "w") as file:
        json.dump({**metrics, "world": trainer.args.world_size, "weights": weights, "losses": logged_losses(trainer)}, file)
    assert_ends_gloo(trainer.end)
"""


def _gloo_threads() -> list[str]:
    """Their names, which Linux knows."""
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):
            names.append(path.read_text().strip())
    return [name for name in names if "gloo" in name]


def assert_ends_gloo(end: Callable[[], None]) -> None:
    """`end` leaves no thread of gloo, which may abort a process at its end, and no wrapped model to the time when the group
    is destroyed: the model would hold the interpreter's lock while it waits for those threads, which may wait for it."""
    destroy = torch.distributed.destroy_process_group
    wrapped_models = []

    def observed(*args: Any) -> None:
        assert _gloo_threads()
        wrapped_models.append(sum(isinstance(x, DistributedDataParallel) for x in gc.get_objects()))
        destroy(*args)

    with mock.patch("torch.distributed.destroy_process_group", observed):
        end()
    assert wrapped_models == [0]
    for _ in range(50):  # a thread that was joined may be listed for a moment
        left = _gloo_threads()
        if not left:
            return
        time.sleep(0.1)
    raise AssertionError(left)


def assert_ranks_agree(folder: Path, steps: int, *metrics: str) -> list[float]:
    """Two processes trained for `steps` logged steps, and ended with equal weights, losses and other metrics.

    Returns:
        The losses of the steps.
    """
    first, second = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first["world"] == 2 and len(first["losses"]) == steps
    for name in ("weights", "eval_loss", *metrics):
        assert first[name] == pytest.approx(second[name], rel=1e-9)
    return first["losses"]
