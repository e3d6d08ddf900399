# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Everything mode against records of the official automatic mask generator, and against masks made by hand.

`fixtures/sam/tiny` is a small SAM whose masks depend on the prompt, `amg_*.json` what the official generator made with it
of `image0.png` on three settings: records and the number of masks after each filter.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import SamImageProcessorPil, SamModel

from hf_segcap.everything import (
    MATTE_SETTINGS,
    GeneratorSettings,
    MaskProposals,
    build_crop_boxes,
    generate_masks,
)
from hf_segcap.masks import decode_rle
from hf_segcap.records import to_matte_records, to_records

FIXTURES = Path(__file__).parent / "fixtures" / "sam"
GOLDEN = {name: json.loads((FIXTURES / f"amg_{name}.json").read_text()) for name in ("grid", "crops", "point_list")}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.asarray(Image.open(FIXTURES / "image0.png"))


@pytest.fixture(scope="module")
def encode_crop():
    """Runs the tiny SAM; counts the points of each call in `calls` and the crops in `crops`."""
    model = SamModel.from_pretrained(FIXTURES / "tiny").eval()
    processor = SamImageProcessorPil(size={"longest_edge": 256}, pad_size={"height": 256, "width": 256})
    cache = {}

    def encode(crop):
        encode.crops.append(crop.shape[:2])
        key = crop.tobytes()
        if key not in cache:
            inputs = processor(crop, return_tensors="pt")
            with torch.no_grad():
                embedding = model.get_image_embeddings(inputs["pixel_values"])
            cache[key] = embedding, tuple(inputs["reshaped_input_sizes"][0].tolist())
        embedding, reshaped_size = cache[key]

        def segment(points, labels):
            encode.calls.append(points.shape[1])
            with torch.no_grad():
                out = model(image_embeddings=embedding, input_points=points, input_labels=labels)
            return out.pred_masks, out.iou_scores

        return segment, reshaped_size

    encode.crops, encode.calls = [], []
    return encode


def run(image, encode_crop, name, **changes) -> MaskProposals:
    settings = GeneratorSettings(**{**GOLDEN[name]["settings"], **changes})
    return generate_masks(image, encode_crop, image_size=256, settings=settings)


# --- the official records ---------------------------------------------------------------------------------------------


@pytest.mark.golden
@pytest.mark.parametrize("name", GOLDEN)
def test_the_official_records(image, encode_crop, name):
    expected = GOLDEN[name]["records_coco_rle"]
    records = to_records(run(image, encode_crop, name), "coco_rle")
    assert len(records) == len(expected) == {"grid": 33, "crops": 36, "point_list": 28}[name]
    exact = 0
    for record, official in zip(records, expected):
        assert record.keys() == official.keys()
        assert record["bbox"] == official["bbox"] and record["crop_box"] == official["crop_box"]
        assert record["point_coords"] == official["point_coords"]  # to the last bit
        assert record["predicted_iou"] == pytest.approx(official["predicted_iou"], abs=1e-6)
        assert record["stability_score"] == pytest.approx(official["stability_score"], abs=3e-4)
        assert abs(record["area"] - official["area"]) <= 2
        masks = [decode_rle(r["segmentation"]) for r in (record, official)]
        assert (masks[0] != masks[1]).sum() <= 2
        exact += record["segmentation"] == official["segmentation"]
    assert exact >= len(records) - 2  # a pixel on the border of a mask may go either way


@pytest.mark.golden
@pytest.mark.parametrize("name", GOLDEN)
def test_the_official_counts_after_the_filters(image, encode_crop, name, monkeypatch):
    from hf_segcap import everything

    nms, tested = [], []
    box_nms, test_masks = everything.box_nms, everything._test_masks

    def counting_nms(boxes, scores, threshold):
        kept = box_nms(boxes, scores, threshold)
        nms.append((len(boxes), len(kept)))
        return kept

    def counting_test(*args):
        found = test_masks(*args)
        tested.append(len(found))
        return found

    monkeypatch.setattr(everything, "box_nms", counting_nms)
    monkeypatch.setattr(everything, "_test_masks", counting_test)
    run(image, encode_crop, name)
    trace = GOLDEN[name]["trace"]
    crops = [(crop["nms_in"], crop["nms_out"]) for crop in trace["crops"]]
    later = [trace[key] for key in ("cross_crop_nms", "small_region_nms") if key in trace]
    assert nms == crops + [(step["nms_in"], step["nms_out"]) for step in later]
    batches = [batch[-1] for crop in trace["crops"] for batch in crop["batches_after_iou_stability_edge"]]
    assert sum(tested) == sum(batches)


