# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""How SAM is measured: mean IoU after N simulated clicks, or from a box (Kirillov et al. 2023, section 7.1, appendix D.1).

Clicks are deterministic: the first is the point of the object farthest from its boundary, each further one the point of the
error region, missing or superfluous, farthest from that region's boundary. Objects are scored at the size of their image.

python -m hf_segcap.evaluation.segmentation [--model FOLDER] [--rows 200] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import pipeline

from ..data.composites import CompositeRegions
from ..data.describe import RegionWords
from ..data.row_collator import decode_mask
from ..data.synthetic import SyntheticRegions
from ..images import load_image
from ..masks import upscale_masks
from ..models.sam.interactive import (
    BOX_NOISES,
    add_box_noise,
    one_prompt,
    pixel_centres,
    sample_pixels,
    target_boxes,
)
from ..models.sam.mask_decoder import RowMasks
from ..models.sam.prompt_rows import PromptRows
from ..training.tiny_clip import full_name

NUM_POINTS = (1, 2, 3, 5, 9)  # the paper's
SAMPLINGS = ("centre", "random")
_PIXELS_AT_ONCE = 4_000_000  # of objects whose masks are brought to the size of their image together


@torch.no_grad()
def evaluate_masks(
    model: Any,
    processor: Any,
    rows: Any,
    num_points: Sequence[int] = NUM_POINTS,
    boxes: bool = True,
    sampling: str = "centre",
    feed_back_masks: bool = True,
    seed: int = 0,
    min_area: int = 1,
    box_noise: str = "none",
) -> dict[str, float]:
    """Mean IoU over all objects of a data set.

    After one prompt the three masks for ambiguous prompts count: the one with the highest predicted IoU, and, as "oracle",
    the best of them. After more the single mask counts (the paper's rule).

    Args:
        model: a `SamForPromptableSegmentation`; put into eval mode.
        processor: its processor.
        rows: data set of rows (see `hf_segcap.data.sources`); regions without a mask and empty masks are left out.
        num_points: after which numbers of clicks to measure; may be empty.
        boxes: also measure the box of each mask.
        sampling: "centre" (see the module's description), or "random": uniform over the object, then the error region.
        feed_back_masks: each click also gets the mask before it as prompt, as in training.
        seed: of random clicks and boxes.
        min_area: objects with fewer pixels are left out.
        box_noise: "none": tight boxes. "uniform", "normal": as careless as those of the training, see `add_box_noise`.

    Returns:
        `num_objects`; for each N `miou@N`, for N = 1 also `oracle_miou@1`; `box_miou` and `oracle_box_miou`.

    Raises:
        ValueError: unknown sampling or box noise, click numbers below 1, no object in `rows`, or a mask of another size than
            its image.
        ImportError: scipy is missing (for "centre").
    """
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling must be one of {SAMPLINGS}, got {sampling!r}")
    if min(num_points, default=1) < 1:
        raise ValueError(f"num_points must be at least 1, got {list(num_points)}")
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[Tensor]] = {}
    for index, row in enumerate(_each(rows)):
        name = f"image {index}"
        image = load_image(row["image"], name=name)
        size = (image.height, image.width)
        masks = [decode_mask(r["mask"], name, size) for r in row["regions"] if r.get("mask") is not None]
        masks = [mask for mask in masks if mask.sum() >= max(min_area, 1)]
        if not masks:
            continue
        session = _Session(model, processor, image, torch.from_numpy(np.stack(masks)))
        measured = session.clicks(num_points, sampling, feed_back_masks, generator)
        if boxes:
            measured |= session.boxes(box_noise, generator)
        for name, ious in measured.items():
            found.setdefault(name, []).append(ious)
    if not found:
        raise ValueError("no region of these rows has a mask: there is nothing to measure")
    means = {name: float(torch.cat(ious).mean()) for name, ious in found.items()}
    return {"num_objects": float(sum(len(ious) for ious in next(iter(found.values())))), **means}


