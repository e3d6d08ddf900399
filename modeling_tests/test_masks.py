# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Masks: RLE against pycocotools, NMS against a slow reference, upscaling against the official predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco
from safetensors.torch import load_file

from hf_segcap.masks import (
    box_nms,
    build_point_grid,
    decode_rle,
    encode_rle,
    mask_to_box,
    stability_score,
    touches_crop_edge,
    upscale_masks,
)

FIXTURES = Path(__file__).parent / "fixtures" / "sca"


# --- run-length encoding ----------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_rle_is_byte_compatible_with_pycocotools(mask):
    expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    rle = encode_rle(mask)
    assert rle["size"] == expected["size"]
    assert rle["counts"].encode() == expected["counts"]
    np.testing.assert_array_equal(decode_rle(rle), mask)
    np.testing.assert_array_equal(decode_rle(expected), mask)  # bytes, as pycocotools gives them
    np.testing.assert_array_equal(coco.decode({**rle, "counts": rle["counts"].encode()}), mask)


@pytest.mark.parametrize("fraction", [0.0, 0.0001, 0.3, 1.0])
def test_rle_of_long_runs(fraction):
    mask = np.random.default_rng(0).random((1300, 1700)) < fraction  # runs of more than 2**20 pixels
    rle = encode_rle(torch.from_numpy(mask))
    assert rle["counts"].encode() == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    np.testing.assert_array_equal(decode_rle(json.loads(json.dumps(rle))), mask)


def test_uncompressed_rle():
    # Column-major: the first column holds 1, 0, the second 1, 1.
    np.testing.assert_array_equal(
        decode_rle({"size": [2, 2], "counts": [0, 1, 1, 2]}), np.array([[True, True], [False, True]])
    )


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [2, 2], "counts": "4"},  # 4 pixels of 4: fine, used below with another size
        {"size": [2, 2], "counts": [1, 2]},
        {"size": [2, 2], "counts": [-1, 5]},
        {"size": [2, 2], "counts": "\x01"},
        {"size": [2, 2], "counts": "o"},  # says that another character follows
        {"size": [2, 2], "counts": "o" * 20 + "0"},
        {"size": [2, 2], "counts": "é"},
        {"size": [2, 2], "counts": [[1], [2, 3]]},
        {"size": [2], "counts": [4]},
        {"counts": [4]},
        None,
    ],
)
def test_damaged_rle(rle):
    if rle and rle.get("counts") == "4":
        assert decode_rle(rle).shape == (2, 2)
        rle = {**rle, "size": [3, 2]}
    with pytest.raises(ValueError, match="RLE"):
        decode_rle(rle)


def test_encode_wants_one_mask():
    with pytest.raises(ValueError, match="one by one"):
        encode_rle(np.zeros((2, 3, 3), bool))


# --- boxes and scores -------------------------------------------------------------------------------------------------


def test_mask_to_box():
    masks = torch.zeros(2, 2, 5, 7, dtype=torch.bool)
    masks[0, 0, 1:4, 2:6] = True
    masks[0, 1, 4, 6] = True
    masks[1, 0] = True
    assert mask_to_box(masks).tolist() == [[[2, 1, 5, 3], [6, 4, 6, 4]], [[0, 0, 6, 4], [0, 0, 0, 0]]]
    assert mask_to_box(torch.zeros(0, 5, 7, dtype=torch.bool)).shape == (0, 4)
    assert mask_to_box(torch.zeros(3, 0, 7, dtype=torch.bool)).tolist() == [[0, 0, 0, 0]] * 3


def test_stability_score():
    logits = torch.tensor([[[2.0, 0.5], [-0.5, -2.0]], [[-3.0, -3.0], [-3.0, -3.0]], [[1.0, -1.0], [1.0, 1.5]]])
    scores = stability_score(logits)
    assert scores[0] == pytest.approx(1 / 3)
    assert scores[1].isnan()  # 0 / 0, as in the official generator
    assert not scores[1] >= 0.0
    assert scores[2] == pytest.approx(1 / 3)  # both cuts are strict
    assert stability_score(logits[0], threshold=1.0, offset=0.4) == pytest.approx(1.0)
    assert stability_score(logits[None]).shape == (1, 3)


