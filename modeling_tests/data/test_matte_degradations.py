# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest
from PIL import Image

from hf_segcap.data import matte_degradations as degradations
from hf_segcap.data.matte_degradations import (
    blur_mask,
    composite,
    convex_hulls,
    cut_region,
    degrade_matte,
    dilate_mask,
    erode_mask,
    fit_background,
    lower_resolution,
    training_pair,
)


def disc(radius=40.0, softness=10.0, size=128, centre=(64, 64)):
    y, x = np.mgrid[:size, :size]
    distance = np.hypot(y - centre[0], x - centre[1])
    return np.clip((radius - distance) / softness + 0.5, 0, 1).astype(np.float32)


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def test_dilation_equals_a_search():
    rng = np.random.default_rng(0)
    mask = rng.random((23, 31)) > 0.97
    for size in (1, 3, 7, 11):
        reach = size // 2
        offsets = [
            (y, x)
            for y in range(-reach, reach + 1)
            for x in range(-reach, reach + 1)
            if y * y + x * x <= (reach + 0.5) ** 2
        ]
        expected = np.zeros_like(mask)
        for y, x in zip(*np.nonzero(mask)):
            for dy, dx in offsets:
                if 0 <= y + dy < 23 and 0 <= x + dx < 31:
                    expected[y + dy, x + dx] = True
        np.testing.assert_array_equal(dilate_mask(mask, size), expected)
        np.testing.assert_array_equal(erode_mask(~mask, size), ~expected)
    with pytest.raises(ValueError, match="odd"):
        dilate_mask(mask, 4)


def test_erosion_leaves_the_border_of_the_image():
    whole = np.ones((9, 9), dtype=bool)
    assert erode_mask(whole, 5).all()


def test_hulls_are_convex_and_separate():
    skimage = pytest.importorskip("skimage.morphology")
    mask = np.zeros((40, 60), dtype=bool)
    mask[5:25, 5:9] = mask[21:25, 5:25] = True  # an L
    mask[30:38, 40:58:4] = True  # lines apart from each other
    hulls = convex_hulls(mask)
    assert (hulls | mask == hulls).all() and hulls[15, 12] and not hulls[8, 22]
    np.testing.assert_array_equal(hulls[28:], mask[28:])
    corner = mask.copy()
    corner[28:] = False
    assert overlap(convex_hulls(corner), skimage.convex_hull_image(corner)) > 0.9
    assert not convex_hulls(np.zeros((5, 5), dtype=bool)).any()


def test_blur_rounds_and_resolution_makes_coarse():
    star = np.zeros((96, 96), dtype=bool)
    star[46:50, 8:88] = star[8:88, 46:50] = True
    star[30:66, 30:66] = True
    blurred = blur_mask(star, 4.0, 0.5)
    assert not blurred[48, 10] and blurred[48, 48] and overlap(blurred, star) > 0.6
    coarse = lower_resolution(star, 12.0)
    assert overlap(coarse, star) > 0.5 and not np.array_equal(coarse, star)
    np.testing.assert_array_equal(lower_resolution(star, 1.0), star)


def test_labels_stay_close_to_the_object_and_differ_from_each_other():
    alpha, rng = disc(), np.random.default_rng(0)
    labels = [degrade_matte(alpha, rng) for _ in range(200)]
    assert all(label.dtype == bool and label.shape == alpha.shape for label in labels)
    ious = np.array([overlap(label, alpha > 0.5) for label in labels])
    assert ious.min() > 0.5 and 0.8 < ious.mean() < 0.97 and len({label.tobytes() for label in labels}) > 150
    areas = np.array([label.sum() for label in labels]) / (alpha > 0.5).sum()
    assert (areas < 0.95).mean() > 0.15 and (areas > 1.05).mean() > 0.15


def test_lengths_follow_the_size_of_the_image(monkeypatch):
    """The same draws on an image four times as large give the same label, four times as large."""
    monkeypatch.setattr(degradations, "HULL_PROBABILITY", 0.0)
    small, large = disc(), disc(160, 40, 512, (257.5, 257.5))
    for seed in range(20):
        labels = [degrade_matte(alpha, np.random.default_rng(seed)) for alpha in (small, large)]
        assert overlap(labels[0], labels[1].reshape(128, 4, 128, 4).mean((1, 3)) > 0.5) > 0.88


def test_labels_are_never_empty():
    hair = np.zeros((64, 64), dtype=np.float32)
    hair[20:40, 30] = 0.08  # fainter than every threshold and one pixel wide
    rng = np.random.default_rng(1)
    assert all(degrade_matte(hair, rng).any() for _ in range(60))
    assert not degrade_matte(hair * 0, rng).any()