@pytest.mark.golden
def test_small_regions_change_the_official_number_of_masks(image, encode_crop):
    for name in ("crops", "point_list"):
        settings = GOLDEN[name]["settings"]
        before = run(image, encode_crop, name, min_mask_region_area=0)
        _, holes = before.runs.remove_small_regions(settings["min_mask_region_area"], "holes")
        filled, _ = before.runs.remove_small_regions(settings["min_mask_region_area"], "holes")
        _, islands = filled.remove_small_regions(settings["min_mask_region_area"], "islands")
        assert (holes | islands).sum() == GOLDEN[name]["changed_by_small_region_removal"]


@pytest.mark.golden
def test_crop_boxes_and_grids_are_the_official_ones():
    for case in json.loads((FIXTURES / "utils.json").read_text())["crop_boxes"]:
        boxes, layers = build_crop_boxes(case["im_size_hw"], case["n_layers"], case["overlap_ratio"])
        assert [list(box) for box in boxes] == case["boxes"] and layers == case["layers"]
    checked = 0
    for key, grid in load_file(FIXTURES / "utils.safetensors").items():
        if key.startswith("point_grids/"):
            _, name, layer = key.split("/")
            side, layers, scale = (int("".join(filter(str.isdigit, part))) for part in name.split("_"))
            settings = GeneratorSettings(
                points_per_side=side, crop_n_layers=layers, crop_n_points_downscale_factor=scale
            )
            assert torch.equal(settings.point_grid(int(layer)), grid)  # to the last bit
            checked += 1
    assert checked == 9


def test_batches_bound_the_calls_and_change_nothing(image, encode_crop, monkeypatch):
    def count(**changes):
        encode_crop.calls.clear()
        return run(image, encode_crop, "grid", **changes), list(encode_crop.calls)

    whole, calls = count(points_per_batch=144)
    assert calls == [144]
    parts, calls = count(points_per_batch=50)
    assert calls == [50, 50, 44]
    assert np.array_equal(whole.masks, parts.masks)
    monkeypatch.setattr("hf_segcap.everything._UPSCALED_ON_CPU", 1)  # one mask at a time
    single, _ = count(points_per_batch=144)
    assert np.array_equal(whole.masks, single.masks) and torch.equal(whole.stability_score, single.stability_score)


def test_the_given_embedding_of_the_whole_image_is_used(image, encode_crop):
    whole = encode_crop(image)
    encode_crop.crops.clear()
    settings = GeneratorSettings(**GOLDEN["crops"]["settings"])
    found = generate_masks(image, encode_crop, image_size=256, settings=settings, whole=whole)
    assert encode_crop.crops == [(134, 184)] * 4
    assert torch.equal(found.boxes, run(image, encode_crop, "crops").boxes)


def test_masks_that_cannot_pass_are_never_upscaled(image, encode_crop, monkeypatch):
    from hf_segcap import everything

    upscaled = []
    upscale = everything.upscale_masks
    monkeypatch.setattr(
        everything, "upscale_masks", lambda low_res, *args: upscaled.append(len(low_res)) or upscale(low_res, *args)
    )
    run(image, encode_crop, "grid")
    passed_iou = sum(batch[0] for batch in GOLDEN["grid"]["trace"]["crops"][0]["batches_after_iou_stability_edge"])
    assert 0 < sum(upscaled) <= passed_iou < 3 * 144


# --- masks made by hand -----------------------------------------------------------------------------------------------


def rectangle(x0, y0, x1, y1, inside=10.0):
    """One 8 x 8 low-resolution mask, a rectangle of logit +-10 in a frame of 32 pixels."""
    logits = torch.full((8, 8), -10.0)
    logits[y0:y1, x0:x1] = inside
    return logits


