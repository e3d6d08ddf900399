# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Processor of ZIM, "Zero-Shot Image Matting for Anything" (ICCV 2025): images and prompts in, mattes of image size out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature
from transformers.processing_utils import ProcessingKwargs, Unpack

from ...images import load_images
from ...masks import upscale_masks
from ...prompts import check_image_sizes
from ..sam.prompt_processing import SamPromptProcessor
from .guided_filter import GuidedUpscaler

MATTE_TYPES = {"float32": torch.float32, "uint8": torch.uint8, "uint16": torch.uint16}
_LARGEST = {torch.uint8: 255, torch.uint16: 65535}
_PIXELS_AT_ONCE = 2**25  # mattes are finished in groups of about so many pixels


class ZimProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    pass


class ZimProcessor(SamPromptProcessor):
    r"""Turns images and prompts into the inputs of `ZimForMatting`, and its logits into mattes of image size.

    Args:
        image_processor: transformers' `SamImageProcessor` (or its Pillow version `SamImageProcessorPil`).
    """

    hub_task = "image-matting"
    valid_processor_kwargs = ZimProcessorKwargs
    tokenizer_required = False
    mixed_prompts = True
    images_kwargs = {"return_tensors": "pt"}

    def __init__(self, image_processor=None):
        super().__init__(image_processor)

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        return super()._get_arguments_from_pretrained(pretrained_model_name_or_path, processor_dict, **kwargs)[:1]

    def __call__(
        self,
        images: Any = None,
        input_boxes: Any = None,
        input_points: Any = None,
        point_labels: Any = None,
        original_sizes: Any = None,
        **kwargs: Unpack[ZimProcessorKwargs],
    ) -> BatchFeature:
        r"""
        Args:
            images: one image or a list (see `hf_segcap.images.load_image` for the kinds).
            input_boxes: xyxy boxes in pixels of the original image; `hf_segcap.prompts` describes the nesting of prompts.
                None in place of a box: this object has none.
            input_points: (x, y) points in pixels of the original image; an empty list: this object has none.
            point_labels: 1 inside the object, 0 outside; all 1 if not given.
            original_sizes: (height, width) of each image, *instead of* `images`, to scale prompts for stored image embeddings.
            kwargs: options of the image processor.

        Returns:
            `BatchFeature` (torch tensors; numpy arrays with `return_tensors="np"`) with, of what was given:

            - `pixel_values` float32 (B, 3, S, S): resized, normalised, zero padded at the right and the bottom;
            - `original_sizes`, `reshaped_input_sizes` int64 (B, 2): (height, width) in pixels before and after the resize;
            - `input_boxes` float32 (B, P, 4) and `input_points` float32 (B, P, n, 2) in pixels of the model frame;
              `point_labels` int64 (B, P, n), `PADDING_LABEL` where an object has fewer points;
            - `has_box` bool (B, P), where some objects have no box;
            - `prompt_mask` bool (B, P): False for objects that only pad.

        Raises:
            ValueError, TypeError: nothing to process, unusable images or prompts, an object without a prompt; the message
                names image and object.
        """
        return self._process(images, original_sizes, (input_boxes, input_points, point_labels, None), kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """What a call with images returns; prompts come on top of it."""
        return ["pixel_values", "original_sizes", "reshaped_input_sizes"]

    def post_process_alphas(
        self,
        alphas: torch.Tensor | Sequence[torch.Tensor],
        original_sizes: Any,
        reshaped_input_sizes: Any,
        dtype: str | torch.dtype = "float32",
        prompt_mask: torch.Tensor | None = None,
        images: Any = None,
    ) -> list[torch.Tensor]:
        """Brings the model's logits to mattes of the size of their images.

        As officially: bilinear to the padded model frame, crop of the padding, bilinear to the size of the image, and the
        sigmoid last.

        Args:
            alphas: matte logits (B, P, M, l, l) of the model, or one (P, M, l, l) per image.
            original_sizes: (B, 2) from the processor: (height, width) in pixels.
            reshaped_input_sizes: (B, 2) from the processor.
            dtype: `"float32"` (0..1), `"uint8"` (0..255) or `"uint16"` (0..65535), rounded; or the torch type.
            prompt_mask: bool (B, P); given, padded prompts are left out.
            images: the original images, or a list of a [`~hf_segcap.models.zim.guided_filter.GuidedUpscaler`] of each, which
                remembers what several calls need; given, mattes are upscaled along their edges (not part of ZIM) where an
                image is larger than the model frame.

        Returns:
            One tensor (P, M, height, width) per image.

        Raises:
            ValueError: numbers or sizes of mattes and images that differ, or an unknown `dtype`.
        """
        old, new = check_image_sizes(original_sizes), check_image_sizes(reshaped_input_sizes)
        if not len(alphas) == len(old) == len(new):
            raise ValueError(
                f"Got mattes of {len(alphas)} image(s), but {len(old)} original and {len(new)} reshaped sizes."
            )
        matte_type = MATTE_TYPES.get(dtype) if isinstance(dtype, str) else dtype
        if matte_type is None or matte_type not in MATTE_TYPES.values():
            raise ValueError(f"dtype must be one of {', '.join(MATTE_TYPES)}, got {dtype!r}.")
        made = isinstance(images, list) and all(isinstance(image, GuidedUpscaler) for image in images)
        guides: list[Any] | None = images if made or images is None else load_images(images)
        if guides is not None and (sizes := [(each.height, each.width) for each in guides]) != old:
            raise ValueError(f"The images have the (height, width) {sizes}, but the original sizes are {old}.")
        result = []
        for i, logits in enumerate(map(torch.as_tensor, alphas)):
            if prompt_mask is not None:
                logits = logits[prompt_mask[i].to(logits.device)]
            guide = None
            if guides is not None and max(old[i]) > max(new[i]):
                guide = guides[i] if isinstance(guides[i], GuidedUpscaler) else GuidedUpscaler(guides[i])
            result.append(self._finish(logits, new[i], old[i], matte_type, guide))
        return result

    def _finish(
        self,
        logits: torch.Tensor,
        reshaped_size: tuple[int, int],
        size: tuple[int, int],
        matte_type: torch.dtype,
        guide: GuidedUpscaler | None,
    ) -> torch.Tensor:
        """Logits (P, M, l, l) of one image -> mattes (P, M, height, width), few at a time."""
        frame = self.image_processor.pad_size
        frame_size = (frame["height"], frame["width"])
        result = torch.empty(*logits.shape[:2], *size, dtype=matte_type, device=logits.device)
        at_once = max(1, _PIXELS_AT_ONCE // (logits.shape[1] * max(size[0] * size[1], frame_size[0] * frame_size[1])))
        for start in range(0, len(logits), at_once):
            part = logits[start : start + at_once]
            if guide is None:
                mattes = upscale_masks(part, reshaped_size, size, frame_size).sigmoid_()
            else:
                small = upscale_masks(part, reshaped_size, reshaped_size, frame_size).sigmoid_()
                mattes = guide(small.flatten(0, 1)).unflatten(0, part.shape[:2])
            if matte_type in _LARGEST:
                mattes = mattes.mul_(_LARGEST[matte_type]).round_()
            result[start : start + at_once] = mattes.to(matte_type)
        return result


__all__ = ["MATTE_TYPES", "ZimProcessor"]
