# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""SAM's mask decoder with SCA's text feature mixer behind it (SCA, section 3.2, figure 2)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..sam.mask_decoder import SamRowMaskDecoder, pad_left
from ..sam.prompt_encoder import table
from ..sam.two_way import SamTwoWayMixer, SharedImage
from .configuration_sam_caption import SamCaptionConfig


class RegionFeatures(NamedTuple):
    """What the decoder says about R prompts. `Any` is a tensor, or None where it was not asked for."""

    pred_masks: Any  # (R, M, 4g, 4g) logits
    iou_scores: Tensor  # (R, M)
    caption_queries: Any  # (R, H, Q, C)


class SamMaskCaptionDecoder(SamRowMaskDecoder):
    """SAM's mask decoder over rows of prompts, plus caption queries gathered by a second two-way mixer.

    The mask path never sees the caption queries: masks and scores are exactly SAM's.
    """

    def __init__(self, config: SamCaptionConfig):
        super().__init__(config.mask_caption_decoder_config)
        self.caption_query_type = config.caption_query_type
        self.mixer_context = config.mixer_context
        if self.mixer_context != "roi_align":
            self.additional_transformer = SamTwoWayMixer(self.config, self.config.additional_num_hidden_layers)
            if self.caption_query_type != "mask_tokens":
                per_mask = self.caption_query_type == "learned_per_mask"
                groups = self.num_mask_tokens if per_mask else self.config.num_caption_heads
                self.caption_tokens = nn.Embedding(groups * self.config.num_caption_tokens, self.config.hidden_size)

    def forward(
        self,
        stream: Tensor,
        image_positions: Tensor,
        prompt_tokens: Tensor | None,
        prompt_token_mask: Tensor | None = None,
        shared: SharedImage | None = None,
        multimask_output: bool = True,
        output_masks: bool = True,
        output_captions: bool = True,
    ) -> RegionFeatures:
        """
        Args:
            stream, image_positions, prompt_tokens, prompt_token_mask, shared: see [`SamRowMaskDecoder.mix`].
            multimask_output: masks and scores 1..3 instead of mask 0.
        """
        selected = slice(1, None) if multimask_output else slice(0, 1)
        mixed = self.mix(stream, image_positions, prompt_tokens, prompt_token_mask, shared)
        iou_scores = self.predict_iou(mixed)[:, selected]
        pred_masks = self.predict_masks(mixed, selected) if output_masks else None
        if not output_captions or self.mixer_context == "roi_align":
            return RegionFeatures(pred_masks, iou_scores, None)

        if self.caption_query_type == "mask_tokens":
            queries = self.mask_token_outputs(mixed)[:, selected]
        else:
            queries = table(self.caption_tokens).expand(len(mixed.outputs), -1, -1)
            if self.caption_query_type == "learned_per_mask":
                queries = queries.unflatten(1, (self.num_mask_tokens, -1))[:, selected].flatten(1, 2)
        context = {"sam_outputs": mixed.outputs, "sam_inputs": mixed.inputs, "prompts": prompt_tokens}[
            self.mixer_context
        ]
        token_mask, mixed_stream = mixed.token_mask, mixed.stream
        if self.mixer_context == "prompts":
            token_mask, mixed_stream = prompt_token_mask, stream
        tokens = queries if context is None else torch.cat([queries, context], dim=1)
        captions, _ = self.additional_transformer(
            tokens,
            mixed_stream,
            image_positions,
            pad_left(token_mask, queries.shape[1]),
            num_output_tokens=queries.shape[1],
        )
        if self.caption_query_type == "mask_tokens":
            caption_queries = captions[:, : self.config.num_caption_heads, None]
        else:
            caption_queries = captions.unflatten(1, (-1, self.config.num_caption_tokens))
        return RegionFeatures(pred_masks, iou_scores, caption_queries)


def roi_align(features: Tensor, boxes: Tensor, output_size: int) -> Tensor:
    """Aligned ROI-align with adaptive sampling (Mask R-CNN, section 3), one box per feature map row.

    Args:
        features: (R, C, g, g).
        boxes: (R, 4) x0 y0 x1 y1 in feature-grid units (model-frame pixels / patch size).

    Returns:
        (R, C, output_size, output_size). Bilinear samples and their mean are separable in x and y, so the operation
        is one small matrix per axis.
    """
    rows = _roi_weights(boxes[:, 1], boxes[:, 3], features.shape[2], output_size).to(features.dtype)
    columns = _roi_weights(boxes[:, 0], boxes[:, 2], features.shape[3], output_size).to(features.dtype)
    return torch.einsum("roh,rchw,rpw->rcop", rows, features, columns)


def _roi_weights(start: Tensor, end: Tensor, size: int, bins: int) -> Tensor:
    """Averaged linear-interpolation weights (R, bins, size) of each bin between start - 0.5 and end - 0.5."""
    start = start.float() - 0.5
    bin_width = (end.float() - 0.5 - start) / bins
    count = bin_width.ceil().clamp(min=1)  # adaptive: one sample per grid cell
    index = torch.arange(int(count.max()), device=start.device)
    first = start[:, None] + torch.arange(bins, device=start.device) * bin_width[:, None]
    position = first[..., None] + ((index + 0.5) / count[:, None])[:, None] * bin_width[:, None, None]
    used = (index < count[:, None])[:, None] & (position > -1) & (position < size)
    position = position.clamp(0, size - 1)
    hat = (1 - (position[..., None] - torch.arange(size, device=start.device)).abs()).clamp(min=0)
    return (hat * used[..., None]).sum(2) / count[:, None, None]
