# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Attention maps against those of the official wrapper, and the rules for objects with several kinds of prompts."""

from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_segcap.models.sam.prompt_rows import PromptRows
from hf_segcap.models.zim.attention_maps import box_attention_maps, point_attention_maps, prompt_attention_maps

GOLDEN = Path(__file__).parents[2] / "fixtures" / "zim"
GRID, STRIDE, SIGMA = 64, 16, 21
WRAPPING = [8, 9, 15]  # golden boxes that end two cells or more outside


@cache
def point_golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "point_maps.safetensors")


@cache
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "predictor_inputs.safetensors")


# --- golden ------------------------------------------------------------------------------------------------------------


@pytest.mark.golden
@pytest.mark.parametrize("index", range(14))
def test_point_maps_are_the_official_ones(index: int) -> None:
    points, expected = (point_golden()[f"point_mask.{index}.{name}"] for name in ("coords", "mask"))
    maps = point_attention_maps(points[None], GRID, STRIDE, SIGMA)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps[0], expected, atol=1e-6, rtol=0)
    assert torch.equal(maps[0] == 0, expected == 0)
    torch.testing.assert_close(
        point_attention_maps(points[None].double(), GRID, STRIDE, SIGMA), maps, atol=1e-6, rtol=0
    )


@pytest.mark.golden
def test_many_point_prompts_at_once_are_the_official_maps() -> None:
    stored = [point_golden()[f"point_mask.{i}.coords"] for i in range(14)]
    longest = max(map(len, stored))
    points, present = torch.zeros(14, longest, 2), torch.zeros(14, longest, dtype=torch.bool)
    for i, item in enumerate(stored):
        points[i, : len(item)], present[i, : len(item)] = item, True
    expected = torch.stack([point_golden()[f"point_mask.{i}.mask"] for i in range(14)])
    maps = point_attention_maps(points, GRID, STRIDE, SIGMA, present)
    torch.testing.assert_close(maps, expected, atol=1e-6, rtol=0)


@pytest.mark.golden
def test_gaussian_is_the_official_one() -> None:
    row = golden()["gauss_row64"]  # centre row of the official 129 x 129 array
    maps = point_attention_maps(torch.tensor([[[0.0, 0.0]]]), GRID, STRIDE, SIGMA)
    torch.testing.assert_close(maps[0, 0], row[64:128], atol=1e-6, rtol=0)
    torch.testing.assert_close(maps[0, :, 0], row[64:128], atol=1e-6, rtol=0)


@pytest.mark.golden
def test_box_maps_are_the_official_ones() -> None:
    boxes, expected = golden()["bbox_mask.boxes"], golden()["bbox_mask.masks_u8"].float()
    assert torch.equal(box_attention_maps(boxes, GRID, STRIDE, official_slicing=True), expected)
    assert torch.equal(box_attention_maps(boxes.double(), GRID, STRIDE, official_slicing=True), expected)
    ours = box_attention_maps(boxes, GRID, STRIDE)
    others = [i for i in range(len(boxes)) if i not in WRAPPING]
    assert torch.equal(ours[others], expected[others])
    assert not ours[WRAPPING].any() and all(expected[i].any() for i in WRAPPING)


@pytest.mark.golden
@pytest.mark.parametrize("case", ["box_single", "points_single", "points_and_box", "predict_three_boxes"])
def test_maps_of_the_official_predictor(case: str) -> None:
    """From pixels of image0 (133 x 199), as its wrapper scales them, to what the decoder gets."""
    stored = golden()
    scale = torch.tensor([1024 / 199, 684 / 133], dtype=torch.float64)
    boxes, points = None, None
    if "box" in case:
        boxes = stored["img0.three_boxes"] if "three" in case else stored["img0.box"][None]
        boxes = (boxes.unflatten(1, (2, 2)) * scale).flatten(1)[None].float()
    if "points" in case:
        points = (stored["img0.points"][: 2 if "and" in case else None] * scale)[None, None].float()
    rows = PromptRows.from_inputs(1, input_boxes=boxes, input_points=points)
    maps = prompt_attention_maps(rows, GRID, STRIDE, SIGMA)
    expected = stored[f"img0.{case}.dec_in.attn_mask_every8"]
    torch.testing.assert_close(maps[:, ::8, ::8], expected, atol=1e-6, rtol=0)
    low, high, mean = stored[f"img0.{case}.dec_in.attn_mask.stats"][:3].tolist()
    assert [maps.min().item(), maps.max().item(), maps.double().mean().item()] == pytest.approx(
        [low, high, mean], 1e-5
    )


