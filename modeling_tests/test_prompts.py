# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Prompts: how nesting is read, what is refused and how, padding, scaling, mask prompts, and a fuzz of all of it."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from hf_segcap.prompts import PADDING_LABEL, check_image_sizes, masks_to_low_res_logits, parse_prompts, scale_prompts

ONE, TWO = [(60, 80)], [(60, 80), (30, 40)]  # (height, width)
A, B, C = [1, 2, 30, 40], [0, 0, 80, 60], [3.5, 4, 20, 25]
OFF = PADDING_LABEL


def flavours(value):
    """The same value as a list, tuples, an array, a tensor, and a list of arrays."""
    array = np.array(value, dtype=np.float64)
    yield value
    yield tuple(tuple(item) if isinstance(item, list) else item for item in value)
    yield array
    yield array.astype(np.float32)
    yield torch.tensor(value)
    yield torch.tensor(value, dtype=torch.bfloat16)
    yield list(array)
    yield list(torch.tensor(value))


# --- nesting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "boxes, sizes, expected",
    [
        (A, ONE, [[A]]),
        ([A, B], ONE, [[A, B]]),
        ([[A, B]], ONE, [[A, B]]),
        ([[A, C], [C, C]], TWO, [[A, C], [C, C]]),
    ],
)
def test_box_nesting(boxes, sizes, expected):
    for flavour in flavours(boxes):
        prompts = parse_prompts(sizes, boxes=flavour)
        assert prompts.boxes.tolist() == expected
        assert prompts.boxes.dtype == torch.float64
        assert prompts.prompt_mask.all()
        assert prompts.points is None and prompts.point_labels is None and prompts.masks is None


@pytest.mark.parametrize(
    "points, labels, sizes, expected, expected_labels",
    [
        ([5, 6], None, ONE, [[[[5, 6]]]], [[[1]]]),
        ([5, 6], 0, ONE, [[[[5, 6]]]], [[[0]]]),
        ([5, 6], [0], ONE, [[[[5, 6]]]], [[[0]]]),
        # two levels: one prompt per point
        ([[5, 6], [7, 8]], [1, 0], ONE, [[[[5, 6]], [[7, 8]]]], [[[1], [0]]]),
        # three levels: one prompt of several points per image
        ([[[5, 6], [7, 8]]], [[1, 0]], ONE, [[[[5, 6], [7, 8]]]], [[[1, 0]]]),
        ([[[5, 6]], [[7, 8]]], [[1], [0]], TWO, [[[[5, 6]]], [[[7, 8]]]], [[[1]], [[0]]]),
        # four levels
        ([[[[5, 6], [7, 8]], [[1, 2], [3, 4]]]], [[[1, 0], [1, 1]]], ONE, None, [[[1, 0], [1, 1]]]),
        # labels may always be [image][prompt][point]
        ([[5, 6], [7, 8]], [[[1], [0]]], ONE, [[[[5, 6]], [[7, 8]]]], [[[1], [0]]]),
        ([[[5, 6], [7, 8]]], [[[1, -1]]], ONE, [[[[5, 6], [7, 8]]]], [[[1, -1]]]),
    ],
)
def test_point_nesting(points, labels, sizes, expected, expected_labels):
    for flavour in flavours(points):
        for label_flavour in (labels, np.array(labels), torch.tensor(labels)) if labels is not None else (None,):
            prompts = parse_prompts(sizes, points=flavour, point_labels=label_flavour)
            assert prompts.points.tolist() == (expected or points)
            assert prompts.point_labels.tolist() == expected_labels
            assert prompts.point_labels.dtype == torch.int64


def test_boolean_labels():
    prompts = parse_prompts(ONE, points=[[5, 6], [7, 8]], point_labels=torch.tensor([True, False]))
    assert prompts.point_labels.tolist() == [[[1], [0]]]