def propose_fixed(masks, scores, **settings):
    """All masks for the single point of a 1 x 1 grid of a 64 x 64 image."""

    def segment(points, labels):
        assert points.tolist() == [[[[16.0, 16.0]]]] and labels.tolist() == [[[1]]]
        return torch.stack(masks)[None, None], torch.tensor(scores)[None, None]

    settings = GeneratorSettings(**{"points_per_side": 1, "stability_score_thresh": 0.5, **settings})
    image = np.zeros((64, 64, 3), np.uint8)
    return generate_masks(image, lambda crop: (segment, (32, 32)), image_size=32, settings=settings)


def test_predicted_iou_must_be_above_the_threshold():
    masks = [rectangle(0, 0, 3, 3), rectangle(4, 4, 8, 8)]
    assert propose_fixed(masks, [0.5, 0.75], pred_iou_thresh=0.5).predicted_iou.tolist() == [0.75]
    assert len(propose_fixed(masks, [-0.5, 0.75], pred_iou_thresh=0.0)) == 2  # zero switches the filter off


def test_unstable_and_empty_masks_go():
    masks = [rectangle(0, 0, 3, 3, inside=0.5), rectangle(4, 4, 8, 8), rectangle(0, 0, 0, 0)]
    kept = propose_fixed(masks, [0.99, 0.95, 0.98], stability_score_thresh=0.9)
    assert kept.predicted_iou.tolist() == pytest.approx([0.95])
    everything = propose_fixed(masks, [0.99, 0.95, 0.98], stability_score_thresh=0.0)
    assert everything.predicted_iou.tolist() == pytest.approx([0.99, 0.98, 0.95])
    assert everything.stability_score[1].isnan() and not everything.masks[1].any()
    assert everything.boxes[1].tolist() == [0, 0, 0, 0] and everything.runs.areas()[1] == 0


def test_of_two_equal_boxes_the_better_stays():
    masks = [rectangle(0, 0, 4, 4), rectangle(0, 0, 4, 4), rectangle(5, 5, 8, 8)]
    kept = propose_fixed(masks, [0.9, 0.95, 0.92])
    assert kept.predicted_iou.tolist() == pytest.approx([0.95, 0.92])
    assert kept.masks.shape == (2, 64, 64) and kept.masks.dtype == bool
    assert kept.boxes[0].tolist()[:2] == [0, 0] and 30 <= kept.boxes[0][2] <= 33
    assert kept.points.tolist() == [[32.0, 32.0]] * 2
    assert kept.crop_boxes.tolist() == [[0, 0, 64, 64]] * 2


def test_a_mask_without_its_small_island_loses_against_an_untouched_one():
    island = rectangle(0, 0, 5, 5)
    island[7, 7] = 10.0
    masks = [island, rectangle(0, 0, 5, 5)]
    options = {"stability_score_thresh": 0.1, "box_nms_thresh": 0.7}
    assert len(propose_fixed(masks, [0.99, 0.9], **options)) == 2  # the island makes another box
    kept = propose_fixed(masks, [0.99, 0.9], **options, min_mask_region_area=400)
    assert kept.predicted_iou.tolist() == pytest.approx([0.9])
    alone = propose_fixed(masks[:1], [0.99], **options, min_mask_region_area=400)
    assert alone.boxes.tolist() == kept.boxes.tolist() and np.array_equal(alone.masks, kept.masks)
    # the score is still that of the mask with its island
    assert alone.stability_score < kept.stability_score


