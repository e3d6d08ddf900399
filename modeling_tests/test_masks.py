# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Masks: RLE against pycocotools, NMS and small regions against slow references, all against official results."""

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
    MaskRuns,
    box_nms,
    build_point_grid,
    decode_rle,
    encode_rle,
    mask_to_box,
    remove_small_regions,
    stability_score,
    touches_crop_edge,
    upscale_masks,
    without_padding,
)

FIXTURES = Path(__file__).parent / "fixtures" / "sca"
UTILS = Path(__file__).parent / "fixtures" / "sam"


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(UTILS / "utils.safetensors")


@pytest.fixture(scope="module")
def golden_json() -> dict:
    return json.loads((UTILS / "utils.json").read_text())


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


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16, torch.bfloat16])
def test_tensors_of_any_type_are_encoded(dtype):
    mask = torch.eye(5)[:, :4].to(dtype)
    assert encode_rle(mask) == MaskRuns.encode(mask[None]).to_coco()[0] == encode_rle(mask.bool().numpy())


def test_encode_wants_one_mask():
    with pytest.raises(ValueError, match="one by one"):
        encode_rle(np.zeros((2, 3, 3), bool))


# --- many masks as runs -----------------------------------------------------------------------------------------------


def stacks(max_side=12):
    return arrays(bool, array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=max_side))


@settings(max_examples=150, deadline=None)
@given(stacks())
def test_runs_of_many_masks(masks):
    runs = MaskRuns.encode(masks)
    assert len(runs) == len(masks)
    np.testing.assert_array_equal(runs.decode(), masks)
    np.testing.assert_array_equal(MaskRuns.encode(torch.from_numpy(masks)).borders, runs.borders)
    assert runs.areas().tolist() == masks.sum((1, 2)).tolist()
    assert runs.boxes().tolist() == mask_to_box(torch.from_numpy(masks)).tolist()
    coco_rles = runs.to_coco()
    for mask, rle in zip(masks, coco_rles):
        assert rle["counts"].encode() == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    for rles in (coco_rles, runs.to_uncompressed()):
        again = MaskRuns.from_rles(rles)
        np.testing.assert_array_equal(again.borders, runs.borders)
        np.testing.assert_array_equal(again.offsets, runs.offsets)
    reverse = np.arange(len(masks))[::-1]
    np.testing.assert_array_equal(runs.select(reverse).decode(), masks[::-1])
    np.testing.assert_array_equal(MaskRuns.concat([runs, runs], runs.size).decode(), np.concatenate([masks, masks]))


