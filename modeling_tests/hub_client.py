# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""What the processes of `test_hub.py` do. Each function runs in a process of its own and returns plain values.

    python -m modeling_tests.hub_client FUNCTION REPOSITORY

`hf_segcap` is imported inside the functions: one of them shows that it need not be.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

BOXES = [[0, 0, 30, 30], [20, 10, 50, 40]]
BRANCH, BRANCH_SEED = "other-weights", 1


def _model_inputs(processor: Any) -> dict[str, torch.Tensor]:
    from modeling_tests.tiny import random_image

    inputs = processor(images=random_image(), input_boxes=BOXES)
    return {name: inputs[name] for name in ("pixel_values", "input_boxes", "prompt_mask")}


def _digest(model: Any, processor: Any) -> dict[str, Any]:
    """Facts by which two processes can tell whether they hold the same model and processor."""
    inputs = _model_inputs(processor)
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=4)
    return {
        "classes": [type(model).__name__, type(model.config).__name__, type(processor).__name__],
        "weights": {name: value.double().sum().item() for name, value in model.state_dict().items()},
        "captions": processor.post_process_captions(ids),
        "processor": json.loads(json.dumps(processor.to_dict(), default=str)),
    }


def push(repository: str) -> dict[str, Any]:
    """Pushes model and processor, and a second model to a branch."""
    from modeling_tests.tiny import tiny_processor, tiny_sam_caption

    model, processor = tiny_sam_caption(), tiny_processor()
    model.push_to_hub(repository)
    processor.push_to_hub(repository)
    other = tiny_sam_caption(seed=BRANCH_SEED)
    other.push_to_hub(repository, revision=BRANCH)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        local = sorted(os.listdir(folder))
        auto_map = "auto_map" in (Path(folder) / "config.json").read_text()
    return {
        "main": _digest(model, processor),
        "branch": _digest(other, processor),
        "local_files": local,
        "local_auto_map": auto_map,
    }


def load(repository: str) -> dict[str, Any]:
    """Loads what `push` wrote by every route, with the package imported."""
    from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

    from hf_segcap import SamCaptionForRegionCaptioning, SamCaptionProcessor
    from modeling_tests.tiny import random_image

    call = {"boxes": BOXES, "do_sample": False, "max_new_tokens": 4}
    model = SamCaptionForRegionCaptioning.from_pretrained(repository)
    processor = SamCaptionProcessor.from_pretrained(repository)
    auto_model, auto_processor = (c.from_pretrained(repository) for c in (AutoModelForImageTextToText, AutoProcessor))
    branch = AutoModelForImageTextToText.from_pretrained(repository, revision=BRANCH)
    by_task = pipeline("region-captioning", model=repository, device="cpu")
    by_card = pipeline(model=repository, device="cpu")
    return {
        "direct": _digest(model, processor),
        "auto": _digest(auto_model, auto_processor),
        "branch": _digest(branch, auto_processor),
        "pipelines": [[r["caption"] for r in pipe(random_image(), **call)] for pipe in (by_task, by_card)],
        "task_by_card": by_card.task,
    }


def load_remote_code(repository: str) -> dict[str, Any]:
    """Loads through `auto_map` alone, saves again, and reloads that."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    before = sorted(name for name in sys.modules if name.startswith("hf_segcap"))
    model = AutoModelForImageTextToText.from_pretrained(repository, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(repository, trust_remote_code=True)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        files = sorted(os.listdir(folder))
        auto_map = "auto_map" in (Path(folder) / "config.json").read_text()
        AutoModelForImageTextToText.from_pretrained(folder)
    return {
        "imported_before": before,
        "module": type(model).__module__,
        "digest": _digest(model, processor),
        "saved_files": files,
        "saved_auto_map": auto_map,
    }


def push_pipeline(repository: str) -> list[str]:
    """Pushes a whole pipeline, with an existing model card."""
    from huggingface_hub import HfApi, ModelCard
    from transformers import pipeline

    from modeling_tests.tiny import tiny_processor, tiny_sam_caption

    HfApi().create_repo(repository)
    ModelCard("---\nlicense: mit\ntags:\n- mine\n---\n# My own card\n").push_to_hub(repository)
    processor = tiny_processor()
    pipe = pipeline("region-captioning", model=tiny_sam_caption(), processor=processor, device="cpu")
    pipe.push_to_hub(repository)
    return HfApi().list_repo_files(repository)


if __name__ == "__main__":
    result = globals()[sys.argv[1]](sys.argv[2])
    print(json.dumps(result))
