# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The two-way mixer of SAM (SAM, appendix A, "lightweight mask decoder"), for many prompts per image.

Parameters and state-dict keys are those of transformers' `SamTwoWayTransformer`. What differs is the cost:

* prompts are rows `(R, n, C)` beside an image stream `(R, S, C)`; a stream `(1, S, C)` is shared by all rows, and the
  first block then projects the image once instead of once per prompt;
* the projections of the image stream are folded into the few tokens (`q (k W)^T = (q W^T) k^T`), which replaces four
  products with the S x C stream by products with `heads * n` vectors and leaves no per-position key, value or query
  tensor in memory;
* tokens that only pad a ragged batch are masked as keys, so a padded prompt gives the result of the unpadded one.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.sam.modeling_sam import SamAttention, SamTwoWayAttentionBlock, SamTwoWayTransformer


class SharedImage(NamedTuple):
    """Projections of an image stream that is still the same for all prompts, each `(S, inner)`."""

    key: Tensor
    value: Tensor
    query: Tensor


class Modulation(Protocol):
    """Changes the attention scores between R rows of tokens and the positions of the image, before the softmax."""

    def __call__(self, scores: Tensor) -> Tensor:
        """Scores (R, *, S) or (heads, R, *, S)."""
        ...

    def attend(
        self, attention: SamAttention, query: Tensor, key: Tensor, value: Tensor, attention_similarity: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What `attention` returns for these inputs, with changed scores: the path through transformers' attention."""
        ...


def _heads(x: Tensor, attention: SamAttention) -> Tensor:
    """(..., inner) -> (..., heads, head width)."""
    return x.unflatten(-1, (attention.num_attention_heads, -1))


def _head_weight(linear: nn.Linear, attention: SamAttention) -> Tensor:
    """Weight (inner, C) of an input projection -> (heads, head width, C)."""
    return linear.weight.unflatten(0, (attention.num_attention_heads, -1))


def _merge_tokens(x: Tensor) -> Tensor:
    """(R, n, h, d) -> (h, R * n, d): rows that share one image become one matrix per head."""
    return x.permute(2, 0, 1, 3).flatten(1, 2)


def token_to_image(
    attention: SamAttention, tokens: Tensor, keys: Tensor, values: Tensor, modulation: Modulation | None = None
) -> Tensor:
    """Attention of tokens (R, n, C) over an image stream: keys, values (R, S, C). Returns (R, n, C)."""
    num_rows, num_tokens, _ = tokens.shape
    query = _heads(attention.q_proj(tokens), attention) * attention.scaling
    folded = torch.einsum("rnhd,hdc->rhnc", query, _head_weight(attention.k_proj, attention)).flatten(1, 2)
    scores = torch.bmm(folded, keys.transpose(1, 2))
    if modulation is not None or torch.is_grad_enabled():
        # shifts all scores of a token equally, which the softmax alone does not see: else only for the (zero) gradient
        # of the bias, without which distributed training waits for it
        scores = (
            scores
            + torch.einsum("rnhd,hd->rhn", query, _heads(attention.k_proj.bias, attention)).flatten(1)[..., None]
        )
    weights = (scores if modulation is None else modulation(scores)).softmax(-1)
    context = torch.bmm(weights, values).unflatten(1, (-1, num_tokens))
    out = torch.einsum("rhnc,hdc->rnhd", context, _head_weight(attention.v_proj, attention)).flatten(2)
    return attention.out_proj(out + attention.v_proj.bias)


def token_to_shared_image(
    attention: SamAttention, tokens: Tensor, image: SharedImage, modulation: Modulation | None = None
) -> Tensor:
    """As `token_to_image` for one image shared by all rows."""
    num_rows, num_tokens, _ = tokens.shape
    query = _merge_tokens(_heads(attention.q_proj(tokens), attention)) * attention.scaling
    scores = torch.bmm(query, _heads(image.key, attention).permute(1, 2, 0))
    if modulation is not None:
        scores = modulation(scores.unflatten(1, (num_rows, num_tokens))).flatten(1, 2)
    weights = scores.softmax(-1)
    out = torch.bmm(weights, _heads(image.value, attention).transpose(0, 1))
    return attention.out_proj(out.unflatten(1, (num_rows, num_tokens)).permute(1, 2, 0, 3).flatten(2))


def image_to_token(
    attention: SamAttention,
    stream: Tensor,
    stream_with_positions: Tensor,
    keys: Tensor,
    values: Tensor,
    token_mask: Tensor | None,
    shared_query: Tensor | None = None,
    in_place: bool = False,
    modulation: Modulation | None = None,
) -> Tensor:
    """`stream` + attention of every image position over the tokens.

    Args:
        stream: (R, S, C), or (1, S, C) when shared; the residual.
        stream_with_positions: the same plus the dense position encoding: the queries before projection.
        keys, values: (R, n, C) tokens with and without their positional term.
        token_mask: (R, n) bool, False for tokens that only pad, or None.
        shared_query: (S, inner) projected queries if the stream is shared by all rows.
        in_place: the result may overwrite `stream`.
        modulation: of the scores, or None.
    """
    num_rows, num_tokens, channels = keys.shape
    key = _heads(attention.k_proj(keys), attention) * attention.scaling
    if shared_query is None:
        folded = torch.einsum("rnhd,hdc->rhnc", key, _head_weight(attention.q_proj, attention)).flatten(1, 2)
        bias = torch.einsum("rnhd,hd->rhn", key, _heads(attention.q_proj.bias, attention)).flatten(1)[..., None]
        scores = torch.baddbmm(bias, folded, stream_with_positions.transpose(1, 2))
        scores = (scores if modulation is None else modulation(scores)).unflatten(1, (-1, num_tokens))
    else:
        scores = torch.bmm(_merge_tokens(key), _heads(shared_query, attention).permute(1, 2, 0))
        scores = scores.unflatten(1, (num_rows, num_tokens))
        scores = (scores if modulation is None else modulation(scores)).transpose(0, 1)
    if token_mask is not None:
        scores = scores.masked_fill(~token_mask[:, None, :, None], float("-inf"))
    weights = scores.softmax(2).flatten(1, 2)  # (R, heads * n, S)
    value = _heads(attention.v_proj(values), attention)
    out_weight = attention.out_proj.weight.unflatten(1, (attention.num_attention_heads, -1))
    # the weights of a head sum to one, so each head carries its share of the output bias
    folded_value = torch.einsum("rnhd,chd->rhnc", value, out_weight)
    folded_value = folded_value + attention.out_proj.bias / attention.num_attention_heads
    if in_place and stream.dtype == weights.dtype == folded_value.dtype:  # autocast mixes dtypes
        return stream.baddbmm_(weights.transpose(1, 2), folded_value.flatten(1, 2))
    return torch.baddbmm(stream.expand(num_rows, -1, -1), weights.transpose(1, 2), folded_value.flatten(1, 2))


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the weight of a layer may be read directly: no adapter is around it, no hook brings it (offloading)."""
    return type(module) is kind and not hasattr(module, "_hf_hook") and not hasattr(module.weight, "ds_id")


def _is_plain_attention(attention: SamAttention) -> bool:
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)
    return all(is_plain(linear, nn.Linear) for linear in projections)


class SamTwoWayBlock(GradientCheckpointingLayer, SamTwoWayAttentionBlock):
    """One block of the mixer: token self-attention, tokens to image, MLP, image to tokens."""

    def forward(
        self,
        tokens: Tensor,
        stream: Tensor,
        token_positions: Tensor,
        image_positions: Tensor,
        token_mask: Tensor | None = None,
        shared: SharedImage | None = None,
        fold: bool = True,
        owns_stream: bool = False,
        to_image: Modulation | None = None,
        to_tokens: Modulation | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """
        Args:
            tokens: (R, n, C).
            stream: (R, S, C), or (1, S, C) when shared by all rows (needs `shared` or `fold=False`).
            token_positions: (R, n, C) positional term of the tokens: the mixer's own input.
            image_positions: (S, C) dense position encoding.
            token_mask: (R, n) bool, False for padding, or None.
            shared: projections of the shared stream, see `SamTwoWayMixer.project_shared`.
            fold: False computes through transformers' attention classes (adapters, recorded attention).
            owns_stream: nobody else needs `stream`: without gradients it is updated in place.
            to_image, to_tokens: modulations of the token-to-image and the image-to-token attention, or None.

        Returns:
            tokens, stream (R, S, C), and the token-to-image attention weights (None unless `fold=False` and eager).
        """
        self_bias = None if token_mask is None else _additive_mask(token_mask, tokens.dtype)
        if self.skip_first_layer_pe:
            tokens = self._attend(self.self_attn, tokens, tokens, tokens, self_bias)[0]
        else:
            query = tokens + token_positions
            tokens = tokens + self._attend(self.self_attn, query, query, tokens, self_bias)[0]
        tokens = self.layer_norm1(tokens)

        query = tokens + token_positions
        weights = None
        stream_with_positions = stream if shared is not None else stream + image_positions  # unused when shared
        if shared is not None:
            update = token_to_shared_image(self.cross_attn_token_to_image, query, shared, to_image)
        elif fold:
            update = token_to_image(self.cross_attn_token_to_image, query, stream_with_positions, stream, to_image)
        else:
            update, weights = self._attend(
                self.cross_attn_token_to_image, query, stream_with_positions, stream, modulation=to_image
            )
        tokens = self.layer_norm2(tokens + update)
        tokens = self.layer_norm3(tokens + self.mlp(tokens))

        key = tokens + token_positions
        if fold:
            stream = image_to_token(
                self.cross_attn_image_to_token,
                stream,
                stream_with_positions,
                key,
                tokens,
                token_mask,
                shared_query=None if shared is None else shared.query,
                in_place=owns_stream and not torch.is_grad_enabled(),
                modulation=to_tokens,
            )
        else:
            attention = self.cross_attn_image_to_token
            stream = stream + self._attend(attention, stream_with_positions, key, tokens, self_bias, to_tokens)[0]
        return tokens, self.layer_norm4(stream), weights

    @staticmethod
    def _attend(attention, query, key, value, bias=None, modulation: Modulation | None = None):
        attend: Callable = attention if modulation is None else partial(modulation.attend, attention)
        out, weights = attend(query=query[:, None], key=key[:, None], value=value[:, None], attention_similarity=bias)
        return out[:, 0], weights


def _additive_mask(token_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(R, n) bool -> (R, 1, 1, n) with 0 for tokens and the lowest value for padding."""
    bias = torch.zeros(token_mask.shape, dtype=dtype, device=token_mask.device)
    return bias.masked_fill(~token_mask, torch.finfo(dtype).min)[:, None, None]


class SamTwoWayMixer(SamTwoWayTransformer):
    """A stack of two-way blocks and a final token-to-image attention; see the module docstring.

    Args:
        config: mask-decoder configuration (widths, heads, `layer_norm_eps` of the block norms).
        num_hidden_layers: number of blocks.
    """

    def __init__(self, config, num_hidden_layers: int):
        nn.Module.__init__(self)  # the parent would build blocks of its own class
        self.config = config
        self.num_hidden_layers = num_hidden_layers
        rate = config.attention_downsample_rate
        self.layers = nn.ModuleList(
            SamTwoWayBlock(config, attention_downsample_rate=rate, skip_first_layer_pe=i == 0)
            for i in range(num_hidden_layers)
        )
        self.final_attn_token_to_image = SamAttention(config)
        self.layer_norm_final_attn = nn.LayerNorm(config.hidden_size)

    def can_fold(self) -> bool:
        """Whether the folded products apply: plain projections, and no other attention than the default is asked for."""
        attentions = [self.final_attn_token_to_image]
        for layer in self.layers:
            attentions += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
        return self.config._attn_implementation in ("sdpa", None) and all(
            _is_plain_attention(attention) for attention in attentions
        )

    def project_shared(self, stream: Tensor, image_positions: Tensor) -> SharedImage | None:
        """Projects a stream (1, S, C) for the first block once for all prompts; None where folding is off."""
        if not self.can_fold():
            return None
        block = self.layers[0]
        with_positions = stream[0] + image_positions
        return SharedImage(
            key=block.cross_attn_token_to_image.k_proj(with_positions),
            value=block.cross_attn_token_to_image.v_proj(stream[0]),
            query=block.cross_attn_image_to_token.q_proj(with_positions),
        )

    def forward(
        self,
        tokens: Tensor,
        stream: Tensor,
        image_positions: Tensor,
        token_mask: Tensor | None = None,
        shared: SharedImage | None = None,
        num_output_tokens: int | None = None,
        to_image: Modulation | None = None,
        to_tokens: Modulation | None = None,
        final_to_image: Modulation | None = None,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            tokens: (R, n, C), also the positional term of the tokens in every attention.
            stream: (R, S, C) or (1, S, C), image stream.
            image_positions: (S, C) dense position encoding.
            token_mask: (R, n) bool, False for padding tokens, or None.
            shared: result of `project_shared` for a stream (1, S, C).
            num_output_tokens: only the first so many tokens get the final attention (default: all).
            to_image, to_tokens, final_to_image: modulations of the blocks' token-to-image and image-to-token attention,
                and of the final attention.

        Returns:
            tokens (R, num_output_tokens or n, C), stream (R, S, C).
        """
        fold = self.can_fold()
        token_positions = tokens
        if shared is None and stream.shape[0] != tokens.shape[0]:
            stream = stream.expand(tokens.shape[0], -1, -1)
        for i, layer in enumerate(self.layers):
            tokens, stream, _ = layer(
                tokens,
                stream,
                token_positions,
                image_positions,
                token_mask=token_mask,
                shared=shared if i == 0 else None,
                fold=fold,
                owns_stream=i > 0,
                to_image=to_image,
                to_tokens=to_tokens,
            )
        tokens = tokens[:, :num_output_tokens]
        query = tokens + token_positions[:, :num_output_tokens]
        attention, keys = self.final_attn_token_to_image, stream + image_positions
        if fold:
            update = token_to_image(attention, query, keys, stream, final_to_image)
        else:
            update = SamTwoWayBlock._attend(attention, query, keys, stream, modulation=final_to_image)[0]
        return self.layer_norm_final_attn(tokens + update), stream