@settings(max_examples=100, deadline=None)
@given(stacks(8), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
def test_runs_of_a_crop_in_its_image(masks, left, top, right, bottom):
    whole = np.pad(masks, ((0, 0), (top, bottom), (left, right)))
    embedded = MaskRuns.encode(masks).embed(whole.shape[1:], left, top)
    expected = MaskRuns.encode(whole)
    np.testing.assert_array_equal(embedded.borders, expected.borders)
    np.testing.assert_array_equal(embedded.offsets, expected.offsets)


def test_runs_without_masks_or_pixels():
    none = MaskRuns.encode(np.zeros((0, 4, 5), bool))
    assert len(none) == 0 and none.decode().shape == (0, 4, 5) and none.boxes().shape == (0, 4)
    assert none.to_coco() == none.to_uncompressed() == [] and none.areas().tolist() == []
    assert len(none.embed((9, 9), 1, 1)) == 0 and len(MaskRuns.concat([], (4, 5))) == 0
    assert len(none.remove_small_regions(3, "holes")[0]) == len(MaskRuns.from_rles([], size=(4, 5))) == 0
    flat = MaskRuns.encode(np.zeros((2, 0, 5), bool))
    assert flat.decode().shape == (2, 0, 5) and flat.areas().tolist() == [0, 0]
    with pytest.raises(ValueError, match="size"):
        MaskRuns.from_rles([])
    with pytest.raises(ValueError, match=r"\(N, height, width\)"):
        MaskRuns.encode(np.zeros((4, 5), bool))


def test_rles_with_empty_runs_and_of_different_sizes():
    runs = MaskRuns.from_rles(
        [{"size": [2, 2], "counts": [1, 0, 0, 2, 0, 1]}, {"size": [2, 2], "counts": [0, 1, 0, 3]}]
    )
    assert runs.to_uncompressed() == [{"size": [2, 2], "counts": [1, 3]}, {"size": [2, 2], "counts": [0, 4]}]
    with pytest.raises(ValueError, match="RLE 1 .*size"):
        MaskRuns.from_rles([{"size": [2, 2], "counts": [4]}, {"size": [1, 4], "counts": [4]}])
    with pytest.raises(ValueError, match="RLE 1: Damaged"):
        MaskRuns.from_rles([{"size": [2, 2], "counts": [4]}, {"size": [2, 2], "counts": [5]}])


@pytest.mark.golden
def test_official_rles_areas_and_boxes(golden, golden_json):
    runs = MaskRuns.encode(golden["masks"])
    assert runs.to_uncompressed() == golden_json["rle"]
    assert runs.to_coco() == golden_json["coco_rle"]
    assert runs.areas().tolist() == golden_json["area"]
    assert runs.boxes().tolist() == golden["box_from_mask"].tolist()
    assert torch.equal(mask_to_box(golden["masks"]), golden["box_from_mask"])
    assert torch.equal(mask_to_box(golden["masks"][:6].unflatten(0, (2, 3))), golden["box_from_mask_4d"])


# --- small regions ----------------------------------------------------------------------------------------------------


def slow_removal(mask, area_thresh, mode):
    """By flood fill, pixel by pixel."""
    height, width = mask.shape
    wanted = mask if mode == "islands" else ~mask
    seen, regions = np.zeros_like(mask), []
    for start in zip(*np.nonzero(wanted)):
        if seen[start]:
            continue
        seen[start], region, todo = True, [], [start]
        while todo:
            y, x = todo.pop()
            region.append((y, x))
            for j in range(max(y - 1, 0), min(y + 2, height)):
                for i in range(max(x - 1, 0), min(x + 2, width)):
                    if wanted[j, i] and not seen[j, i]:
                        seen[j, i] = True
                        todo.append((j, i))
        regions.append(region)
    small = [region for region in regions if len(region) < area_thresh]
    result = mask.copy()
    keep = max(regions, key=len) if mode == "islands" and regions and len(small) == len(regions) else None
    for region in small:
        if region is not keep:
            result[tuple(zip(*region))] = mode == "holes"
    return result, bool(small)


@settings(max_examples=200, deadline=None)
@given(stacks(14), st.integers(0, 12), st.sampled_from(["holes", "islands"]))
def test_small_regions_against_flood_fill(masks, area_thresh, mode):
    runs, changed = MaskRuns.encode(masks).remove_small_regions(area_thresh, mode)
    expected = [slow_removal(mask, area_thresh, mode) for mask in masks]
    np.testing.assert_array_equal(runs.decode(), np.stack([mask for mask, _ in expected]))
    assert changed.tolist() == [was for _, was in expected]


@pytest.mark.golden
@pytest.mark.parametrize("area", [1, 4, 12, 2000])
@pytest.mark.parametrize("mode", ["holes", "islands"])
def test_small_regions_as_in_the_official_code(golden, mode, area):
    for index, mask in enumerate(golden["masks"]):
        result, changed = remove_small_regions(mask, area, mode)
        np.testing.assert_array_equal(result, golden[f"remove_small_regions/{mode}_{area}/masks"][index])
        assert changed == bool(golden[f"remove_small_regions/{mode}_{area}/changed"][index])


def test_regions_that_wind_through_the_image():
    spiral = np.zeros((41, 41), bool)
    for ring in range(0, 20, 2):
        spiral[ring, ring : 41 - ring] = spiral[ring : 41 - ring, 40 - ring] = True
        spiral[40 - ring, ring : 41 - ring] = spiral[ring + 2 : 41 - ring, ring] = True
        spiral[ring + 2, ring : ring + 3] = True
    assert remove_small_regions(spiral, spiral.sum(), "islands")[1] is False  # one region
    cut = spiral.copy()
    cut[40, 20] = False
    for mode in ("holes", "islands"):
        np.testing.assert_array_equal(remove_small_regions(cut, 300, mode)[0], slow_removal(cut, 300, mode)[0])


def test_bad_small_regions():
    with pytest.raises(ValueError, match="holes"):
        remove_small_regions(np.zeros((3, 3)), 2, "hole")
    with pytest.raises(ValueError, match="one by one"):
        remove_small_regions(np.zeros((1, 3, 3)), 2, "holes")


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


@pytest.mark.golden
def test_official_scores_suppression_and_crop_edges(golden, golden_json):
    for name, expected in golden.items():
        if name.startswith("stability_score/"):
            threshold, offset = (float(part[3:]) for part in name.split("/")[1].split("_"))
            torch.testing.assert_close(
                stability_score(golden["logits"], threshold, offset), expected, rtol=0, atol=0, equal_nan=True
            )
        if name.startswith("nms/keep_"):
            kept = box_nms(golden["nms/boxes"], golden["nms/scores"], float(name.removeprefix("nms/keep_")))
            assert kept.tolist() == expected.tolist()
    edge = golden_json["near_crop_edge"]
    x0, y0, x1, y1 = edge["orig_box"]
    assert (x0, y0) == (0, 0)
    for tolerance in (5, 20):
        found = touches_crop_edge(golden["near_crop_edge/boxes_in_crop"], edge["crop_box"], (y1, x1), tolerance)
        assert torch.equal(found, golden[f"near_crop_edge/result_tol{tolerance}"])


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


@pytest.mark.parametrize("reshaped", [(683, 1024), (1024, 1), (1, 3), (770, 1021), (1024, 1024)])
def test_the_padding_is_left_out_without_a_change(reshaped):
    low_res = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    part = without_padding(low_res, reshaped, (1024, 1024))
    assert part.shape[-2] <= -(-reshaped[0] // 4) + 1 and part.shape[-1] <= -(-reshaped[1] // 4) + 1
    frame = torch.nn.functional.interpolate(low_res, (1024, 1024), mode="bilinear", align_corners=False)
    expected = torch.nn.functional.interpolate(
        frame[..., : reshaped[0], : reshaped[1]], (50, 40), mode="bilinear", align_corners=False
    )
    assert torch.equal(upscale_masks(low_res, reshaped, (50, 40), 1024), expected)
    assert without_padding(low_res, (500, 500), (1000, 1000)) is low_res  # no whole multiple


def test_upscaling_shapes_and_precision():
    low_res = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert upscale_masks(low_res, (20, 32), (50, 80), (32, 32)).shape == (3, 2, 50, 80)
    half = upscale_masks(low_res.bfloat16(), (20, 32), (50, 80), 32)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, upscale_masks(low_res.bfloat16().float(), (20, 32), (50, 80), 32))
    assert upscale_masks(low_res[:0], (20, 32), (50, 80), 32).shape == (0, 2, 50, 80)
    with pytest.raises(ValueError, match="low_res"):
        upscale_masks(low_res[0], (20, 32), (50, 80), 32)
