# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The SAM image encoder of the SAM-based models: transformers' `SamVisionEncoder`, leaner, with drop path.

Parameters, state-dict keys, recorded outputs and, up to rounding, results are those of transformers. What differs:

* attention never holds the scores of all pairs of tokens (see `relative_attention`);
* tokens that only fill up the last windows are neither projected nor normalised;
* on a CPU without gradients the MLP runs over parts of the tokens;
* whole samples skip a layer's branches in training (`drop_path_rate`; ViTDet, as SAM is trained).

With `attn_implementation="eager"`, attention dropout, or while a CPU model is traced, exported or compiled, transformers'
own attention runs; the first of these records attentions.
"""

import torch
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import (
    SamMLPBlock,
    SamPatchEmbeddings,
    SamPreTrainedModel,
    SamVisionAttention,
    SamVisionEncoder,
    SamVisionLayer,
    SamVisionNeck,
)
from transformers.utils.import_utils import is_tracing

from .configuration_sam import SamImageEncoderConfig
from .relative_attention import position_scores, relative_attention

# Tokens per part of the MLP: 12 MB of ViT-B's hidden layer, which the last-level cache keeps until it is read again
MLP_TOKENS = 1024


class SamImageAttention(SamVisionAttention):
    """Attention over a grid (B, h, w, C), inside windows of `window_size` tokens if that is not 0."""

    def __init__(self, config: SamImageEncoderConfig, window_size: int):
        super().__init__(config, window_size)
        self.config = config  # read at run time: `set_attn_implementation` changes it
        self.window_size = window_size

    def is_plain(self, hidden_states: Tensor) -> bool:
        """Whether transformers' own attention is to run: it takes windows as its batch, and returns its weights."""
        return (
            self.config._attn_implementation == "eager"
            or (self.training and self.dropout > 0)
            or (hidden_states.device.type == "cpu" and is_tracing(hidden_states))
        )

    def forward(self, hidden_states: Tensor, output_attentions: bool | None = None) -> tuple[Tensor, Tensor | None]:
        if self.is_plain(hidden_states):
            return super().forward(hidden_states, output_attentions)
        height, width = hidden_states.shape[1:3]
        window = (self.window_size, self.window_size) if self.window_size else (height, width)
        filler = None
        if height % window[0] or width % window[1]:
            filler = self.qkv(hidden_states.new_zeros(1, 1, 1, hidden_states.shape[-1]))
        tables = None
        if self.use_rel_pos:
            tables = [self.get_rel_pos(n, n, table) for n, table in zip(window, (self.rel_pos_h, self.rel_pos_w))]
        # One row of windows after another keeps their copies in a processor's cache.
        band_height = window[0] if hidden_states.device.type == "cpu" else height
        bands = []
        for band in self.qkv(hidden_states).split(band_height, dim=1):
            query, key, value = _split_windows(band, window, self.num_attention_heads, filler)
            positions = None if tables is None else position_scores(query, *tables)
            context = relative_attention(query, key, value, positions, self.scale)
            bands.append(_merge_windows(context, window, band.shape))
        return self.proj(torch.cat(bands, dim=1)), None