def test_no_prompts():
    assert parse_prompts(ONE) is None
    for empty in ([], [[]], np.zeros((0, 4)), torch.zeros(1, 0, 4), [None]):
        prompts = parse_prompts(ONE, boxes=empty)
        assert prompts.boxes.shape == (1, 0, 4) and prompts.prompt_mask.shape == (1, 0) and prompts.counts == [0]
    for empty in ([], [[]]):
        prompts = parse_prompts(ONE, points=empty, point_labels=empty)
        assert prompts.points.shape == (1, 0, 1, 2) and prompts.counts == [0]
    assert parse_prompts(ONE, masks=[]).counts == [0]


# --- padding ----------------------------------------------------------------------------------------------------------


def test_ragged_boxes():
    prompts = parse_prompts([*TWO, (9, 9)], boxes=[[A, B], None, [[1, 1, 2, 2]]])
    assert prompts.counts == [2, 0, 1]
    assert prompts.prompt_mask.tolist() == [[True, True], [False, False], [True, False]]
    assert prompts.boxes.tolist() == [[A, B], [[0] * 4] * 2, [[1, 1, 2, 2], [0] * 4]]


def test_ragged_points():
    points = [[[[1, 1], [2, 2], [3, 3]], [[4, 4]]], [[[5, 5], [6, 6]]]]
    prompts = parse_prompts(TWO, points=points, point_labels=[[[1, 0, -1], [0]], [[1, -10]]])
    assert prompts.point_labels.tolist() == [[[1, 0, -1], [0, OFF, OFF]], [[1, -10, OFF], [OFF] * 3]]
    assert prompts.points[0, 1].tolist() == [[4, 4], [0, 0], [0, 0]]
    assert prompts.prompt_mask.tolist() == [[True, True], [True, False]]
    # three levels, ragged, one image without prompts
    prompts = parse_prompts([*TWO, (9, 9)], points=[[[1, 1]], [], [[2, 2], [3, 3]]], point_labels=[[1], [], [1, 0]])
    assert prompts.counts == [1, 0, 1]
    assert prompts.point_labels.tolist() == [[[1, OFF]], [[OFF, OFF]], [[1, 0]]]


def test_padding_points_are_dropped_again():
    points = [[[[1, 1], [math.nan, 0]], [[4, 4], [5, 5]]]]
    prompts = parse_prompts(ONE, points=points, point_labels=[[[1, OFF], [OFF, 0]]])
    assert prompts.points.tolist() == [[[[1, 1]], [[5, 5]]]]
    assert prompts.point_labels.tolist() == [[[1], [0]]]