def evaluate_text(
    segmenter: Any, rows: Any, phrase: Callable[[RegionWords], str] = full_name, min_area: int = 1
) -> dict[str, float]:
    """How well words alone find an object (SAM, section 7.5), on scenes whose objects have captions of the generated world.

    Args:
        segmenter: a `promptable-segmentation` pipeline of a model with text prompts.
        rows: data set of rows (see `hf_segcap.data.sources`); objects without a mask are left out.
        phrase: words of an object -> the text prompt, or "" to leave it out. Default: "the dark red striped star". What
            several objects of a scene are called is not asked for.
        min_area: objects with fewer pixels are not asked for.

    Returns:
        `num_objects`, `text_miou`: mean IoU, and `text_found`: the share of objects with an IoU of at least 0.5.

    Raises:
        ValueError: no object can be asked for.
    """
    ious: list[float] = []
    for index, row in enumerate(_each(rows)):
        name = f"image {index}"
        image = load_image(row["image"], name=name)
        named = [
            (phrase(words), decode_mask(region["mask"], name, (image.height, image.width)))
            for region in row["regions"]
            if region.get("mask") is not None and (words := _words(region)) is not None
        ]
        names = [name for name, _ in named]
        asked = [
            (name, mask)
            for name, mask in named
            if name and names.count(name) == 1 and np.count_nonzero(mask) >= min_area
        ]
        if asked:
            found = segmenter(image, text=[name for name, _ in asked])
            ious += [_iou(np.asarray(result["mask"]).astype(bool), mask) for result, (_, mask) in zip(found, asked)]
    if not ious:
        raise ValueError("no region of these rows has a mask and a name of its own: there is nothing to measure")
    return {
        "num_objects": float(len(ious)),
        "text_miou": float(np.mean(ious)),
        "text_found": float(np.mean(np.asarray(ious) >= 0.5)),
    }


def _words(region: Mapping[str, Any]) -> RegionWords | None:
    phrases = region.get("phrases")
    return RegionWords.parse(phrases[0]) if phrases else None


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / max((first | second).sum(), 1))


def _each(rows: Any) -> Iterator[Any]:
    """The rows of a map-style data set, which need not be iterable, or of an iterable."""
    yield from (rows[i] for i in range(len(rows))) if hasattr(rows, "__getitem__") else rows


def farthest_points(regions: Tensor) -> Tensor:
    """The pixel of each region that is farthest from everything outside it; outside the image counts as outside.

    Args:
        regions: (R, h, w) bool, none of them empty.

    Returns:
        (R, 2) long, column and row; of equally far pixels the first, row by row.

    Raises:
        ImportError: scipy is missing.
    """
    return torch.stack([_deepest(region.cpu().numpy())[0] for region in regions]).to(regions.device)


def farthest_error_points(targets: Tensor, predicted: Tensor) -> Tensor:
    """As [`farthest_points`], of the larger error: missing and superfluous pixels are regions of their own.

    Args:
        targets, predicted: (R, h, w) bool. Without any error the point comes from the target.
    """
    points = []
    for target, mask in zip(targets.cpu().numpy(), predicted.cpu().numpy()):
        missing, superfluous = _deepest(target & ~mask), _deepest(mask & ~target)
        best = max(missing, superfluous, key=lambda found: found[1])
        points.append(best[0] if best[1] > 0 else _deepest(target)[0])
    return torch.stack(points).to(targets.device)


def _deepest(region: np.ndarray) -> tuple[Tensor, float]:
    try:
        from scipy.ndimage import distance_transform_edt
    except ImportError as error:
        raise ImportError(
            "clicks at the centre of objects need scipy: pip install 'hf_segcap[demo]', or sampling=\"random\""
        ) from error
    distances = distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(distances.argmax()), distances.shape)
    return torch.tensor([int(x), int(y)]), float(distances[y, x])


