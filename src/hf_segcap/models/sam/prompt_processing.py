# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""What the processors of SAM-based models share: images, prompts in the frame of the model, masks back to image size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoTokenizer, BatchFeature, PreTrainedConfig
from transformers.processing_utils import ProcessorMixin
from transformers.utils import cached_file, is_torchvision_available

from ...hub import HubMixin
from ...images import flatten_images, load_images
from ...masks import upscale_masks
from ...prompts import (
    PADDING_LABEL,
    RegionPrompts,
    check_image_sizes,
    masks_to_low_res_logits,
    parse_prompts,
    scale_prompts,
)

# Options of `from_pretrained` that say where files are; everything else belongs to the image processor or the tokenizer.
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class SamPromptProcessor(HubMixin, ProcessorMixin):
    """Base of the processors; a subclass writes `__call__` and says with `mixed_prompts` what its model understands."""

    tokenizer_required = True
    mixed_prompts = False
    """Whether objects of one image may have different kinds of prompts."""

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
            `prompt_mask`, and of `input_boxes`, `input_points` and `point_labels`, `input_masks`, `has_box`, `has_mask`
            what applies; see `__call__`.
        """
        prompts = scale_prompts(prompts, original_sizes, reshaped_input_sizes)
        result: dict[str, torch.Tensor] = {"prompt_mask": prompts.prompt_mask}
        if prompts.boxes is not None:
            result["input_boxes"] = prompts.boxes.float()
        if prompts.points is not None:
            result["input_points"] = prompts.points.float()
        if prompts.point_labels is not None:
            result["point_labels"] = prompts.point_labels
        for name in ("has_box", "has_mask"):
            if getattr(prompts, name) is not None:
                result[name] = getattr(prompts, name)
        if prompts.masks is not None:
            frame, low_res = self._option("pad_size", options)["height"], self._longest_edge("mask_size", options)
            result["input_masks"] = masks_to_low_res_logits(prompts, reshaped_input_sizes, frame, low_res)
        return result

    def post_process_masks(
        self,
        masks: torch.Tensor | Sequence[torch.Tensor],
        original_sizes: Any,
        reshaped_input_sizes: Any,
        mask_threshold: float = 0.0,
        binarize: bool = True,
        pad_size: Mapping[str, int] | None = None,
        prompt_mask: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Brings predicted masks to the size of their images.

        Args:
            masks: low-resolution logits `pred_masks` (B, P, M, l, l), or one (P, M, l, l) per image.
            original_sizes: (B, 2) from the processor: (height, width) in pixels.
            reshaped_input_sizes: (B, 2) from the processor.
            mask_threshold: logits above it belong to the mask.
            binarize: False returns the float32 logits.
            pad_size: {"height", "width"} of the model frame; default: that of the image processor.
            prompt_mask: bool (B, P); given, padded prompts are left out.

        Returns:
            One tensor (P, M, height, width) per image, bool or float32.

        Raises:
            ValueError: numbers of masks and sizes that differ.
        """
        old, new = check_image_sizes(original_sizes), check_image_sizes(reshaped_input_sizes)
        if not len(masks) == len(old) == len(new):
            raise ValueError(
                f"Got masks of {len(masks)} image(s), but {len(old)} original and {len(new)} reshaped sizes."
            )
        frame = pad_size or self.image_processor.pad_size
        result = []
        for i, low_res in enumerate(map(torch.as_tensor, masks)):
            if prompt_mask is not None:
                low_res = low_res[prompt_mask[i].to(low_res.device)]
            logits = upscale_masks(low_res, new[i], old[i], (frame["height"], frame["width"]))
            result.append(logits > mask_threshold if binarize else logits)
        return result

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        for name in ("dtype", "torch_dtype"):  # of the model; a tokenizer would save it
            kwargs.pop(name, None)
        # Official folders may hold neither a processor nor an image processor: it follows from the model's config.json.
        hub = {name: kwargs[name] for name in _HUB_OPTIONS if kwargs.get(name) is not None}
        image_processor = None
        saved = processor_dict and "image_processor" in processor_dict
        if not saved and not _has_file(pretrained_model_name_or_path, "preprocessor_config.json", hub):
            image_processor = cls._image_processor_from_config(pretrained_model_name_or_path, hub, kwargs)
        else:
            image_processor = AutoImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        kwargs.pop("backend", None)
        tokenizer = None
        if cls.tokenizer_required or _has_file(pretrained_model_name_or_path, "tokenizer_config.json", hub):
            tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return [image_processor, tokenizer]

    @classmethod
    def _image_processor_from_config(cls, name: Any, hub: dict[str, Any], kwargs: dict[str, Any]) -> Any:
        config, _ = PreTrainedConfig.get_config_dict(name, **hub)
        if "vision_config" not in config:
            raise ValueError(
                f"{name} holds neither a saved processor nor the config.json of a SAM-based model with a "
                f"`vision_config` (found model_type {config.get('model_type')!r})."
            )
        backend, vision = kwargs.get("backend"), config["vision_config"]
        options = _sam_image_processor_class(backend).valid_kwargs.__annotations__
        overrides = {name: kwargs.pop(name) for name in options if name in kwargs}
        image_size, patch_size = vision.get("image_size", 1024), vision.get("patch_size", 16)
        return sam_image_processor(image_size, patch_size, backend=backend, **overrides)

    def _merge_kwargs(self, *args: Any, **kwargs: Any) -> Any:
        if "input_labels" in kwargs:  # would be ignored with a warning, and points outside taken for points inside
            raise TypeError("input_labels, as transformers' SAM has it, is called point_labels here.")
        return super()._merge_kwargs(*args, **kwargs)

    def count_texts(self, text: Any) -> list[int] | None:
        """Objects of each image, where `text` (as in `__call__`) says how many there are; here it never does."""
        return None

    def _process(
        self,
        images: Any,
        original_sizes: Any,
        prompts: tuple[Any, Any, Any, Any],
        kwargs: dict[str, Any],
        text: Any = None,
    ) -> BatchFeature:
        """What `__call__` does: the pixels or the sizes of the images, prompts (boxes, points, point labels, masks) in the model
        frame, texts by the subclass."""
        prompts_given = any(prompt is not None for prompt in prompts)
        if images is None and text is None and not prompts_given:
            raise ValueError("Nothing to process: pass `images`, or prompts (`input_boxes`, `input_points`, ...).")
        tokenizer = getattr(self, "tokenizer", None)
        options = self._merge_kwargs(
            tokenizer_init_kwargs={} if tokenizer is None else tokenizer.init_kwargs, **kwargs
        )
        data = self._process_images(images, original_sizes, options["images_kwargs"])
        if prompts_given:
            if not data:
                raise ValueError(
                    "Prompts are scaled with their image: pass `images`, or its size as `original_sizes`."
                )
            data |= self._process_prompts(data, *prompts, options["images_kwargs"], self.count_texts(text))
        if text is not None:
            data |= self._process_text(text, data, options)
        if self.mixed_prompts and "prompt_mask" in data:
            check_every_object_has_a_prompt(data)
        return as_feature(data, options)

    def _process_text(self, text: Any, data: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def _process_images(self, images: Any, original_sizes: Any, options: dict[str, Any]) -> dict[str, Any]:
        if images is None:
            return {} if original_sizes is None else self._process_sizes(original_sizes, options)
        if original_sizes is not None:
            raise ValueError("Pass `images` or `original_sizes`, not both: the sizes of the images are known.")
        return self._process_pixels(images, options)

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
        self,
        data: dict[str, Any],
        boxes: Any,
        points: Any,
        point_labels: Any,
        masks: Any,
        options: dict[str, Any],
        counts: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        old, new = data["original_sizes"].tolist(), data["reshaped_input_sizes"].tolist()
        low_res = self._longest_edge("mask_size", options)
        prompts = parse_prompts(
            old,
            boxes,
            points,
            point_labels,
            masks,
            low_res_mask_size=low_res,
            mixed=self.mixed_prompts,
            counts=counts,
        )
        return {} if prompts is None else self.prompts_to_model_inputs(prompts, old, new, **options)

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


def as_feature(data: dict[str, Any], options: dict[str, Any]) -> BatchFeature:
    """Torch tensors, or numpy arrays where the options of any kind ask for them."""
    kinds = {options.get(kind, {}).get("return_tensors") for kind in ("images_kwargs", "text_kwargs")}
    return BatchFeature({name: np.asarray(value) for name, value in data.items()} if "np" in kinds else data)


def check_every_object_has_a_prompt(inputs: dict[str, Any]) -> None:
    """Checks prompts as models take them.

    Raises:
        ValueError: an object that is no padding has none; SAM would make up a mask.
    """
    mask = inputs["prompt_mask"]
    prompted = torch.zeros_like(mask)
    for name, given in (("input_boxes", "has_box"), ("input_masks", "has_mask"), ("input_ids", "has_text")):
        if name in inputs:
            prompted |= inputs.get(given, mask)
    if "point_labels" in inputs:
        prompted |= (inputs["point_labels"] != PADDING_LABEL).any(-1)
    for i, j in (mask & ~prompted).nonzero()[:1].tolist():
        raise ValueError(
            f"image {i}, prompt {j}: got no prompt, neither a box nor a point or any other the model knows."
        )


def _has_file(name: Any, file: str, hub: dict[str, Any]) -> bool:
    return bool(cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub))


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