def test_crops_give_whole_image_coordinates_and_smaller_crops_win():
    """Every crop sees the same object in its middle; in the whole image it is a larger one around the centre."""

    def encode(crop):
        def segment(points, labels):
            mask = rectangle(2, 2, 6, 6) if crop.shape[0] < 200 else rectangle(1, 1, 7, 7)
            return mask.expand(1, points.shape[1], 1, 8, 8), torch.full((1, points.shape[1], 1), 0.95)

        return segment, (32, 32)

    image = np.zeros((200, 200, 3), np.uint8)
    options = {"points_per_side": 2, "crop_n_layers": 1, "crop_n_points_downscale_factor": 2}
    settings = GeneratorSettings(**options, stability_score_thresh=0.5)
    found = generate_masks(image, encode, image_size=32, settings=settings)
    boxes, _ = build_crop_boxes((200, 200), 1, settings.crop_overlap_ratio)
    assert found.crop_boxes.tolist() == [list(box) for box in [*boxes[1:], boxes[0]]]
    for index, (x0, y0, x1, y1) in enumerate(found.crop_boxes.tolist()):
        centre = [(x0 + x1) / 2, (y0 + y1) / 2]
        left, top, right, bottom = found.boxes[index].tolist()
        assert [(left + right + 1) / 2, (top + bottom + 1) / 2] == pytest.approx(centre, abs=1)
        if index < 4:
            assert found.points[index].tolist() == centre
        ys, xs = np.nonzero(found.masks[index])
        assert [xs.min(), ys.min(), xs.max(), ys.max()] == [left, top, right, bottom]
    strict = GeneratorSettings(**options, stability_score_thresh=0.5, crop_nms_thresh=0.1)
    assert generate_masks(image, encode, image_size=32, settings=strict).crop_boxes[0].tolist() == list(boxes[1])
    assert len(generate_masks(image, encode, image_size=32, settings=strict)) < 5


def test_masks_cut_off_by_a_crop_go():
    def encode(crop):
        def segment(points, labels):
            return rectangle(0, 0, 8, 4).expand(1, points.shape[1], 1, 8, 8), torch.ones(1, points.shape[1], 1)

        return segment, (32, 32)

    settings = GeneratorSettings(points_per_side=1, crop_n_layers=1)
    found = generate_masks(np.zeros((200, 200, 3), np.uint8), encode, image_size=32, settings=settings)
    # Only the whole image may hold a mask that spans its width: every crop has an inner edge left or right.
    assert found.crop_boxes.tolist() == [[0, 0, 200, 200]]


def test_nothing_survives():
    kept = propose_fixed([rectangle(0, 0, 4, 4)], [0.1], min_mask_region_area=5)
    assert len(kept) == 0 and kept.masks.shape == (0, 64, 64) and kept.points.shape == (0, 2)
    assert to_records(kept) == [] == to_records(kept, "coco_rle") == to_records(kept, "uncompressed_rle")


# --- mattes -----------------------------------------------------------------------------------------------------------


def matte_fixed(masks, scores, **settings):
    """As `propose_fixed`, with logits of mattes."""

    def segment(points, labels):
        return torch.stack(masks)[None, None], torch.tensor(scores)[None, None]

    settings = GeneratorSettings(**{"points_per_side": 1, "stability_score_offset": 0.1, **settings})
    image = np.zeros((64, 64, 3), np.uint8)
    return generate_masks(image, lambda crop: (segment, (32, 32)), image_size=32, settings=settings, mattes=True)


def test_the_stability_of_a_matte_compares_alpha():
    # alpha 0.59 and 0.61 in the middle: logits 0.364 and 0.447, both within 1 of 0
    masks = [rectangle(0, 0, 8, 8, inside=0.364), rectangle(0, 0, 8, 4, inside=0.447)]
    assert len(propose_fixed(masks, [0.9, 0.95], stability_score_thresh=0.5)) == 0
    kept = matte_fixed(masks, [0.9, 0.95], stability_score_thresh=0.5)
    assert kept.predicted_iou.tolist() == pytest.approx([0.95])
    assert len(matte_fixed(masks, [0.9, 0.95], stability_score_thresh=0.5, stability_score_offset=0.05)) == 2
    assert kept.runs.areas()[0] == kept.masks.sum() > 1000


def test_records_of_mattes_have_the_matte_of_the_whole_image():
    kept = matte_fixed([rectangle(0, 0, 8, 4, inside=1.0)], [0.9], stability_score_thresh=0.5)
    (record,) = to_matte_records(kept, 32)
    alpha = record["logit"]
    assert alpha.shape == (64, 64) and alpha.dtype == np.uint8
    assert alpha[5, 5] == int(255 / (1 + np.exp(-1.0))) and alpha[60, 5] == 0  # rounded down
    assert ((alpha > 127) == record["segmentation"]).mean() > 0.999
    with pytest.raises(ValueError, match="mattes=True"):
        to_matte_records(propose_fixed([rectangle(0, 0, 8, 4)], [0.9]), 32)


