# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""SAM's mask decoder for rows of prompts (SAM, appendix A, "lightweight mask decoder")."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamFeedForward, SamLayerNorm, SamMaskDecoder

from .prompt_encoder import table
from .two_way import SamTwoWayMixer, SharedImage


class RowMasks(NamedTuple):
    """What the decoder says about R prompts: mask 0 is the one for unambiguous prompts, 1..3 are the multimask output."""

    pred_masks: Tensor  # (R, 4, 4g, 4g) logits
    iou_scores: Tensor  # (R, 4)


class MixedTokens(NamedTuple):
    """Before and after SAM's two-way mixer; `token_mask` is (R, n) bool, False for padding, or None."""

    inputs: Tensor  # (R, n, C): IoU token, mask tokens, prompt tokens
    outputs: Tensor  # (R, n, C)
    stream: Tensor  # (R, S, C)
    token_mask: Any


class SamRowMaskDecoder(SamMaskDecoder):
    """SAM's mask decoder over rows of prompts; state-dict keys are those of transformers' `SamMaskDecoder`.

    Args:
        config: mask-decoder configuration.
    """

    def __init__(self, config):
        nn.Module.__init__(self)  # the parent would build transformers' own mixer
        self.config = config
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

    def forward(
        self,
        stream: Tensor,
        image_positions: Tensor,
        prompt_tokens: Tensor | None,
        prompt_token_mask: Tensor | None = None,
        shared: SharedImage | None = None,
    ) -> RowMasks:
        """All masks and scores of each prompt; arguments as in [`SamRowMaskDecoder.mix`]."""
        mixed = self.mix(stream, image_positions, prompt_tokens, prompt_token_mask, shared)
        return RowMasks(self.predict_masks(mixed), self.predict_iou(mixed))

    def mix(
        self,
        stream: Tensor,
        image_positions: Tensor,
        prompt_tokens: Tensor | None,
        prompt_token_mask: Tensor | None = None,
        shared: SharedImage | None = None,
        **mixer_options: Any,
    ) -> MixedTokens:
        """
        Args:
            stream: (R, S, C) image embedding + dense prompt embedding of each row, or (1, S, C) for all rows.
            image_positions: (S, C) dense position encoding.
            prompt_tokens: (R, N, C), or None without point, box and text (one row per row of `stream`).
            prompt_token_mask: (R, N) bool, False for padding, or None.
            shared: `self.transformer.project_shared(stream, image_positions)` for a stream (1, S, C).
            mixer_options: further arguments of `self.transformer`.
        """
        num_rows = (
            stream.shape[0] if prompt_tokens is None else prompt_tokens.shape[0]
        )  # len() would fix it in an export
        output_tokens = torch.cat([table(self.iou_token), table(self.mask_tokens)]).expand(num_rows, -1, -1)
        inputs = output_tokens if prompt_tokens is None else torch.cat([output_tokens, prompt_tokens], dim=1)
        token_mask = pad_left(prompt_token_mask, output_tokens.shape[1])
        outputs, mixed_stream = self.transformer(
            inputs, stream, image_positions, token_mask, shared=shared, **mixer_options
        )
        return MixedTokens(inputs, outputs, mixed_stream, token_mask)

    def mask_token_outputs(self, mixed: MixedTokens) -> Tensor:
        """(R, 4, C)."""
        return mixed.outputs[:, 1 : 1 + self.num_mask_tokens]

    def predict_iou(self, mixed: MixedTokens) -> Tensor:
        """IoU that the model expects of each of its masks, (R, 4)."""
        return self.iou_prediction_head(mixed.outputs[:, 0])

    def predict_masks(self, mixed: MixedTokens, selected: slice = slice(None)) -> Tensor:
        """Logits (R, M, 4g, 4g) of the selected masks: a small network per mask token against the upscaled image."""
        image = self.activation(self.upscale_layer_norm(self.upscale_conv1(self.image_map(mixed))))
        return compare(self.mask_weights(mixed, selected), self.activation(self.upscale_conv2(image)))

    def image_map(self, mixed: MixedTokens) -> Tensor:
        """The image stream as a map (R, C, g, g)."""
        side = int(mixed.stream.shape[1] ** 0.5)
        return mixed.stream.transpose(1, 2).unflatten(2, (side, side))

    def mask_weights(self, mixed: MixedTokens, selected: slice = slice(None)) -> Tensor:
        """The weights (R, M, c) that the selected mask tokens give to the channels of an upscaled image."""
        tokens = self.mask_token_outputs(mixed)
        mlps = list(enumerate(self.output_hypernetworks_mlps))[selected]
        return torch.stack([mlp(tokens[:, i]) for i, mlp in mlps], dim=1)


def compare(weights: Tensor, image: Tensor) -> Tensor:
    """Products of weights (R, M, c) with the pixels of an upscaled image (R, c, h, w): (R, M, h, w)."""
    return torch.bmm(weights, image.flatten(2)).unflatten(2, image.shape[-2:])


def pad_left(mask: Tensor | None, number: int) -> Tensor | None:
    """Prepends `number` always-valid tokens to a token mask (R, n)."""
    return None if mask is None else torch.cat([mask.new_ones(len(mask), number), mask], dim=1)


__all__ = ["MixedTokens", "RowMasks", "SamRowMaskDecoder", "compare", "pad_left"]
