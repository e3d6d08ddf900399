# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Exact attention with decomposed relative positions (MViTv2, section 4.1) without a full table of scores.

The score of query i and key j = (y, x) of an h x w grid is `scale * q_i k_j + row_i[y] + column_i[x]`. With 4096 tokens
and 12 heads the position terms of all pairs alone are 805 MB in float32. Two ways around them:

* `blocked_attention` computes a few rows of scores at a time in one buffer that stays in the processor's cache, and
  computes them again in the backward pass;
* `folded_attention` appends the position terms to the query and one-hot rows and columns to the key: their product is
  the whole score, so any fused attention kernel can be used. `kept_attention` uses it without one.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# 256 MB of 16-bit scores for each layer: as many as are kept for the backward pass instead of being computed again
KEPT_ELEMENTS = 2**27
# 4 MB of float32 scores: still in a last-level cache, and few enough blocks; smaller ones were up to a quarter slower
BLOCK_ELEMENTS = 2**20


def position_scores(query: Tensor, row_table: Tensor, column_table: Tensor) -> tuple[Tensor, Tensor]:
    """Position terms of the scores.

    Args:
        query: (G, heads, h * w, d), not scaled.
        row_table: (h, h, d) embedding of the vertical offset from a query row to a key row.
        column_table: (w, w, d) the same for columns.

    Returns:
        (G, heads, h * w, h) and (G, heads, h * w, w).
    """
    grid = query.unflatten(2, (row_table.shape[0], column_table.shape[0]))
    rows = torch.einsum("gnhwd,hkd->gnhwk", grid, row_table)
    columns = torch.einsum("gnhwd,wkd->gnhwk", grid, column_table)
    return rows.flatten(2, 3), columns.flatten(2, 3)


def relative_attention(
    query: Tensor, key: Tensor, value: Tensor, positions: tuple[Tensor, Tensor] | None, scale: float
) -> Tensor:
    """Attention of (G, heads, h * w, d) tensors with the position terms of `position_scores`, or without any.

    Returns:
        (G, heads, h * w, d).
    """
    if positions is None:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    # PyTorch's fused kernel for CPUs takes equal widths only: the folded form would fall back to a full score table.
    attend = folded_attention
    if query.device.type == "cpu":
        scores = query.shape[:2].numel() * query.shape[2] ** 2
        small = query.dtype == torch.bfloat16 and torch.is_grad_enabled() and scores <= KEPT_ELEMENTS
        attend = kept_attention if small else blocked_attention
    return attend(query, key, value, *positions, scale)


def folded_attention(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    """Attention by `scaled_dot_product_attention` without a mask; arguments and result as in `relative_attention`."""
    head_dim = query.shape[-1]
    query, key = _fold(query, key, rows, columns, scale)
    # kernels want widths that are multiples of 8
    spare = -query.shape[-1] % 8
    query, key = F.pad(query, (0, spare)), F.pad(key, (0, spare))
    if value.dtype != torch.float32:
        # FlashAttention (16 bit only) needs equal widths; the memory-efficient kernel for float32 does not
        value = F.pad(value, (0, key.shape[-1] - head_dim))
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)[..., :head_dim]


def kept_attention(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    """Attention with all scores in the dtype of the query, kept for the backward pass: for training in mixed precision on
    small grids, 1.4 times as fast there as blocks in float32. Arguments and result as in `relative_attention`."""
    with torch.autocast(query.device.type, enabled=False):  # which would make the softmax float32
        query, key = _fold(query, key, rows, columns, scale)
        probabilities = torch.bmm(query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2)).softmax(-1)
        return torch.bmm(probabilities, value.flatten(0, 1)).unflatten(0, value.shape[:2])


