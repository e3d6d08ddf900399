# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The three stages of SAM's data engine, as functions (SAM, section 4): help for annotators, prefilling, labelling alone.

1. Assisted-manual: [`precompute_embeddings`], so that an annotation tool only runs the light mask decoder.
2. Semi-automatic: [`prefill_masks`] turns the boxes of any detector into confident masks; annotators add what is missing.
3. Fully automatic: [`label_images`] writes the files of SA-1B, which `load_source("sa1b", root=...)` trains on.

Long jobs show a bar and lose nothing when they are killed: what is written is complete, and a second call goes on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from .everything import GeneratorSettings
from .files import atomic_path, image_files
from .images import load_image
from .pipelines.promptable_segmentation import PromptableSegmentationPipeline, to_official_records
from .records import write_sa1b

logger = logging.get_logger(__name__)

# SA-1B leaves out masks of nearly the whole image (SAM, appendix B).
MAX_AREA = 0.95


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The images of a folder, by name; not those of folders inside it.

    Raises:
        ValueError: no folder, no image in it, or two images with the same name but for the ending.
    """
    found = image_files(folder)
    stems = [path.stem for path in found]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ValueError(f"{folder} has several images called {twice[0]!r}: results are named after them, rename one")
    return found


def precompute_embeddings(
    segmenter: PromptableSegmentationPipeline,
    images: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    progress: bool = True,
) -> list[Path]:
    """Stage 1: one `<stem>.npy` per image with its embedding, float32 (1, C, g, g), as SAM's browser demo reads it.

    Args:
        segmenter: the pipeline whose model encodes.
        images: image files.
        output: folder; embeddings that are there already are kept.
        progress: shows a bar.

    Returns:
        The files, in the order of the images. Damaged images are left out with a warning.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    paths = [Path(image) for image in images]
    files = [output / f"{path.stem}.npy" for path in paths]
    for path, file in zip(tqdm(paths, desc="embeddings", unit="image", disable=not progress), files):
        if file.exists():
            continue
        try:
            inputs = segmenter.processor(images=load_image(path), return_tensors="pt")
        except ValueError as error:
            logger.warning(f"left out, {path}: {error}")
            continue
        pixel_values = inputs["pixel_values"].to(segmenter.device, segmenter.dtype)
        with torch.no_grad():
            embedding = segmenter.model.get_image_embeddings(pixel_values)
        with atomic_path(file) as temporary, open(temporary, "wb") as stream:
            np.save(stream, embedding.float().cpu().numpy(), allow_pickle=False)
    return [file for file in files if file.exists()]


def prefill_masks(
    segmenter: PromptableSegmentationPipeline,
    image: Any,
    boxes: Sequence[Sequence[float]],
    confidence: Sequence[float] | None = None,
    min_confidence: float = 0.5,
    pred_iou_thresh: float = 0.88,
    stability_score_thresh: float = 0.95,
) -> list[dict[str, Any]]:
    """Stage 2: confident masks for the boxes of a detector.

    Args:
        segmenter: the pipeline.
        image: any form of image that the pipeline takes.
        boxes: xyxy in pixels of the image.
        confidence: of the detector for each box, in [0, 1]; 1 if not given.
        min_confidence: boxes below it are not prefilled.
        pred_iou_thresh, stability_score_thresh: masks that reach both stay.

    Returns:
        Results of the pipeline ("mask", "score", "box", "area", "stability_score") with "index", the place in `boxes`, and
        "confidence".

    Raises:
        ValueError: as many confidences as boxes are expected; unusable boxes.
    """
    scores = [1.0] * len(boxes) if confidence is None else [float(value) for value in confidence]
    if len(scores) != len(boxes):
        raise ValueError(f"got {len(scores)} confidences for {len(boxes)} boxes, expected one for each")
    chosen = [i for i, score in enumerate(scores) if score >= min_confidence]
    if not chosen:
        return []
    results = segmenter(image, boxes=[list(boxes[i]) for i in chosen])
    return [
        {**result, "index": i, "confidence": scores[i]}
        for i, result in zip(chosen, results)
        if result["score"] >= pred_iou_thresh and result["stability_score"] >= stability_score_thresh
    ]


def label_images(
    segmenter: PromptableSegmentationPipeline,
    images: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    max_area: float = MAX_AREA,
    progress: bool = True,
    **generator_settings: Any,
) -> list[Path]:
    """Stage 3: one SA-1B file `<stem>.json` per image with all masks of everything mode.

    SAM's own settings for SA-1B: `points_per_side=32, crop_n_layers=2, crop_n_points_downscale_factor=2,
    pred_iou_thresh=0.88, stability_score_thresh=0.95, min_mask_region_area=100`.

    Args:
        segmenter: the pipeline.
        images: image files.
        output: folder; files that are there already are kept. "file_name" in them is the path of the image from there.
        max_area: masks that cover this part of the image or more are left out.
        progress: shows a bar.
        generator_settings: see [`~hf_segcap.everything.GeneratorSettings`].

    Returns:
        The files, in the order of the images. Damaged images are left out with a warning.

    Raises:
        ValueError: generator settings that cannot be.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    GeneratorSettings.from_dicts(segmenter.model.config.everything, generator_settings)  # wrong for every image
    paths = [Path(image) for image in images]
    files = [output / f"{path.stem}.json" for path in paths]
    for number, (path, file) in enumerate(zip(tqdm(paths, desc="labels", unit="image", disable=not progress), files)):
        if file.exists():
            continue
        try:
            image = load_image(path)
            results = segmenter(image, output_mode="coco_rle", progress=False, **generator_settings)
        except ValueError as error:
            logger.warning(f"left out, {path}: {error}")
            continue
        kept = [result for result in results if result["area"] < max_area * image.width * image.height]
        write_sa1b(
            file,
            to_official_records(kept),
            image_id=number,
            file_name=os.path.relpath(path, output),
            width=image.width,
            height=image.height,
        )
    return [file for file in files if file.exists()]


__all__ = ["label_images", "list_images", "precompute_embeddings", "prefill_masks"]
