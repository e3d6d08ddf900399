# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""SAM's automatic mask generator, written down plainly from a *description* of its steps, as the peer of the benchmark.

It runs transformers' own SAM with the very weights of the model it is compared with:

* every batch of points goes through prompt encoder and mask decoder, the image stream being copied for every point;
* **all** masks are upscaled to the model frame and then to the size of the crop, before any filter;
* filters by predicted IoU, stability and crop edge; survivors are padded to the image and run-length coded one by one
  into lists of Python numbers;
* NMS in each crop, NMS between crops, small regions (here with scipy) and NMS again, then records.

Nothing here is slowed down on purpose: every step is one tensor operation of the libraries ours uses as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from hf_segcap.everything import GeneratorSettings, build_crop_boxes
from hf_segcap.masks import box_nms, decode_rle, mask_to_box

EncodeCrop = Callable[[np.ndarray], tuple[torch.Tensor, tuple[int, int]]]


class OfficialGenerator:
    """Makes the masks of an image the way the official code does.

    Args:
        model: a transformers `SamModel` in eval mode.
        encode_crop: crop (h, w, 3) -> its image embedding (1, C, g, g) and its (height, width) in the model frame.
        settings: the options.
    """

    def __init__(self, model: Any, encode_crop: EncodeCrop, settings: GeneratorSettings) -> None:
        self.model = model
        self.encode_crop = encode_crop
        self.settings = settings
        self.image_size = model.config.vision_config.image_size

    @torch.no_grad()
    def generate(self, image: np.ndarray) -> list[dict[str, Any]]:
        """Records of all masks, with uncompressed RLE."""
        settings = self.settings
        size = image.shape[:2]
        boxes, layers = build_crop_boxes(size, settings.crop_n_layers, settings.crop_overlap_ratio)
        found = _join([self._crop(image, box, layer) for box, layer in zip(boxes, layers, strict=True)])
        if len(boxes) > 1:
            sides = found["crop"][:, 2:] - found["crop"][:, :2]
            found = _pick(found, box_nms(found["boxes"], 1 / sides.prod(1), settings.crop_nms_thresh))
        if settings.min_mask_region_area > 0:
            found = self._without_small_regions(found)
        rows = zip(*(found[name] for name in ("rle", "boxes", "iou", "points", "stability", "crop")), strict=True)
        return [
            {
                "segmentation": rle,
                "area": sum(rle["counts"][1::2]),
                "bbox": _to_size(box),
                "predicted_iou": iou.item(),
                "point_coords": [point.tolist()],
                "stability_score": stability.item(),
                "crop_box": _to_size(crop),
            }
            for rle, box, iou, point, stability, crop in rows
        ]

    def _crop(self, image: np.ndarray, crop: tuple[int, int, int, int], layer: int) -> dict[str, Any]:
        x0, y0, x1, y1 = crop
        embedding, reshaped = self.encode_crop(image[y0:y1, x0:x1])
        size = (y1 - y0, x1 - x0)
        points = self.settings.point_grid(layer) * torch.tensor([size[1], size[0]])
        batches = [
            self._batch(batch, embedding, reshaped, size, crop, image.shape[:2])
            for batch in points.split(self.settings.points_per_batch)
        ]
        found = _join(batches)
        found = _pick(found, box_nms(found["boxes"], found["iou"], self.settings.box_nms_thresh))
        corner = torch.tensor([x0, y0])
        found["boxes"] = found["boxes"] + corner.repeat(2)
        found["points"] = found["points"] + corner
        found["crop"] = torch.tensor([crop]).expand(len(found["rle"]), 4)
        return found

    def _batch(
        self,
        points: torch.Tensor,
        embedding: torch.Tensor,
        reshaped: tuple[int, int],
        size: tuple[int, int],
        crop: tuple[int, int, int, int],
        full_size: tuple[int, int],
    ) -> dict[str, Any]:
        settings = self.settings
        scale = torch.tensor([reshaped[1] / size[1], reshaped[0] / size[0]], dtype=torch.float64)
        prompts = (points * scale).float()[None, :, None]
        labels = torch.ones(prompts.shape[:3], dtype=torch.long)
        out = self.model(image_embeddings=embedding, input_points=prompts, input_labels=labels, multimask_output=True)
        frame = (self.image_size, self.image_size)
        masks = F.interpolate(out.pred_masks[0], frame, mode="bilinear", align_corners=False)
        masks = masks[..., : reshaped[0], : reshaped[1]]
        masks = F.interpolate(masks, size, mode="bilinear", align_corners=False)
        data = {
            "masks": masks.flatten(0, 1),
            "iou": out.iou_scores[0].flatten(),
            "points": points.repeat_interleave(masks.shape[1], dim=0),
        }
        del masks, out
        if settings.pred_iou_thresh > 0:
            data = _pick(data, data["iou"] > settings.pred_iou_thresh)
        offset = settings.stability_score_offset
        inner = (data["masks"] > offset).sum(-1, dtype=torch.int32).sum(-1, dtype=torch.int32)
        outer = (data["masks"] > -offset).sum(-1, dtype=torch.int32).sum(-1, dtype=torch.int32)
        data["stability"] = inner / outer
        if settings.stability_score_thresh > 0:
            data = _pick(data, data["stability"] >= settings.stability_score_thresh)
        data["masks"] = data["masks"] > 0
        data["boxes"] = mask_to_box(data["masks"])
        data = _pick(data, ~_cut_off(data["boxes"], crop, full_size))
        x0, y0, x1, y1 = crop
        padded = F.pad(data.pop("masks"), (x0, full_size[1] - x1, y0, full_size[0] - y1))
        data["rle"] = [_to_rle(mask) for mask in padded]
        return data

    def _without_small_regions(self, found: dict[str, Any]) -> dict[str, Any]:
        settings = self.settings
        masks, untouched = [], []
        for rle in found["rle"]:
            mask, holes = _remove(decode_rle(rle), settings.min_mask_region_area, holes=True)
            mask, islands = _remove(mask, settings.min_mask_region_area, holes=False)
            masks.append(torch.as_tensor(mask)[None])
            untouched.append(float(not (holes or islands)))
        if not masks:
            return found
        boxes = mask_to_box(torch.cat(masks))
        kept = box_nms(boxes, torch.tensor(untouched), max(settings.box_nms_thresh, settings.crop_nms_thresh))
        for index in kept.tolist():
            if not untouched[index]:
                found["rle"][index] = _to_rle(masks[index][0])
                found["boxes"][index] = boxes[index]
        return _pick(found, kept)