def _fold(query: Tensor, key: Tensor, rows: Tensor, columns: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Query and key (G, heads, h * w, d + h + w) whose product is the whole score."""
    height, width = rows.shape[-1], columns.shape[-1]
    one_hot = torch.cat(
        [
            torch.eye(height, dtype=key.dtype, device=key.device).repeat_interleave(width, 0),
            torch.eye(width, dtype=key.dtype, device=key.device).repeat(height, 1),
        ],
        dim=1,
    )
    query = torch.cat([query * scale, rows.to(query.dtype), columns.to(query.dtype)], dim=-1)
    return query, torch.cat([key, one_hot.expand(*key.shape[:2], -1, -1)], dim=-1)


def blocked_attention(
    query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor, scale: float
) -> Tensor:
    """Attention by blocks of at most `BLOCK_ELEMENTS` scores (at least one row of them), computed in float32 or more;
    arguments and result as in `relative_attention`. First derivatives only."""
    compute_dtype = torch.promote_types(query.dtype, torch.float32)
    inputs = (x.flatten(0, 1).to(compute_dtype) for x in (query, key, value, rows, columns))
    return _BlockedAttention.apply(*inputs, scale).to(query.dtype).unflatten(0, query.shape[:2])


def _blocks(pairs: int, tokens: int) -> Iterator[tuple[slice, slice]]:
    """(pairs of group and head, queries) of each block: several pairs with all queries, or one pair with some."""
    pair_step = _even_step(pairs, max(1, BLOCK_ELEMENTS // tokens**2))
    row_step = _even_step(tokens, max(1, BLOCK_ELEMENTS // tokens))
    for first_pair in range(0, pairs, pair_step):
        for first_row in range(0, tokens, row_step):
            yield slice(first_pair, first_pair + pair_step), slice(first_row, first_row + row_step)


def _even_step(total: int, most: int) -> int:
    """Step of at most `most` that cuts `total` into parts of nearly equal size."""
    return math.ceil(total / math.ceil(total / most))


def _probabilities(scratch: Tensor, query: Tensor, key: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Softmax of the scores of one block (p, r, h * w), written into `scratch`; the query is scaled already."""
    height, width = rows.shape[-1], columns.shape[-1]
    scores = scratch[: query.shape[0] * query.shape[1] * height * width].view(*query.shape[:2], height, width)
    torch.add(rows[..., :, None], columns[..., None, :], out=scores)
    scores = scores.flatten(2)
    scores.baddbmm_(query, key.transpose(1, 2))
    return torch.softmax(scores, -1, out=scores)


def _scratch(query: Tensor) -> Tensor:
    pairs, tokens, _ = query.shape
    return query.new_empty(min(pairs * tokens**2, max(BLOCK_ELEMENTS, tokens)))


class _BlockedAttention(torch.autograd.Function):
    """(pairs, tokens, d) query, key, value and (pairs, tokens, h | w) position terms -> (pairs, tokens, d)."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx, query, key, value, rows, columns, scale):
        out = torch.empty_like(value, memory_format=torch.contiguous_format)
        scratch = _scratch(query)
        for pair, row in _blocks(*query.shape[:2]):
            probabilities = _probabilities(
                scratch, query[pair, row] * scale, key[pair], rows[pair, row], columns[pair, row]
            )
            torch.bmm(probabilities, value[pair], out=out[pair, row])
        ctx.save_for_backward(query, key, value, rows, columns, out)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, grad_out):
        query, key, value, rows, columns, out = ctx.saved_tensors
        height, width = rows.shape[-1], columns.shape[-1]
        grad_query, grad_rows, grad_columns = (torch.empty_like(x) for x in (query, rows, columns))
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        grad_out = grad_out.contiguous()
        # derivative of the softmax: P * (dP - sum of P * dP), and that sum is the product of output and its gradient
        sums = (grad_out * out).sum(-1, keepdim=True)
        scratch, grad_scratch = _scratch(query), _scratch(query)
        for pair, row in _blocks(*query.shape[:2]):
            scaled = query[pair, row] * ctx.scale
            probabilities = _probabilities(scratch, scaled, key[pair], rows[pair, row], columns[pair, row])
            grad_value[pair].baddbmm_(probabilities.transpose(1, 2), grad_out[pair, row])
            grad_scores = grad_scratch[: probabilities.numel()].view_as(probabilities)
            torch.bmm(grad_out[pair, row], value[pair].transpose(1, 2), out=grad_scores)
            grad_scores.sub_(sums[pair, row]).mul_(probabilities)
            torch.bmm(grad_scores, key[pair], out=grad_query[pair, row])
            grad_key[pair].baddbmm_(grad_scores.transpose(1, 2), scaled)
            on_grid = grad_scores.unflatten(-1, (height, width))
            torch.sum(on_grid, -1, out=grad_rows[pair, row])
            torch.sum(on_grid, -2, out=grad_columns[pair, row])
        return grad_query.mul_(ctx.scale), grad_key, grad_value, grad_rows, grad_columns, None
