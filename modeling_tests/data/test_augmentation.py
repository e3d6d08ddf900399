# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from hf_segcap.data.augmentation import LargeScaleJitter

FIXTURES = Path(__file__).parents[1] / "fixtures" / "sca" / "processor"


@pytest.fixture(scope="module")
def golden():
    return load_file(FIXTURES / "expected.safetensors"), json.loads((FIXTURES / "expected.json").read_text())["lsj"]


@pytest.mark.golden
@pytest.mark.parametrize("case", range(4))
def test_golden_cases_are_reproduced_exactly(golden, case):
    tensors, meta = golden
    jitter = LargeScaleJitter(meta["image_size"], meta["min_scale"], meta["max_scale"])
    seed, boxes = meta["cases"][case]["numpy_seed"], tensors["lsj/source_boxes"]

    image, from_int = jitter(tensors["lsj/source_image"], boxes, np.random.RandomState(seed))
    np.testing.assert_array_equal(image, tensors[f"lsj/case_{case}/image_uint8"])
    np.testing.assert_array_equal(from_int, tensors[f"lsj/case_{case}/boxes_from_int"])
    assert from_int.dtype == boxes.dtype

    transform = jitter.draw(tensors["lsj/source_image"].shape[:2], np.random.RandomState(seed))
    assert transform.flip == meta["cases"][case]["flipped"]
    from_float = transform.apply_boxes(boxes.astype(np.float64))
    np.testing.assert_allclose(from_float, tensors[f"lsj/case_{case}/boxes_from_float"], rtol=0, atol=1e-12)


def test_masks_follow_the_boxes():
    mask = np.zeros((40, 60), bool)
    mask[10:30, 5:25] = True
    jitter = LargeScaleJitter(64, 0.9, 1.1)
    for seed in range(8):
        transform = jitter.draw((40, 60), np.random.default_rng(seed))
        box = transform.apply_boxes(np.array([[5.0, 10.0, 25.0, 30.0]]))[0].clip(0, 64)
        ys, xs = np.nonzero(transform.apply_mask(mask))
        found = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert np.abs(found - box).max() <= 1.5, seed


def test_mattes_follow_the_image():
    """A grey image and the matte of the same values stay the same, but for the last bit and the padding."""
    image = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8).repeat(9, 0).repeat(9, 1)
    for seed in range(6):
        transform = LargeScaleJitter(64, 0.3, 1.6).draw(image.shape, np.random.default_rng(seed))
        matte = transform.apply_matte(image.astype(np.float32) / 255)
        moved = transform.apply_image(np.repeat(image[..., None], 3, axis=2))[..., 0]
        height, width = (min(side, 64) for side in transform.resized)
        np.testing.assert_allclose(matte[:height, :width] * 255, moved[:height, :width], atol=1.01)
        assert matte.dtype == np.float32 and not matte[height:].any() and not matte[:, width:].any()
    with pytest.raises(ValueError, match="the matte is"):
        transform.apply_matte(np.zeros((60, 40), np.float32))


def test_image_content_follows_the_boxes():
    image = np.zeros((50, 50, 3), np.uint8)
    image[10:30, 5:25] = 255
    jitter = LargeScaleJitter(48, 0.5, 1.5)
    for seed in range(8):
        out, boxes = jitter(image, np.array([[5.0, 10.0, 25.0, 30.0]]), np.random.default_rng(seed))
        x0, y0, x1, y1 = np.round(boxes[0]).clip(0, 48).astype(int)
        if min(x1 - x0, y1 - y0) > 4:
            assert out[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].min() >= 254, seed  # truncation may lose one grey level


def test_the_padding_is_the_mean_colour():
    out, _ = LargeScaleJitter(64, 0.1, 0.1)(
        np.full((30, 30, 3), 255, np.uint8), np.zeros((0, 4)), np.random.default_rng(0)
    )
    assert out[-1, -1].tolist() == [123, 116, 103]  # trunc(255 * ImageNet mean)
    assert out[0, 0].tolist() == [255, 255, 255]


def test_a_sliver_keeps_a_pixel():
    out, _ = LargeScaleJitter(64, 0.1, 0.1)(
        np.zeros((1, 900, 3), np.uint8), np.zeros((0, 4)), np.random.default_rng(0)
    )
    assert out[0, 0].tolist() == [0, 0, 0] and out[1, 0].tolist() == [123, 116, 103]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image_size": 0}, "image_size"),
        ({"image_size": 64, "min_scale": 2.0, "max_scale": 1.0}, "min_scale"),
        ({"image_size": 64, "flip_probability": 1.5}, "flip_probability"),
    ],
)
def test_bad_settings_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LargeScaleJitter(**kwargs)


def test_bad_inputs_are_refused():
    transform = LargeScaleJitter(64).draw((40, 60), np.random.default_rng(0))
    with pytest.raises(ValueError, match="uint8"):
        transform.apply_image(np.zeros((40, 60, 3), np.float32))
    with pytest.raises(ValueError, match="drawn for"):
        transform.apply_image(np.zeros((41, 60, 3), np.uint8))
    with pytest.raises(ValueError, match="drawn for"):
        transform.apply_mask(np.zeros((60, 40), bool))