def test_prompts_of_several_kinds():
    prompts = parse_prompts(ONE, boxes=[A, B], points=[[[[5, 6]], []]])
    assert prompts.counts == [2]
    assert prompts.point_labels.tolist() == [[[1], [OFF]]]  # the second prompt is its box alone
    assert parse_prompts(ONE, boxes=A, points=[5, 6], point_labels=OFF).points is None
    mask = np.ones((60, 80), bool)
    assert parse_prompts(ONE, boxes=[A, B], masks=mask).masks[0].shape == (1, 60, 80)  # shared
    assert parse_prompts(ONE, boxes=[A, B], masks=[mask, mask]).masks[0].shape == (2, 60, 80)
    for kwargs, message in (
        ({"boxes": [A, B], "points": [[5, 6]]}, "image 0: got 2 boxes but 1 point prompts"),
        ({"boxes": [A, B], "masks": [mask] * 3}, "image 0: got 2 boxes but 3 masks"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_prompts(ONE, **kwargs)


# --- checks -----------------------------------------------------------------------------------------------------------


def test_boxes_are_clipped_with_a_warning():
    with pytest.warns(UserWarning, match="image 1, prompt 0.*image 1, prompt 1"):
        prompts = parse_prompts(TWO, boxes=[[A, A], [[-5, 3, 20, 20], [3, 3, 50, 99]]])
    assert prompts.boxes[1].tolist() == [[0, 3, 20, 20], [3, 3, 40, 30]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompts = parse_prompts(ONE, boxes=[0, -1e-5, 80.00001, 60])  # float32 rounding is no reason to warn
    assert prompts.boxes.tolist() == [[[0, 0, 80, 60]]]


@pytest.mark.parametrize(
    "box, message",
    [
        ([30, 2, 1, 40], "inverted"),
        ([5, 5, 5, 9], "empty"),
        ([math.nan, 0, 5, 5], "finite"),
        ([0, 0, math.inf, 5], "finite"),
        ([0, 0, 10**400, 5], "finite"),
        ([90, 0, 99, 9], "outside.*80 x 60"),
        ([-9, -9, 0, 0], "outside"),
        ([1, 2, 3], "expected .x0, y0, x1, y1."),
        ([1, 2, 3, 4, 5], "expected .x0, y0, x1, y1."),
        (7, "expected .x0, y0, x1, y1."),
        ([[1, 2], [3, 4], [1, 2], [3, 4]], "expected .x0, y0, x1, y1."),
    ],
)
def test_bad_box_names_image_and_prompt(box, message):
    with pytest.raises(ValueError, match=f"image 1, prompt 1.*{message}"):
        parse_prompts([(9, 9), (60, 80)], boxes=[[[0, 0, 5, 5]], [A, box]])


@pytest.mark.parametrize("boxes", [A, [A, B], [[A]], [[A], [A], [A]], [[A], A], 5, [5, 6], []])
def test_wrong_box_nesting_for_two_images(boxes):
    with pytest.raises(ValueError, match="image"):
        parse_prompts(TWO, boxes=boxes)


@pytest.mark.parametrize(
    "point, label, message",
    [
        ([81, 5], 1, "outside.*80 x 60"),
        ([5, -0.1], 0, "outside"),
        ([math.nan, 5], 1, "finite"),
        ([math.nan, 5], -1, "finite"),
        ([5, 6, 7], 1, "expected .x, y."),
        (5, 1, "expected .x, y."),
        ([5, 6], 2, "label 2"),
        ([5, 6], 0.5, "label 0.5"),
        ([5, 6], math.nan, "label nan"),
        ([5, 6], [1], "label"),
    ],
)
def test_bad_point_names_image_and_prompt(point, label, message):
    points, labels = [[[[1, 1]]], [[[1, 1]], [[2, 2], point]]], [[[1]], [[1], [1, label]]]
    with pytest.raises(ValueError, match=f"image 1, prompt 1.*{message}"):
        parse_prompts([(9, 9), (60, 80)], points=points, point_labels=labels)


def test_three_levels_are_prompts_for_one_image_and_images_for_several():
    points, labels = [[[5, 6], [7, 8]], [[1, 2]]], [[1, 0], [1]]
    one = parse_prompts(ONE, points=points, point_labels=labels)
    assert one.counts == [2] and one.points[0, 0].tolist() == [[5, 6], [7, 8]]
    assert one.point_labels.tolist() == [[[1, 0], [1, PADDING_LABEL]]]
    two = parse_prompts(ONE * 2, points=points, point_labels=labels)
    assert two.counts == [1, 1] and two.point_labels.tolist() == [[[1, 0]], [[1, PADDING_LABEL]]]


def test_mixed_kinds_leave_gaps():
    mask = np.zeros(ONE[0], dtype=bool)
    mask[2:5, 3:7] = True
    prompts = parse_prompts(
        ONE, boxes=[[1, 1, 5, 5], None, None], points=[[], [[2, 3]], []], masks=[None, None, mask], mixed=True
    )
    assert prompts.has_box.tolist() == [[True, False, False]] and prompts.boxes[0, 0].tolist() == [1, 1, 5, 5]
    assert prompts.point_labels.tolist() == [[[PADDING_LABEL], [1], [PADDING_LABEL]]]
    assert prompts.has_mask.tolist() == [[False, False, True]]
    assert not prompts.masks[0][:2].any() and (prompts.masks[0][2].numpy() == mask).all()
    with pytest.raises(ValueError, match="prompt 1"):
        parse_prompts(ONE, boxes=[[1, 1, 5, 5], None])


@pytest.mark.parametrize(
    "sizes, prompts, boxes, points, masks",
    [
        (ONE, {"boxes": [None], "points": [[2, 3]]}, [[False]], [[True]], None),
        (ONE, {"boxes": [[1, 1, 5, 5]], "points": [[]]}, [[True]], [[False]], None),
        (ONE, {"boxes": [[1, 1, 5, 5]], "masks": [None]}, [[True]], None, [[False]]),
        (ONE, {"boxes": [[1, 1, 5, 5]] * 2, "points": [[], []]}, [[True, True]], [[False, False]], None),
        (ONE, {"boxes": [None, None], "points": [[2, 3], [4, 5]]}, [[False, False]], [[True, True]], None),
        (TWO, {"boxes": [[[1, 1, 5, 5]]] * 2, "points": [[[]], [[]]]}, [[True], [True]], [[False], [False]], None),
        (
            TWO,
            {"boxes": [None, [[1, 1, 5, 5]]], "points": [[[[2, 3]]], [[]]]},
            [[False], [True]],
            [[True], [False]],
            None,
        ),
        (ONE, {"boxes": [None], "counts": [2]}, [[False, False]], None, None),
    ],
)
def test_a_kind_may_lack_in_every_prompt_of_an_image(sizes, prompts, boxes, points, masks):
    parsed = parse_prompts(sizes, **prompts, mixed=True)
    assert parsed.prompt_mask.all() and parsed.prompt_mask.shape == torch.tensor(boxes).shape
    for wanted, flags in ((boxes, parsed.has_box), (masks, parsed.has_mask)):
        given = parsed.prompt_mask if flags is None else flags
        assert wanted is None or given.tolist() == wanted
    if points is not None:
        labels = parsed.point_labels
        given = torch.zeros_like(parsed.prompt_mask) if labels is None else (labels != PADDING_LABEL).any(-1)
        assert given.tolist() == points
    if masks is not None:
        assert [len(stack) for stack in parsed.masks] == parsed.counts


@pytest.mark.parametrize(
    "points, labels",
    [
        (None, [1]),
        ([[5, 6], [7, 8]], [1]),
        ([[5, 6], [7, 8]], 1),
        ([[5, 6], [7, 8]], [[1, 0]]),
        ([[[5, 6], [7, 8]]], [[1]]),
        ([[[5, 6], [7, 8]]], [1, 0]),
        ([[[[5, 6]]]], [[[1], [1]]]),
        ([[[[5, 6]]]], [[1]]),
        ([[[[]]]], None),
        ([[[]]], [[[]], []]),
        ([[[5, 6]], [[7, 8]]], [[[1]]]),
        (5, None),
        ([[[[[5, 6]]]]], None),
    ],
)
def test_wrong_point_nesting(points, labels):
    with pytest.raises(ValueError, match="image|points"):
        parse_prompts(ONE, points=points, point_labels=labels)


@pytest.mark.parametrize(
    "boxes", ["box", [["1", "2", "3", "4"]], {"box": A}, [True, True, True, True], [[A, [None]]], [1j] * 4]
)
def test_things_that_are_no_numbers(boxes):
    with pytest.raises(TypeError, match="boxes"):
        parse_prompts(ONE, boxes=boxes)


@pytest.mark.parametrize("sizes", [[], [(0, 5)], [(5, 5, 5)], [(5.5, 5)], [(math.nan, 5)], 5, [5], [[[5, 5]]]])
def test_bad_image_sizes(sizes):
    with pytest.raises(ValueError, match="size"):
        check_image_sizes(sizes)


# --- scaling ----------------------------------------------------------------------------------------------------------


def test_scaling_uses_the_rounded_sizes():
    prompts = parse_prompts([(333, 500), (10, 20)], boxes=[[A], [C[:2] + [9, 8]]], points=[[[7, 333]], [[20, 10]]])
    scaled = scale_prompts(prompts, [(333, 500), (10, 20)], [(682, 1024), (512, 1024)])
    x, y = 1024 / 500, 682 / 333
    assert scaled.boxes[0, 0].tolist() == [1 * x, 2 * y, 30 * x, 40 * y]
    assert scaled.points[0, 0, 0].tolist() == [7 * x, 333 * y]
    assert scaled.points[1, 0, 0].tolist() == [1024, 512]
    assert prompts.points[1, 0, 0].tolist() == [20, 10]
    with pytest.raises(ValueError, match="2 images"):
        scale_prompts(prompts, [(333, 500)], [(682, 1024)])


# --- masks ------------------------------------------------------------------------------------------------------------


def test_mask_nesting_and_types():
    mask = np.zeros((60, 80), bool)
    mask[10:20, 5:15] = True
    small = np.ones((30, 40), np.uint8)
    for one in (mask, mask.astype(np.uint8), mask * 255, torch.from_numpy(mask), mask.tolist(), Image.fromarray(mask)):
        for value in (one, [one], [[one]]):
            prompts = parse_prompts(ONE, masks=value)
            assert len(prompts.masks) == 1 and prompts.masks[0].dtype == torch.bool
            np.testing.assert_array_equal(prompts.masks[0].numpy(), mask[None])
            assert prompts.prompt_mask.tolist() == [[True]]
    for value in ([[mask, mask], [small]], [np.stack([mask, mask]), small], [[mask, mask], small[None]]):
        prompts = parse_prompts(TWO, masks=value)
        assert prompts.counts == [2, 1]
        assert [tuple(m.shape) for m in prompts.masks] == [(2, 60, 80), (1, 30, 40)]
    assert parse_prompts([(4, 4)] * 2, masks=np.ones((2, 3, 4, 4), bool)).counts == [3, 3]
    logits = np.random.default_rng(0).normal(size=(2, 8, 8))
    prompts = parse_prompts(ONE, masks=logits, low_res_mask_size=8)
    torch.testing.assert_close(prompts.masks[0], torch.from_numpy(logits).float())


@pytest.mark.parametrize(
    "mask, message",
    [
        (np.ones((40, 30), bool), r"\(40, 30\).*\(30, 40\)"),
        (np.zeros((30, 40), bool), "empty"),
        (np.full((30, 40), 2), "expected booleans"),
        (np.full((30, 40), -1), "expected booleans"),
        (np.full((30, 40), 0.5), "low-resolution logits"),
        (np.full((8, 8), np.nan), "NaN"),
        (np.full((8, 8), 1e300), "float32"),
        (np.full((30, 40), "x"), "expected booleans"),
    ],
)
def test_bad_mask_names_image_and_prompt(mask, message):
    with pytest.raises(ValueError, match=f"image 1, prompt 1: .*{message}"):
        parse_prompts(TWO, masks=[np.ones((60, 80), bool), [np.ones((30, 40), bool), mask]], low_res_mask_size=8)


@pytest.mark.parametrize("masks", [np.ones(5), np.ones((1, 1, 1, 4, 4)), [[1, 0], [1]], [[np.ones((4, 4), bool)]] * 2])
def test_wrong_mask_nesting(masks):
    with pytest.raises(ValueError, match="[Mm]asks"):
        parse_prompts([(4, 4)], masks=masks)


def test_mixed_mask_kinds():
    with pytest.raises(ValueError, match="image 0.*mixed"):
        parse_prompts([(8, 8)], masks=[np.ones((8, 8), bool), np.full((4, 4), 2.5)], low_res_mask_size=4)
    with pytest.raises(TypeError, match="masks"):
        parse_prompts([(8, 8)], masks={"counts": "abc"})


def test_a_float_mask_of_zeros_and_ones_is_no_logits():
    with pytest.raises(
        ValueError, match="image 0.*zeros and ones alone.*pass a boolean mask of the size of the image"
    ):
        parse_prompts([(8, 8)], masks=np.eye(4, dtype=np.float32), low_res_mask_size=4)
    assert parse_prompts([(8, 8)], masks=np.zeros((4, 4), np.float32), low_res_mask_size=4).counts == [1]


def test_binary_masks_become_logits_by_area():
    # 8 x 16 pixels in a frame of side 32 with cells of 4: each low-resolution cell is 2 x 2 pixels of the image.
    mask = torch.zeros(8, 16, dtype=torch.bool)
    mask[0:4, 2:5] = True
    prompts = parse_prompts([(8, 16)], masks=mask, low_res_mask_size=8)
    logits = masks_to_low_res_logits(prompts, [(16, 32)], 32, 8)
    assert logits.shape == (1, 1, 8, 8) and logits.dtype == torch.float32
    expected = torch.full((8, 8), -10.0)
    expected[0:2, 1], expected[0:2, 2] = 10.0, 0.0
    torch.testing.assert_close(logits[0, 0], expected)


@settings(max_examples=40, deadline=None)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=30)), st.sampled_from([16, 64]))
def test_mask_area_is_preserved(mask, image_size):
    if not mask.any():
        return
    scale = image_size / max(mask.shape)
    reshaped = [int(side * scale + 0.5) for side in mask.shape]
    if 0 in reshaped:
        return
    prompts = parse_prompts([mask.shape], masks=mask, low_res_mask_size=16)
    logits = masks_to_low_res_logits(prompts, [reshaped], image_size, 16)
    assert logits.abs().max() <= 10 + 1e-4
    area = ((logits / 10 + 1) / 2).sum() / 16**2 * image_size**2  # in pixels of the model frame
    expected = mask.mean() * reshaped[0] * reshaped[1]
    assert area == pytest.approx(expected, rel=1e-4)


