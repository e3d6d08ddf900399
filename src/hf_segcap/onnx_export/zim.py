# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""ZIM as the two ONNX graphs of its official release, for runtimes without PyTorch.

`export_zim_onnx` writes `encoder.onnx` and `decoder.onnx` with the official names, types and meaning of inputs and outputs,
so that what was written for one runs with the other; [`~hf_segcap.ZimOnnxForMatting`] runs either.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.sam.mask_decoder import compare
from ..models.zim.detail_decoder import ZimConvBlock
from ..models.zim.modeling_zim import ZimModel
from ..models.zim.onnx_zim import DECODER_FILE, EMBEDDINGS, ENCODER_FILE, FEATURE_PREFIX, PROMPT_INPUTS
from .common import MIN_ENCODER_OPSET, check_export, embed_tokens, export_module

ENCODER_INPUTS = ("image",)
DECODER_OUTPUTS = ("masks", "iou_predictions")


def feature_names(levels: int) -> tuple[str, ...]:
    """Names of the details at strides 2, 4, ...: `feat_D0`, `feat_D1`, ..."""
    return tuple(f"{FEATURE_PREFIX}D{level}" for level in range(levels))


class ZimImageGraph(nn.Module):
    """`encoder.onnx`: image (1, 3, S, S) -> image embeddings (1, C, g, g) and details at strides 2, 4, ...

    Args:
        model: source of the weights; copied in float32 to the CPU.
    """

    def __init__(self, model: ZimModel):
        super().__init__()
        self.vision_encoder = copy.deepcopy(model.vision_encoder)
        self.detail_encoder = copy.deepcopy(model.detail_encoder)
        self.to(device="cpu", dtype=torch.float32).eval().requires_grad_(False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        details = () if self.detail_encoder is None else self.detail_encoder(image)
        return self.vision_encoder(image).last_hidden_state, *details


class ZimPromptGraph(nn.Module):
    """`decoder.onnx`: one image and P prompts, of tensors alone.

    Layers are whole here, nothing is folded into anything: names and shapes of the weights are those of the model.

    Args:
        model: source of the weights; copied in float32 to the CPU.
    """

    def __init__(self, model: ZimModel):
        super().__init__()
        parts = (model.shared_image_embedding, model.prompt_encoder, model.mask_decoder)
        self.shared_image_embedding, self.prompt_encoder, self.mask_decoder = copy.deepcopy(parts)
        self.to(device="cpu", dtype=torch.float32).eval().requires_grad_(False)
        self.mask_decoder.config._attn_implementation = "eager"
        self.concatenates = model.config.fusion_mode == "concat"

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Details, image embeddings, attention maps, coordinates and labels as in [`export_zim_onnx`] -> its outputs."""
        *details, image_embeddings, attn_mask, point_coords, point_labels = inputs
        decoder = self.mask_decoder
        positions = self.shared_image_embedding.grid(image_embeddings.shape[-1])
        stream = image_embeddings.flatten(2).transpose(1, 2) + self.prompt_encoder.embed_masks(None)
        tokens = embed_tokens(self.prompt_encoder, self.shared_image_embedding, point_coords, point_labels)
        maps = attn_mask if decoder.transformer.uses_maps else None
        mixed = decoder.mix(stream, positions, tokens, attention_maps=maps)
        if decoder.fusion_blocks is None:
            return decoder.predict_masks(mixed), decoder.predict_iou(mixed)
        upscaled = decoder.image_map(mixed)
        for block, detail in zip(decoder.fusion_blocks, reversed(details), strict=True):
            upscaled = F.interpolate(upscaled, scale_factor=block.factor, mode="bilinear", align_corners=False)
            detail = detail.expand(tokens.shape[0], -1, -1, -1)
            joined = torch.cat([detail, upscaled], dim=1) if self.concatenates else detail + upscaled
            upscaled = ZimConvBlock.forward(block, joined)
        return compare(decoder.mask_weights(mixed), upscaled), decoder.predict_iou(mixed)


def example_inputs(model: ZimModel, prompts: int = 2, points: int = 3) -> dict[str, dict[str, Tensor]]:
    """Random inputs of both graphs by name: `{"encoder": {...}, "decoder": {...}}`, for P prompts of n points."""
    config: Any = model.config
    side, grid = config.vision_config.image_size, config.prompt_encoder_config.image_embedding_size
    sizes = () if model.detail_encoder is None else config.detail_hidden_sizes
    details = [torch.rand(1, channels, side >> i + 1, side >> i + 1) for i, channels in enumerate(sizes)]
    labels = torch.arange(prompts * points, dtype=torch.float32).reshape(prompts, points) % 5 - 1
    return {
        "encoder": {"image": torch.randn(1, config.vision_config.num_channels, side, side)},
        "decoder": {
            **dict(zip(feature_names(len(details)), details, strict=True)),
            EMBEDDINGS: torch.randn(1, config.prompt_encoder_config.hidden_size, grid, grid),
            "attn_mask": torch.rand(prompts, grid, grid),
            "point_coords": torch.rand(prompts, points, 2) * side,
            "point_labels": labels,
        },
    }


def export_zim_onnx(model: ZimModel, folder: str | os.PathLike, opset: int = 18) -> None:
    """Writes `encoder.onnx`, `decoder.onnx` and `config.json`, in float32.

    S is the side of the model, g that of its feature grid, l = S / 2, C the width of the embeddings. The encoder:

    - input `image` (1, 3, S, S): normalised, zero padded at the right and the bottom, as `ZimProcessor` makes it;
    - outputs `image_embeddings` (1, C, g, g), `feat_D0` (1, c_0, S / 2, S / 2), `feat_D1` (1, c_1, S / 4, S / 4), ...

    The decoder, for P objects of one image:

    - inputs: the encoder's outputs; `attn_mask` (P, g, g): attention maps in [0, 1], see
      [`~hf_segcap.models.zim.attention_maps`]; `point_coords` (P, n, 2), `point_labels` (P, n): points **or** corners of a
      box, in pixels of the model frame; labels 1 inside, 0 outside, 2 and 3 the first and second corner, -1 padding. To
      points (not to boxes) **append the padding point** (-0.5, -0.5) with the label -1;
    - outputs `masks` (P, 4, l, l): matte logits; `iou_predictions` (P, 4).

    Only P and n vary. With `pixel_decoder="sam"` there are no details, and l is four times g.

    Args:
        model: any dtype, device and attention.
        folder: made if it is not there.
        opset: version of the ONNX operators, at least 18.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        TypeError: `model` is no `ZimModel` or `ZimForMatting`.
        ValueError: an `opset` below 18.
    """
    check_export(model, ZimModel, opset, MIN_ENCODER_OPSET)
    folder, inputs = Path(folder), example_inputs(model)
    features = tuple(name for name in inputs["decoder"] if name.startswith(FEATURE_PREFIX))
    export_module(
        ZimImageGraph(model),
        tuple(inputs["encoder"].values()),
        folder / ENCODER_FILE,
        opset,
        input_names=ENCODER_INPUTS,
        output_names=(EMBEDDINGS, *features),
    )
    prompts, points = torch.export.Dim("num_prompts", min=1), torch.export.Dim("num_points", min=1)
    export_module(
        ZimPromptGraph(model),
        tuple(inputs["decoder"].values()),
        folder / DECODER_FILE,
        opset,
        input_names=(*features, EMBEDDINGS, *PROMPT_INPUTS),
        output_names=DECODER_OUTPUTS,
        dynamic_shapes=(
            (*[None] * (len(features) + 1), {0: prompts}, {0: prompts, 1: points}, {0: prompts, 1: points}),
        ),
        renamed_axes={(name, 0): "num_prompts" for name in DECODER_OUTPUTS},
    )
    model.config.save_pretrained(folder)


__all__ = ["ZimImageGraph", "ZimPromptGraph", "example_inputs", "export_zim_onnx", "feature_names"]
