# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""How far a matte is from the truth. Two sets of definitions are in use; their numbers cannot be compared.

| | ZIM, MicroMat-3K (`zim_matting_scores`) | matting benchmarks (`benchmark_matting_scores`) |
| --- | --- | --- |
| region | the whole image | unknown pixels of the trimap; the whole image without one |
| SAD | sum of abs(p - t) / 1000 | the same over the region |
| MSE, MAE | mean over the image x 1000 | mean over the region x 1000 |
| Grad | mean of abs(G(p) - G(t)) x 1000, G the Sobel gradient's length | sum of (G(p) - G(t))^2 / 1000, G the length of \
the gradient after a Gaussian of 1.4 pixels |
| Conn | sum of abs(phi(p) - phi(t)) / 1000 | the same over the region |

The benchmark definitions are those of Rhemann et al. (A perceptually motivated online benchmark for image matting, CVPR
2009) in the scaling that deep matting papers print (Xu et al., Deep Image Matting, CVPR 2017).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

METRICS = ("mse", "sad", "mae", "grad", "conn")
GRADIENT_SIGMA = 1.4
_STEPS = np.arange(11, dtype=np.float32) / np.float32(10)  # thresholds of the connectivity error
_TOLERANCE = np.float32(0.15)  # smaller distances from the connected part do not count


def mean_absolute_error(alpha: np.ndarray, target: np.ndarray, region: np.ndarray | None = None) -> float:
    """MAE: the mean of abs(alpha - target), times 1000.

    Args:
        alpha, target: (H, W) floats in [0, 1], of one size.
        region: (H, W) bool, pixels that count; default all. Without any the error is 0.

    Raises:
        ValueError: shapes or values that do not fit.
    """
    difference = np.abs(np.subtract(*_checked(alpha, target)))
    return 1000 * _mean(difference, region)


def mean_squared_error(alpha: np.ndarray, target: np.ndarray, region: np.ndarray | None = None) -> float:
    """MSE: the mean of (alpha - target)^2, times 1000. Arguments and errors of [`mean_absolute_error`]."""
    difference = np.subtract(*_checked(alpha, target))
    return 1000 * _mean(difference * difference, region)


def sum_of_absolute_differences(alpha: np.ndarray, target: np.ndarray, region: np.ndarray | None = None) -> float:
    """SAD: the sum of abs(alpha - target), divided by 1000. Arguments and errors of [`mean_absolute_error`]."""
    return _sum(np.abs(np.subtract(*_checked(alpha, target))), region) / 1000


def sobel_gradient_error(alpha: np.ndarray, target: np.ndarray) -> float:
    """Grad as ZIM computes it: the mean of abs(G(alpha) - G(target)), times 1000.

    G = sqrt(gx^2 + gy^2 + 1e-8) of unnormalised 3 x 3 Sobel filters; outside the image is 0. Arguments and errors of
    [`mean_absolute_error`].
    """
    alpha, target = _checked(alpha, target)
    return 1000 * _mean(np.abs(_sobel_length(alpha) - _sobel_length(target)), None)


def gaussian_gradient_error(alpha: np.ndarray, target: np.ndarray, region: np.ndarray | None = None) -> float:
    """Grad of the matting benchmarks: the sum of (G(alpha) - G(target))^2, divided by 1000.

    G is the length of the gradient by derivatives of a Gaussian with sigma 1.4 (9 x 9 filters of Euclidean norm 1); the
    border pixels go on outside the image. Arguments and errors of [`mean_absolute_error`].
    """
    alpha, target = _checked(alpha, target)
    difference = _gaussian_length(alpha) - _gaussian_length(target)
    return _sum(difference * difference, region) / 1000


