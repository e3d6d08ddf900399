# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The SAM image encoder of the SAM-based models: transformers' `SamVisionEncoder` with trainable defaults."""

from transformers.models.sam.modeling_sam import SamVisionEncoder

from .configuration_sam import SamImageEncoderConfig


class SamImageEncoder(SamVisionEncoder):
    """(B, 3, S, S) -> `last_hidden_state` (B, C, S / patch, S / patch)."""

    config: SamImageEncoderConfig


__all__ = ["SamImageEncoder"]
