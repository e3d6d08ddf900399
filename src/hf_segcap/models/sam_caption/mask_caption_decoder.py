# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""SAM's mask decoder with SCA's text feature mixer behind it (SCA, section 3.2, figure 2)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamFeedForward, SamLayerNorm, SamMaskDecoder

from ..sam.two_way import SamTwoWayMixer, SharedImage
from .configuration_sam_caption import SamCaptionConfig


class RegionFeatures(NamedTuple):
    """What the decoder says about R prompts. `Any` is a tensor, or None where it was not asked for."""

    pred_masks: Any  # (R, M, 4g, 4g) logits
    iou_scores: Tensor  # (R, M)
    caption_queries: Any  # (R, H, Q, C)


class SamMaskCaptionDecoder(SamMaskDecoder):
    """SAM's mask decoder over rows of prompts, plus caption queries gathered by a second two-way mixer.

    The mask path never sees the caption queries: masks and scores are exactly SAM's.
    """

    def __init__(self, config: SamCaptionConfig):
        nn.Module.__init__(self)  # the parent would build transformers' own mixer
        self.caption_query_type = config.caption_query_type
        self.mixer_context = config.mixer_context
        self.config = config = config.mask_caption_decoder_config  # type: ignore[assignment]
        width = config.hidden_size
        self.num_mask_tokens = config.num_multimask_outputs + 1
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(self.num_mask_tokens, width)
        self.transformer = SamTwoWayMixer(config, config.num_hidden_layers)
        self.upscale_conv1 = nn.ConvTranspose2d(width, width // 4, kernel_size=2, stride=2)
        self.upscale_conv2 = nn.ConvTranspose2d(width // 4, width // 8, kernel_size=2, stride=2)
        self.upscale_layer_norm = SamLayerNorm(width // 4, data_format="channels_first")
        self.activation = nn.GELU()
        self.output_hypernetworks_mlps = nn.ModuleList(
            SamFeedForward(width, width, width // 8, 3) for _ in range(self.num_mask_tokens)
        )
        self.iou_prediction_head = SamFeedForward(
            width, config.iou_head_hidden_dim, self.num_mask_tokens, config.iou_head_depth
        )
        if self.mixer_context != "roi_align":
            self.additional_transformer = SamTwoWayMixer(config, config.additional_num_hidden_layers)
            if self.caption_query_type != "mask_tokens":
                groups = (
                    self.num_mask_tokens if self.caption_query_type == "learned_per_mask" else config.num_caption_heads
                )
                self.caption_tokens = nn.Embedding(groups * config.num_caption_tokens, width)

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
            stream: (R, S, C) image embedding + dense prompt embedding of each row, or (1, S, C) for all rows.
            image_positions: (S, C) dense position encoding.
            prompt_tokens: (R, N, C), or None for a mask prompt alone (one row per row of `stream`).
            prompt_token_mask: (R, N) bool, False for padding, or None.
            shared: `self.transformer.project_shared(stream, image_positions)` for a stream (1, S, C).
            multimask_output: masks and scores 1..3 instead of mask 0.
        """
        num_rows = len(prompt_tokens) if prompt_tokens is not None else len(stream)
        selected = slice(1, None) if multimask_output else slice(0, 1)
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(num_rows, -1, -1)
        inputs = output_tokens if prompt_tokens is None else torch.cat([output_tokens, prompt_tokens], dim=1)
        token_mask = _pad_left(prompt_token_mask, output_tokens.shape[1])

        outputs, mixed_stream = self.transformer(inputs, stream, image_positions, token_mask, shared=shared)
        mask_tokens = outputs[:, 1 : 1 + self.num_mask_tokens]
        iou_scores = self.iou_prediction_head(outputs[:, 0])[:, selected]
        pred_masks = self.predict_masks(mask_tokens, mixed_stream, selected) if output_masks else None
        if not output_captions or self.mixer_context == "roi_align":
            return RegionFeatures(pred_masks, iou_scores, None)

        if self.caption_query_type == "mask_tokens":
            queries = mask_tokens[:, selected]
        else:
            queries = self.caption_tokens.weight.expand(num_rows, -1, -1)
            if self.caption_query_type == "learned_per_mask":
                queries = queries.unflatten(1, (self.num_mask_tokens, -1))[:, selected].flatten(1, 2)
        context = {"sam_outputs": outputs, "sam_inputs": inputs, "prompts": prompt_tokens}[self.mixer_context]
        if self.mixer_context == "prompts":
            token_mask, mixed_stream = prompt_token_mask, stream
        tokens = queries if context is None else torch.cat([queries, context], dim=1)
        mixed, _ = self.additional_transformer(
            tokens,
            mixed_stream,
            image_positions,
            _pad_left(token_mask, queries.shape[1]),
            num_output_tokens=queries.shape[1],
        )
        if self.caption_query_type == "mask_tokens":
            caption_queries = mixed[:, : self.config.num_caption_heads, None]
        else:
            caption_queries = mixed.unflatten(1, (-1, self.config.num_caption_tokens))
        return RegionFeatures(pred_masks, iou_scores, caption_queries)

    def predict_masks(self, mask_tokens: Tensor, stream: Tensor, selected: slice) -> Tensor:
        """Mask tokens (R, 4, C) and image stream (R, S, C) -> logits (R, M, 4g, 4g) of the selected masks."""
        side = int(stream.shape[1] ** 0.5)
        image = stream.transpose(1, 2).unflatten(2, (side, side))
        image = self.activation(self.upscale_layer_norm(self.upscale_conv1(image)))
        image = self.activation(self.upscale_conv2(image))
        weights = torch.stack(
            [mlp(mask_tokens[:, i]) for i, mlp in list(enumerate(self.output_hypernetworks_mlps))[selected]], dim=1
        )
        return torch.bmm(weights, image.flatten(2)).unflatten(2, image.shape[-2:])


def _pad_left(mask: Tensor | None, number: int) -> Tensor | None:
    """Prepends `number` always-valid tokens to a token mask (R, n)."""
    return None if mask is None else torch.cat([mask.new_ones(len(mask), number), mask], dim=1)


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