def slow_nms(boxes: list[list[float]], scores: list[float], threshold: float) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda index: -scores[index]):
        for j in kept:
            a, b = boxes[i], boxes[j]
            width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            overlap = max(width, 0) * max(height, 0)
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
            if union > 0 and overlap / union > threshold:
                break
        else:
            kept.append(i)
    return kept


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 9), st.integers(0, 9), st.integers(0, 4)),
        max_size=30,
    ),
    st.sampled_from([0.0, 0.29, 0.55, 0.71, 1.0]),
)
def test_box_nms_equals_a_slow_reference(items, threshold):
    boxes = [[float(x), float(y), float(x + w), float(y + h)] for x, y, w, h, _ in items]
    scores = [float(score) for *_, score in items]  # many ties
    kept = box_nms(torch.tensor(boxes).reshape(-1, 4).double(), torch.tensor(scores), threshold)
    assert kept.tolist() == slow_nms(boxes, scores, threshold)


def test_box_nms_is_strict_and_stable():
    boxes = torch.tensor([[0, 0, 2, 2], [0, 0, 2, 1], [0, 0, 2, 2], [5, 5, 5, 5], [5, 5, 5, 5]])
    # IoU of exactly one half survives a threshold of one half; boxes without area suppress nothing
    assert box_nms(boxes, torch.tensor([0.5, 0.9, 0.5, 0.1, 0.1]), 0.5).tolist() == [1, 0, 3, 4]
    with pytest.raises(ValueError, match="shape"):
        box_nms(boxes, torch.zeros(4), 0.5)


def test_touches_crop_edge():
    crop, size = (100, 0, 300, 200), (200, 400)  # upper and lower edge are those of the image
    boxes = torch.tensor([[50, 5, 90, 199], [20, 50, 90, 90], [21, 50, 90, 90], [50, 50, 180, 90], [50, 50, 179, 90]])
    assert touches_crop_edge(boxes, crop, size).tolist() == [False, True, False, True, False]
    assert not touches_crop_edge(boxes, (0, 0, 400, 200), size).any()


def test_point_grid():
    assert build_point_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    assert build_point_grid(3)[:2].tolist() == [[1 / 6, 1 / 6], [0.5, 1 / 6]]


# --- upscaling --------------------------------------------------------------------------------------------------------


@pytest.mark.golden
@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_upscaled_masks_equal_the_official_ones(model):
    outputs = load_file(FIXTURES / model / "outputs.safetensors")
    sizes = load_file(FIXTURES / model / "inputs.safetensors")
    low_res = outputs["box/decoder/low_res_masks"][1]
    logits = upscale_masks(low_res, sizes["reshaped_input_sizes"][1], sizes["original_sizes"][1], 64)
    torch.testing.assert_close(logits[:2], outputs["postprocess/image_1/mask_logits"], atol=1e-5, rtol=0)
    assert torch.equal((logits > 0).to(torch.uint8), outputs["postprocess/image_1/masks"])


def test_upscaling_shapes_and_precision():
    low_res = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert upscale_masks(low_res, (20, 32), (50, 80), (32, 32)).shape == (3, 2, 50, 80)
    half = upscale_masks(low_res.bfloat16(), (20, 32), (50, 80), 32)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, upscale_masks(low_res.bfloat16().float(), (20, 32), (50, 80), 32))
    assert upscale_masks(low_res[:0], (20, 32), (50, 80), 32).shape == (0, 2, 50, 80)
    with pytest.raises(ValueError, match="low_res"):
        upscale_masks(low_res[0], (20, 32), (50, 80), 32)