def test_mattes_of_a_crop_are_zero_elsewhere():
    def encode(crop):
        def segment(points, labels):
            return rectangle(2, 2, 6, 6).expand(1, points.shape[1], 1, 8, 8), torch.ones(1, points.shape[1], 1)

        return segment, (32, 32)

    settings = GeneratorSettings(
        points_per_side=1, crop_n_layers=1, stability_score_offset=0.1, stability_score_thresh=0.5
    )
    image = np.zeros((200, 200, 3), np.uint8)
    found = generate_masks(image, encode, image_size=32, settings=settings, mattes=True)
    records = to_matte_records(found, 32)
    assert len(records) == 5
    for record, (x0, y0, x1, y1) in zip(records, found.crop_boxes.tolist()):
        outside = np.ones((200, 200), bool)
        outside[y0:y1, x0:x1] = False
        assert (record["logit"][outside] == 0).all() and record["logit"].max() >= 254
        centre = record["logit"][(y0 + y1) // 2, (x0 + x1) // 2]
        assert centre == 254


def test_defaults_of_mattes():
    assert dict(MATTE_SETTINGS) == {"stability_score_thresh": 0.9, "stability_score_offset": 0.1}

    def segment(points, labels):  # logit 0.5, alpha 0.62: too unstable for SAM's logits, stable for mattes
        return torch.full((1, points.shape[1], 1, 8, 8), 0.5), torch.ones(1, points.shape[1], 1)

    image = np.zeros((64, 64, 3), np.uint8)
    encode = lambda crop: (segment, (32, 32))
    assert len(generate_masks(image, encode, image_size=32)) == 0
    assert len(generate_masks(image, encode, image_size=32, mattes=True)) == 1


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points_per_side": 0}, "points_per_side"),
        ({"points_per_side": 2.5}, "points_per_side"),
        ({"points_per_side": None}, "neither"),
        ({"points_per_batch": True}, "points_per_batch"),
        ({"pred_iou_thresh": float("nan")}, "pred_iou_thresh"),
        ({"box_nms_thresh": "0.7"}, "box_nms_thresh"),
        ({"crop_n_layers": -1}, "crop_n_layers"),
        ({"crop_overlap_ratio": 1.0}, r"\[0, 1\)"),
        ({"min_mask_region_area": -1}, "min_mask_region_area"),
        ({"crop_n_layers": 2, "crop_n_points_downscale_factor": 6}, "no point in crop layer 2"),
        ({"point_grids": [[[0.5, 0.5]]]}, "points_per_side=None"),
        ({"points_per_side": None, "point_grids": [[[0.5, 0.5]]], "crop_n_layers": 1}, "2 in all, got 1"),
        ({"points_per_side": None, "point_grids": [[0.5, 0.5]]}, "shape"),
        ({"points_per_side": None, "point_grids": [[[0.5, 1.5]]]}, r"\[0, 1\]"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        GeneratorSettings(**changes)


def test_settings_of_a_model_and_of_a_call():
    settings = GeneratorSettings.from_dicts(
        {"points_per_side": 8, "box_nms_thresh": 0.5}, None, {"box_nms_thresh": 0.6}
    )
    assert (settings.points_per_side, settings.box_nms_thresh, settings.pred_iou_thresh) == (8, 0.6, 0.88)
    grids = [np.full((3, 2), 0.25)]
    settings = GeneratorSettings.from_dicts({"points_per_side": 8}, {"point_grids": grids})
    assert settings.points_per_side is None and settings.point_grid(0).tolist() == [[0.25, 0.25]] * 3
    assert GeneratorSettings.from_dicts({"point_grids": grids}, {"points_per_side": 4}).points_per_side == 4
    with pytest.raises(ValueError, match="point_per_side"):
        GeneratorSettings.from_dicts({"point_per_side": 8})


def test_bad_images(encode_crop):
    with pytest.raises(ValueError, match="shape"):
        generate_masks(np.zeros((8, 8)), encode_crop, image_size=8)
    with pytest.raises(ValueError, match="too small"):
        generate_masks(np.zeros((2, 2, 3)), encode_crop, image_size=8, settings=GeneratorSettings(crop_n_layers=2))
