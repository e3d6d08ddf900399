# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Prompt-aware masked attention (ZIM, section 3.3) for SAM's two-way mixer.

With m the attention map of a prompt, scores s between tokens and image positions become `m s` where m > 0 and a large
negative number where m = 0: for a box, attention inside it only; for points, scores that flatten with the distance.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.sam.modeling_sam import SamAttention, eager_attention_forward

from ..sam.two_way import SamTwoWayMixer, SharedImage
from .configuration_zim import ZimConfig


class MapModulation:
    """A [`Modulation`] of attention scores by the attention maps of R prompts.

    Args:
        maps: (R, g, g) in [0, 1].
        fill: score where the map is 0.
        image_asks: the queries are image positions and the keys tokens (image-to-token attention).
    """

    def __init__(self, maps: Tensor, fill: float, image_asks: bool = False):
        self.maps = maps.flatten(1)[:, None]  # (R, 1, S)
        self.fill = fill
        self.image_asks = image_asks

    def __call__(self, scores: Tensor) -> Tensor:
        """Scores (R, *, S) or (heads, R, *, S), changed. A position whose map is 0 asks all tokens alike."""
        return (scores * self.maps.to(scores.dtype)).masked_fill(self.maps == 0, self._fill(scores.dtype))

    def _fill(self, dtype: torch.dtype) -> float:
        """The fill, finite and within the range of the scores: a box without a cell looks everywhere alike."""
        return max(self.fill, torch.finfo(dtype).min)

    def attend(
        self, attention: SamAttention, query: Tensor, key: Tensor, value: Tensor, attention_similarity: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """`attention(query, key, value, attention_similarity)` with changed scores, for any attention implementation.

        The projections of the image positions are multiplied by the map: m (q k) = q (m k).
        """
        heads = attention.num_attention_heads
        weights = self.maps[:, :, :, None]  # (R, 1, S, 1) beside (R, heads, S, head width)
        query, key, value = (
            attention._separate_heads(projection(inputs), heads)
            for projection, inputs in ((attention.q_proj, query), (attention.k_proj, key), (attention.v_proj, value))
        )
        if self.image_asks:
            query = query * weights.to(query.dtype)
        else:
            key = key * weights.to(key.dtype)
            outside = torch.zeros_like(self.maps, dtype=query.dtype).masked_fill(
                self.maps == 0, self._fill(query.dtype)
            )
            attention_similarity = outside[:, None]  # (R, 1, 1, S)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
        out, probabilities = attend(
            attention,
            query,
            key,
            value,
            attention_mask=attention_similarity,
            dropout=0.0,
            scaling=attention.scaling,
            is_causal=False,
        )
        return attention.out_proj(attention._recombine_heads(out, 1)), probabilities


class ZimTwoWayMixer(SamTwoWayMixer):
    """SAM's mixer whose cross attentions follow the attention maps of the prompts; the same parameters.

    Args:
        config: says which of them do (`masked_attention`, `mask_final_attention`).
    """

    def __init__(self, config: ZimConfig):
        decoder_config: Any = config.mask_decoder_config
        super().__init__(decoder_config, decoder_config.num_hidden_layers)
        self.masked_attention = tuple(config.masked_attention)
        self.mask_final_attention = config.mask_final_attention
        self.fill = float(config.attention_map_fill)

    @property
    def uses_maps(self) -> bool:
        """Whether attention maps change anything."""
        return bool(self.masked_attention) or self.mask_final_attention

    def forward(
        self,
        tokens: Tensor,
        stream: Tensor,
        image_positions: Tensor,
        token_mask: Tensor | None = None,
        shared: SharedImage | None = None,
        attention_maps: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            tokens, stream, image_positions, token_mask, shared: as [`SamTwoWayMixer`].
            attention_maps: (R, g, g) in [0, 1], or None: plain attention.

        Returns:
            tokens (R, n, C), stream (R, S, C).
        """
        to_image = to_tokens = None
        if attention_maps is not None:
            to_image = MapModulation(attention_maps, self.fill)
            to_tokens = MapModulation(attention_maps, self.fill, image_asks=True)
        return super().forward(
            tokens,
            stream,
            image_positions,
            token_mask,
            shared,
            to_image=to_image if "token_to_image" in self.masked_attention else None,
            to_tokens=to_tokens if "image_to_token" in self.masked_attention else None,
            final_to_image=to_image if self.mask_final_attention else None,
        )


__all__ = ["MapModulation", "ZimTwoWayMixer"]
