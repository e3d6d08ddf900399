# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""SAM's simulated interactive training (SAM, section 3 "training" and appendix A "training algorithm").

A prompt is drawn from the target mask, the model predicts, the next point is drawn from what it got wrong, and so on:
all rounds of a batch on one image embedding, in one optimiser step. Points are pixel centres of the target's grid,
expressed in pixels of the model frame.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...prompts import PADDING_LABEL
from .losses import mask_loss, resize_logits
from .mask_decoder import RowMasks
from .prompt_rows import PromptRows

BOX_NOISES = ("normal", "uniform", "none")
BOX_NOISE_SHARE = 0.1  # of the side of the box
BOX_NOISE_LIMIT = 20 / 1024  # of the side of the model frame: 20 pixels of the published models
POINT_PROBABILITY = 0.5  # of the first prompt; otherwise it is a box


class Decode(Protocol):
    """Masks and scores, all four tokens, for rows of prompts."""

    def __call__(self, rows: PromptRows) -> RowMasks: ...


class InteractiveResult(NamedTuple):
    """
    Attributes:
        loss: scalar, the mean over objects of the sum over rounds of 20 focal + dice + iou.
        focal, dice, iou: scalars, the same reduction, unweighted.
        pred_masks: (R, 4, l, l) logits of the last round, all tokens.
        iou_scores: (R, 4) of the last round.
        rows: prompts of the last round.
    """

    loss: Tensor
    focal: Tensor
    dice: Tensor
    iou: Tensor
    pred_masks: Tensor
    iou_scores: Tensor
    rows: PromptRows


def interactive_loss(
    decode: Decode,
    rows: PromptRows,
    targets: Tensor,
    *,
    image_size: int,
    num_rounds: int = 11,
    all_iou: bool = False,
    box_noise: str = "normal",
    detach_fed_back_masks: bool = True,
    generator: torch.Generator | None = None,
) -> InteractiveResult:
    """Plays the rounds of a batch and adds up their losses.

    Prompts in `rows` are the first round; without any, one is drawn for each row (see [`first_prompts`]). Every later
    round gets the mask of the round before as mask prompt and, in point rounds, one more point (see [`next_points`]).
    Points, boxes and texts stay. A row with exactly one prompt and no mask prompt is trained on the best of three
    masks, every other one on the single mask.

    Args:
        decode: see [`Decode`]; differentiable.
        rows: R objects.
        targets: (R, h, w) in {0, 1}, padded model frame at any resolution: that of the losses and of the points.
        image_size: side of the model frame, pixels.
        num_rounds: see [`round_schedule`].
        all_iou: see [`mask_loss`].
        box_noise: of boxes drawn here, see [`add_box_noise`].
        detach_fed_back_masks: no gradients through the masks that become prompts.
        generator: of all draws, on the device of `targets`.

    Raises:
        ValueError: `targets` do not fit `rows`, or a setting is out of range.
    """
    if targets.ndim != 3 or len(targets) != len(rows):
        raise ValueError(f"targets must have shape ({len(rows)}, h, w), one per object, got {tuple(targets.shape)}.")
    schedule = round_schedule(num_rounds, generator, targets.device)
    wanted = targets > 0.5
    if rows.points is None and rows.boxes is None and rows.masks is None and rows.text_embeds is None:
        rows = first_prompts(rows, wanted, image_size, box_noise, generator)
    single = ~one_prompt(rows)
    masks = decode(rows)
    losses = [mask_loss(masks.pred_masks, masks.iou_scores, wanted, single, all_iou)]
    for with_point in schedule:
        chosen = _chosen_token(masks.iou_scores.detach(), single)
        previous = masks.pred_masks[torch.arange(len(rows), device=chosen.device), chosen]
        if with_point:
            predicted = resize_logits(previous.detach()[:, None], wanted.shape[-2:])[:, 0] > 0
            rows = _add_points(rows, *next_points(wanted, predicted, image_size, generator))
        rows = replace(rows, masks=previous.detach() if detach_fed_back_masks else previous, has_mask=None)
        masks, single = decode(rows), torch.ones_like(single)
        losses.append(mask_loss(masks.pred_masks[:, :1], masks.iou_scores[:, :1], wanted, single, all_iou))
    # a batch of padding alone trains nothing, but every parameter takes part
    scale = 0.0 if rows.empty else 1.0
    total, focal, dice, iou = (
        torch.stack([getattr(loss, name) for loss in losses]).sum(0).mean() * scale
        for name in ("total", "focal", "dice", "iou")
    )
    return InteractiveResult(total, focal, dice, iou, masks.pred_masks, masks.iou_scores, rows)