class _Session:
    """The P objects of one image."""

    def __init__(self, model: Any, processor: Any, image: Any, targets: Tensor) -> None:
        inputs = processor(images=[image])
        self.model, self.targets = model, targets
        self.size = tuple(int(side) for side in targets.shape[1:])
        self.reshaped = tuple(int(side) for side in inputs["reshaped_input_sizes"][0])
        self.embeddings = model.get_image_embeddings(inputs["pixel_values"].to(model.device))

    def boxes(self, noise: str, generator: torch.Generator) -> dict[str, Tensor]:
        height, width = self.reshaped
        limit = torch.tensor([width, height, width, height])
        frame = self.model.config.vision_config.image_size
        boxes = add_box_noise(target_boxes(self.targets, self.reshaped), noise, frame, limit, generator)
        rows = self._rows(input_boxes=boxes[None])
        scores, oracle, _ = self._measure(rows)
        return {"box_miou": scores, "oracle_box_miou": oracle}

    def clicks(
        self, num_points: Sequence[int], sampling: str, feed_back_masks: bool, generator: torch.Generator
    ) -> dict[str, Tensor]:
        measured: dict[str, Tensor] = {}
        predicted = torch.zeros_like(self.targets)
        points, labels, low_res = [], [], None
        for count in range(1, max(num_points, default=0) + 1):
            pixels = self._next_pixels(predicted, sampling, generator)
            points.append(pixel_centres(pixels, self.size, self.reshaped))
            index = torch.arange(len(pixels))
            labels.append(self.targets[index, pixels[:, 1], pixels[:, 0]].long())
            rows = self._rows(
                input_points=torch.stack(points, dim=1)[None], point_labels=torch.stack(labels, dim=1)[None]
            )
            if feed_back_masks and low_res is not None:
                rows = replace(rows, masks=low_res)
            scores, oracle, chosen = self._measure(rows)
            low_res = chosen
            predicted = torch.cat([self._inside(part[:, None])[:, 0].cpu() for part in self._parts(chosen)])
            if count in num_points:
                measured[f"miou@{count}"] = scores
                if count == 1:
                    measured["oracle_miou@1"] = oracle
        return measured

    def _next_pixels(self, predicted: Tensor, sampling: str, generator: torch.Generator) -> Tensor:
        if sampling == "centre":
            return farthest_error_points(self.targets, predicted)
        error = self.targets ^ predicted
        wrong = error.flatten(1).any(1)[:, None, None]
        return sample_pixels(torch.where(wrong, error, self.targets), generator)

    def _rows(self, **prompts: Tensor) -> PromptRows:
        inputs: dict[str, Any] = {name: value.to(self.model.device) for name, value in prompts.items()}
        return PromptRows.from_inputs(1, **inputs)

    def _measure(self, rows: PromptRows) -> tuple[Tensor, Tensor, Tensor]:
        """IoU (P,) of the mask that is returned, of the best one that could be, and the low-resolution logits (P, l, l) of
        the former."""
        decoded: RowMasks = self.model.decode_rows(self.embeddings, rows)
        ambiguous = one_prompt(rows)[:, None]
        candidates = torch.arange(decoded.iou_scores.shape[1], device=ambiguous.device)[None]
        allowed = (candidates > 0) == ambiguous  # one prompt: tokens 1.., else token 0
        chosen = decoded.iou_scores.float().masked_fill(~allowed, -torch.inf).argmax(1)
        parts = zip(self._parts(decoded.pred_masks), self._parts(self.targets))
        ious = torch.cat([self._ious(low_res, targets) for low_res, targets in parts])
        best = ious.masked_fill(~allowed.to(ious.device), 0).amax(1)
        index = torch.arange(len(chosen), device=chosen.device)
        return ious[index, chosen].cpu(), best.cpu(), decoded.pred_masks[index, chosen]

    def _ious(self, low_res: Tensor, targets: Tensor) -> Tensor:
        """(p, M, l, l) logits and (p, H, W) targets -> (p, M)."""
        predicted, targets = self._inside(low_res), targets[:, None].to(low_res.device)
        return (predicted & targets).sum((2, 3)) / (predicted | targets).sum((2, 3)).clamp(min=1)

    def _parts(self, objects: Tensor) -> tuple[Tensor, ...]:
        """The objects, so few at a time that all their masks fit into memory at the size of the image."""
        return objects.split(max(1, _PIXELS_AT_ONCE // (self.size[0] * self.size[1])))

    def _inside(self, low_res: Tensor) -> Tensor:
        frame = self.model.config.vision_config.image_size
        return upscale_masks(low_res, self.reshaped, self.size, frame) > 0


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Prints how well a segmenter finds generated objects on photographs that were not trained on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id; default: the bundled model")
    parser.add_argument("--rows", type=int, default=200, help="pictures")
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--min-area", type=int, default=400, help="pixels of the objects of the second row")
    parser.add_argument("--box-noise", choices=BOX_NOISES, default="none", help="of the boxes; default: tight ones")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args(arguments)

    segmenter = pipeline("promptable-segmentation", model=options.model, dtype=torch.float32)
    data = CompositeRegions(options.rows, split="held_out", seed=options.seed, scene_share=0)
    rows = [data[i] for i in tqdm(range(len(data)), desc="pictures", leave=False)]
    scores = {}
    sizes = {"all": 1, f"at least {options.min_area} pixels": options.min_area}
    for name, min_area in sizes.items():
        bar = tqdm(rows, desc=name, leave=False)
        scores[name] = evaluate_masks(
            segmenter.model,
            segmenter.processor,
            bar,
            num_points=(1, 3),
            min_area=min_area,
            box_noise=options.box_noise,
        )
    columns = list(scores["all"])
    print("| " + " | ".join(["objects", *columns]) + " |\n|" + " --- |" * (len(columns) + 1))
    for name, values in scores.items():
        shown = [f"{values[c]:.0f}" if c == "num_objects" else f"{values[c]:.1%}" for c in columns]
        print("| " + " | ".join([name, *shown]) + " |")
    if segmenter.model.config.text_trained:
        scenes = SyntheticRegions(options.rows, seed=options.seed)
        drawn = [scenes[i] for i in tqdm(range(len(scenes)), desc="scenes", leave=False)]
        for name, min_area in sizes.items():
            texts = evaluate_text(segmenter, tqdm(drawn, desc="text", leave=False), min_area=min_area)
            print(
                f"by text alone, {name}, {texts['num_objects']:.0f} objects of generated scenes: {texts['text_miou']:.1%}, "
                f"found (IoU of at least 0.5) {texts['text_found']:.1%}"
            )
            scores[f"text, {name}"] = texts
    if options.json:
        options.json.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    return scores


if __name__ == "__main__":
    main()
