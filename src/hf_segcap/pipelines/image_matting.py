# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""`pipeline("image-matting")`: soft mattes and cut-outs of what points and boxes name, or of everything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import HFValidationError
from PIL import Image
from transformers import ProcessorMixin
from transformers.utils import logging

from ..everything import MATTE_THRESHOLD, MaskProposals
from ..foreground import cut_out
from ..masks import mask_to_box
from ..models.sam.prompt_processing import sam_image_processor
from ..models.zim.configuration_zim import ZimConfig
from ..models.zim.guided_filter import GuidedUpscaler
from ..models.zim.modeling_zim import ZimModel
from ..models.zim.onnx_zim import ZimOnnxForMatting
from ..models.zim.processing_zim import ZimProcessor
from ..records import OutputMode, check_output_mode, to_records
from .base import as_list
from .regions import RegionPipeline, Request

logger = logging.get_logger(__name__)

ALPHA_TYPES = ("uint8", "uint16")
UPSCALINGS = ("bilinear", "guided")
# Bytes that the pictures of all objects of one image may take together.
RESULT_BUDGET = 4 * 2**30
_POSTPROCESS_NAMES = ("alpha_dtype", "upscaling", "foreground", "output_mode")

ImageFeatures = tuple[torch.Tensor, tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class _Answer:
    """What the model says about one image: of prompts (`logits`), or of everything (`proposals`)."""

    request: Request
    logits: Any = None  # (P, M, l, l)
    scores: Any = None  # (P, M)
    proposals: MaskProposals | None = None


@dataclass(frozen=True)
class _Finish:
    """Makes mattes of image size.

    Attributes:
        guide: of the picture, or the crop, whose edges they follow.
    """

    processor: ZimProcessor
    alpha_dtype: str
    guide: GuidedUpscaler | None

    def all(self, logits: torch.Tensor, size: tuple[int, int], reshaped_size: tuple[int, int]) -> np.ndarray:
        """(M, l, l) -> (M, height, width)."""
        guides = None if self.guide is None else [self.guide]
        (mattes,) = self.processor.post_process_alphas(
            [logits[None]], [size], [reshaped_size], dtype=self.alpha_dtype, images=guides
        )
        return mattes[0].numpy()

    def one(self, logits: torch.Tensor, size: tuple[int, int], reshaped_size: tuple[int, int]) -> np.ndarray:
        """(l, l) -> (height, width)."""
        return self.all(logits[None], size, reshaped_size)[0]


class ImageMattingPipeline(RegionPipeline):
    """Mattes what prompts name, or everything, with ZIM.

    ```python
    >>> import hf_segcap
    >>> from transformers import pipeline

    >>> matter = pipeline("image-matting", model="naver-iv/zim-anything-vitl")
    >>> matter("photo.jpg", boxes=[[120, 40, 560, 620]], foreground=True)
    [{'alpha': <PIL.Image.Image mode=L>, 'score': 0.98, 'box': {'xmin': 124.0, ...}, 'foreground': <PIL.Image.Image mode=RGBA>}]
    >>> matter("photo.jpg")  # everything
    ```

    The image is encoded once (and each crop once where everything mode looks at crops). The model is a `ZimForMatting`
    checkpoint, or a folder or Hub repository with `encoder.onnx` and `decoder.onnx`, the official form, which needs
    onnxruntime. A model object needs no `processor`.
    """

    prompt_names = ("boxes", "points", "point_labels")
    forward_names = ("multimask_output", "prompts_per_batch")
    everything_names = ("output_mode",)
    mattes = True
    # The official repositories hold no processor, so that transformers may fail to load one: see `_resolved_processor`.
    _load_processor = None  # type: ignore[assignment]

    def __init__(self, model: Any, *args: Any, processor: ProcessorMixin | None = None, **kwargs: Any) -> None:
        # not the class, which may be that of a wrapper, such as PEFT's
        if not isinstance(getattr(model, "config", None), ZimConfig):
            raise ValueError(
                f"image-matting takes a ZimForMatting or a ZimOnnxForMatting, got {type(model).__name__}: other models make "
                "mattes from other things than points and boxes."
            )
        if isinstance(model, ZimOnnxForMatting) and kwargs.get("device") is None and not model.follows_accelerator:
            kwargs["device"] = "cpu"  # transformers would choose an accelerator that onnxruntime may not have
        super().__init__(model, *args, processor=processor or _resolved_processor(model), **kwargs)

    def __call__(  # type: ignore[override]
        self, image: Any, boxes: Any = None, points: Any = None, point_labels: Any = None, **kwargs: Any
    ) -> Any:
        """Mattes objects of one image or many.

        Prompts given together belong to the same objects: the first box and the first points make the first object. An
        object that lacks a kind has None (a box) or an empty list (points) there. Of an object with both, the box is the
        prompt and the points say where to look (ZIM's rule; see `ZimConfig.joint_prompts`).

        Args:
            image: path, URL, bytes, PIL image, array (H, W[, C]) or tensor; or a dict with "image" and any of the prompts; or
                a list, generator or dataset of these. Transparent pixels are laid over white.
            boxes: one box [xmin, ymin, xmax, ymax] or a list of P of them, in pixels of the original image.
            points: one point [x, y], P points [[x, y], ...] (one per object), or [[[x, y], ...], ...] with several points per
                object, in pixels of the original image.
            point_labels: 1 (inside the object) or 0 (outside) for each point; 1 if not given.
            foreground: adds a cut-out with estimated foreground colours to each object, see
                [`~hf_segcap.foreground.cut_out`].
            alpha_dtype: "uint8" (the default) or "uint16", which keeps fine steps of thin structures.
            upscaling: how mattes come from the size of the model to that of larger images: "bilinear" (the default, ZIM's)
                or "guided" (along the edges of the image, see [`~hf_segcap.models.zim.guided_filter`]).
            multimask_output: False (the default): the first matte, which the paper evaluates. True: the best by score of all
                four, all of which are in "alphas".
            prompts_per_batch: prompts that are decoded at once; bounds memory, changes no result.
            points_per_side, points_per_batch, pred_iou_thresh, stability_score_thresh, stability_score_offset,
                box_nms_thresh, crop_n_layers, crop_nms_thresh, crop_overlap_ratio, crop_n_points_downscale_factor,
                point_grids, min_mask_region_area: for everything mode, which runs when no prompt is given; see
                [`~hf_segcap.everything.GeneratorSettings`]. Defaults: those of the model (`config.everything`, if it has
                them), else ZIM's ([`~hf_segcap.everything.MATTE_SETTINGS`] and SAM's).
            output_mode: form of "segmentation" in everything mode: "coco_rle" (the default), "uncompressed_rle" or
                "binary_mask".
            batch_size: images that are encoded at once.
            timeout: seconds to wait for a URL.
            progress: no progress bars if False. They appear for lists of more than 8 images and for grids that take
                longer than three seconds.

        Returns:
            For one image a list with a dict per object, in the order of the prompts (everything mode: in the order of ZIM's
            generator, by descending score in each crop; empty if nothing passes the filters):
            - "alpha" (PIL image of the size of the input, mode "L", or "I;16" for "uint16"): opacity of the object.
            - "score" (float): how well the model expects the matte to fit, about 0 to 1.
            - "box" ({"xmin", "ymin", "xmax", "ymax"}, floats in pixels): first and last column and row with an alpha above one
              half; zeros if there is none.
            - "foreground" (PIL image, mode "RGBA", 8 bits) with `foreground=True`.
            - "alphas", "scores" with `multimask_output=True`: all four mattes of a prompt.
            Everything mode adds the record of the generator: "segmentation" (alpha above one half), "area" (its pixels),
            "bbox" ([x, y, width, height], one less than COCO's), "predicted_iou", "point_coords", "stability_score",
            "crop_box".
            For a list a list of these, for a generator or dataset an iterator over these.

            Pictures have the size of the image: per object and pixel one byte of alpha (two for "uint16", four mattes with
            `multimask_output`), four with `foreground`, one with "binary_mask". Up to 4 GiB for an image: at 40
            megapixels 107 mattes, or 21 with foregrounds. Of everything, the best that fit are kept, with a warning.

        Raises:
            ValueError, TypeError: an image or a prompt that cannot be used; the message names the image and the prompt.
            ValueError: the results of prompts would take more than 4 GiB (before any of them is made).
        """
        prompts = {"boxes": boxes, "points": points, "point_labels": point_labels}
        given = {name: value for name, value in prompts.items() if value is not None}
        return super().__call__(image, **given, **kwargs)

    def _sanitize_parameters(
        self, timeout: float | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess, forward = self.take_common(kwargs, timeout)
        postprocess = {name: kwargs.pop(name) for name in _POSTPROCESS_NAMES if name in kwargs}
        for name, known in (("alpha_dtype", ALPHA_TYPES), ("upscaling", UPSCALINGS)):
            if name in postprocess and postprocess[name] not in known:
                raise ValueError(f"`{name}` must be one of {list(known)}, got {postprocess[name]!r}.")
        if "output_mode" in postprocess:
            check_output_mode(postprocess["output_mode"])
        if postprocess.get("foreground") or postprocess.get("upscaling") == "guided":
            preprocess["keep_image"] = True
        self.refuse_others(kwargs, _POSTPROCESS_NAMES, type(self).__name__)
        return preprocess, forward, postprocess

    def encode(self, pixel_values: torch.Tensor) -> ImageFeatures:
        """Image embeddings and details at strides 2, 4, 8; both once per image or crop."""
        return self.model.encode_image(pixel_values)

    def segment(
        self, encoded: ImageFeatures, points: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        embeddings, details = encoded
        output = self.model(
            image_embeddings=embeddings,
            detail_features=details,
            input_points=points.to(embeddings.device),
            point_labels=labels.to(embeddings.device),
        )
        return output.alphas, output.iou_scores

    def _forward(
        self,
        model_inputs: dict[str, Any],
        settings: Mapping[str, Any] | None = None,
        multimask_output: bool = False,
        prompts_per_batch: int | None = None,
        progress: bool = True,
    ) -> dict[str, list[_Answer]]:
        requests: list[Request] = as_list(model_inputs["request"])
        embeddings, details = self.encode(model_inputs["pixel_values"].to(self.dtype))
        answers = [_Answer(request) for request in requests]
        for index, request in enumerate(requests):
            if not request.model_prompts:
                one = slice(index, index + 1)
                encoded = embeddings[one], tuple(features[one] for features in details)
                self.name_ignored(multimask_output=multimask_output)
                found = self.propose(encoded, request, settings, progress)
                answers[index] = _Answer(request, proposals=found)
        for _, indices in self.grouped(requests):
            group = [requests[i] for i in indices]
            output = self.model(
                image_embeddings=embeddings[indices],
                detail_features=tuple(features[indices] for features in details),
                multimask_output=multimask_output,
                prompts_per_batch=prompts_per_batch,
                **self.padded_prompts(group, embeddings.device),
            )
            logits, scores = output.alphas.float().cpu(), output.iou_scores.float().cpu()
            for row, index in enumerate(indices):
                count = requests[index].count
                answers[index] = _Answer(requests[index], logits[row, :count], scores[row, :count])
        return {"answers": answers}

    def assemble(  # type: ignore[override]
        self,
        answer: _Answer,
        alpha_dtype: str = "uint8",
        upscaling: str = "bilinear",
        foreground: bool = False,
        output_mode: OutputMode = "coco_rle",
    ) -> list[dict[str, Any]]:
        request = answer.request
        answer = _within_budget(answer, np.dtype(alpha_dtype).itemsize, foreground, output_mode == "binary_mask")
        followed = request.image if upscaling == "guided" else None
        # One object after the other: float mattes of image size exist of one at a time.
        if answer.proposals is not None:
            finish = _Finish(self.processor, alpha_dtype, None)
            objects = self._of_everything(answer.proposals, finish, followed, output_mode)
        else:
            guide = None if followed is None else GuidedUpscaler(Image.fromarray(followed))
            objects = self._of_prompts(answer, _Finish(self.processor, alpha_dtype, guide))
        results = []
        for result in objects:
            if foreground:
                result["foreground"] = cut_out(request.image, result["alpha"])
            results.append(result)
        return results

    def _of_prompts(self, answer: _Answer, finish: _Finish) -> Iterator[dict[str, Any]]:
        if answer.logits is None:
            return
        request = answer.request
        for logits, scores in zip(answer.logits, answer.scores):
            mattes = finish.all(logits, request.original_size, request.reshaped_size)
            best = int(scores.argmax())
            threshold = MATTE_THRESHOLD * np.iinfo(mattes.dtype).max
            corners = mask_to_box(torch.from_numpy(mattes[best] > threshold)).float().tolist()
            pictures = [Image.fromarray(matte) for matte in mattes]
            result = {"alpha": pictures[best], "score": float(scores[best]), "box": _named(corners)}
            if len(scores) > 1:
                result |= {"alphas": pictures, "scores": scores.tolist()}
            yield result

    def _of_everything(
        self, proposals: MaskProposals, finish: _Finish, image: np.ndarray | None, output_mode: OutputMode
    ) -> Iterator[dict[str, Any]]:
        latest: list[int] = []
        for index, record in enumerate(to_records(proposals, output_mode)):
            crop = proposals.crop_boxes[index].tolist()
            if image is not None and crop != latest:
                x0, y0, x1, y1 = latest = crop
                finish = replace(finish, guide=GuidedUpscaler(Image.fromarray(image[y0:y1, x0:x1])))
            yield {
                "alpha": Image.fromarray(proposals.matte(index, finish.one)),
                "score": record["predicted_iou"],
                "box": _named(proposals.boxes[index].float().tolist()),
                **record,
            }


def _within_budget(answer: _Answer, alpha_bytes: int, foreground: bool, binary_masks: bool) -> _Answer:
    """The answer, in everything mode without the objects of the lowest scores if their pictures would take more than
    `RESULT_BUDGET`.

    Raises:
        ValueError: those of named objects would.
    """
    everything = answer.proposals is not None
    count = answer.request.count if answer.proposals is None else len(answer.proposals)
    mattes = 1 if answer.scores is None else answer.scores.shape[1]
    per_pixel = mattes * alpha_bytes + 4 * foreground + (everything and binary_masks)
    height, width = answer.request.original_size
    allowed = RESULT_BUDGET // (per_pixel * height * width)
    if count <= allowed:
        return answer
    found = (
        f"{count} objects in an image of {height} x {width} (height x width) pixels make results of "
        f"{count * per_pixel * height * width:,} bytes, {per_pixel} per pixel and object, more than {RESULT_BUDGET:,}."
    )
    remedies = ["foreground=False"] if foreground else []
    if answer.proposals is None:
        raise ValueError(f"{found} Use {', '.join([*remedies, 'fewer prompts per call'])} or a smaller picture.")
    remedies += ["a higher pred_iou_thresh", "fewer points_per_side"]
    logger.warning(f"{found} The best {allowed} are kept. Use {', '.join(remedies)} or a smaller picture.")
    best = answer.proposals.predicted_iou.argsort(descending=True, stable=True)[:allowed]
    return replace(answer, proposals=answer.proposals.select(best.sort().values))


def _named(corners: list[float]) -> dict[str, float]:
    return dict(zip(("xmin", "ymin", "xmax", "ymax"), corners))


def _resolved_processor(model: ZimModel | ZimOnnxForMatting) -> ZimProcessor:
    """The processor that is saved with a model; the official one, with its sizes, where none is.

    Raises:
        ValueError, OSError: the files of a checkpoint are damaged.
    """
    vision: Any = model.config.vision_config
    if not isinstance(model, ZimOnnxForMatting) and model.name_or_path:
        try:
            return ZimProcessor.from_pretrained(model.name_or_path)
        except HFValidationError:
            pass  # a folder that is gone
    return ZimProcessor(sam_image_processor(vision.image_size, vision.patch_size))


__all__ = ["ALPHA_TYPES", "RESULT_BUDGET", "UPSCALINGS", "ImageMattingPipeline"]
