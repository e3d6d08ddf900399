# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The matting loss of ZIM (section 3.1): L1 + lambda x gradient loss, and the error of the predicted scores.

Behind a sigmoid, both nearly vanish where logits are far from right, and an empty matte is a local minimum for objects that
are small. An optional cross entropy, which is not the paper's, has gradients there: small models on random layers need it.

Reduction and derivative are not published: terms are means over the pixels that count, and gradients are those of a Sobel
filter divided by 8. Only pixels whose whole neighbourhood counts have a gradient, so that neither padding nor the border of
the frame shows up as an edge.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sam.losses import resize_logits

PADDING_ALPHA = -1.0  # the label of pixels that do not count, such as those outside the image

# taps along the derivative and across it; the response to a ramp of slope one is one
GRADIENT_FILTERS = {"sobel": ((-1 / 8, 0.0, 1 / 8), (1.0, 2.0, 1.0)), "forward": ((0.0, -1.0, 1.0), (0.0, 1.0, 0.0))}


class MattingLoss(NamedTuple):
    """Per-prompt terms, each (R,); `best` is the additionally trained matte, 0 where there is none; `cross_entropy` is None
    without a weight."""

    total: Tensor
    l1: Tensor
    gradient: Tensor
    iou: Tensor
    best: Tensor
    cross_entropy: Tensor | None = None


def check_mattes(labels: Tensor) -> Tensor:
    """The labels, (..., h, w).

    Raises:
        ValueError: for what is no matte (255 instead of 1, NaN, negative values that are not -1).
    """
    high = labels.max()
    if not bool(high <= 1):  # also false for NaN
        raise ValueError(
            f"labels are mattes in [0, 1] (-1: left out), got a maximum of {high.item():g}: divide 8-bit mattes by 255, "
            "16-bit mattes by 65535."
        )
    if bool(((labels < 0) & (labels != PADDING_ALPHA)).any()):
        raise ValueError(
            f"labels are mattes in [0, 1] (-1: left out), got a minimum of {labels.min().item():g}: mattes are not "
            "normalised as images are."
        )
    return labels


def l1_loss(alphas: Tensor, targets: Tensor) -> Tensor:
    """Mean over the last two axes of |alpha - target| where the target is not negative; 0 where nothing counts."""
    counted = targets >= 0
    return _mean((alphas - targets).abs(), counted)


def gradient_loss(alphas: Tensor, targets: Tensor, gradient_filter: str = "sobel") -> Tensor:
    """Mean over the last two axes of |dx (alpha - target)| + |dy (alpha - target)|.

    Args:
        alphas, targets: (R, h, w). Pixels with a negative target do not count, nor do their eight neighbours and the
            pixels at the border.
        gradient_filter: `"sobel"` or `"forward"`.

    Returns:
        (R,), 0 where nothing counts.

    Raises:
        ValueError: for an unknown filter.
    """
    if gradient_filter not in GRADIENT_FILTERS:
        raise ValueError(f"gradient_filter must be one of {', '.join(GRADIENT_FILTERS)}, got {gradient_filter!r}.")
    if min(targets.shape[-2:]) < 3:
        return (alphas * 0).sum((-2, -1))
    along, across = GRADIENT_FILTERS[gradient_filter]
    counted = targets >= 0
    difference = torch.where(counted, alphas - targets, 0.0)
    down = _filter(_filter(difference, across, -1), along, -2)
    right = _filter(_filter(difference, along, -1), across, -2)
    columns = counted[..., :-2] & counted[..., 1:-1] & counted[..., 2:]
    return _mean(down.abs() + right.abs(), columns[..., :-2, :] & columns[..., 1:-1, :] & columns[..., 2:, :])


def _filter(values: Tensor, taps: tuple[float, ...], dim: int) -> Tensor:
    """Correlation with three taps along an axis, where all of them fit. Sums of shifted views: convolutions with a single
    channel are slow on a processor."""
    size = values.shape[dim] - 2
    terms = [
        values.narrow(dim, i, size) * tap if tap != 1 else values.narrow(dim, i, size)
        for i, tap in enumerate(taps)
        if tap
    ]
    return sum(terms[1:], start=terms[0])


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    values = torch.where(counted, values, 0.0)
    return values.sum((-2, -1)) / counted.sum((-2, -1)).clamp(min=1)