def test_shared_and_padded_masks():
    logits = np.random.default_rng(0).normal(size=(3, 8, 8))
    shared = parse_prompts(TWO, boxes=[[A, B], [A[:2] + [9, 9]]], masks=[logits[0], logits[1]], low_res_mask_size=8)
    result = masks_to_low_res_logits(shared, TWO, 80, 8)
    torch.testing.assert_close(result, torch.from_numpy(logits[:2, None]).float())
    mixed = parse_prompts(TWO, boxes=[[A, B], [C, C]], masks=[logits[0], logits[1:]], low_res_mask_size=8)
    result = masks_to_low_res_logits(mixed, TWO, 80, 8)
    torch.testing.assert_close(result, torch.from_numpy(logits[[[0, 0], [1, 2]]]).float())
    ragged = masks_to_low_res_logits(parse_prompts(TWO, masks=[logits[:2], []], low_res_mask_size=8), TWO, 80, 8)
    assert ragged.shape == (2, 2, 8, 8) and not ragged[1].any()


# --- properties -------------------------------------------------------------------------------------------------------

SIZES = st.lists(st.tuples(st.integers(4, 50), st.integers(4, 50)), min_size=1, max_size=3)


@st.composite
def valid_prompts(draw):
    sizes = draw(SIZES)
    boxes, points, labels = [], [], []
    for height, width in sizes:
        box, point, label = [], [], []
        for _ in range(draw(st.integers(0, 3))):
            x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
            box.append([x0, y0, draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))])
            count = draw(st.integers(1, 3))
            point.append([[draw(st.floats(0, width)), draw(st.floats(0, height))] for _ in range(count)])
            label.append([draw(st.sampled_from([0, 1, -1, -10])) for _ in range(count)])
        boxes.append(box)
        points.append(point)
        labels.append(label)
    return sizes, boxes, points, labels


