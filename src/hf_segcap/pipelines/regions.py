# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""What pipelines on SAM-based models share: the prompts of an item, batches of ragged prompts, everything mode."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from ..everything import MATTE_SETTINGS, Encoded, GeneratorSettings, MaskProposals, generate_masks
from ..images import load_image
from ..models.sam.prompt_processing import check_every_object_has_a_prompt
from ..prompts import PADDING_LABEL, RegionPrompts, parse_prompts
from .base import PromptedImagePipeline, pad_prompts, show_progress

logger = logging.get_logger(__name__)

# What fills up the prompts of images that have fewer than others of their batch.
_PADDING = {
    "input_boxes": 0.0,
    "input_points": 0.0,
    "point_labels": PADDING_LABEL,
    "input_masks": 0.0,
    "input_ids": 0,
    "attention_mask": 0,
    "has_box": False,
    "has_mask": False,
    "has_text": False,
    "prompt_mask": False,
}


@dataclass(frozen=True)
class Request:
    """All of an item but its pixels.

    Attributes:
        original_size, reshaped_size: (height, width) of the image in pixels, and in the model frame.
        prompts: None for everything mode, or for text alone.
        model_prompts: prompts in the model frame, each (1, P, ...); empty for everything mode.
        image: (H, W, 3) uint8, in everything mode, which looks at crops of it, or where the pipeline asks for it.
    """

    original_size: tuple[int, int]
    reshaped_size: tuple[int, int]
    prompts: RegionPrompts | None
    model_prompts: dict[str, torch.Tensor]
    image: np.ndarray | None = None

    @property
    def count(self) -> int:
        """Number of prompts."""
        return self.model_prompts["prompt_mask"].shape[1] if self.model_prompts else 0


