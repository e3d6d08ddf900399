# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""SAM's mask loss (SAM, appendix A, "losses"): 20 focal + dice on the best mask, squared error of the predicted IoU."""

from typing import NamedTuple

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


def mask_loss(pred_masks: Tensor, iou_scores: Tensor, targets: Tensor) -> MaskLoss:
    """
    Args:
        pred_masks: (R, M, h, w) mask logits.
        iou_scores: (R, M) predicted IoU.
        targets: (R, h', w') in {0, 1}; logits are enlarged bilinearly to (h', w').

    Returns:
        Terms per prompt. Only the mask with the lowest 20 focal + dice gets gradients, in all three terms.
    """
    logits = pred_masks.float()
    if logits.shape[-2:] != targets.shape[-2:]:
        logits = nn.functional.interpolate(logits, targets.shape[-2:], mode="bilinear", align_corners=False)
    targets = targets.float()[:, None].expand_as(logits)
    focal, dice = focal_loss(logits, targets), dice_loss(logits, targets)
    best = (FOCAL_WEIGHT * focal + dice).argmin(1, keepdim=True)
    focal, dice = focal.gather(1, best)[:, 0], dice.gather(1, best)[:, 0]
    iou = (iou_scores.float() - mask_iou(logits, targets)).square().gather(1, best)[:, 0]
    return MaskLoss(FOCAL_WEIGHT * focal + dice + iou, focal, dice, iou, best[:, 0])