@settings(max_examples=100, deadline=None)
@given(valid_prompts())
def test_ragged_prompts_round_trip_and_batch_equals_one_at_a_time(case):
    sizes, boxes, points, labels = case
    prompts = parse_prompts(sizes, boxes=boxes, points=points, point_labels=labels)
    scaled = scale_prompts(prompts, sizes, [(2 * h, 3 * w) for h, w in sizes])
    for i, count in enumerate(prompts.counts):
        assert prompts.prompt_mask[i].sum() == count == len(boxes[i])
        assert prompts.boxes[i, :count].tolist() == boxes[i]
        for j in range(count):
            real = prompts.point_labels[i, j] != PADDING_LABEL
            assert prompts.points[i, j][real].tolist() == points[i][j]
            assert prompts.point_labels[i, j][real].tolist() == labels[i][j]
        assert (prompts.point_labels[i, count:] == PADDING_LABEL).all()
        alone = parse_prompts([sizes[i]], boxes=[boxes[i]], points=[points[i]], point_labels=[labels[i]])
        alone = scale_prompts(alone, [sizes[i]], [(2 * sizes[i][0], 3 * sizes[i][1])])
        n = alone.points.shape[2]
        assert torch.equal(scaled.boxes[i, :count], alone.boxes[0])
        if count:
            assert torch.equal(scaled.points[i, :count, :n], alone.points[0])
            assert torch.equal(scaled.point_labels[i, :count, :n], alone.point_labels[0])