class RegionPipeline(PromptedImagePipeline):
    """Base of pipelines whose prompts name regions; without a prompt they look for everything.

    Attributes:
        forward_names: arguments of `_forward` that a call may name, besides those that all these pipelines have.
        everything_names: arguments that only everything mode heeds, besides the settings of the generator.
        mattes: the model predicts mattes, see [`~hf_segcap.everything.generate_masks`].
    """

    forward_names: tuple[str, ...] = ()
    everything_names: tuple[str, ...] = ()
    mattes: bool = False

    def take_common(self, kwargs: dict[str, Any], timeout: float | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Takes what every such pipeline knows out of the arguments of a call: for `preprocess`, and for `_forward`."""
        kwargs.pop("local_files_only", None)  # `pipeline()` passes its own argument on
        preprocess = {name: kwargs.pop(name) for name in self.prompt_names if name in kwargs}
        if timeout is not None:
            preprocess["timeout"] = timeout
        forward = {name: kwargs.pop(name) for name in self.forward_names if name in kwargs}
        settings = {name: kwargs.pop(name) for name in GeneratorSettings.names() if name in kwargs}
        if settings:
            forward["settings"] = settings
        unused = [*settings, *(name for name in self.everything_names if name in kwargs)]
        if unused and any(preprocess.get(name) is not None for name in self.prompt_names):
            logger.warning(f"{', '.join(unused)}: only everything mode heeds this, and this call has prompts.")
        if "progress" in kwargs:
            forward["progress"] = kwargs.pop("progress")
        return preprocess, forward

    def refuse_others(self, names: Iterable[str], more_names: Iterable[str], owner: str) -> None:
        """
        Args:
            names: of the arguments that are left.
            more_names: those that this pipeline knows besides the common ones.
            owner: whose arguments they would be.

        Raises:
            TypeError: an argument that is not among the known ones, with the nearest of them.
        """
        known = [*self.prompt_names, *self.forward_names, *GeneratorSettings.names(), *more_names]
        for name in names:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f": did you mean `{close[0]}`?" if close else "."
                raise TypeError(f"`{name}` is no argument of {owner}{hint}")

    def read(
        self, item: Any, timeout: float | None = None, keep_image: bool = False, **call_prompts: Any
    ) -> dict[str, Any]:
        image, given = self.split_item(item, call_prompts)
        image = load_image(image, timeout=timeout)
        inputs = self.processor(images=image, return_tensors="pt")
        original_size = (image.height, image.width)
        height, width = inputs["reshaped_input_sizes"][0].tolist()
        text = given.pop("text", None)
        parsed = parse_prompts(
            [original_size],
            **given,
            low_res_mask_size=self.processor.low_res_mask_size,
            mixed=self.processor.mixed_prompts,
            counts=None if text is None else self.processor.count_texts(text),
        )
        model_prompts: dict[str, torch.Tensor] = {}
        if parsed is not None and text is None and not any(parsed.counts) and _has_gap(given.get("boxes")):
            raise ValueError(f"Every object needs a prompt: the boxes are {given['boxes']}, and there are no points.")
        if parsed is not None:
            model_prompts = self.processor.prompts_to_model_inputs(parsed, [original_size], [(height, width)])
            if "input_masks" in model_prompts:  # one mask for all prompts is written out: batches pad with empty ones
                model_prompts["input_masks"] = model_prompts["input_masks"].expand(-1, parsed.counts[0], -1, -1)
        if text is not None:
            model_prompts |= self.processor.text_to_model_inputs(text, 1, model_prompts.get("prompt_mask"))
        if model_prompts:
            check_every_object_has_a_prompt(model_prompts)
        pixels = np.asarray(image) if keep_image or not model_prompts else None
        request = Request(original_size, (height, width), parsed, model_prompts, pixels)
        return {"pixel_values": inputs["pixel_values"], "request": request}

    @staticmethod
    def grouped(requests: Sequence[Request]) -> Iterator[tuple[set[str], list[int]]]:
        """Kinds and indices of the requests that go through the model together: those with prompts of the same kinds."""
        groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            if request.count:
                groups[tuple(sorted(request.model_prompts))].append(index)
        for kinds, indices in groups.items():
            yield set(kinds), indices

    @staticmethod
    def padded_prompts(requests: Sequence[Request], device: torch.device) -> dict[str, torch.Tensor]:
        """Prompts of several requests of the same kinds as one batch."""
        return {
            name: pad_prompts([request.model_prompts[name] for request in requests], value).to(device)
            for name, value in _PADDING.items()
            if name in requests[0].model_prompts
        }

    def encode(self, pixel_values: torch.Tensor) -> Any:
        """What `segment` needs to know of images (B, 3, S, S): their embeddings."""
        return self.model.get_image_embeddings(pixel_values)

    def segment(self, encoded: Any, points: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All masks (1, P, M, l, l) and scores (1, P, M) of points (1, P, 1, 2) of one encoded image."""
        device = encoded.device
        return self.model.segment(encoded, input_points=points.to(device), point_labels=labels.to(device))

    @staticmethod
    def name_ignored(**prompt_options: Any) -> None:
        """Warns, in everything mode, of the options of prompts that are set."""
        ignored = [name for name, value in prompt_options.items() if value]
        if ignored:
            logger.warning_once(f"{', '.join(ignored)}: only prompts heed this, everything mode does not.")

    def generator_settings(self, settings: Mapping[str, Any] | None = None) -> GeneratorSettings:
        """What everything mode does in a call with these `settings`. They count more than those this pipeline was made with,
        and those more than the model's own (`config.everything`).

        Raises:
            ValueError: settings that cannot be.
        """
        levels = (MATTE_SETTINGS if self.mattes else None, self.model.config.everything)
        return GeneratorSettings.from_dicts(*levels, self._forward_params.get("settings"), settings)

    def propose(
        self, encoded: Any, request: Request, settings: Mapping[str, Any] | None, progress: bool
    ) -> MaskProposals:
        """Everything mode: the good masks of all points of a grid.

        Args:
            encoded: what `encode` gave for the whole image.
            settings: of the call.
        """
        if request.image is None:
            raise ValueError("Everything mode needs the image, which a request with prompts does not keep.")

        def encode_crop(crop: np.ndarray) -> Encoded:
            inputs = self.processor(images=crop, return_tensors="pt")
            height, width = inputs["reshaped_input_sizes"][0].tolist()
            of_crop = self.encode(inputs["pixel_values"].to(self.device, self.dtype))
            return partial(self.segment, of_crop), (height, width)

        return generate_masks(
            request.image,
            encode_crop,
            image_size=self.model.config.vision_config.image_size,
            settings=self.generator_settings(settings),
            whole=(partial(self.segment, encoded), request.reshaped_size),
            progress=show_progress(progress),
            mattes=self.mattes,
        )


def _has_gap(boxes: Any) -> bool:
    return isinstance(boxes, (list, tuple)) and any(box is None for box in boxes)


__all__ = ["RegionPipeline", "Request"]
