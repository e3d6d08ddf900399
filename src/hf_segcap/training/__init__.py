# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Training: the trainer, frozen features, and recipes (`hf-segcap train RECIPE`)."""

from .features import FeatureCache
from .recipe import Recipe, load_recipe
from .run import leave_process_group, train
from .trainer import SegCapTrainer, caption_metrics, decode_captions

__all__ = [
    "FeatureCache",
    "Recipe",
    "SegCapTrainer",
    "caption_metrics",
    "decode_captions",
    "leave_process_group",
    "load_recipe",
    "train",
]