SCALARS = st.one_of(
    st.integers(-5, 60),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from(
        [None, True, "1", b"1", 1j, 10**400, -(10**400), {}, {1}, object(), np.float16(3), np.datetime64("2020")]
    ),
)
ARRAYS = st.one_of(
    arrays(
        st.sampled_from([np.float64, np.float32, np.int32, np.uint8, bool, np.complex64, "U1", object]),
        array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4),
    ),
    st.sampled_from(
        [
            torch.zeros(2, 4, device="meta"),
            torch.zeros(2, 4).to_sparse(),
            torch.zeros(4, dtype=torch.complex64).conj(),
            torch.zeros(1, 2, 2, requires_grad=True),
            torch.zeros((), dtype=torch.bfloat16),
            Image.new("L", (4, 4)),
            Image.new("RGB", (4, 4)),
            Image.new("1", (8, 8), 1),
            range(4),
        ]
    ),
)
JUNK = st.recursive(
    st.one_of(SCALARS, ARRAYS, st.lists(st.integers(0, 9), min_size=2, max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.tuples(inner, inner)),
    max_leaves=12,
)
MAYBE = st.one_of(st.none(), JUNK)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(SIZES, JUNK), MAYBE, MAYBE, MAYBE, MAYBE)
def test_junk_raises_value_or_type_errors_only(sizes, boxes, points, labels, masks):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            prompts = parse_prompts(sizes, boxes, points, labels, masks, low_res_mask_size=4)
        except (ValueError, TypeError) as error:
            assert str(error)
            return
        if prompts is None:
            assert boxes is points is masks is None
            return
        # What passes is usable: it can be scaled and is finite.
        sizes = check_image_sizes(sizes)
        scaled = scale_prompts(prompts, sizes, sizes)
        for tensor in (scaled.boxes, scaled.points):
            assert tensor is None or tensor.isfinite().all()
        if prompts.masks is not None:
            assert masks_to_low_res_logits(prompts, sizes, max(max(size) for size in sizes), 4).isfinite().all()


def test_self_containing_list():
    endless: list = []
    endless.append(endless)
    for name in ("boxes", "points", "masks"):
        with pytest.raises(ValueError, match="deep"):
            parse_prompts(ONE, **{name: endless})
