# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Masks of an image in the padded square frame that a model sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def masks_to_frame(mask: np.ndarray, reshaped: Sequence[int], frame: int, cells: int) -> np.ndarray:
    """The share of each cell of the padded model frame that a mask covers; the padding counts as outside.

    Args:
        mask: (H, W) bool, of the image.
        reshaped: (height, width) of the image in the model frame, pixels.
        frame: side of the model frame, pixels.
        cells: side of the result.

    Returns:
        (cells, cells) float32 in [0, 1].
    """
    share = _shares(mask, reshaped[0], frame, cells)
    return np.ascontiguousarray(_shares(share.T, reshaped[1], frame, cells).T)


def _shares(values: np.ndarray, reshaped: int, frame: int, cells: int) -> np.ndarray:
    """Means of (n, m) over `cells` equal pieces of the first axis, which covers `reshaped` of `frame` pixels."""
    n = len(values)
    piece = frame / cells * n / reshaped
    edges = np.minimum(np.arange(cells + 1) * piece, n)
    lower = np.minimum(edges.astype(np.int64), n - 1)
    sums = np.zeros((n + 1, values.shape[1]), dtype=np.float32)
    np.cumsum(values, axis=0, dtype=np.float32, out=sums[1:])
    at_edges = sums[lower] + (edges - lower).astype(np.float32)[:, None] * (sums[lower + 1] - sums[lower])
    return np.diff(at_edges, axis=0) / np.float32(piece)
