# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import builtins
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from hf_segcap.evaluation import matting_metrics as metrics

FIXTURES = Path(__file__).parents[1] / "fixtures" / "zim"
OFFICIAL_NAMES = {"l1": "mae", "l2": "mse", "sad": "sad", "grad": "grad", "conn": "conn"}

pytest.importorskip("skimage")


@pytest.fixture(scope="module")
def golden():
    tensors = load_file(FIXTURES / "metrics.safetensors")
    values = json.loads((FIXTURES / "metrics.json").read_text())
    pairs = [(tensors[f"metric.{i}.pred"], tensors[f"metric.{i}.gt"]) for i in range(len(values["pairs"]))]
    return pairs, values


def soft_disc(size=41, radius=12.0, softness=3.0, centre=(20, 20)):
    y, x = np.mgrid[:size, :size]
    distance = np.hypot(y - centre[0], x - centre[1])
    return np.clip((radius - distance) / softness + 0.5, 0, 1).astype(np.float32)


@pytest.mark.golden
def test_zim_scores_are_the_official_ones(golden):
    pairs, values = golden
    found = [metrics.zim_matting_scores(alpha, target) for alpha, target in pairs]
    for scores, expected in zip(found, values["pairs"]):
        for official, name in OFFICIAL_NAMES.items():
            assert scores[name] == pytest.approx(expected[official], rel=1e-5), name
    mean = metrics.mean_scores(found)
    for official, name in OFFICIAL_NAMES.items():
        assert mean[name] == pytest.approx(values["batch"][official], rel=1e-5)


def slow_connectivity(alpha, target, region):
    """Word by word from the definition, with a flood fill."""
    alpha, target = alpha.astype(np.float64), target.astype(np.float64)
    height, width = alpha.shape
    level = np.full(alpha.shape, -1.0)
    for i in range(1, 11):
        both = (np.minimum(alpha, target) >= np.float32(i / 10)).copy()
        left, largest = both.copy(), []
        for start in zip(*np.nonzero(both)):
            stack, found = [start] if left[start] else [], []
            if stack:
                left[start] = False
            while stack:
                y, x = stack.pop()
                found.append((y, x))
                for b, a in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                    if 0 <= b < height and 0 <= a < width and left[b, a]:
                        left[b, a] = False
                        stack.append((b, a))
            largest = found if len(found) > len(largest) else largest
        omega = np.zeros(alpha.shape, dtype=bool)
        for place in largest:
            omega[place] = True
        level[(level == -1) & ~omega] = (i - 1) / 10
    level[level == -1] = 1
    phi = [1 - (value - level) * (value - level >= 0.15) for value in (alpha, target)]
    return np.abs(phi[0] - phi[1])[region].sum() / 1000


@pytest.mark.parametrize("seed", range(4))
def test_connectivity_equals_its_definition(seed):
    rng = np.random.default_rng(seed)
    # Values off the steps: there float32 and float64 agree which threshold is reached.
    alpha, target = (np.kron(rng.integers(0, 12, (9, 7)), np.ones((2, 2))) / 12 + 0.021 for _ in range(2))
    alpha, target = (value.clip(0, 1).astype(np.float32) for value in (alpha, np.maximum(target, alpha - 0.3)))
    region = rng.random(alpha.shape) > 0.4
    assert metrics.connectivity_error(alpha, target) == pytest.approx(
        slow_connectivity(alpha, target, np.ones_like(region)), rel=1e-4
    )
    assert metrics.connectivity_error(alpha, target, region) == pytest.approx(
        slow_connectivity(alpha, target, region), rel=1e-4
    )


def test_connectivity_punishes_islands():
    target = soft_disc()
    island = target.copy()
    island[2:5, 2:5] = 0.6
    smudge = target.copy()
    smudge[18:21, 18:21] = 0.4  # the same differences inside the object
    assert metrics.connectivity_error(island, target) == pytest.approx(9 * 0.6 / 1000, rel=1e-4)
    assert metrics.connectivity_error(smudge, target) == pytest.approx(9 * 0.6 / 1000, rel=1e-4)
    faint = target.copy()
    faint[2:5, 2:5] = 0.14  # below the tolerance of 0.15
    assert metrics.connectivity_error(faint, target) == 0
    assert metrics.connectivity_error(np.zeros((4, 5)), np.zeros((4, 5))) == 0


