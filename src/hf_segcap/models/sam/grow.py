# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""A trained segmenter as the start of a larger one that predicts the same (Net2Net, Chen et al., ICLR 2016).

Training goes on where the small model stopped, instead of from nothing.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .frame import with_config
from .modeling_sam import SamForPromptableSegmentation


def double_decoder(model: SamForPromptableSegmentation, noise: float = 0.5) -> SamForPromptableSegmentation:
    """A copy whose image embeddings, prompt tokens and mask decoder have twice the channels; masks and scores stay the same.

    Every channel c becomes 2 c and 2 c + 1, with equal values: layer norms and position encodings do not see it. What reads
    a pair gets half the weight for each, plus noise for one and minus it for the other: it cancels as long as the pair is
    equal, and lets its channels learn different things. The MLPs of tokens and scores keep their hidden widths.

    Args:
        model: without a text projection.
        noise: root mean square of the noise, of that of the halved weights.

    Raises:
        ValueError: the model has text prompts, whose tokens would have to grow too.
    """
    if model.config.text_embed_dim is not None:
        raise ValueError("double_decoder takes models without text prompts: add them to the larger one")
    config = copy.deepcopy(model.config)
    config.vision_config.output_channels *= 2
    config.vision_config.num_pos_feats *= 2
    config.prompt_encoder_config.hidden_size *= 2
    config.mask_decoder_config.hidden_size *= 2
    larger = with_config(model, config)
    read_axes = {
        f"{name}.weight": 0 if isinstance(module, nn.ConvTranspose2d) else 1
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    }
    old = model.state_dict()
    larger.load_state_dict(
        {
            name: _doubled(name, old[name], value.shape, read_axes.get(name), noise)
            for name, value in larger.state_dict().items()
        }
    )
    return larger.train(model.training)


def _doubled(name: str, old: Tensor, shape: torch.Size, read: int | None, noise: float) -> Tensor:
    """`old` with pairs along each axis on which it differs from `shape`; along the axis `read` it reads pairs."""
    value = old
    for axis in range(old.ndim):
        if axis != read and old.shape[axis] != shape[axis]:
            value = value.repeat_interleave(2, axis)
    if read is not None and old.shape[read] != shape[read]:
        half = value / 2
        difference = torch.randn_like(half) * (noise * half.square().mean().sqrt())
        value = torch.stack([half + difference, half - difference], dim=read + 1).flatten(read, read + 1)
    if value.shape != shape:
        raise ValueError(f"{name} would grow from {tuple(old.shape)} to {tuple(value.shape)}, not to {tuple(shape)}")
    if ".q_proj." in name or ".k_proj." in name:
        value = value * 2**-0.25  # the product of query and key has twice the terms, and is divided by sqrt(2) more
    if "output_hypernetworks_mlps" in name and ".proj_out." in name:
        value = value / 2  # so has that with the upscaled image
    return value


def insert_layer(model: SamForPromptableSegmentation, index: int) -> SamForPromptableSegmentation:
    """A copy with one more layer of windowed attention in the image encoder, which passes on what it gets at first.

    Args:
        index: number of the new layer; those from there on move up by one.

    Raises:
        ValueError: `index` is not in [0, number of layers].
    """
    layers = model.config.vision_config.num_hidden_layers
    if not 0 <= index <= layers:
        raise ValueError(f"index must be between 0 and {layers}, got {index}")
    config = copy.deepcopy(model.config)
    vision = config.vision_config
    vision.num_hidden_layers = layers + 1
    vision.global_attn_indexes = [i + (i >= index) for i in vision.global_attn_indexes]
    larger = with_config(model, config)
    weights = larger.state_dict()
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if parts[:2] == ["vision_encoder", "layers"]:
            parts[2] = str(int(parts[2]) + (int(parts[2]) >= index))
        weights[".".join(parts)] = value
    for branch in ("attn.proj", "mlp.lin2"):
        for kind in ("weight", "bias"):
            weights[f"vision_encoder.layers.{index}.{branch}.{kind}"].zero_()
    larger.load_state_dict(weights)
    return larger.train(model.training)


__all__ = ["double_decoder", "insert_layer"]