def round_schedule(
    num_rounds: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> list[bool]:
    """Whether each round after the first brings a new point.

    From 4 rounds on, all but two do: one without a point comes before a randomly chosen point round, one is the last (the
    paper: 11 rounds, 8 of them with a new point). With 2 or 3 rounds each brings a point.

    Raises:
        ValueError: `num_rounds` is below 1.
    """
    if num_rounds < 1:
        raise ValueError(f"num_rounds must be at least 1, got {num_rounds}.")
    if num_rounds < 4:
        return [True] * (num_rounds - 1)
    schedule = [True] * (num_rounds - 3)
    place = int(torch.randint(len(schedule), (1,), generator=generator, device=device))
    return [*schedule[:place], False, *schedule[place:], False]


def one_prompt(rows: PromptRows) -> Tensor:
    """(R,) bool: exactly one point, box or text, and no mask prompt. Such a prompt may mean several objects."""
    count = torch.zeros_like(rows.image_index)
    for values, flags in ((rows.boxes, rows.has_box), (rows.text_embeds, rows.has_text)):
        if values is not None:
            count = count + (1 if flags is None else flags.long())
    if rows.point_labels is not None:
        count = count + ((rows.point_labels == 0) | (rows.point_labels == 1)).sum(1)
    alone = count == 1
    if rows.masks is not None:
        alone = torch.zeros_like(alone) if rows.has_mask is None else alone & ~rows.has_mask
    return alone


def first_prompts(
    rows: PromptRows,
    targets: Tensor,
    image_size: int,
    box_noise: str = "normal",
    generator: torch.Generator | None = None,
) -> PromptRows:
    """Gives every row its first prompt: with probability 0.5 a foreground point, uniform over the target, else its box
    with noise. Empty targets get a background point.

    Args:
        rows: R objects.
        targets: (R, h, w) bool.
        image_size: side of the model frame, pixels.
        box_noise: see [`add_box_noise`].
        generator: of the draws.
    """
    filled = targets.flatten(1).any(1)
    pixels = sample_pixels(torch.where(filled[:, None, None], targets, ~targets), generator)
    frame = (image_size, image_size)
    points = pixel_centres(pixels, targets.shape[-2:], frame)
    boxes = add_box_noise(target_boxes(targets, frame), box_noise, image_size, generator=generator)
    draw = torch.rand(len(rows), generator=generator, device=targets.device)
    has_box = (draw >= POINT_PROBABILITY) & filled
    labels = torch.where(has_box, PADDING_LABEL, filled.long())
    return replace(rows, points=points[:, None], point_labels=labels[:, None], boxes=boxes, has_box=has_box)


def next_points(
    targets: Tensor, predicted: Tensor, image_size: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """One point per object from the error region, false positives and false negatives together.

    Without an error it comes from the background, or from the target if that covers everything.

    Args:
        targets, predicted: (R, h, w) bool.
        image_size: side of the model frame, pixels.
        generator: of the draws.

    Returns:
        Points (R, 2), x y in pixels of the model frame; labels (R,), 1 on the target, 0 elsewhere.
    """
    error = targets ^ predicted
    wrong = error.flatten(1).any(1)[:, None, None]
    full = targets.flatten(1).all(1)[:, None, None]
    pixels = sample_pixels(torch.where(wrong, error, targets == full), generator)
    row = torch.arange(len(targets), device=targets.device)
    labels = targets[row, pixels[:, 1], pixels[:, 0]].long()
    return pixel_centres(pixels, targets.shape[-2:], (image_size, image_size)), labels


def sample_pixels(masks: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One pixel of each mask, uniformly.

    Args:
        masks: (R, h, w) bool, none of them empty (of an empty mask the last pixel comes back).
        generator: of the draw, one number per mask.

    Returns:
        (R, 2) long, column and row.
    """
    per_line = masks.sum(2)
    last = per_line.cumsum(1)
    dtype = torch.float32 if masks.device.type == "mps" else torch.float64  # which Apple's GPUs lack
    draw = torch.rand(len(masks), generator=generator, device=masks.device, dtype=dtype)
    rank = (draw * last[:, -1]).long()[:, None]  # the pixel that has `rank` others of the mask before it
    y = torch.searchsorted(last, rank, right=True).clamp(max=masks.shape[1] - 1)
    rank = rank - (last - per_line).gather(1, y)
    line = masks.gather(1, y[..., None].expand(-1, -1, masks.shape[2]))[:, 0]
    x = torch.searchsorted(line.cumsum(1), rank, right=True).clamp(max=masks.shape[2] - 1)
    return torch.cat([x, y], dim=1)


def pixel_centres(pixels: Tensor, size: Sequence[int], frame: Sequence[int]) -> Tensor:
    """Pixels (R, 2) (column, row) of a grid of `size` (height, width) -> points (R, 2), x y in the pixels of a `frame`
    (height, width) that the grid covers. (A pixel is named by its corner, as in the model's inputs.)"""
    scale = torch.tensor([frame[1] / size[1], frame[0] / size[0]], device=pixels.device)
    return (pixels + 0.5) * scale - 0.5


def target_boxes(targets: Tensor, frame: Sequence[int]) -> Tensor:
    """Boxes (R, 4) around masks (R, h, w) bool, x0 y0 x1 y1 in the pixels of a `frame` (height, width) that the masks
    cover, the end exclusive; zeros for empty masks."""
    sides = []
    for axis, extent in ((1, frame[1]), (2, frame[0])):
        line = targets.any(axis).to(torch.uint8)
        scale = extent / line.shape[1]
        end = line.shape[1] - line.flip(1).argmax(1)
        sides.append((line.argmax(1) * scale, end * scale))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], dim=1) * targets.flatten(1).any(1)[:, None]


def add_box_noise(
    boxes: Tensor, noise: str, image_size: int, limit: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Moves each coordinate of boxes (R, 4) by noise in proportion to the side (width for x, height for y).

    Args:
        boxes: x0 y0 x1 y1 in pixels of the model frame.
        noise: "normal": standard deviation 10 % of the side, cut at 20 pixels (the paper's words). "uniform": within 10 %
            of the side and 20 pixels (what SAM 2 does). "none". The 20 pixels are those of a frame of 1024: smaller
            frames get less, as their objects are smaller.
        image_size: side of the model frame, pixels.
        limit: boxes are clipped to [0, limit], anything that broadcasts to `boxes`; default: the model frame.
        generator: of the draws.

    Raises:
        ValueError: unknown `noise`.
    """
    if noise not in BOX_NOISES:
        raise ValueError(f"box_noise must be one of {BOX_NOISES}, got {noise!r}.")
    if noise == "none":
        return boxes
    reach = BOX_NOISE_SHARE * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    most = BOX_NOISE_LIMIT * image_size
    if noise == "normal":
        draw = torch.randn(boxes.shape, generator=generator, device=boxes.device, dtype=boxes.dtype)
        moved = boxes + (draw * reach).clamp(-most, most)
    else:
        draw = torch.rand(boxes.shape, generator=generator, device=boxes.device, dtype=boxes.dtype)
        moved = boxes + (2 * draw - 1) * reach.clamp(max=most)
    high = torch.as_tensor(image_size if limit is None else limit, dtype=boxes.dtype, device=boxes.device)
    moved = moved.clamp(min=0).minimum(high)
    return torch.cat([moved[:, :2].minimum(moved[:, 2:]), moved[:, :2].maximum(moved[:, 2:])], dim=1)


def _chosen_token(scores: Tensor, single: Tensor) -> Tensor:
    """(R,) index of the mask that is fed back, of scores (R, M) and the rows that are trained on mask 0."""
    return torch.where(single, 0, 1 + scores[:, 1:].argmax(1))


def _add_points(rows: PromptRows, points: Tensor, labels: Tensor) -> PromptRows:
    points, labels = points[:, None], labels[:, None]
    if rows.points is not None and rows.point_labels is not None:
        points = torch.cat([rows.points, points.to(rows.points.dtype)], dim=1)
        labels = torch.cat([rows.point_labels, labels.to(rows.point_labels.dtype)], dim=1)
    return replace(rows, points=points, point_labels=labels)


__all__ = ["Decode", "InteractiveResult", "interactive_loss", "one_prompt", "round_schedule"]
