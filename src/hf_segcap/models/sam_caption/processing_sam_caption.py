# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Processor of SCA (Huang et al., "Segment and Caption Anything", CVPR 2024): images, region prompts and region captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, BatchFeature, PreTrainedConfig
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack
from transformers.utils import cached_file, is_torchvision_available

from ...hub import HubMixin
from ...images import flatten_images, load_images
from ...masks import upscale_masks
from ...prompts import RegionPrompts, check_image_sizes, masks_to_low_res_logits, parse_prompts, scale_prompts

# Options of `from_pretrained` that say where files are; everything else belongs to the image processor or the tokenizer.
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_IGNORE_INDEX = -100


class SamCaptionProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    max_caption_length: int


class SamCaptionProcessor(HubMixin, ProcessorMixin):
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
        prompts_given = any(item is not None for item in (input_boxes, input_points, point_labels, input_masks))
        if images is None and text is None and not prompts_given:
            raise ValueError(
                "Nothing to process: pass `images`, `text` or prompts (`input_boxes`, `input_points`, `input_masks`)."
            )
        options = self._merge_kwargs(
            tokenizer_init_kwargs=self.tokenizer.init_kwargs if self.tokenizer is not None else {}, **kwargs
        )
        data: dict[str, Any] = {}
        if images is not None:
            if original_sizes is not None:
                raise ValueError("Pass `images` or `original_sizes`, not both: the sizes of the images are known.")
            data |= self._process_pixels(images, options["images_kwargs"])
        elif original_sizes is not None:
            data |= self._process_sizes(original_sizes, options["images_kwargs"])
        elif prompts_given:
            raise ValueError("Prompts are scaled with their image: pass `images`, or its size as `original_sizes`.")
        if prompts_given:
            data |= self._process_prompts(
                data, input_boxes, input_points, point_labels, input_masks, options["images_kwargs"]
            )
        if text is not None:
            data |= self._process_text(text, data, options)
        tensor_type = options["images_kwargs"].get("return_tensors") or options["text_kwargs"].get("return_tensors")
        if tensor_type == "np":
            data = {name: np.asarray(value) for name, value in data.items()}
        return BatchFeature(data)

    @property
    def model_input_names(self) -> list[str]:
        """What a call with images and plain text returns; prompts and labels come on top of it."""
        names = ["pixel_values", "original_sizes", "reshaped_input_sizes"]
        return names + [name for name in self.tokenizer.model_input_names if name != "token_type_ids"]

    @property
    def low_res_mask_size(self) -> int:
        """Side of the low-resolution masks that the model takes and predicts."""
        return self._longest_edge("mask_size", {})

    def prompts_to_model_inputs(
        self,
        prompts: RegionPrompts,
        original_sizes: Sequence[Sequence[int]],
        reshaped_input_sizes: Sequence[Sequence[int]],
        **options: Any,
    ) -> dict[str, torch.Tensor]:
        """Brings parsed prompts into the frame of the model.

        Args:
            prompts: result of [`~hf_segcap.prompts.parse_prompts`], in pixels of the original images.
            original_sizes: (height, width) of each image in pixels.
            reshaped_input_sizes: (height, width) of each image in the model frame.
            options: options of the image processor (`pad_size`, `mask_size`).

        Returns:
            `prompt_mask`, and of `input_boxes`, `input_points` and `point_labels`, `input_masks` what was given; see
            `__call__`.
        """
        prompts = scale_prompts(prompts, original_sizes, reshaped_input_sizes)
        result: dict[str, torch.Tensor] = {"prompt_mask": prompts.prompt_mask}
        if prompts.boxes is not None:
            result["input_boxes"] = prompts.boxes.float()
        if prompts.points is not None:
            result["input_points"] = prompts.points.float()
        if prompts.point_labels is not None:
            result["point_labels"] = prompts.point_labels
        if prompts.masks is not None:
            frame, low_res = self._option("pad_size", options)["height"], self._longest_edge("mask_size", options)
            result["input_masks"] = masks_to_low_res_logits(prompts, reshaped_input_sizes, frame, low_res)
        return result

    def post_process_masks(
        self,
        pred_masks: torch.Tensor | Sequence[torch.Tensor],
        original_sizes: Any,
        reshaped_input_sizes: Any,
        mask_threshold: float = 0.0,
        binarize: bool = True,
        prompt_mask: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Brings predicted masks to the size of their images.

        Args:
            pred_masks: low-resolution logits (B, P, M, l, l), or one (P, M, l, l) per image.
            original_sizes: (B, 2) from the processor: (height, width) in pixels.
            reshaped_input_sizes: (B, 2) from the processor.
            mask_threshold: logits above it belong to the mask.
            binarize: False returns the float32 logits.
            prompt_mask: bool (B, P); given, padded prompts are left out.

        Returns:
            One tensor (P, M, height, width) per image, bool or float32.

        Raises:
            ValueError: numbers of masks and sizes that differ.
        """
        old, new = check_image_sizes(original_sizes), check_image_sizes(reshaped_input_sizes)
        if not len(pred_masks) == len(old) == len(new):
            raise ValueError(
                f"Got masks of {len(pred_masks)} image(s), but {len(old)} original and {len(new)} reshaped sizes."
            )
        frame = self.image_processor.pad_size
        result = []
        for i, low_res in enumerate(pred_masks):
            if prompt_mask is not None:
                low_res = low_res[prompt_mask[i].to(low_res.device)]
            logits = upscale_masks(low_res, new[i], old[i], (frame["height"], frame["width"]))
            result.append(logits > mask_threshold if binarize else logits)
        return result

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

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        # Official SCA folders hold a config.json and tokenizer files only: the image processor follows from the config.
        hub = {name: kwargs[name] for name in _HUB_OPTIONS if kwargs.get(name) is not None}
        saved = processor_dict and "image_processor" in processor_dict
        if saved or cached_file(
            pretrained_model_name_or_path,
            "preprocessor_config.json",
            _raise_exceptions_for_missing_entries=False,
            **hub,
        ):
            return super()._get_arguments_from_pretrained(pretrained_model_name_or_path, processor_dict, **kwargs)
        config, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub)
        if "vision_config" not in config:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds neither a saved processor nor the config.json of an SCA model with a "
                f"`vision_config` (found model_type {config.get('model_type')!r})."
            )
        backend, vision = kwargs.pop("backend", None), config["vision_config"]
        options = _sam_image_processor_class(backend).valid_kwargs.__annotations__
        overrides = {name: kwargs.pop(name) for name in options if name in kwargs}
        image_processor = sam_image_processor(
            vision.get("image_size", 1024), vision.get("patch_size", 16), backend=backend, **overrides
        )
        return [image_processor, AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)]

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

    def _process_pixels(self, images: Any, options: dict[str, Any]) -> dict[str, Any]:
        options = dict(options, return_tensors="pt")
        flat = flatten_images(images)
        if not flat:
            raise ValueError("`images` is empty: expected at least one image.")
        if not self._option("do_rescale", options):
            for i, image in enumerate(flat):
                if isinstance(image, (np.ndarray, torch.Tensor)) and "float" in str(image.dtype):
                    raise ValueError(
                        f"image {i}: float images are read as [0, 1] and scaled by the processor: leave `do_rescale` on."
                    )
        pictures = load_images(flat, input_data_format=options.pop("input_data_format", None))
        if self._option("do_resize", options):
            for i, picture in enumerate(pictures):
                if 0 in self._reshaped_size((picture.height, picture.width), options):
                    raise ValueError(
                        f"image {i}: {picture.height} x {picture.width} (height x width) pixels are too elongated: one side "
                        f"would vanish at the size of the model. Cut the image into pieces."
                    )
        features = self.image_processor(pictures, **options)
        sizes = {name: torch.as_tensor(features[name]) for name in ("original_sizes", "reshaped_input_sizes")}
        return {"pixel_values": features["pixel_values"], **sizes}

    def _process_sizes(self, original_sizes: Any, options: dict[str, Any]) -> dict[str, Any]:
        sizes = check_image_sizes(original_sizes)
        return {
            "original_sizes": torch.tensor(sizes),
            "reshaped_input_sizes": torch.tensor([self._reshaped_size(size, options) for size in sizes]),
        }

    def _process_prompts(
        self, data: dict[str, Any], boxes: Any, points: Any, point_labels: Any, masks: Any, options: dict[str, Any]
    ) -> dict[str, Any]:
        old, new = data["original_sizes"].tolist(), data["reshaped_input_sizes"].tolist()
        low_res = self._longest_edge("mask_size", options)
        prompts = parse_prompts(old, boxes, points, point_labels, masks, low_res_mask_size=low_res)
        return {} if prompts is None else self.prompts_to_model_inputs(prompts, old, new, **options)

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

    def _option(self, name: str, options: dict[str, Any]) -> Any:
        value = options.get(name)
        return getattr(self.image_processor, name) if value is None else value

    def _longest_edge(self, name: str, options: dict[str, Any]) -> int:
        value = self._option(name, options)
        edge = value.get("longest_edge") if isinstance(value, dict) else getattr(value, "longest_edge", None)
        if not edge:
            raise ValueError(f"`{name}` of the image processor must be {{'longest_edge': pixels}}, got {value}.")
        return edge

    def _reshaped_size(self, size: tuple[int, int], options: dict[str, Any]) -> tuple[int, int]:
        """(height, width) in the model frame: SAM's rule, longest side to the model's size, rounded half up."""
        scale = self._longest_edge("size", options) / max(size)
        return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def sam_image_processor(image_size: int, patch_size: int, backend: str | None = None, **options: Any) -> Any:
    """SAM's image processor for a model of `image_size` pixels and `patch_size`; `options` override its settings."""
    low_res = 4 * (image_size // patch_size)
    frame = {
        "size": {"longest_edge": image_size},
        "pad_size": {"height": image_size, "width": image_size},
        "mask_size": {"longest_edge": low_res},
        "mask_pad_size": {"height": low_res, "width": low_res},
    }
    return _sam_image_processor_class(backend)(**(frame | options))


def _sam_image_processor_class(backend: str | None) -> Any:
    """transformers' SAM image processor: the torchvision backend where torchvision is installed, else Pillow's."""
    if backend == "torchvision" or (backend is None and is_torchvision_available()):
        from transformers.models.sam.image_processing_sam import SamImageProcessor

        return SamImageProcessor
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    return SamImageProcessorPil
