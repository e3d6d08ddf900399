# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""A model on SAM's image encoder, moved to another side of the model frame or another size of patches.

Positions are interpolated, absolute ones bicubically and relative ones of global layers linearly (windows keep theirs). The
patch embedding is resized as in FlexiViT (Beyer et al., CVPR 2023, section 3.4): what it makes of a resized patch is what
the old one made of the patch, exactly for larger patches, in the least squares for smaller ones.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

Model = TypeVar("Model", bound=PreTrainedModel)


def resize_patch_embedding(weight: Tensor, patch_size: int) -> Tensor:
    """(hidden, channels, p, p) -> (hidden, channels, patch_size, patch_size)."""
    old = weight.shape[-1]
    pixels = torch.eye(old * old, device=weight.device).reshape(old * old, 1, old, old)
    resized = F.interpolate(pixels, (patch_size, patch_size), mode="bilinear", antialias=True, align_corners=False)
    back = torch.linalg.pinv(resized.flatten(1).T)  # (p^2, patch_size^2)
    return (weight.float().flatten(2) @ back).unflatten(2, (patch_size, patch_size)).to(weight.dtype)


def resize_positions(positions: Tensor, grid: Sequence[int]) -> Tensor:
    """Absolute position embeddings (1, h, w, hidden) -> (1, *grid, hidden)."""
    resized = F.interpolate(positions.float().permute(0, 3, 1, 2), tuple(grid), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).to(positions.dtype)


def resize_relative_positions(positions: Tensor, length: int) -> Tensor:
    """Relative position embeddings (2 g - 1, head width) -> (length, head width)."""
    return F.interpolate(positions.float().T[None], length, mode="linear")[0].T.to(positions.dtype)


def _set_frame(config, image_size: int, patch_size: int) -> None:
    """Sets both sizes in all parts of a configuration.

    Raises:
        ValueError: the patches do not fit the frame.
    """
    if patch_size < 1 or image_size < patch_size or image_size % patch_size:
        raise ValueError(
            f"expected a side of the model frame that is a multiple of the patch size, got {image_size} and {patch_size}"
        )
    for part in (config.vision_config, config.prompt_encoder_config):
        part.image_size, part.patch_size = image_size, patch_size
    config.prompt_encoder_config.image_embedding_size = image_size // patch_size


def with_config(model: Model, config) -> Model:
    """A new model of another configuration, which is checked, on the device and in the dtype of `model`."""
    config = type(config).from_dict(config.to_dict())
    return type(model)(config).to(device=model.device, dtype=model.dtype)


def change_frame(model: Model, image_size: int | None = None, patch_size: int | None = None) -> Model:
    """A copy of a model with the weights that fit another model frame. Its processor has to be made anew, too:
    `sam_image_processor(image_size, patch_size)`. What is learnt on a coarse grid holds on a finer one, with better borders.

    Args:
        model: on SAM's image encoder.
        image_size: side of the model frame, pixels; default: as it is.
        patch_size: side of a patch, pixels; default: as it is.

    Raises:
        ValueError: the patches do not fit the frame, or parts of the model depend on the patch size otherwise (ZIM's pixel
            decoder, where the strides of its details change).
    """
    vision = model.config.vision_config
    config = copy.deepcopy(model.config)
    _set_frame(config, image_size or vision.image_size, patch_size or vision.patch_size)
    with torch.random.fork_rng(devices=[]):  # its random weights are all replaced
        changed = with_config(model, config)
    weights = model.state_dict()
    fitted = {name: _fit(name, weights[name], value.shape) for name, value in changed.state_dict().items()}
    changed.load_state_dict(fitted)
    return changed.train(model.training)


def _fit(name: str, value: Tensor, shape: Sequence[int]) -> Tensor:
    if value.shape == tuple(shape):
        return value
    if name == "vision_encoder.pos_embed":
        return resize_positions(value, shape[1:3])
    if name.startswith("vision_encoder.") and ".rel_pos_" in name:
        return resize_relative_positions(value, shape[0])
    if name == "vision_encoder.patch_embed.projection.weight":
        return resize_patch_embedding(value, shape[-1])
    raise ValueError(
        f"{name} would change from {tuple(value.shape)} to {tuple(shape)}: choose a patch size that keeps it"
    )


__all__ = ["change_frame", "resize_positions", "with_config"]
