# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""`pipeline("promptable-segmentation")`: masks of what points, boxes, masks or words name, or of everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import ProcessorMixin

from ..everything import MaskProposals
from ..masks import MaskRuns, mask_to_box, stability_score, upscale_masks
from ..models.sam.configuration_sam import SamPromptableConfig
from ..models.sam.processing_sam import SamPromptableProcessor
from ..records import OutputMode, check_output_mode, segmentations_of, to_records
from .base import as_list
from .regions import RegionPipeline, Request

_POSTPROCESS_NAMES = ("output_mode", "mask_threshold", "return_logits")


@dataclass(frozen=True)
class _Answer:
    """What the model says about one image: of prompts (`low_res_masks`), or of everything (`proposals`)."""

    request: Request
    low_res_masks: Any = None  # (P, M, l, l) logits
    scores: Any = None  # (P, M)
    proposals: MaskProposals | None = None


class PromptableSegmentationPipeline(RegionPipeline):
    """Segments what prompts name, or everything.

    ```python
    >>> import hf_segcap
    >>> from transformers import pipeline

    >>> segmenter = pipeline("promptable-segmentation", model="facebook/sam-vit-base")
    >>> segmenter("photo.jpg", points=[[320, 240]])
    [{'mask': array([[False, ...]]), 'score': 0.98, 'box': {'xmin': 102.0, ...}, 'area': 5120, 'stability_score': 0.97}]
    >>> segmenter("photo.jpg")  # everything
    ```

    The image encoder runs once per image (and once per crop where everything mode looks at crops). `facebook/sam-vit-*`
    checkpoints work as they are. Without a model, `pipeline("promptable-segmentation")` loads the small one that comes
    with the package.
    """

    prompt_names = ("boxes", "points", "point_labels", "masks", "text")
    forward_names = ("multimask_output", "refine_steps")

    def __init__(self, model: Any, *args: Any, processor: ProcessorMixin | None = None, **kwargs: Any) -> None:
        # not the class, which may be that of a wrapper, such as PEFT's
        if not isinstance(getattr(model, "config", None), SamPromptableConfig):
            raise ValueError(
                f"promptable-segmentation takes a SamForPromptableSegmentation, got {type(model).__name__}: load the "
                "folder or Hub id of a SamModel with SamForPromptableSegmentation.from_pretrained."
            )
        if processor is not None and not isinstance(processor, SamPromptableProcessor):
            processor = SamPromptableProcessor(processor.image_processor)  # transformers' own, of facebook/sam-vit-*
        super().__init__(model, *args, processor=processor, **kwargs)

    def __call__(  # type: ignore[override]
        self,
        image: Any,
        boxes: Any = None,
        points: Any = None,
        point_labels: Any = None,
        masks: Any = None,
        text: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Segments one image or many.

        Prompts given together belong to the same objects: the first box and the first points make the first object. An
        object that lacks a kind has None there (an empty list of points).

        Args:
            image: path, URL, bytes, PIL image, array (H, W[, C]) or tensor; or a dict with "image" and any of the prompts; or
                a list, generator or dataset of these.
            boxes: one box [xmin, ymin, xmax, ymax] or a list of P of them, in pixels of the original image.
            points: one point [x, y], P points [[x, y], ...] (one per object), or [[[x, y], ...], ...] with several points per
                object, in pixels of the original image.
            point_labels: 1 (inside the object) or 0 (outside) for each point; 1 if not given.
            masks: P masks (H, W) of the size of the image, bool or 0/1, or low-resolution logits of an earlier answer (its
                "low_res_logits").
            text: words for the object, or a list with one str per object; for checkpoints trained with text prompts.
            multimask_output: None (the default): the best of three masks for a single point, box or text, else the mask for
                unambiguous prompts. True: the best of three, all of which are in "masks". False: the one.
            refine_steps: so many times, the mask is handed back to the model for refinement.
            points_per_side, points_per_batch, pred_iou_thresh, stability_score_thresh, stability_score_offset,
                box_nms_thresh, crop_n_layers, crop_nms_thresh, crop_overlap_ratio, crop_n_points_downscale_factor,
                point_grids, min_mask_region_area: for everything mode, which runs when no prompt is given; see
                [`~hf_segcap.everything.GeneratorSettings`]. Defaults: those of the model (`config.everything`, if it has
                them), else SAM's.
            output_mode: form of the masks: "binary_mask" (the default), "uncompressed_rle" or "coco_rle".
            mask_threshold: logits above it belong to the mask of a prompt (default 0).
            return_logits: adds "low_res_logits" to the answers to prompts, to hand them back as `masks` with another click.
            batch_size: images that are encoded at once.
            timeout: seconds to wait for a URL.
            progress: no progress bars if False. They appear for lists of more than 8 images and for grids that take
                longer than three seconds.

        Returns:
            For one image a list with a dict per object, in the order of the prompts (everything mode: in the order of SAM's
            generator, by descending score in each crop; empty if nothing passes the filters):
            - "mask": bool array (H, W), or an RLE dict as `output_mode` says.
            - "score" (float): the IoU that the model predicts for the mask, about 0 to 1.
            - "box" ({"xmin", "ymin", "xmax", "ymax"}, floats in pixels): first and last column and row of the mask (zeros if
              it is empty).
            - "area" (int): pixels of the mask.
            - "stability_score" (float): how little the mask changes when its threshold moves by 1 (NaN if it is empty).
            - "masks", "scores" with `multimask_output=True`: all three masks of a prompt.
            - "low_res_logits" with `return_logits=True`: float32 array (l, l) of the mask, in the padded model frame.
            Everything mode adds SAM's record: "segmentation" (the mask), "bbox" ([x, y, width, height], one less than
            COCO's), "predicted_iou", "point_coords", "crop_box".
            For a list a list of these, for a generator or dataset an iterator over these.

        Raises:
            ValueError, TypeError: an image or a prompt that cannot be used; the message names the image and the prompt.
        """
        prompts = {"boxes": boxes, "points": points, "point_labels": point_labels, "masks": masks, "text": text}
        given = {name: value for name, value in prompts.items() if value is not None}
        return super().__call__(image, **given, **kwargs)

    def _sanitize_parameters(
        self, timeout: float | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess, forward = self.take_common(kwargs, timeout)
        postprocess: dict[str, Any] = {name: kwargs.pop(name) for name in _POSTPROCESS_NAMES if name in kwargs}
        if "output_mode" in postprocess:
            check_output_mode(postprocess["output_mode"])
        self.refuse_others(kwargs, _POSTPROCESS_NAMES, type(self).__name__)
        return preprocess, forward, postprocess

    def _forward(
        self,
        model_inputs: dict[str, Any],
        settings: Mapping[str, Any] | None = None,
        multimask_output: bool | None = None,
        refine_steps: int = 0,
        progress: bool = True,
    ) -> dict[str, list[_Answer]]:
        requests: list[Request] = as_list(model_inputs["request"])
        embeddings = self.model.get_image_embeddings(model_inputs["pixel_values"].to(self.dtype))
        answers = [_Answer(request) for request in requests]
        for index, request in enumerate(requests):
            if not request.model_prompts:
                self.name_ignored(multimask_output=multimask_output, refine_steps=refine_steps)
                found = self.propose(embeddings[index : index + 1], request, settings, progress)
                answers[index] = _Answer(request, proposals=found)
        for _, indices in self.grouped(requests):
            group = [requests[i] for i in indices]
            output = self.model(
                image_embeddings=embeddings[indices],
                multimask_output=multimask_output,
                refine_steps=refine_steps,
                **self.padded_prompts(group, embeddings.device),
            )
            masks, scores = output.pred_masks.float().cpu(), output.iou_scores.float().cpu()
            for row, index in enumerate(indices):
                count = requests[index].count
                answers[index] = _Answer(requests[index], masks[row, :count], scores[row, :count])
        return {"answers": answers}

    def assemble(  # type: ignore[override]
        self,
        answer: _Answer,
        output_mode: OutputMode = "binary_mask",
        mask_threshold: float = 0.0,
        return_logits: bool = False,
    ) -> list[dict[str, Any]]:
        if answer.proposals is not None:
            self.name_ignored(mask_threshold=mask_threshold, return_logits=return_logits)
            return [_with_names(record) for record in to_records(answer.proposals, output_mode)]
        if answer.low_res_masks is None:
            return []
        request, frame = answer.request, self.model.config.vision_config.image_size
        results = []
        for low_res, scores in zip(answer.low_res_masks, answer.scores):
            logits = upscale_masks(low_res[None], request.reshaped_size, request.original_size, frame)[0]
            best = int(scores.argmax())
            masks = logits > mask_threshold
            segmentations = list(segmentations_of(MaskRuns.encode(masks), output_mode))
            result = {
                "mask": segmentations[best],
                "score": float(scores[best]),
                "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), mask_to_box(masks[best]).float().tolist())),
                "area": int(masks[best].sum()),
                "stability_score": float(stability_score(logits[best], mask_threshold)),
            }
            if len(scores) > 1:
                result |= {"masks": segmentations, "scores": scores.tolist()}
            if return_logits:
                result["low_res_logits"] = low_res[best].numpy()
            results.append(result)
        return results


def _with_names(record: dict[str, Any]) -> dict[str, Any]:
    """A record of SAM's generator, with the names of the other results."""
    x, y, width, height = (float(value) for value in record["bbox"])
    return {
        "mask": record["segmentation"],
        "score": record["predicted_iou"],
        "box": {"xmin": x, "ymin": y, "xmax": x + width, "ymax": y + height},
        **record,
    }


def to_official_records(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The official fields alone of what the pipeline returned, for `hf_segcap.records.write_*`. Results of prompts have no
    "point_coords" and "crop_box", which a mask folder needs and a file of SA-1B does not."""
    names = ("segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box")
    records = []
    for result in results:
        x0, y0, x1, y1 = result["box"].values()
        known = {
            "segmentation": result["mask"],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "predicted_iou": result["score"],
            **result,
        }
        records.append({name: known[name] for name in names if name in known})
    return records


__all__ = ["PromptableSegmentationPipeline", "to_official_records"]
