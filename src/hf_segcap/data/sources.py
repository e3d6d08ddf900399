# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The data sources a recipe can name, and their mixture.

A source is a map-style dataset (`__len__`, `__getitem__`) of rows `{image, image_id, width, height, caption, regions}`,
each region `{box (xyxy, pixels), phrases, mask (COCO RLE or None), category}` and, where it has a matte, `alpha` (see
`alpha.py`). A source may offer `texts()`, an iterable of all its phrases that loads no image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ..images import load_image

# An explicit list: a recipe names data, it never names code.
SOURCES = {
    "aim500": "hf_segcap.data.matting_folders:AIM500",
    "am2k": "hf_segcap.data.matting_folders:AM2K",
    "composites": "hf_segcap.data.composites:CompositeRegions",
    "composition1k": "hf_segcap.data.matting_folders:Composition1K",
    "folder": "hf_segcap.data.folder:RegionFolder",
    "foregrounds": "hf_segcap.data.matting_folders:ForegroundComposites",
    "mattes": "hf_segcap.data.mattes:MatteComposites",
    "micromat3k": "hf_segcap.data.matting_folders:MicroMat3K",
    "photographs": "hf_segcap.data.photographs:PhotographRegions",
    "sa1b": "hf_segcap.data.sa1b:SA1BRegions",
    "sa1b_mattes": "hf_segcap.data.matte_shards:MatteShards",
    "synthetic": "hf_segcap.data.synthetic:SyntheticRegions",
    "visual_genome": "hf_segcap.data.visual_genome:VisualGenomeRegions",
}


def load_source(name: str, **kwargs: Any) -> Any:
    """The data set called `name` in [`SOURCES`], built with `kwargs`.

    Raises:
        ValueError: unknown name, or arguments the source does not take.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown data source {name!r}, expected one of {sorted(SOURCES)}")
    module, cls = SOURCES[name].split(":")
    try:
        return getattr(import_module(module), cls)(**kwargs)
    except TypeError as error:
        raise ValueError(f"data source {name!r} does not accept these args: {error}") from error


def iter_texts(rows: Any) -> Iterator[str]:
    """All phrases of a source: through its `texts()` if it has one, else row by row (which loads the images)."""
    yield from rows.texts() if hasattr(rows, "texts") else iter_phrases(rows)


def iter_phrases(rows: Any) -> Iterator[str]:
    """The phrases of all regions as often as they occur, row by row (which loads the images)."""
    for index in range(len(rows)):
        for region in rows[index]["regions"]:
            yield from region.get("phrases") or ()


def check_box(box: Any, where: str) -> np.ndarray:
    """The box of a region as (4,) float64, x0, y0, x1, y1 in pixels.

    Raises:
        ValueError: not 4 finite numbers; `where` starts the message. The order of the corners is not looked at.
    """
    try:
        values = np.asarray(box, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.zeros(0)
    if values.shape != (4,) or not np.isfinite(values).all():
        raise ValueError(f'{where}: expected a "box" of 4 finite numbers x0, y0, x1, y1 in pixels, got {box!r}')
    return values


class StoredRows(Dataset):
    """Rows held in memory with the path of their image, which is opened when a row is asked for."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        image = load_image(row["image"], name=str(row["image"]))
        return {**row, "image": image, "width": image.width, "height": image.height}

    def texts(self) -> Iterator[str]:
        for row in self.rows:
            for region in row["regions"]:
                yield from region["phrases"]


class MixedRows(Dataset):
    """Interleaves sources with given probabilities until every source has been seen completely at least once.

    Small sources start over (over-sampling), as in the weak-supervision pretraining of SCA. The order is drawn once,
    from `seed`.

    Args:
        sources: data sets of rows, none of them empty.
        weights: relative probability of each source, positive; normalised here.
        seed: of the drawing.

    Raises:
        ValueError: no or empty sources, or weights that do not fit.
    """

    def __init__(self, sources: Sequence[Any], weights: Sequence[float], seed: int = 42) -> None:
        if not sources or len(sources) != len(weights):
            raise ValueError(f"expected one weight per source, got {len(sources)} sources and {len(weights)} weights")
        if min(weights) <= 0:
            raise ValueError(f"weights must be positive, got {list(weights)}")
        sizes = np.array([len(source) for source in sources])
        if sizes.min() == 0:
            raise ValueError(f"source {int(sizes.argmin())} of the mixture is empty")
        self.sources = list(sources)
        self._index = _interleave(sizes, np.array(weights, dtype=np.float64), np.random.default_rng(seed))

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, row = self._index[index]
        return self.sources[source][int(row)]

    def texts(self) -> Iterator[str]:
        for source in self.sources:
            yield from iter_texts(source)


def _interleave(sizes: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N, 2) of (source, row)."""
    weights = weights / weights.sum()
    pieces: list[np.ndarray] = []
    drawn = np.zeros(len(sizes), dtype=np.int64)
    while (drawn < sizes).any():
        # Draw in blocks; the last block ends with the draw that completes the last unfinished source.
        block = rng.choice(len(sizes), size=max(int(sizes.max()), 1), p=weights)
        ranks = np.zeros(len(block), dtype=np.int64)
        last = 0
        for source in range(len(sizes)):
            places = np.flatnonzero(block == source)
            ranks[places] = drawn[source] + np.arange(len(places))
            missing = sizes[source] - drawn[source]
            if missing > 0:
                last = max(last, int(places[missing - 1]) + 1 if len(places) >= missing else len(block))
        block, ranks = block[:last], ranks[:last]
        pieces.append(np.stack([block, ranks % sizes[block]], axis=1))
        drawn += np.bincount(block, minlength=len(sizes))
    return np.concatenate(pieces)
