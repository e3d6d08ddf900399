# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Processor of SCA (Huang et al., "Segment and Caption Anything", CVPR 2024): images, region prompts and region captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature
from transformers.processing_utils import ProcessingKwargs, Unpack

from ..sam.prompt_processing import SamPromptProcessor

_IGNORE_INDEX = -100


class SamCaptionProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    max_caption_length: int


class SamCaptionProcessor(SamPromptProcessor):
    r"""Turns images, region prompts and captions into the inputs of `SamCaptionForRegionCaptioning`, and outputs back.

    Args:
        image_processor: transformers' `SamImageProcessor` (or its Pillow version `SamImageProcessorPil`).
        tokenizer: tokenizer of the language model. It is set to right padding, and to pad with its end token if it has no
            pad token, as the model was trained (paper's released code).

    `max_caption_length` (19, an option of the call) is the largest number of ids of a caption, end token included.
    """

    hub_task = "region-captioning"
    valid_processor_kwargs = SamCaptionProcessorKwargs
    max_caption_length = 19
    text_kwargs = {"padding": True, "return_tensors": "pt", "return_token_type_ids": False}
    images_kwargs = {"return_tensors": "pt"}

    def __init__(self, image_processor=None, tokenizer=None):
        if tokenizer is not None:
            tokenizer.padding_side = "right"
            if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
                tokenizer.pad_token = tokenizer.eos_token
        super().__init__(image_processor, tokenizer)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        input_boxes: Any = None,
        input_points: Any = None,
        point_labels: Any = None,
        input_masks: Any = None,
        original_sizes: Any = None,
        **kwargs: Unpack[SamCaptionProcessorKwargs],
    ) -> BatchFeature:
        r"""
        Args:
            images: one image or a list (see `hf_segcap.images.load_image` for the kinds).
            text: region captions, one list per image with one str per prompt. For a single image with prompts a plain list
                (or, for one prompt, a str) will do. *Without prompts* a str or a list of str is tokenized as it is: ids
                (N, T) as the tokenizer gives them, no end token, no labels.
            input_boxes: xyxy boxes in pixels of the original image; `hf_segcap.prompts` describes the nesting of prompts.
            input_points: (x, y) points in pixels of the original image.
            point_labels: 1 inside the region, 0 outside; all 1 if not given.
            input_masks: boolean masks of the size of the image, or float low-resolution logits of an earlier prediction.
                Boolean masks are resized by area to the padded low-resolution frame and become logits (2 m - 1) * 10
                (ours: the official code only knows logits).
            original_sizes: (height, width) of each image, *instead of* `images`, to scale prompts for stored image embeddings.
            kwargs: options of the image processor and the tokenizer; `max_caption_length`.

        Returns:
            `BatchFeature` (torch tensors; numpy arrays with `return_tensors="np"`) with, of what was given:

            - `pixel_values` float32 (B, 3, S, S): resized, normalised, zero padded at the right and the bottom;
            - `original_sizes`, `reshaped_input_sizes` int64 (B, 2): (height, width) in pixels before and after the resize;
            - `input_boxes` float32 (B, P, 4) and `input_points` float32 (B, P, n, 2) in pixels of the model frame;
              `point_labels` int64 (B, P, n), `PADDING_LABEL` where a prompt has fewer points;
            - `input_masks` float32 (B, P, L, L), or (B, 1, L, L) when no image has more than one;
            - `prompt_mask` bool (B, P): False for prompts that only pad;
            - `input_ids`, `attention_mask`, `labels` int64 (B, P, T): caption and end token, right padded; `labels` are
              `input_ids` with -100 on the padding (the end token keeps its label even where it is also the pad token).

        Raises:
            ValueError, TypeError: nothing to process, unusable images, prompts or captions; the message names the image.
        """
        prompts = input_boxes, input_points, point_labels, input_masks
        return self._process(images, original_sizes, prompts, kwargs, text)

    @property
    def model_input_names(self) -> list[str]:
        """What a call with images and plain text returns; prompts and labels come on top of it."""
        names = ["pixel_values", "original_sizes", "reshaped_input_sizes"]
        return names + [name for name in self.tokenizer.model_input_names if name != "token_type_ids"]

    def post_process_captions(
        self, sequences: torch.Tensor, prompt_mask: torch.Tensor | None = None
    ) -> list[list[Any]]:
        """Decodes generated ids into captions.

        Args:
            sequences: ids (B, P, T), or (B, P, R, T) with R captions per region. Negative ids (-100 of padded labels) are
                skipped.
            prompt_mask: bool (B, P); given, padded prompts are left out.

        Returns:
            Per image a list with one stripped str per region (with R captions: a list of R str), without special tokens.

        Raises:
            ValueError: `sequences` of another number of dimensions.
        """
        sequences = torch.as_tensor(sequences)
        if sequences.ndim not in (3, 4):
            raise ValueError(
                f"`sequences` must have the shape (images, regions, length) or (images, regions, captions, length), got "
                f"{tuple(sequences.shape)}."
            )
        rows = [[token for token in row if token >= 0] for row in sequences.flatten(0, -2).tolist()]
        captions: list[Any] = (
            [text.strip() for text in self.batch_decode(rows, skip_special_tokens=True)] if rows else []
        )
        batch, regions = sequences.shape[:2]
        if sequences.ndim == 4:
            heads = sequences.shape[2]
            captions = [captions[start : start + heads] for start in range(0, batch * regions * heads, max(heads, 1))]
        keep = torch.ones(batch, regions, dtype=torch.bool) if prompt_mask is None else torch.as_tensor(prompt_mask)
        return [[captions[i * regions + j] for j in range(regions) if keep[i, j]] for i in range(batch)]

    # --- loading --------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"max_caption_length": self.max_caption_length}

    @classmethod
    def from_args_and_dict(cls, args, processor_dict, **kwargs):
        result = super().from_args_and_dict(args, processor_dict, **kwargs)
        processor = result[0] if isinstance(result, tuple) else result
        length = (processor_dict | kwargs).get("max_caption_length")
        if length is not None:
            processor.max_caption_length = length
        return result

    # --- parts of a call ------------------------------------------------------------------------------------------------

    def _process_text(self, text: Any, data: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        if self.tokenizer is None:
            raise ValueError("`text` needs a tokenizer, but this processor has none.")
        prompt_mask = data.get("prompt_mask")
        flat = isinstance(text, str) or (
            isinstance(text, (list, tuple)) and all(isinstance(item, str) for item in text)
        )
        if flat:
            flat_text = text if isinstance(text, str) else list(text)
            if prompt_mask is None:
                if flat_text == []:
                    raise ValueError(
                        "`text` is empty: expected a str, a list of str or one list of captions per image."
                    )
                return dict(self.tokenizer(flat_text, **options["text_kwargs"]))
            if len(prompt_mask) != 1:
                raise ValueError(
                    f"`text` is a flat list, but there are {len(prompt_mask)} images: pass one list of captions per image."
                )
            text = [[text] if isinstance(text, str) else flat_text]
        captions = self._check_captions(text, data)
        if prompt_mask is None:
            counts = torch.tensor([len(image_captions) for image_captions in captions])
            prompt_mask = torch.arange(int(counts.max())) < counts[:, None]
        ids = self._caption_ids([caption for image_captions in captions for caption in image_captions], options)
        length = max(map(len, ids), default=1)
        # By hand and by the attention mask: the pad token may be the end token, and the end token is a target.
        input_ids = torch.full((*prompt_mask.shape, length), self.tokenizer.pad_token_id, dtype=torch.int64)
        attention_mask = torch.zeros_like(input_ids)
        for (i, j), row in zip(prompt_mask.nonzero().tolist(), ids, strict=True):
            input_ids[i, j, : len(row)] = torch.tensor(row)
            attention_mask[i, j, : len(row)] = 1
        labels = input_ids.masked_fill(attention_mask == 0, _IGNORE_INDEX)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, "prompt_mask": prompt_mask}

    def _check_captions(self, text: Any, data: dict[str, Any]) -> list[list[str]]:
        """One list of captions per image, as many as the image has prompts."""
        if not isinstance(text, (list, tuple)) or not all(isinstance(captions, (list, tuple)) for captions in text):
            raise TypeError("`text` must be a str, a list of str, or one list of captions (str) per image.")
        if "original_sizes" in data and len(text) != len(data["original_sizes"]):
            raise ValueError(
                f"`text` has captions of {len(text)} image(s), but there are {len(data['original_sizes'])} image(s)."
            )
        for i, captions in enumerate(text):
            for j, caption in enumerate(captions):
                if not isinstance(caption, str):
                    raise TypeError(f"image {i}, prompt {j}: a caption must be a str, got {type(caption).__name__}.")
            if "prompt_mask" in data and len(captions) != int(data["prompt_mask"][i].sum()):
                raise ValueError(
                    f"image {i}: got {len(captions)} caption(s) for {int(data['prompt_mask'][i].sum())} prompt(s), expected "
                    "one caption per prompt."
                )
        return [list(captions) for captions in text]

    def _caption_ids(self, captions: list[str], options: dict[str, Any]) -> list[list[int]]:
        """Ids of each caption: begin token if the tokenizer adds one, at most `max_caption_length` in all, end token."""
        limit = options["max_caption_length"]
        end = self.tokenizer.eos_token_id
        if end is None:
            raise ValueError("Region captions need an end token: set `tokenizer.eos_token`.")
        if limit < 2:
            raise ValueError(f"`max_caption_length` counts the end token and must be at least 2, got {limit}.")
        if not captions:
            return []
        # Few tokenizers close every text with their end token; the others get it here.
        special = self.tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
        closes = 0 in special and special[-1] == 1
        kwargs = {"truncation": True, "max_length": limit if closes else limit - 1, "padding": False}
        rows = self.tokenizer(captions, **kwargs)["input_ids"]
        return rows if closes else [[*row, end] for row in rows]
