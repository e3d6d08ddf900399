# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""`pipeline("region-captioning")`: says what is in the regions of an image."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin

from ..everything import MaskProposals
from ..masks import mask_to_box, upscale_masks
from ..prompts import scale_points
from .base import as_list
from .regions import RegionPipeline, Request

_GENERATE_NAMES = {name for name in vars(GenerationConfig()) if not name.startswith("_")} | set(
    inspect.signature(GenerationMixin.generate).parameters
) - {"self", "inputs", "kwargs"}


@dataclass(frozen=True)
class _Answer:
    """What the model says about one image; without `sequences` there is no region."""

    request: Request
    sequences: torch.Tensor | None = None  # (P, T), or (P, N, T) with several captions per region
    scores: Sequence[float] = ()
    low_res_masks: Any = None  # (P, 1, l, l) logits, of prompts
    proposals: MaskProposals | None = None  # of everything mode
    return_masks: bool = True


class RegionCaptioningPipeline(RegionPipeline):
    """Captions the regions of an image that boxes, points or masks name, or everything in it.

    ```python
    >>> import hf_segcap
    >>> from transformers import pipeline

    >>> captioner = pipeline("region-captioning", model="xk-huang/segment-caption-anything-gpt2_large-vg")
    >>> captioner("photo.jpg", boxes=[[100, 40, 260, 300]])
    [{'caption': 'a brown dog', 'score': 0.97, 'box': {'xmin': 100.0, ...}, 'mask': array([[False, ...]])}]
    >>> captioner("photo.jpg")  # everything
    ```

    The image encoder runs once per image. In everything mode SAM's own masks on a grid of points are the proposals, and
    only those that pass its filters are captioned, from the point that produced them (Huang et al., CVPR 2024, section
    on the demo). Without a model, `pipeline("region-captioning")` loads the small one that comes with the package.
    """

    forward_names = ("task", "multimask_output", "prompts_per_batch", "return_masks")

    _pipeline_calls_generate = True

    def __call__(  # type: ignore[override]
        self,
        image: Any,
        boxes: Any = None,
        points: Any = None,
        point_labels: Any = None,
        masks: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Captions regions of one image or many.

        Args:
            image: path, URL, bytes, PIL image, array (H, W[, C]) or tensor; or a dict with "image" and any of "boxes",
                "points", "point_labels", "masks" for prompts of its own; or a list, generator or dataset of these.
            boxes: one box [xmin, ymin, xmax, ymax] or a list of P of them, in pixels of the original image.
            points: one point [x, y], P points [[x, y], ...] (one per region), or [[[x, y], ...], ...] with several
                points per region, in pixels of the original image.
            point_labels: 1 (inside the region) or 0 (outside) for each point; 1 if not given.
            masks: P masks (H, W) of the size of the image, bool or 0/1.
            points_per_side, pred_iou_thresh, crop_n_layers, ...: for everything mode, which runs when no prompt is given;
                all options of SAM's mask generator, see [`~hf_segcap.everything.GeneratorSettings`]. Defaults: those of
                the model (`config.everything`, if it has them), else SAM's.
            task: "caption" or "recognition" (a word instead of a phrase, where the model was trained for it).
            multimask_output: take the best of three masks (True, the default) or the one for unambiguous prompts. Everything
                mode always considers all three.
            prompts_per_batch: regions that are captioned at once; bounds memory; greedy and beam results do not change.
                Default: all.
            return_masks: leave out "mask" if False.
            batch_size: images that are encoded at once.
            timeout: seconds to wait for a URL.
            progress: no progress bars if False. They appear for lists of more than 8 images and for grids that take
                longer than three seconds.
            kwargs: any argument of `generate`: `max_new_tokens`, `num_beams`, `do_sample`, ...

        Returns:
            For one image a list with a dict per region, in the order of the prompts (everything mode: by descending score;
            empty if nothing passes the filters):
            - "caption" (str). With `num_return_sequences` above 1 the first of "captions" (list of str).
            - "score" (float): the IoU that the model predicts for its mask of the region, about 0 to 1.
            - "box" ({"xmin", "ymin", "xmax", "ymax"}, floats in pixels): the given box, or where no box was given the first
              and last column and row of the mask (zeros if it is empty).
            - "mask" (bool array (H, W)): the mask with the best score.
            - "stability_score" (float) and "point" ({"x", "y"}) in everything mode only.
            For a list a list of these, for a generator or dataset an iterator over these.

        Raises:
            ValueError, TypeError: an image or a prompt that cannot be used; the message names the image and the prompt.
        """
        prompts = {"boxes": boxes, "points": points, "point_labels": point_labels, "masks": masks}
        given = {name: value for name, value in prompts.items() if value is not None}
        return super().__call__(image, **given, **kwargs)

    def _sanitize_parameters(
        self, timeout: float | None = None, generate_kwargs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess, forward = self.take_common(kwargs, timeout)
        generate = {**kwargs, **(generate_kwargs or {})}
        self.refuse_others(generate, _GENERATE_NAMES, f"{type(self).__name__} nor of generate()")
        if generate:
            forward["generate_kwargs"] = generate
        return preprocess, forward, {}

    def _forward(
        self,
        model_inputs: dict[str, Any],
        settings: Mapping[str, Any] | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        multimask_output: bool = True,
        return_masks: bool = True,
        progress: bool = True,
        **options: Any,
    ) -> dict[str, list[_Answer]]:
        requests: list[Request] = as_list(model_inputs["request"])
        embeddings = self.model.get_image_embeddings(model_inputs["pixel_values"].to(self.dtype))
        options |= self._prepare_generate_kwargs(dict(generate_kwargs or {}))
        answers: list[Any] = [_Answer(request) for request in requests]
        for index, request in enumerate(requests):
            if not request.model_prompts:
                answers[index] = self._everything(embeddings[index : index + 1], request, settings, progress, options)
        for kinds, indices in self.grouped(requests):
            output_masks = return_masks or "input_boxes" not in kinds  # without a given box, the mask tells it
            group = [requests[i] for i in indices]
            prompted = self._prompted(embeddings[indices], group, multimask_output, output_masks, options)
            for index, answer in zip(indices, prompted):
                answers[index] = answer
        return {"answers": [answer if return_masks else replace(answer, return_masks=False) for answer in answers]}

    def _prompted(
        self,
        embeddings: torch.Tensor,
        requests: Sequence[Request],
        multimask_output: bool,
        output_masks: bool,
        options: Mapping[str, Any],
    ) -> list[_Answer]:
        """All prompts of all images in one call of `generate`."""
        inputs = self.padded_prompts(requests, embeddings.device)
        output = self.model.generate(
            image_embeddings=embeddings,
            multimask_output=multimask_output,
            output_masks=output_masks,
            **inputs,
            **{**options, "return_dict_in_generate": True},
        )
        scores, best = output.iou_scores.float().max(-1)
        masks = output.pred_masks
        if masks is not None:
            masks = masks.gather(2, best[..., None, None, None].expand(-1, -1, -1, *masks.shape[-2:])).float().cpu()
        sequences = output.sequences
        if output.language_model_inputs.shape[2] == output.iou_scores.shape[2] > 1:  # one caption for each mask
            sequences = torch.stack([of_image[torch.arange(len(b)), b] for of_image, b in zip(sequences, best)])
        answers = []
        for index, request in enumerate(requests):
            count = request.count
            answers.append(
                _Answer(
                    request,
                    sequences=_captions_per_region(sequences[index, :count]),
                    scores=scores[index, :count].tolist(),
                    low_res_masks=None if masks is None else masks[index, :count],
                )
            )
        return answers

    def _everything(
        self,
        embedding: torch.Tensor,
        request: Request,
        settings: Mapping[str, Any] | None,
        progress: bool,
        options: Mapping[str, Any],
    ) -> _Answer:
        """SAM's masks on a grid of points; the points of those that pass the filters are captioned, once."""
        proposals = self.propose(embedding, request, settings, progress)
        proposals = proposals.select(proposals.predicted_iou.argsort(descending=True, stable=True))
        if len(proposals) == 0:
            return _Answer(request)
        # One point can have several surviving masks; its caption is the same for all of them.
        points, which = proposals.points.unique(dim=0, return_inverse=True)
        model_points = scale_points(points, request.original_size, request.reshaped_size).float()
        model_points = model_points[None, :, None].to(embedding.device)
        sequences = self.model.generate(
            image_embeddings=embedding, input_points=model_points, **{**options, "return_dict_in_generate": False}
        )
        return _Answer(
            request,
            sequences=_captions_per_region(sequences[0])[which],
            scores=proposals.predicted_iou.tolist(),
            proposals=proposals,
        )

    def assemble(self, answer: _Answer, **parameters: Any) -> list[dict[str, Any]]:
        if answer.sequences is None:
            return []
        captions = self.processor.post_process_captions(answer.sequences[None])[0]
        masks, boxes = self._masks_and_boxes(answer)
        results = []
        for index, (caption, score) in enumerate(zip(captions, answer.scores)):
            several = {} if isinstance(caption, str) else {"captions": caption}
            result = {"caption": several["captions"][0] if several else caption, **several, "score": score}
            result["box"] = dict(zip(("xmin", "ymin", "xmax", "ymax"), boxes[index]))
            if answer.return_masks:
                result["mask"] = masks[index]
            if answer.proposals is not None:
                x, y = answer.proposals.points[index].tolist()
                result |= {
                    "stability_score": float(answer.proposals.stability_score[index]),
                    "point": {"x": x, "y": y},
                }
            results.append(result)
        return results

    def _masks_and_boxes(self, answer: _Answer) -> tuple[Any, list[list[float]]]:
        """Bool masks (P, H, W), or None if nothing needs them, and xyxy boxes in pixels of the original image."""
        if answer.proposals is not None:
            return answer.proposals.masks, answer.proposals.boxes.float().tolist()
        given = answer.request.prompts.boxes if answer.request.prompts else None
        if given is not None and not answer.return_masks:
            return None, given[0].tolist()
        size = self.model.config.vision_config.image_size
        low_res, frame, original = answer.low_res_masks, answer.request.reshaped_size, answer.request.original_size
        masks = torch.cat([upscale_masks(mask[None], frame, original, size)[0] > 0 for mask in low_res])
        boxes = mask_to_box(masks).float() if given is None else given[0]
        return masks.numpy(), boxes.tolist()


def _captions_per_region(sequences: torch.Tensor) -> torch.Tensor:
    """(P, [H,] [N,] T) -> (P, T), or (P, H * N, T) for several captions per region."""
    return sequences.cpu() if sequences.ndim == 2 else sequences.cpu().flatten(1, -2)


__all__ = ["RegionCaptioningPipeline"]
