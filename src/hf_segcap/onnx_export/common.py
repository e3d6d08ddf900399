# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""What the ONNX exports share: checks, prompt tokens made from labels, and the exporter."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.sam.prompt_encoder import NOT_A_POINT_LABEL, SamPositionEncoding, SamRowPromptEncoder
from ..optional import import_optional

MIN_ENCODER_OPSET = 18  # its Pad has no older form
_LARGEST_FILE = 2**31 - 2**20  # of the format; larger weights go into a second file


def check_export(model: Any, model_class: type[nn.Module], opset: int, min_opset: int, *packages: str) -> None:
    """
    Raises:
        TypeError: `model` is no `model_class`.
        ValueError: `opset` is below `min_opset`.
        ImportError: onnx, onnxscript or one of `packages` is not installed.
    """
    if not isinstance(model, model_class):
        raise TypeError(f"expected a {model_class.__name__}, got {type(model).__name__}")
    if opset < min_opset:
        raise ValueError(f"opset must be at least {min_opset}, got {opset}")
    for package in ("onnx", "onnxscript", *packages):
        import_optional(package, "onnx", "ONNX export")


def embed_tokens(
    encoder: SamRowPromptEncoder, position_encoding: SamPositionEncoding, coords: Tensor, labels: Tensor
) -> Tensor:
    """Tokens (P, n, C) of points and box corners together: unlike in the model, the label says which of the four one is.

    Args:
        coords: (P, n, 2) x y in pixels of the model frame.
        labels: (P, n) 1 inside, 0 outside, 2 and 3 the corners of a box, -1 padding.
    """
    labels = labels[..., None]
    tokens = position_encoding((coords + 0.5) / encoder.image_size)
    tokens = torch.where(labels == NOT_A_POINT_LABEL, encoder.not_a_point_embed.weight, tokens)
    for label, embedding in enumerate(encoder.point_embed):
        tokens = torch.where(labels == label, tokens + embedding.weight, tokens)
    return tokens


def export_module(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    path: str | os.PathLike,
    opset: int,
    input_names: tuple[str, ...],
    output_names: tuple[str, ...],
    dynamic_shapes: tuple[Any, ...] | None = None,
    renamed_axes: dict[tuple[str, int], str] | None = None,
) -> None:
    """Writes a module as ONNX; weights beyond 2 GB lie in a second file next to `path`.

    Args:
        inputs: an example.
        dynamic_shapes: of the inputs, as `torch.export` takes them; None: all sizes are fixed.
        renamed_axes: {(output, axis): name} of axes that vary.
    """
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    external = num_bytes > _LARGEST_FILE
    with torch.no_grad(), warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(nowhere):  # it prints its progress
            program = torch.onnx.export(
                module,
                inputs,
                input_names=list(input_names),
                output_names=list(output_names),
                dynamic_shapes=dynamic_shapes,
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    assert program is not None  # it is None for another exporter
    if program.model.opset_imports[""] != opset:  # a failed conversion between versions is only logged
        raise RuntimeError(f"this version of torch cannot export to opset {opset}; try a newer opset")
    outputs: Any = program.model.graph.outputs
    for output in outputs:
        shape = [(renamed_axes or {}).get((output.name, i), dim) for i, dim in enumerate(output.shape)]
        output.shape = type(output.shape)(shape)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    program.save(str(path), external_data=external)


__all__ = ["MIN_ENCODER_OPSET", "check_export", "embed_tokens", "export_module"]
