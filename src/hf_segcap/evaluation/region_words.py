# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""How often the words of the bundled region captioner are right, judged by pixel statistics.

python -m hf_segcap.evaluation.region_words [--model FOLDER] [--regions 600] [--photograph FILE] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import pipeline

from ..data.describe import RegionWords, commonest_colour
from ..data.photographs import PHOTOGRAPHS, PhotographRegions, random_regions
from ..data.synthetic import SyntheticRegions
from ..images import load_image

WORDS = ("colour", "place", "size", "tone", "texture", "shape")


def word_accuracy(captions: Sequence[str], truths: Sequence[str]) -> dict[str, float]:
    """Share of captions with the right word of each kind; where the caption or the truth is outside the grammar, no word is
    right.

    Raises:
        ValueError: different numbers of captions and truths, or none.
    """
    if len(captions) != len(truths) or not captions:
        raise ValueError(
            f"expected as many captions as truths and at least one, got {len(captions)} and {len(truths)}"
        )
    right: Counter[str] = Counter()
    for caption, truth in zip(captions, truths):
        said, wanted = RegionWords.parse(caption), RegionWords.parse(truth)
        right["well formed"] += said is not None
        right["whole caption"] += caption == truth
        for word in WORDS:
            right[word] += said is not None and getattr(said, word) == getattr(wanted, word, None)
    return {name: right[name] / len(captions) for name in (*WORDS, "whole caption", "well formed")}


def evaluate(captioner: Any, rows: Iterable[Mapping[str, Any]], batch_size: int = 8) -> dict[str, float]:
    """Accuracy of a `region-captioning` pipeline on rows whose first phrases are the truth, prompted by their boxes.

    "colour" is strict: the word of the region's mean colour. "colour, mean or commonest" also takes the word of most of
    the box's pixels, which a region of several colours is as often called. "commonest colour word" is what one word for
    all regions would reach.
    """
    rows = list(rows)
    items = [{"image": row["image"], "boxes": [region["box"] for region in row["regions"]]} for row in rows]
    results = captioner(items, batch_size=batch_size, return_masks=False, progress=False)
    captions = [region["caption"] for result in results for region in result]
    truths = [region["phrases"][0] for row in rows for region in row["regions"]]
    commonest = [_commonest(row, region) for row in rows for region in row["regions"]]
    scores = word_accuracy(captions, truths)
    right = [
        (said := RegionWords.parse(caption)) is not None
        and said.colour in (other, getattr(RegionWords.parse(truth), "colour", ""))
        for caption, truth, other in zip(captions, truths, commonest)
    ]
    words = Counter(getattr(RegionWords.parse(truth), "colour", "") for truth in truths)
    return {
        "colour, mean or commonest": sum(right) / len(right),
        "commonest colour word": words.most_common(1)[0][1] / len(truths),
        **scores,
    }


def _commonest(row: Mapping[str, Any], region: Mapping[str, Any]) -> str:
    x0, y0, x1, y1 = (int(side) for side in region["box"])
    return commonest_colour(np.asarray(row["image"])[y0:y1, x0:x1].reshape(-1, 3))


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Prints the accuracy on held-out photographs (together and one by one) and on new generated scenes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id; default: the bundled model")
    parser.add_argument("--regions", type=int, default=600, help="random regions of the held-out photographs")
    parser.add_argument("--scenes", type=int, default=100, help="generated scenes that were not trained on")
    parser.add_argument("--photograph", action="append", default=[], help="also judge this file; may be repeated")
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args(arguments)

    captioner = pipeline("region-captioning", model=options.model, dtype=torch.float32)
    names = PHOTOGRAPHS["held_out"]
    per_row = max(1, options.regions // (10 * len(names)))
    photographs = PhotographRegions(
        10 * len(names), "held_out", options.seed, boxes=per_row, segments=0, augment=False
    )
    rows = [photographs[i] for i in tqdm(range(len(photographs)), desc="photographs", leave=False)]
    scores = {"held-out photographs": evaluate(captioner, rows)}
    for offset, name in enumerate(names):
        scores[name] = evaluate(captioner, rows[offset :: len(names)])
    for file in options.photograph:
        row = random_regions(load_image(file), options.regions // len(names), options.seed)
        scores[Path(file).stem] = evaluate(captioner, [row])
    scenes = SyntheticRegions(options.scenes, seed=options.seed)
    scores["generated scenes"] = evaluate(captioner, (scenes[i] for i in range(len(scenes))))

    columns = list(next(iter(scores.values())))
    print("| " + " | ".join(["", *columns]) + " |\n|" + " --- |" * (len(columns) + 1))
    for name, values in scores.items():
        print("| " + " | ".join([name, *(f"{values[column]:.1%}" for column in columns)]) + " |")
    if options.json:
        options.json.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    return scores


if __name__ == "__main__":
    main()
