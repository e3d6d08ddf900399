# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Parameter groups with learning rates of their own: layer by layer of the image encoder (BEiT and ViTDet, as SAM is
trained: appendix A), or by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

_IN_ENCODER = re.compile(r"(?:^|\.)vision_encoder\.(?P<rest>.+)$")
_IN_LAYER = re.compile(r"layers\.(?P<index>\d+)\.")
_POSITION_TABLE = re.compile(
    r"(?:^|\.)(?:pos_embed|rel_pos_[hw]|positional_embedding|position_embeddings?|embed_positions|wpe)(?:\.|$)"
)


def layer_decay_parameter_groups(
    model: nn.Module, learning_rate: float, decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: the learning rate falls by `decay` from each block of the encoder to the one
    before it.

    With `depth` blocks the factor is `decay ** (depth + 1 - id)`: id 0 for the patch and position embedding, i + 1 for
    block i; everything else (neck, prompt encoder, mask decoder, language model) keeps `learning_rate`. Norms, biases (all
    parameters with one axis) and position tables get no weight decay. Frozen parameters are left out.

    Args:
        model: a model whose image encoder is called `vision_encoder`, also inside a wrapper such as `PeftModel`.
        learning_rate: of the parts with factor 1.
        decay: in (0, 1]; SAM: 0.8, ViT-B 0.6.
        weight_decay: of the matrices.

    Returns:
        Groups with `params`, `lr` and `weight_decay`, from the lowest learning rate to the highest.

    Raises:
        ValueError: the model has no `vision_encoder` with `layers`; `decay` is outside (0, 1].
    """
    if not 0.0 < decay <= 1.0:
        raise ValueError(f"decay must be above 0 and at most 1, got {decay}")
    named = list(model.named_parameters())
    indices = [layer for name, _ in named if (layer := _layer_index(name)) is not None]
    if not indices:
        raise ValueError(
            f"{type(model).__name__} has no parameters under `vision_encoder.layers`: layer-wise decay needs a SAM image "
            "encoder. Give the optimizer model.parameters() instead."
        )
    depth = max(indices) + 1
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        layer_id = _layer_id(name, depth)
        decays = parameter.ndim > 1 and not is_position_table(name)
        rate = learning_rate * decay ** (depth + 1 - layer_id)
        new = {"params": [], "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        groups.setdefault((layer_id, decays), new)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def scaled_parameter_groups(
    model: nn.Module, learning_rate: float, factors: Mapping[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: some modules learn faster or slower than the rest, as new layers on top of
    pretrained ones.

    Norms, biases (all parameters with one axis) and position tables get no weight decay. Frozen parameters are left out.

    Args:
        model: any model, also inside a wrapper such as `PeftModel`.
        learning_rate: of what `factors` do not name.
        factors: beginning of the names of parameters (inside the wrapper) -> factor of their learning rate, above 0; the
            first that fits counts.
        weight_decay: of the matrices.

    Returns:
        Groups with `params`, `lr` and `weight_decay`.

    Raises:
        ValueError: a factor that is not above 0, or names that no parameter has.
    """
    if min(factors.values(), default=1) <= 0:
        raise ValueError(f"factors of the learning rate must be above 0, got {dict(factors)}")
    wrapped = getattr(model, "get_base_model", None)
    named = list((model if wrapped is None else wrapped()).named_parameters())
    unused = [prefix for prefix in factors if not any(name.startswith(prefix) for name, _ in named)]
    if unused:
        raise ValueError(f"{type(model).__name__} has no parameter whose name begins with {unused[0]!r}")
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        factor = next((value for prefix, value in factors.items() if name.startswith(prefix)), 1.0)
        decays = parameter.ndim > 1 and not is_position_table(name)
        new = {"params": [], "lr": learning_rate * factor, "weight_decay": weight_decay if decays else 0.0}
        groups.setdefault((factor, decays), new)["params"].append(parameter)
    return list(groups.values())


def is_position_table(name: str) -> bool:
    """Whether a parameter of this name holds learnt positions: matrices in shape, not in what they do."""
    return bool(_POSITION_TABLE.search(name))


def _layer_index(name: str) -> int | None:
    """Index of the encoder block that a parameter belongs to."""
    encoder = _IN_ENCODER.search(name)
    layer = _IN_LAYER.match(encoder["rest"]) if encoder else None
    return int(layer["index"]) if layer else None


def _layer_id(name: str, depth: int) -> int:
    index = _layer_index(name)
    if index is not None:
        return index + 1
    encoder = _IN_ENCODER.search(name)
    return 0 if encoder and encoder["rest"].startswith(("patch_embed.", "pos_embed")) else depth + 1


__all__ = ["is_position_table", "layer_decay_parameter_groups", "scaled_parameter_groups"]