def _pick(data: dict[str, Any], index: torch.Tensor) -> dict[str, Any]:
    """Rows of every column by integers or booleans."""
    places = index.nonzero()[:, 0] if index.dtype == torch.bool else index
    return {
        name: [column[i] for i in places.tolist()] if isinstance(column, list) else column[places]
        for name, column in data.items()
    }


def _join(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: sum((part[name] for part in parts), []) if name == "rle" else torch.cat([part[name] for part in parts])
        for name in parts[0]
    }


def _to_size(box: torch.Tensor) -> list[int]:
    x0, y0, x1, y1 = box.tolist()
    return [x0, y0, x1 - x0, y1 - y0]


def _cut_off(boxes: torch.Tensor, crop: tuple[int, int, int, int], full_size: tuple[int, int]) -> torch.Tensor:
    """Boxes within 20 pixels of an edge of the crop that is not also an edge of the image."""
    in_image = (boxes + torch.tensor([crop[0], crop[1], crop[0], crop[1]])).float()
    near_crop = torch.isclose(in_image, torch.tensor(crop).float(), atol=20.0, rtol=0)
    whole = torch.tensor([0, 0, full_size[1], full_size[0]]).float()
    near_image = torch.isclose(in_image, whole, atol=20.0, rtol=0)
    return (near_crop & ~near_image).any(1)


def _to_rle(mask: torch.Tensor) -> dict[str, Any]:
    """Run lengths down the columns, unset pixels first, as Python numbers."""
    flat = mask.T.flatten()
    changes = (flat[1:] ^ flat[:-1]).nonzero()[:, 0] + 1
    edges = torch.cat([torch.tensor([0]), changes, torch.tensor([len(flat)])])
    counts = edges.diff().tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def _remove(mask: np.ndarray, area: float, holes: bool) -> tuple[np.ndarray, bool]:
    """Fills 8-connected holes below an area, or removes such islands but the largest."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask ^ holes, structure=np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    small = np.flatnonzero(sizes < area) + 1
    if len(small) == 0:
        return mask, False
    if holes:
        return mask | np.isin(labels, small), True
    kept = np.setdiff1d(np.arange(1, len(sizes) + 1), small)
    return np.isin(labels, kept if len(kept) else [sizes.argmax() + 1]), True
