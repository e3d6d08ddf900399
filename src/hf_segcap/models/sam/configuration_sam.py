# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the SAM image encoder shared by the SAM-based models of this package."""

from huggingface_hub.dataclasses import strict
from transformers.models.sam.configuration_sam import SamVisionConfig


@strict
class SamImageEncoderConfig(SamVisionConfig):
    r"""
    transformers' `SamVisionConfig` with two defaults that allow training from scratch; checkpoints are unaffected.

    Args:
        scale (`float`, *optional*, defaults to 1.0):
            Standard deviation of the random Gaussian matrix of the position encoding (SAM, section 3). transformers
            initialises it with `hidden_size // 2`, which makes the encoding of a new model close to random noise.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of new weights (transformers: 1e-10, from which nothing can be learnt).
    """

    model_type = "sca_vision_model"
    base_config_key = "vision_config"

    scale: float | int = 1.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        scale = self.scale
        super().__post_init__(**kwargs)
        self.scale = scale


__all__ = ["SamImageEncoderConfig"]
