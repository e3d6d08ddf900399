# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Processor of ZIM's label converter (ICCV 2025): images and coarse masks in, mattes of image size out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature
from transformers.processing_utils import ProcessingKwargs, Unpack

from ...model_frame import masks_to_frame
from ...prompts import parse_prompts
from ..sam.prompt_processing import as_feature
from .processing_zim import ZimProcessor


class ZimLabelConverterProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    pass


class ZimLabelConverterProcessor(ZimProcessor):
    r"""Turns images and coarse masks into the inputs of `ZimLabelConverter`, and its logits into mattes of image size.

    Args:
        image_processor: transformers' `SamImageProcessor` (or its Pillow version `SamImageProcessorPil`) whose `pad_size` is
            the model's image size.
    """

    valid_processor_kwargs = ZimLabelConverterProcessorKwargs
    hub_task = None  # type: ignore[assignment]  # there is no pipeline: see `hf_segcap.matte_engine`

    def __init__(self, image_processor=None):
        super().__init__(image_processor)

    def __call__(
        self,
        images: Any = None,
        coarse_masks: Any = None,
        original_sizes: Any = None,
        **kwargs: Unpack[ZimLabelConverterProcessorKwargs],
    ) -> BatchFeature:
        r"""
        Args:
            images: one image or a list (see `hf_segcap.images.load_image` for the kinds).
            coarse_masks: any number of masks per image, each of the size of its image with at least one pixel set: bool,
                integers of {0, 1} or {0, 255}, or PIL images; `hf_segcap.prompts` describes the nesting.
            original_sizes: (height, width) of each image, *instead of* `images`, for more masks of images that were
                processed before.
            kwargs: options of the image processor.

        Returns:
            `BatchFeature` (torch tensors; numpy arrays with `return_tensors="np"`) with, of what was given:

            - `pixel_values` float32 (B, 3, H, W): resized, normalised, zero padded at the right and the bottom;
            - `original_sizes`, `reshaped_input_sizes` int64 (B, 2): (height, width) in pixels before and after the resize;
            - `coarse_masks` float32 (B, P, H, W), 1 where a mask covers at least half of a pixel of the model frame;
            - `prompt_mask` bool (B, P): False for masks that only pad.

        Raises:
            ValueError, TypeError: nothing to process, unusable images or masks; the message names image and mask.
        """
        if images is None and coarse_masks is None:
            raise ValueError("Nothing to process: pass `images`, `coarse_masks`, or both.")
        options = self._merge_kwargs(tokenizer_init_kwargs={}, **kwargs)
        data = self._process_images(images, original_sizes, options["images_kwargs"])
        if coarse_masks is not None:
            if not data:
                raise ValueError("Masks are scaled with their image: pass `images`, or its size as `original_sizes`.")
            data |= self._process_masks(coarse_masks, data, options["images_kwargs"])
        return as_feature(data, options)

    def _process_masks(self, coarse_masks: Any, data: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        parsed = parse_prompts(data["original_sizes"].tolist(), masks=coarse_masks)
        assert parsed is not None and parsed.masks is not None
        frame = self._option("pad_size", options)
        sides = (frame["height"], frame["width"])
        masks = torch.zeros(*parsed.prompt_mask.shape, *sides)
        for i, (of_image, reshaped) in enumerate(zip(parsed.masks, data["reshaped_input_sizes"].tolist())):
            if of_image.dtype != torch.bool:
                raise ValueError(
                    f"image {i}: got masks of type {of_image.dtype}, expected booleans or {{0, 1}} integers."
                )
            for j, mask in enumerate(of_image.numpy()):
                share = masks_to_frame(mask, reshaped, max(sides), max(sides))
                least = min(0.5, float(share.max()))  # a small mask may nowhere cover half of a pixel
                masks[i, j] = torch.from_numpy(share[: sides[0], : sides[1]] >= least)
        return {"coarse_masks": masks, "prompt_mask": parsed.prompt_mask}

    def post_process_alphas(
        self,
        alphas: torch.Tensor | Sequence[torch.Tensor],
        original_sizes: Any,
        reshaped_input_sizes: Any,
        dtype: str | torch.dtype = "float32",
        prompt_mask: torch.Tensor | None = None,
        images: Any = None,
    ) -> list[torch.Tensor]:
        """Brings the model's logits to mattes of the size of their images: without the padding, bilinear, the sigmoid last.

        Args:
            alphas: matte logits (B, P, H, W) of the model, or one (P, H, W) per image.
            original_sizes, reshaped_input_sizes: (B, 2) from the processor.
            dtype: `"float32"` (0..1), `"uint8"` (0..255) or `"uint16"` (0..65535), rounded; or the torch type.
            prompt_mask: bool (B, P); given, padded masks are left out.
            images: the original images; given, mattes are upscaled along their edges where an image is larger than the
                model frame, see [`ZimProcessor.post_process_alphas`].

        Returns:
            One tensor (P, height, width) per image.

        Raises:
            ValueError: numbers or sizes of mattes and images that differ, or an unknown `dtype`.
        """
        shapes = [tuple(logits.shape) for logits in alphas]
        if any(len(shape) != 3 for shape in shapes):
            raise ValueError(f"Expected the logits of each image as (P, H, W), got {shapes}.")
        single = [logits[:, None] for logits in alphas]  # one matte for each mask
        mattes = super().post_process_alphas(single, original_sizes, reshaped_input_sizes, dtype, prompt_mask, images)
        return [of_image[:, 0] for of_image in mattes]


__all__ = ["ZimLabelConverterProcessor"]
