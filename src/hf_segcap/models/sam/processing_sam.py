# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Processor of SAM, "Segment Anything" (ICCV 2023): images and prompts of any kind in, masks of image size out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature
from transformers.processing_utils import ProcessingKwargs, Unpack

from .prompt_processing import SamPromptProcessor


class SamPromptableProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    pass


class SamPromptableProcessor(SamPromptProcessor):
    r"""Turns images and prompts into the inputs of `SamForPromptableSegmentation`, and its masks back to image size.

    Args:
        image_processor: transformers' `SamImageProcessor` (or its Pillow version `SamImageProcessorPil`).
        tokenizer: CLIP's tokenizer, for checkpoints with text prompts.
    """

    hub_task = "promptable-segmentation"
    valid_processor_kwargs = SamPromptableProcessorKwargs
    tokenizer_required = False
    mixed_prompts = True
    text_kwargs = {"padding": True, "truncation": True, "return_tensors": "pt", "return_token_type_ids": False}
    images_kwargs = {"return_tensors": "pt"}

    def __init__(self, image_processor=None, tokenizer=None):
        super().__init__(image_processor, tokenizer)

    def check_argument_for_proper_class(self, argument_name, argument):
        if argument_name == "tokenizer" and argument is None:
            return None
        return super().check_argument_for_proper_class(argument_name, argument)

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        if self.tokenizer is not None:
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        # transformers asks for the parts to save, and cannot save a part that is None
        self.__dict__["get_attributes"] = lambda: ["image_processor"]
        try:
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        finally:
            del self.__dict__["get_attributes"]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | Sequence[Sequence[str | None]] | None = None,
        input_boxes: Any = None,
        input_points: Any = None,
        point_labels: Any = None,
        input_masks: Any = None,
        original_sizes: Any = None,
        **kwargs: Unpack[SamPromptableProcessorKwargs],
    ) -> BatchFeature:
        r"""
        Args:
            images: one image or a list (see `hf_segcap.images.load_image` for the kinds).
            text: one str for every object of every image; or one list per image with a str (or None: no text) per object;
                for a single image a plain list will do. Without other prompts there is one object per str.
            input_boxes: xyxy boxes in pixels of the original image; `hf_segcap.prompts` describes the nesting of prompts.
                None in place of a box: this object has none.
            input_points: (x, y) points in pixels of the original image; an empty list: this object has none.
            point_labels: 1 inside the object, 0 outside; all 1 if not given.
            input_masks: one per object: boolean masks of the size of the image, or float low-resolution logits of an earlier
                prediction (a 0/1 mask is not what SAM was trained with: boolean masks are resized by area and become
                logits (2 m - 1) * 10). None in place of a mask: this object has none.
            original_sizes: (height, width) of each image, *instead of* `images`, to scale prompts for stored image embeddings.
            kwargs: options of the image processor and the tokenizer.

        Returns:
            `BatchFeature` (torch tensors; numpy arrays with `return_tensors="np"`) with, of what was given:

            - `pixel_values` float32 (B, 3, S, S): resized, normalised, zero padded at the right and the bottom;
            - `original_sizes`, `reshaped_input_sizes` int64 (B, 2): (height, width) in pixels before and after the resize;
            - `input_boxes` float32 (B, P, 4) and `input_points` float32 (B, P, n, 2) in pixels of the model frame;
              `point_labels` int64 (B, P, n), `PADDING_LABEL` where an object has fewer points;
            - `input_masks` float32 (B, P, L, L), or (B, 1, L, L) when no image has more than one;
            - `input_ids`, `attention_mask` int64 (B, P, T);
            - `has_box`, `has_mask`, `has_text` bool (B, P), where some objects lack that kind;
            - `prompt_mask` bool (B, P): False for objects that only pad.

        Raises:
            ValueError, TypeError: nothing to process, unusable images or prompts; the message names image and object.
        """
        prompts = input_boxes, input_points, point_labels, input_masks
        return self._process(images, original_sizes, prompts, kwargs, text)

    @property
    def model_input_names(self) -> list[str]:
        """What a call with images and text returns; other prompts come on top of it."""
        names = ["pixel_values", "original_sizes", "reshaped_input_sizes"]
        return names if self.tokenizer is None else [*names, "prompt_mask", "input_ids", "attention_mask"]

    def count_texts(self, text: Any) -> list[int] | None:
        """Texts of each image, where `text` (as in `__call__`) says how many objects there are."""
        if not isinstance(text, (list, tuple)) or not text:
            return None
        if all(item is None or isinstance(item, str) for item in text):
            return [len(text)]
        return [len(items) if isinstance(items, (list, tuple)) else 0 for items in text]

    def _process_text(self, text: Any, data: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        batch = len(data["original_sizes"]) if "original_sizes" in data else None
        return self.text_to_model_inputs(text, batch, data.get("prompt_mask"), **options["text_kwargs"])

    def text_to_model_inputs(
        self, text: Any, num_images: int | None, prompt_mask: torch.Tensor | None = None, **tokenizer_kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Text prompts as `input_ids`, `attention_mask` (B, P, T), `prompt_mask` (B, P) and, if some lack text, `has_text`.

        Args:
            text: as in `__call__`.
            num_images: B; None: as many as `text` has lists (a plain list is one image).
            prompt_mask: (B, P) of other prompts for the same objects, or None.
            tokenizer_kwargs: options of the tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError(
                "`text` needs a tokenizer, but this processor has none: the released SAM checkpoints know no text prompts."
            )
        texts = _texts_per_object(text, num_images, prompt_mask)
        if prompt_mask is None:
            counts = torch.tensor([len(items) for items in texts])
            prompt_mask = torch.arange(int(counts.max())) < counts[:, None]
        flat = ["" if item is None else item for items in texts for item in items]
        if not flat:
            return {"prompt_mask": prompt_mask}
        options = {**self.text_kwargs, **tokenizer_kwargs, "return_tensors": "pt"}
        tokens = self.tokenizer(flat, **options)
        result = {"prompt_mask": prompt_mask}
        for name, fill in (("input_ids", self.tokenizer.pad_token_id or 0), ("attention_mask", 0)):
            values = tokens[name]
            padded = values.new_full((*prompt_mask.shape, values.shape[1]), fill)
            padded[prompt_mask] = values
            result[name] = padded
        known = torch.zeros_like(prompt_mask)
        known[prompt_mask] = torch.tensor([item is not None for items in texts for item in items])
        if not known[prompt_mask].all():
            result["has_text"] = known
        return result


def _texts_per_object(text: Any, num_images: int | None, prompt_mask: torch.Tensor | None) -> list[list[str | None]]:
    """[image][object] of texts, checked."""
    counts = None if prompt_mask is None else prompt_mask.sum(1).tolist()
    if isinstance(text, str):
        if not text.strip():
            raise ValueError("`text` is empty, expected words.")
        counts = counts or [1] * (num_images or 1)
        return [[text] * count for count in counts]
    if not isinstance(text, (list, tuple)):
        raise TypeError(f"`text` must be a str, a list of str or one list of str per image, got {text!r:.80}.")
    if not text:
        text = [[]] * (num_images or 1)
    elif all(item is None or isinstance(item, str) for item in text):
        if num_images not in (None, 1):
            raise ValueError(f"`text` is a flat list, but there are {num_images} images: pass one list per image.")
        text = [text]
    result = []
    for i, items in enumerate(text):
        if not isinstance(items, (list, tuple)) or not all(item is None or isinstance(item, str) for item in items):
            raise TypeError(f"image {i}: expected a list with one str (or None) per object, got {items!r:.80}.")
        if any(item is not None and not item.strip() for item in items):
            raise ValueError(f"image {i}: a text prompt is empty, expected words (or None for no text).")
        if counts is not None and i < len(counts) and len(items) != counts[i]:
            raise ValueError(
                f"image {i}: got {len(items)} text(s) for {counts[i]} object(s), expected one per object (None for no text)."
            )
        result.append(list(items))
    if num_images is not None and len(result) != num_images:
        raise ValueError(f"`text` has texts of {len(result)} image(s), but there are {num_images} image(s).")
    return result


__all__ = ["SamPromptableProcessor"]
