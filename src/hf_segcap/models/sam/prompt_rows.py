# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Ragged prompts of a batch as a flat list of rows, so that padding costs nothing."""

from dataclasses import dataclass, replace
from typing import Any, overload

import torch
from torch import Tensor

_PER_ROW = ("boxes", "has_box", "points", "point_labels", "masks", "has_mask", "text_embeds", "has_text")


@dataclass(frozen=True)
class PromptRows:
    """The R prompts of a batch that are not padding, ordered by image, then prompt.

    A batch of padding alone (`empty`) has one placeholder row of zeros, so that no step needs a special case; `scatter`
    drops it. Counts are taken once, as each look at a tensor's values makes a GPU wait.

    Attributes:
        valid: (B, P) bool.
        count: number of prompts that are not padding.
        image_index: (R,) image of each row.
        boxes (R, 4), points (R, n, 2), point_labels (R, n), masks (R, h, w): as in the model's `forward`, or None.
        has_box: (R,) bool, False where a row has no box; None: all have one (if `boxes` are given).
        has_mask: (R,) bool, False where a row has no mask prompt; None: all have one (if `masks` are given).
        text_embeds: (R, E) embeddings of text prompts, or None.
        has_text: (R,) bool, False where a row has no text prompt; None: all have one (if `text_embeds` are given).
    """

    valid: Tensor
    count: int
    image_index: Tensor
    boxes: Tensor | None
    points: Tensor | None
    point_labels: Tensor | None
    masks: Tensor | None
    has_box: Tensor | None = None
    has_mask: Tensor | None = None
    text_embeds: Tensor | None = None
    has_text: Tensor | None = None

    @classmethod
    def from_inputs(
        cls,
        batch_size: int,
        input_boxes: Tensor | None = None,
        input_points: Tensor | None = None,
        point_labels: Tensor | None = None,
        input_masks: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        has_box: Tensor | None = None,
        has_mask: Tensor | None = None,
        text_embeds: Tensor | None = None,
        has_text: Tensor | None = None,
        prompts_required: bool = True,
    ) -> "PromptRows":
        """Checks shapes (see the model's `forward`) and drops padded prompts.

        Args:
            prompts_required: False: `prompt_mask` alone will do, for rows without any prompt.

        Raises:
            ValueError: no prompt, wrong number of axes, points without a point, or disagreeing numbers of images, prompts or
                points.
        """
        given = {
            "input_boxes": (input_boxes, 3, "(B, P, 4)"),
            "input_points": (input_points, 4, "(B, P, n, 2)"),
            "input_masks": (input_masks, 4, "(B, P, h, w)"),
            "prompt_mask": (prompt_mask, 2, "(B, P)"),
            "has_box": (has_box, 2, "(B, P)"),
            "has_mask": (has_mask, 2, "(B, P)"),
            "text_embeds": (text_embeds, 3, "(B, P, E)"),
            "has_text": (has_text, 2, "(B, P)"),
        }
        for name, (value, ndim, shape) in given.items():
            if value is not None and (value.ndim != ndim or len(value) != batch_size):
                raise ValueError(
                    f"{name} must have shape {shape} with B = {batch_size} images, got {tuple(value.shape)}."
                )
        if input_masks is not None and not input_masks.is_floating_point():
            raise ValueError(
                f"input_masks are logits of an earlier prediction, floats, got {input_masks.dtype}: the processor makes them of "
                "binary masks."
            )
        for name, size in (("input_boxes", 4), ("input_points", 2)):
            value, _, shape = given[name]
            if value is not None and value.shape[-1] != size:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}.")
        if input_points is not None and input_points.shape[2] == 0:
            raise ValueError(
                f"input_points of shape {tuple(input_points.shape)} hold no point: leave them out. Prompts that have fewer "
                "points than others are filled up with points of label -2."
            )
        nothing = input_boxes is None and input_points is None and input_masks is None and text_embeds is None
        if nothing and (prompts_required or prompt_mask is None):
            raise ValueError("No prompt: give input_boxes, input_points or another kind that the model knows.")
        for flags, values in (("has_box", "input_boxes"), ("has_mask", "input_masks"), ("has_text", "text_embeds")):
            if given[flags][0] is not None and given[values][0] is None:
                raise ValueError(f"{flags} was given without {values}: pass both, or neither.")
        if point_labels is not None and (input_points is None or point_labels.shape != input_points.shape[:3]):
            points_shape = None if input_points is None else tuple(input_points.shape)
            raise ValueError(
                f"point_labels must have the shape of input_points without its last axis, got labels "
                f"{tuple(point_labels.shape)} for points {points_shape}."
            )
        numbers = {name: value.shape[1] for name, (value, _, _) in given.items() if value is not None}
        if input_masks is not None and len(numbers) > 1 and input_masks.shape[1] == 1:
            del numbers["input_masks"]  # one mask for all prompts of an image
        if len(set(numbers.values())) != 1:
            raise ValueError(f"The number of prompts per image differs: {numbers}.")
        num_prompts = next(iter(numbers.values()))

        device = next(value.device for value, _, _ in given.values() if value is not None)
        if prompt_mask is None:
            valid = torch.ones(batch_size, num_prompts, dtype=torch.bool, device=device)
        else:
            valid = prompt_mask.bool()
        if input_points is not None and point_labels is None:
            point_labels = torch.ones(input_points.shape[:3], dtype=torch.long, device=device)
        if input_masks is not None:
            input_masks = input_masks.expand(-1, num_prompts, -1, -1)
        image_index = valid.nonzero()[:, 0]
        count = len(image_index)
        if count == 0:
            image_index = torch.zeros(1, dtype=torch.long, device=device)
        rows = cls(valid, count, image_index, None, None, None, None)
        has_box, has_mask, has_text = (
            None if flags is None else flags.bool() for flags in (has_box, has_mask, has_text)
        )
        return replace(
            rows,
            boxes=rows.gather(input_boxes),
            points=rows.gather(input_points),
            point_labels=rows.gather(point_labels),
            masks=rows.gather(input_masks),
            has_box=rows.gather(has_box),
            has_mask=rows.gather(has_mask),
            text_embeds=rows.gather(text_embeds),
            has_text=rows.gather(has_text),
        )

    def __len__(self) -> int:
        return len(self.image_index)

    @property
    def empty(self) -> bool:
        """Whether there is no prompt at all."""
        return self.count == 0

    @overload
    def gather(self, values: Tensor) -> Tensor: ...
    @overload
    def gather(self, values: None) -> None: ...
    def gather(self, values: Tensor | None) -> Tensor | None:
        """(B, P, ...) -> (R, ...).

        Raises:
            ValueError: the first two axes are not (B, P).
        """
        if values is None:
            return None
        if values.shape[:2] != self.valid.shape:
            raise ValueError(
                f"Expected one entry per prompt, shape ({self.valid.shape[0]}, {self.valid.shape[1]}, ...), got "
                f"{tuple(values.shape)}."
            )
        if self.empty:
            return values.new_zeros((1, *values.shape[2:]))
        values = values.flatten(0, 1)
        return values if self.count == self.valid.numel() else values[self.valid.flatten()]

    def gather_labels(self, labels: Tensor, kind: str, collator: str) -> Tensor:
        """(B, P, h, h) targets -> (R, h, h).

        Args:
            kind: "mask" or "matte".
            collator: what makes labels of the `kind`s of images.

        Raises:
            ValueError: another shape.
        """
        if labels.ndim != 4 or labels.shape[:2] != self.valid.shape or labels.shape[-2] != labels.shape[-1]:
            raise ValueError(
                f"labels must have shape (B, P, h, h) with (B, P) = {tuple(self.valid.shape)}, one {kind} per prompt in the "
                f"padded model frame, which is square, got {tuple(labels.shape)}. {collator} brings {kind}s of images there."
            )
        return self.gather(labels)

    def scatter(self, values: Tensor, fill: float = 0) -> Tensor:
        """(R, ...) -> (B, P, ...), padded prompts filled."""
        if self.count == self.valid.numel() and not self.empty:
            return values.unflatten(0, self.valid.shape)
        out = values.new_full((*self.valid.shape, *values.shape[1:]), fill)
        if not self.empty:
            out[self.valid] = values
        return out

    def select(self, index: Tensor) -> "PromptRows":
        """The rows `index`, in that order; `valid` keeps describing the whole batch."""
        chosen: dict[str, Any] = {
            name: None if getattr(self, name) is None else getattr(self, name)[index]
            for name in (*_PER_ROW, "image_index")
        }
        return replace(self, **chosen)