def test_gaussian_gradient_equals_a_direct_convolution():
    ndimage = pytest.importorskip("scipy.ndimage")
    sigma = 1.4
    x = np.arange(-4, 5)
    gaussian, slope = np.exp(-(x**2) / (2 * sigma**2)), -x * np.exp(-(x**2) / (2 * sigma**2))
    kernel = np.outer(gaussian, slope)
    kernel /= np.sqrt((kernel**2).sum())

    def length(values):
        parts = [ndimage.convolve(values.astype(np.float64), k, mode="nearest") for k in (kernel, kernel.T)]
        return np.hypot(*parts)

    rng = np.random.default_rng(0)
    target, alpha = soft_disc(), (soft_disc(radius=10) * rng.uniform(0.8, 1, (41, 41))).astype(np.float32)
    error = (length(alpha) - length(target)) ** 2
    region = rng.random(target.shape) > 0.5
    assert metrics.gaussian_gradient_error(alpha, target) == pytest.approx(error.sum() / 1000, rel=1e-5)
    assert metrics.gaussian_gradient_error(alpha, target, region) == pytest.approx(
        error[region].sum() / 1000, rel=1e-5
    )


def test_both_definitions_by_hand():
    target, alpha = np.zeros((10, 20), dtype=np.float32), np.zeros((10, 20), dtype=np.float32)
    alpha[:, :4] = 0.5
    scores = metrics.zim_matting_scores(alpha, target)
    assert scores["sad"] == pytest.approx(40 * 0.5 / 1000)
    assert scores["mae"] == pytest.approx(1000 * 0.2 * 0.5) and scores["mse"] == pytest.approx(1000 * 0.2 * 0.25)
    trimap = np.full((10, 20), 255, dtype=np.uint8)
    trimap[:, 3:5] = 128
    scores = metrics.benchmark_matting_scores(alpha, target, trimap)
    assert scores["sad"] == pytest.approx(10 * 0.5 / 1000)
    assert scores["mae"] == pytest.approx(1000 * 0.5 * 0.5) and scores["mse"] == pytest.approx(1000 * 0.5 * 0.25)
    trimap[trimap == 128] = 102  # some trimaps have another grey
    assert metrics.benchmark_matting_scores(alpha, target, trimap) == scores
    whole = metrics.benchmark_matting_scores(alpha, target)
    zim = metrics.zim_matting_scores(alpha, target)
    assert all(whole[name] == zim[name] for name in ("sad", "mae", "mse", "conn")) and whole["grad"] != zim["grad"]
    assert tuple(whole) == tuple(zim) == metrics.METRICS
    nothing = metrics.benchmark_matting_scores(alpha, target, np.zeros((10, 20), dtype=np.uint8))
    assert all(value == 0 for value in nothing.values())


def test_equal_mattes_have_no_error():
    matte = soft_disc()
    for scores in (metrics.zim_matting_scores(matte, matte), metrics.benchmark_matting_scores(matte, matte)):
        assert all(value == 0 for value in scores.values())


def test_known_parts_of_a_trimap_are_filled_in():
    trimap = np.array([[0, 128, 255]], dtype=np.uint8)
    assert metrics.apply_trimap(np.array([[0.7, 0.7, 0.7]]), trimap).tolist() == [[0, pytest.approx(0.7), 1]]
    with pytest.raises(ValueError, match="trimap"):
        metrics.apply_trimap(np.zeros((2, 3)), trimap)


@pytest.mark.parametrize(
    ("alpha", "target", "message"),
    [
        (np.zeros((4, 5)), np.zeros((5, 4)), "one size"),
        (np.zeros((1, 4, 5)), np.zeros((1, 4, 5)), "one size"),
        (np.full((4, 5), 2.0), np.zeros((4, 5)), "the matte must lie in"),
        (np.zeros((4, 5)), np.full((4, 5), np.nan), "the target must lie in"),
    ],
)
def test_unusable_mattes_are_refused(alpha, target, message):
    with pytest.raises(ValueError, match=message):
        metrics.zim_matting_scores(alpha, target)


def test_regions_of_another_size_are_refused():
    with pytest.raises(ValueError, match="trimap"):
        metrics.benchmark_matting_scores(np.zeros((4, 5)), np.zeros((4, 5)), np.full((4, 4), 128))
    with pytest.raises(ValueError, match="no scores"):
        metrics.mean_scores([])


def test_missing_library_is_named(monkeypatch):
    load = builtins.__import__

    def without_skimage(name, *args, **kwargs):
        if name.startswith("skimage"):
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_skimage)
    with pytest.raises(ImportError, match="scikit-image"):
        metrics.connectivity_error(np.zeros((4, 5)), np.zeros((4, 5)))