def test_steps_happen_as_often_as_they_should(monkeypatch):
    called = {}

    def counted(name):
        step = getattr(degradations, name)

        def wrapper(mask, *args):
            called[name] = called.get(name, 0) + 1
            return step(mask, *args)

        monkeypatch.setattr(degradations, name, wrapper)

    for name in ("lower_resolution", "blur_mask", "erode_mask", "dilate_mask", "convex_hulls"):
        counted(name)
    alpha, rng = disc(12, 3, 32, (16, 16)), np.random.default_rng(0)
    for _ in range(600):
        degrade_matte(alpha, rng)
    # an erosion is a dilation of the rest
    shares = {name: count / 600 for name, count in called.items()}
    expected = {"lower_resolution": 0.5, "blur_mask": 0.5, "erode_mask": 0.25, "dilate_mask": 0.5, "convex_hulls": 0.1}
    assert shares == pytest.approx(expected, abs=0.06)


def test_a_rectangle_is_cut_out_of_both():
    alpha, rng = disc(), np.random.default_rng(0)
    label, cuts, sides = alpha > 0.4, 0, []
    for _ in range(400):
        cut_label, cut_alpha = cut_region(label, alpha, rng)
        gone = (cut_alpha != alpha) | (cut_label != label)
        if not gone.any():
            continue
        cuts += 1
        rows, columns = np.flatnonzero(gone.any(1)), np.flatnonzero(gone.any(0))
        window = np.zeros_like(label)
        window[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        assert not cut_alpha[window].any() and not cut_label[window].any()
        np.testing.assert_array_equal(cut_alpha[~window], alpha[~window])
        sides.append((len(rows) + 0.0, len(columns) + 0.0))
    assert 0.4 < cuts / 400 < 0.6
    assert np.max(sides) <= 0.6 * 90 + 1 and np.min(sides) < 0.2 * 90 and alpha.max() == 1  # the input is left alone
    always = sum(not np.array_equal(cut_region(label, alpha, rng, 1.0)[1], alpha) for _ in range(50))
    assert always >= 45  # a small one beside the disc, in its box, hits nothing
    assert np.array_equal(cut_region(label, alpha, rng, 0.0)[0], label)


def test_some_of_the_object_is_always_left():
    alpha, rng = np.zeros((40, 60), dtype=np.float32), np.random.default_rng(0)
    alpha[5, 5] = alpha[30, 50] = 0.2
    alpha[18:21, 27:31] = 1  # nearly all of it lies in the middle of a large box
    for _ in range(200):
        label, matte = cut_region(alpha > 0.5, alpha, rng, 1.0)
        assert matte.sum() >= 0.1 * alpha.sum() and label.sum() >= 0.1 * 12
    empty = np.zeros((5, 5), dtype=np.float32)
    assert not cut_region(empty > 0, empty, rng, 1.0)[1].any()


def test_coarse_objects_keep_their_segmentation():
    alpha, rng = disc(), np.random.default_rng(0)
    label, matte = training_pair(alpha, rng, coarse=True, sga_probability=0)
    np.testing.assert_array_equal(label, alpha > 0.5)
    np.testing.assert_array_equal(matte, label.astype(np.float32))
    fine = [training_pair(alpha, rng, sga_probability=0) for _ in range(20)]
    assert all(np.array_equal(matte, alpha) for _, matte in fine)
    assert len({label.tobytes() for label, _ in fine}) > 12
    cut = [training_pair(alpha, rng, coarse=True) for _ in range(100)]
    assert 30 < sum(not np.array_equal(label, alpha > 0.5) for label, _ in cut) < 70
    assert all(np.array_equal(matte, label) for label, matte in cut)


def test_composites_by_hand():
    foreground, background = np.full((2, 3, 3), 200, dtype=np.uint8), np.full((2, 3, 3), 100, dtype=np.uint8)
    alpha = np.array([[0, 0.25, 0.5], [0.75, 1, 0.333]], dtype=np.float32)
    found = composite(foreground, alpha, background)
    assert found.dtype == np.uint8 and found[..., 0].tolist() == [[100, 125, 150], [175, 200, 133]]
    with pytest.raises(ValueError, match="one size"):
        composite(foreground, alpha[:1], background)


def test_backgrounds_are_enlarged_only_if_needed():
    ramp = np.broadcast_to(np.arange(60, dtype=np.uint8)[None, :, None] * 4, (40, 60, 3))
    picture = Image.fromarray(np.ascontiguousarray(ramp))
    np.testing.assert_array_equal(fit_background(picture, (20, 30)), ramp[:20, :30])
    assert fit_background(picture, (100, 30)).shape == (100, 30, 3)
    places = {int(fit_background(picture, (20, 30), np.random.default_rng(seed))[0, 0, 0]) for seed in range(20)}
    assert len(places) > 8 and max(places) <= 30 * 4