def _num_windows(height: int, width: int, window: tuple[int, int]) -> tuple[int, int]:
    return -(-height // window[0]), -(-width // window[1])


def _split_windows(qkv: Tensor, window: tuple[int, int], heads: int, filler: Tensor | None) -> tuple[Tensor, ...]:
    """(B, h, w, 3 * heads * d) -> query, key, value (B * windows, heads, window area, d); what a window lacks at the
    lower and right edge is `filler` (1, 1, 1, 3 * heads * d)."""
    batch, height, width, channels = qkv.shape
    down, across = _num_windows(height, width, window)
    if filler is not None:
        padded = filler.expand(batch, down * window[0], across * window[1], channels).clone()
        padded[:, :height, :width] = qkv
        qkv = padded
    qkv = qkv.view(batch, down, window[0], across, window[1], 3, heads, -1).permute(5, 0, 1, 3, 6, 2, 4, 7)
    return qkv.reshape(3, batch * down * across, heads, window[0] * window[1], -1).unbind(0)


def _merge_windows(context: Tensor, window: tuple[int, int], shape: torch.Size) -> Tensor:
    """Reverses `_split_windows`: (B * windows, heads, window area, d) -> (B, h, w, heads * d) for a grid of `shape`."""
    batch, height, width = shape[:3]
    down, across = _num_windows(height, width, window)
    context = context.unflatten(2, window).unflatten(0, (batch, down, across)).permute(0, 1, 4, 2, 5, 3, 6)
    return context.reshape(batch, down * window[0], across * window[1], -1)[:, :height, :width]


class SamImageMLP(SamMLPBlock):
    """SAM's MLP, over parts of the tokens where that saves memory."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        if hidden_states.device.type != "cpu" or torch.is_grad_enabled() or is_tracing(hidden_states):
            return super().forward(hidden_states)
        parts = hidden_states.flatten(0, -2).split(MLP_TOKENS)
        return torch.cat([SamMLPBlock.forward(self, part) for part in parts]).view(hidden_states.shape)


class SamDropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, zeroes whole samples (B, ...) with probability `rate` and divides
    the others by `1 - rate`."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return branch
        keep = 1.0 - self.rate
        return branch * branch.new_empty(branch.shape[0], *[1] * (branch.ndim - 1)).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"


class SamImageLayer(SamVisionLayer):
    """One block of the encoder: (B, h, w, C) -> (B, h, w, C)."""

    def __init__(self, config: SamImageEncoderConfig, window_size: int, drop_path_rate: float = 0.0):
        nn.Module.__init__(self)  # transformers' constructor would build the parts that are replaced
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = SamImageAttention(config, window_size)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SamImageMLP(config)
        self.drop_path = SamDropPath(drop_path_rate)
        self.window_size = window_size

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = hidden_states + self.drop_path(self._attend(self.layer_norm1(hidden_states)))
        return hidden_states + self.drop_path(self.mlp(self.layer_norm2(hidden_states)))

    def _attend(self, hidden_states: Tensor) -> Tensor:
        if not self.window_size or not self.attn.is_plain(hidden_states):
            return self.attn(hidden_states)[0]
        windows, padded_size = self.window_partition(hidden_states, self.window_size)
        return self.window_unpartition(self.attn(windows)[0], self.window_size, padded_size, hidden_states.shape[1:3])


class SamImageEncoder(SamVisionEncoder):
    """(B, 3, S, S) -> `last_hidden_state` (B, C, S / patch, S / patch).

    Raises:
        ValueError: (when built) `config.drop_path_rate` is not in [0, 1).
    """

    config: SamImageEncoderConfig
    _no_split_modules = ["SamImageLayer"]

    def __init__(self, config):
        SamPreTrainedModel.__init__(self, config)  # transformers' constructor would build the layers that are replaced
        drop_path_rate = getattr(config, "drop_path_rate", 0.0)  # transformers' SamVisionConfig has none
        if not 0.0 <= drop_path_rate < 1.0:
            raise ValueError(f"drop_path_rate must be at least 0 and below 1, got {drop_path_rate}")
        self.image_size = config.image_size
        self.patch_embed = SamPatchEmbeddings(config)
        grid = config.image_size // config.patch_size
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, config.hidden_size)) if config.use_abs_pos else None
        last = max(1, config.num_hidden_layers - 1)
        self.layers = nn.ModuleList(
            SamImageLayer(
                config,
                window_size=0 if i in config.global_attn_indexes else config.window_size,
                drop_path_rate=drop_path_rate * i / last,
            )
            for i in range(config.num_hidden_layers)
        )
        self.neck = SamVisionNeck(config)
        self.gradient_checkpointing = False
        self.post_init()


__all__ = ["SamImageEncoder"]