def connectivity_error(alpha: np.ndarray, target: np.ndarray, region: np.ndarray | None = None) -> float:
    """Conn, the same for ZIM and the benchmarks: the sum of abs(phi(alpha) - phi(target)), divided by 1000.

    For each pixel l is the highest threshold (steps of 0.1) up to which it belongs to the largest 4-connected component
    of the pixels where both mattes reach the threshold; phi(x) = 1 - d with d = x - l, or 1 where d < 0.15. Of equally
    large components the first one in reading order counts. Arguments and errors of [`mean_absolute_error`].

    Raises:
        ImportError: scikit-image is missing.
    """
    alpha, target = _checked(alpha, target)
    level = _connected_level(np.minimum(alpha, target))
    return _sum(np.abs(_connectedness(alpha - level) - _connectedness(target - level)), region) / 1000


def zim_matting_scores(alpha: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """`mse`, `sad`, `mae`, `grad`, `conn` as the official ZIM code defines them, for one object. Lower is better.

    Args:
        alpha, target: (H, W) floats in [0, 1], of one size: that of the original image.

    Raises:
        ValueError: shapes or values that do not fit.
        ImportError: scikit-image is missing.
    """
    return {
        "mse": mean_squared_error(alpha, target),
        "sad": sum_of_absolute_differences(alpha, target),
        "mae": mean_absolute_error(alpha, target),
        "grad": sobel_gradient_error(alpha, target),
        "conn": connectivity_error(alpha, target),
    }


def benchmark_matting_scores(
    alpha: np.ndarray, target: np.ndarray, trimap: np.ndarray | None = None
) -> dict[str, float]:
    """`mse`, `sad`, `mae`, `grad`, `conn` as matting benchmarks define them, for one object. Lower is better.

    Args:
        alpha, target: (H, W) floats in [0, 1], of one size: that of the original image.
        trimap: (H, W) uint8, 0 background, 255 object; where it has another value (usually 128) the matte is unknown: only
            these pixels count. `None`: all do ("whole image", as on AM-2K and AIM-500). Benchmarks put the trimap's known values into the prediction first: see
            [`apply_trimap`].

    Raises:
        ValueError: shapes or values that do not fit.
        ImportError: scikit-image is missing.
    """
    known = None if trimap is None else np.asarray(trimap)
    region = None if known is None else (known != 0) & (known != 255)
    return {
        "mse": mean_squared_error(alpha, target, region),
        "sad": sum_of_absolute_differences(alpha, target, region),
        "mae": mean_absolute_error(alpha, target, region),
        "grad": gaussian_gradient_error(alpha, target, region),
        "conn": connectivity_error(alpha, target, region),
    }


def apply_trimap(alpha: np.ndarray, trimap: np.ndarray) -> np.ndarray:
    """A matte (H, W) with 0 and 1 where the trimap says so (0 and 255); a new float32 array.

    Gradient and connectivity look at neighbours, so this changes their values near the border of the unknown part.
    """
    known = np.asarray(trimap)
    if known.shape != np.shape(alpha):
        raise ValueError(f"the trimap is {known.shape}, the matte {np.shape(alpha)} (height, width)")
    return np.where(known == 0, 0, np.where(known == 255, 1, alpha)).astype(np.float32)


def mean_scores(scores: Any) -> dict[str, float]:
    """The mean of each metric over a sequence of score dicts.

    Raises:
        ValueError: no scores.
    """
    scores = list(scores)
    if not scores:
        raise ValueError("there are no scores to average")
    return {name: float(np.mean([each[name] for each in scores])) for name in scores[0]}


def _checked(alpha: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    arrays = [np.asarray(value, dtype=np.float32) for value in (alpha, target)]
    if arrays[0].shape != arrays[1].shape or arrays[0].ndim != 2 or arrays[0].size == 0:
        raise ValueError(
            f"expected two mattes (H, W) of one size, got {arrays[0].shape} and {arrays[1].shape}: compare at the size of "
            "the original image, one object at a time"
        )
    for name, values in zip(("the matte", "the target"), arrays):
        if not (values.min() >= 0 and values.max() <= 1):  # also false for NaN
            raise ValueError(f"{name} must lie in [0, 1], got {values.min()} to {values.max()}")
    return arrays[0], arrays[1]


def _sum(values: np.ndarray, region: np.ndarray | None) -> float:
    if region is None:
        return float(values.sum(dtype=np.float64))
    if region.shape != values.shape:
        raise ValueError(f"the region or trimap is {region.shape}, the mattes {values.shape} (height, width)")
    return float(values.sum(dtype=np.float64, where=region))


def _mean(values: np.ndarray, region: np.ndarray | None) -> float:
    count = values.size if region is None else int(np.count_nonzero(region))
    return _sum(values, region) / max(count, 1)


def _sobel_length(values: np.ndarray) -> np.ndarray:
    padded = np.pad(values, 1)
    smooth = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    down = smooth[2:] - smooth[:-2]
    smooth = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    right = smooth[:, 2:] - smooth[:, :-2]
    return np.sqrt(down * down + right * right + np.float32(1e-8))


@cache
def _gaussian_filters() -> tuple[np.ndarray, np.ndarray]:
    """The Gaussian and its derivative as far as they matter, each of Euclidean norm 1 (so is their outer product)."""
    reach = int(np.ceil(GRADIENT_SIGMA * np.sqrt(-2 * np.log(np.sqrt(2 * np.pi) * GRADIENT_SIGMA * 0.01))))
    x = np.arange(-reach, reach + 1)
    gaussian = np.exp(-(x**2) / (2 * GRADIENT_SIGMA**2))
    derivative = -x * gaussian
    return tuple((f / np.linalg.norm(f)).astype(np.float32) for f in (gaussian, derivative))  # type: ignore[return-value]


def _gaussian_length(values: np.ndarray) -> np.ndarray:
    gaussian, derivative = _gaussian_filters()
    right = _along_rows(_along_rows(values, derivative).T, gaussian)
    down = _along_rows(_along_rows(values, gaussian).T, derivative)
    return np.sqrt(right * right + down * down).T


def _along_rows(values: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Convolution of the last axis of (n, m), border values repeated."""
    reach = len(taps) // 2
    padded = np.pad(np.ascontiguousarray(values), ((0, 0), (reach, reach)), mode="edge")
    found = np.zeros(values.shape, dtype=np.float32)
    for i, tap in enumerate(taps[::-1]):
        found += tap * padded[:, i : i + values.shape[1]]
    return found


def _connectedness(distance: np.ndarray) -> np.ndarray:
    return 1 - np.where(distance >= _TOLERANCE, distance, 0)


def _connected_level(lower: np.ndarray) -> np.ndarray:
    """l of [`connectivity_error`], (H, W) float32, of the smaller one of both mattes."""
    try:
        from skimage.measure import label
    except ImportError as error:
        raise ImportError("the connectivity error needs scikit-image: pip install 'hf_segcap[demo]'") from error
    level = np.ones_like(lower)
    open_pixels = np.ones(lower.shape, dtype=bool)  # in all components so far
    window = (slice(0, lower.shape[0]), slice(0, lower.shape[1]))
    for below, step in zip(_STEPS[:-1], _STEPS[1:]):
        reached = lower[window] >= step
        rows, columns = np.flatnonzero(reached.any(axis=1)), np.flatnonzero(reached.any(axis=0))
        if len(rows) == 0:
            break
        # The sets shrink from step to step: all that follows happens inside this box.
        inner = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        components = label(reached[inner], connectivity=1)
        sizes = np.bincount(components.ravel())
        sizes[0] = 0
        connected = np.zeros(lower.shape, dtype=bool)
        top, left = window[0].start, window[1].start
        window = (
            slice(top + inner[0].start, top + inner[0].stop),
            slice(left + inner[1].start, left + inner[1].stop),
        )
        connected[window] = components == sizes.argmax()
        level[open_pixels & ~connected] = below
        open_pixels &= connected
    else:
        return level
    level[open_pixels] = below
    return level
