# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""SAM's mask loss (SAM, appendix A, "losses"): 20 focal + dice on the best mask, squared error of the predicted IoU."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

FOCAL_WEIGHT = 20.0
FOCAL_ALPHA = 0.25  # not in the SAM paper: the values of the losses it cites
FOCAL_GAMMA = 2.0


class MaskLoss(NamedTuple):
    """Per-prompt terms, each (R,); `best` is the index of the mask that is trained."""

    total: Tensor
    focal: Tensor
    dice: Tensor
    iou: Tensor
    best: Tensor


def focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the last two axes of alpha_t (1 - p_t)^gamma BCE; targets in {0, 1}."""
    bce = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p = logits.sigmoid()
    p_t = p * targets + (1 - p) * (1 - targets)
    alpha_t = FOCAL_ALPHA * targets + (1 - FOCAL_ALPHA) * (1 - targets)
    return (alpha_t * (1 - p_t) ** FOCAL_GAMMA * bce).mean((-2, -1))


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - (2 sum p t + 1) / (sum p + sum t + 1) over the last two axes."""
    p = logits.sigmoid()
    return 1 - (2 * (p * targets).sum((-2, -1)) + 1) / (p.sum((-2, -1)) + targets.sum((-2, -1)) + 1)


def mask_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """IoU of logits > 0 with targets > 0.5 over the last two axes, denominator at least 1."""
    predicted, wanted = logits > 0, targets > 0.5
    union = (predicted | wanted).sum((-2, -1)).clamp(min=1)
    return (predicted & wanted).sum((-2, -1)) / union


def resize_logits(logits: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """(R, M, l, l) -> (R, M, *size), bilinear, in float32 (float64 stays)."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if logits.shape[-2:] == tuple(size):
        return logits
    return nn.functional.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def mask_loss(
    pred_masks: Tensor, iou_scores: Tensor, targets: Tensor, single: Tensor | None = None, all_iou: bool = False
) -> MaskLoss:
    """
    Args:
        pred_masks: (R, M, h, w) mask logits.
        iou_scores: (R, M) predicted IoU.
        targets: (R, h', w') in {0, 1}; logits are enlarged bilinearly to (h', w').
        single: (R,) bool. None: the mask with the lowest 20 focal + dice is trained. Otherwise mask 0 is trained where it
            is True, and the best of masks 1.. where it is False (SAM, section 3, "resolving ambiguity").
        all_iou: the IoU term is the mean over the masks that compete (SAM 2), not that of the trained mask alone.

    Returns:
        Terms per prompt. Only the trained mask gets gradients; with `all_iou` so do all scores that compete.
    """
    compared = pred_masks.detach()
    if all_iou:  # all of them are needed at the size of the targets
        compared = resize_logits(compared, targets.shape[-2:])
    best = _trained_masks(compared, targets, single)
    row = torch.arange(len(best), device=best.device)
    logits = resize_logits(pred_masks[row, best][:, None], targets.shape[-2:])[:, 0]
    wanted = targets.to(logits.dtype)
    focal, dice = focal_loss(logits, wanted), dice_loss(logits, wanted)
    if all_iou:
        actual = mask_iou(compared, wanted[:, None])
        competing = _competing(pred_masks.shape[1], len(best), single).to(best.device)
        iou = ((iou_scores.to(logits.dtype) - actual).square() * competing).sum(1) / competing.sum(1)
    else:
        iou = (iou_scores[row, best].to(logits.dtype) - mask_iou(logits, wanted)).square()
    return MaskLoss(FOCAL_WEIGHT * focal + dice + iou, focal, dice, iou, best)


def _competing(masks: int, rows: int, single: Tensor | None) -> Tensor:
    """(R, M) bool: the masks of which the best is trained."""
    if single is None:
        return torch.ones(rows, masks, dtype=torch.bool)
    return (torch.arange(masks, device=single.device) == 0) == single[:, None]


@torch.no_grad()
def _trained_masks(pred_masks: Tensor, targets: Tensor, single: Tensor | None) -> Tensor:
    """(R,) index of the mask that is trained."""
    best = torch.zeros(len(pred_masks), dtype=torch.long, device=pred_masks.device)
    first = 0 if single is None else 1
    if pred_masks.shape[1] - first <= 1 and single is None:
        return best
    rows = slice(None) if single is None else (~single).nonzero()[:, 0]
    candidates = pred_masks[rows, first:]
    if candidates.numel() == 0:
        return best
    logits = resize_logits(candidates, targets.shape[-2:])
    wanted = targets[rows].to(logits.dtype)[:, None].expand_as(logits)
    best[rows] = first + (FOCAL_WEIGHT * focal_loss(logits, wanted) + dice_loss(logits, wanted)).argmin(1)
    return best