def soft_iou(alphas: Tensor, targets: Tensor) -> Tensor:
    """sum min / sum max over the last two axes, of pixels whose target is not negative; 1 for two empty mattes."""
    counted = targets >= 0
    overlap = torch.where(counted, torch.minimum(alphas, targets), 0.0).sum((-2, -1))
    union = torch.where(counted, torch.maximum(alphas, targets), 0.0).sum((-2, -1))
    return torch.where(union > 0, overlap / union.clamp(min=torch.finfo(union.dtype).tiny), 1.0)


def cross_entropy_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the last two axes of the binary cross entropy where the target is not negative; 0 where nothing counts."""
    return _mean(F.binary_cross_entropy_with_logits(logits, targets.clamp(min=0), reduction="none"), targets >= 0)


def matting_loss(
    logits: Tensor,
    iou_scores: Tensor,
    targets: Tensor,
    *,
    gradient_weight: float = 10.0,
    gradient_filter: str = "sobel",
    multimask: bool = True,
    iou_weight: float = 1.0,
    cross_entropy_weight: float = 0.0,
) -> MattingLoss:
    """
    Args:
        logits: (R, M, l, l) of the mattes; enlarged to the size of the targets before the sigmoid, as in inference.
        iou_scores: (R, M) predicted scores; each learns the soft IoU of its matte.
        targets: (R, h, w) in [0, 1]; negative: the pixel does not count.
        gradient_weight, gradient_filter: of the gradient loss.
        multimask: the best of mattes 1, 2, ... is trained besides matte 0, and its terms are added.
        iou_weight: of the mean squared error of the scores.
        cross_entropy_weight: of the cross entropy of the mattes that are trained.

    Returns:
        Terms per prompt; `total = l1 + gradient_weight * gradient + iou_weight * iou`, and the weighted cross entropy.
    """
    targets = targets.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    num_rows, num_mattes = logits.shape[:2]

    def enlarged(chosen: Tensor) -> Tensor:
        return resize_logits(chosen[:, None], targets.shape[-2:])[:, 0]

    def terms(large: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alphas = large.sigmoid()
        l1, gradient = l1_loss(alphas, targets), gradient_loss(alphas, targets, gradient_filter)
        return l1, gradient, soft_iou(alphas.detach(), targets)

    best = torch.zeros(num_rows, dtype=torch.long, device=logits.device)
    trained = [enlarged(logits[:, 0])]
    l1, gradient, first_iou = terms(trained[0])
    true_ious = [first_iou]
    if num_mattes > 1:
        with torch.no_grad():  # one matte at a time: they are large
            others = [terms(enlarged(logits[:, i])) for i in range(1, num_mattes)]
        true_ious += [iou for _, _, iou in others]
        if multimask:
            costs = torch.stack([l1 + gradient_weight * gradient for l1, gradient, _ in others], dim=1)
            best = 1 + costs.argmin(1)
            trained.append(enlarged(logits[torch.arange(num_rows, device=logits.device), best]))
            best_l1, best_gradient, _ = terms(trained[1])
            l1, gradient = l1 + best_l1, gradient + best_gradient
    iou = (iou_scores.to(targets.dtype) - torch.stack(true_ious, dim=1)).square().mean(1)
    total, cross_entropy = l1 + gradient_weight * gradient + iou_weight * iou, None
    if cross_entropy_weight:
        cross_entropy = torch.stack([cross_entropy_loss(large, targets) for large in trained]).sum(0)
        total = total + cross_entropy_weight * cross_entropy
    return MattingLoss(total, l1, gradient, iou, best, cross_entropy)


__all__ = [
    "GRADIENT_FILTERS",
    "MattingLoss",
    "PADDING_ALPHA",
    "check_mattes",
    "cross_entropy_loss",
    "gradient_loss",
    "l1_loss",
    "matting_loss",
    "soft_iou",
]