# --- rules -------------------------------------------------------------------------------------------------------------


def slow_point_map(points: torch.Tensor, grid: int, stride: int, sigma: float) -> torch.Tensor:
    result = torch.zeros(grid, grid)
    for x, y in points.tolist():
        cx, cy = int(x / stride), int(y / stride)
        for v in range(grid):
            for u in range(grid):
                if 0 <= cx < grid and 0 <= cy < grid:
                    near = 2.718281828459045 ** (-((u - cx) ** 2 + (v - cy) ** 2) / (2 * sigma**2))
                    result[v, u] = max(result[v, u].item(), near)
    return result


def test_other_grids_strides_and_sigmas() -> None:
    points = torch.tensor([[[3.0, 40.5], [63.9, 7.9]], [[-7.9, 64.0], [20, 20]]])
    maps = point_attention_maps(points, 8, 8, 1.3)
    expected = torch.stack([slow_point_map(item, 8, 8, 1.3) for item in points])
    torch.testing.assert_close(maps, expected, atol=1e-6, rtol=0)
    assert torch.equal(box_attention_maps(torch.tensor([[8.0, 8.0, 8.5, 24.0]]), 8, 8)[0].nonzero()[:, 1].unique(),
                       torch.tensor([1]))  # fmt: skip


def mixed_rows() -> PromptRows:
    """A box, points, points with a box, points (one of them padding)."""
    return PromptRows.from_inputs(
        1,
        input_boxes=torch.tensor([[[0.0, 0, 20, 20], [0, 0, 0, 0], [30, 30, 60, 60], [0, 0, 0, 0]]]),
        has_box=torch.tensor([[True, False, True, False]]),
        input_points=torch.tensor([[[[0.0, 0], [0, 0]], [[5, 5], [50, 9]], [[5, 60], [9, 9]], [[40, 40], [1, 1]]]]),
        point_labels=torch.tensor([[[-2, -2], [1, 0], [1, -1], [0, -2]]]),
    )


def test_each_object_follows_its_own_prompt() -> None:
    rows = mixed_rows()
    maps = prompt_attention_maps(rows, 8, 8, 1.5)
    assert torch.equal(maps[[0]], box_attention_maps(rows.boxes[[0]], 8, 8))
    # labels do not matter, "not a point" included; the points of an object with a box make its map
    for i, points in ((1, rows.points[1]), (2, rows.points[2]), (3, rows.points[3][:1])):
        torch.testing.assert_close(maps[i], slow_point_map(points, 8, 8, 1.5), atol=1e-6, rtol=0)
    joint = prompt_attention_maps(rows, 8, 8, 1.5, joint=True)
    assert torch.equal(joint[[0, 1, 3]], maps[[0, 1, 3]])
    assert torch.equal(joint[2], torch.maximum(maps[2], box_attention_maps(rows.boxes[[2]], 8, 8)[0]))


def test_no_prompt_is_an_error() -> None:
    rows = PromptRows.from_inputs(1, prompt_mask=torch.ones(1, 1, dtype=torch.bool), prompts_required=False)
    with pytest.raises(ValueError, match="No prompt: give input_boxes or input_points"):
        prompt_attention_maps(rows, 8, 8, 1.5)
