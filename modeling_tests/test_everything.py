# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Mask proposals against records of the official automatic mask generator, and against masks made by hand.

`fixtures/sam/proposals.*` hold prompt encoder and mask decoder of a tiny SAM, the embeddings of one photograph and of a
crop of it, and the 33 records that the official generator made of them.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import SamConfig, SamModel

from hf_segcap.everything import ProposalSettings, propose_masks
from hf_segcap.masks import encode_rle

FIXTURES = Path(__file__).parent / "fixtures" / "sam"


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads((FIXTURES / "proposals.json").read_text())


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / "proposals.safetensors")


@pytest.fixture(scope="module")
def sam(tensors) -> SamModel:
    size = {"image_size": 256, "patch_size": 16}
    config = SamConfig(
        vision_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_pos_feats": 16}
        | {"output_channels": 32, "global_attn_indexes": [0], **size},
        prompt_encoder_config={"hidden_size": 32, "mask_input_channels": 16, **size},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 64, "iou_head_hidden_dim": 32, "layer_norm_eps": 1e-5},
    )
    model = SamModel(config).eval()
    weights = {name: value for name, value in tensors.items() if not name.endswith("embeddings")}
    result = model.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys
    assert all(name.startswith(("vision_encoder", "prompt_encoder.shared")) for name in result.missing_keys)
    return model


def segment_with(sam, image_embeddings, calls=None):
    def segment(points, labels):
        if calls is not None:
            calls.append(points.shape[1])
        with torch.no_grad():
            out = sam(image_embeddings=image_embeddings, input_points=points, input_labels=labels)
        return out.pred_masks, out.iou_scores

    return segment


@pytest.mark.golden
def test_grid_gives_the_official_records(sam, tensors, golden):
    proposals = propose_masks(
        segment_with(sam, tensors["image_embeddings"]),
        original_size=tuple(golden["original_size"]),
        reshaped_size=tuple(golden["reshaped_size"]),
        image_size=golden["image_size"],
        settings=ProposalSettings(**golden["grid"]["settings"]),
    )
    records = golden["grid"]["records"]
    assert len(proposals) == len(records) == 33
    for index, record in enumerate(records):
        x0, y0, x1, y1 = proposals.boxes[index].tolist()
        assert [x0, y0, x1 - x0, y1 - y0] == record["bbox"]
        expected = record["segmentation"]["counts"]
        assert encode_rle(proposals.masks[index])["counts"] == expected
        assert proposals.points[index].tolist() == pytest.approx(record["point_coords"][0], abs=1e-12)
        assert float(proposals.predicted_iou[index]) == pytest.approx(record["predicted_iou"], abs=1e-6)
        assert float(proposals.stability_score[index]) == pytest.approx(record["stability_score"], abs=3e-4)


@pytest.mark.golden
def test_masks_cut_off_by_the_crop_are_dropped(sam, tensors, golden):
    crop = golden["crop"]
    x0, y0, x1, y1 = crop["box"]
    arguments = {
        "original_size": (y1 - y0, x1 - x0),
        "reshaped_size": tuple(crop["reshaped_size"]),
        "image_size": golden["image_size"],
        "settings": ProposalSettings(**crop["settings"]),
    }
    segment = segment_with(sam, tensors["crop_embeddings"])
    kept = propose_masks(segment, crop_box=crop["box"], full_size=golden["original_size"], **arguments)
    assert len(kept) == crop["kept"]
    assert len(propose_masks(segment, **arguments)) > crop["kept"]


@pytest.mark.golden
def test_own_points_and_filters_switched_off(sam, tensors, golden):
    points = golden["points"]
    proposals = propose_masks(
        segment_with(sam, tensors["image_embeddings"]),
        original_size=tuple(golden["original_size"]),
        reshaped_size=tuple(golden["reshaped_size"]),
        image_size=golden["image_size"],
        settings=ProposalSettings(**points["settings"]),
        point_grid=np.array(points["grid"]),
    )
    assert len(proposals) == points["kept"]
    assert (proposals.predicted_iou.diff() <= 0).all()


def test_batches_bound_the_calls_and_change_nothing(sam, tensors, golden, monkeypatch):
    def run(**changes):
        calls: list[int] = []
        settings = ProposalSettings(**{**golden["grid"]["settings"], **changes})
        frame = {"original_size": (200, 300), "reshaped_size": (171, 256), "image_size": 256, "settings": settings}
        return propose_masks(segment_with(sam, tensors["image_embeddings"], calls), **frame), calls

    whole, calls = run(points_per_batch=144)
    assert calls == [144]
    parts, calls = run(points_per_batch=50)
    assert calls == [50, 50, 44]
    assert np.array_equal(whole.masks, parts.masks)
    monkeypatch.setattr("hf_segcap.everything._MAX_UPSCALED_ELEMENTS", 1)  # one mask at a time
    single, _ = run(points_per_batch=144)
    assert np.array_equal(whole.masks, single.masks)


# One 8 x 8 low-resolution mask per list entry: "solid" rectangles of logit +-10 in a frame of 32 pixels.
def rectangle(x0, y0, x1, y1, inside=10.0):
    logits = torch.full((8, 8), -10.0)
    logits[y0:y1, x0:x1] = inside
    return logits


def propose_fixed(masks, scores, **settings):
    """All masks for the single point of a 1 x 1 grid of a 64 x 64 image."""

    def segment(points, labels):
        assert points.tolist() == [[[[16.0, 16.0]]]] and labels.tolist() == [[[1]]]
        return torch.stack(masks)[None, None], torch.tensor(scores)[None, None]

    settings = ProposalSettings(**{"points_per_side": 1, "stability_score_thresh": 0.5, **settings})
    return propose_masks(segment, original_size=(64, 64), reshaped_size=(32, 32), image_size=32, settings=settings)


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


def test_of_two_equal_boxes_the_better_stays():
    masks = [rectangle(0, 0, 4, 4), rectangle(0, 0, 4, 4), rectangle(5, 5, 8, 8)]
    kept = propose_fixed(masks, [0.9, 0.95, 0.92])
    assert kept.predicted_iou.tolist() == pytest.approx([0.95, 0.92])
    assert kept.masks.shape == (2, 64, 64) and kept.masks.dtype == bool
    assert kept.boxes[0].tolist()[:2] == [0, 0] and 30 <= kept.boxes[0][2] <= 33
    assert kept.points.tolist() == [[32.0, 32.0]] * 2


def test_nothing_survives():
    kept = propose_fixed([rectangle(0, 0, 4, 4)], [0.1])
    assert len(kept) == 0 and kept.masks.shape == (0, 64, 64) and kept.points.shape == (0, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points_per_side": 0}, "points_per_side"),
        ({"points_per_side": 2.5}, "points_per_side"),
        ({"points_per_batch": True}, "points_per_batch"),
        ({"pred_iou_thresh": float("nan")}, "pred_iou_thresh"),
        ({"box_nms_thresh": "0.7"}, "box_nms_thresh"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        ProposalSettings(**changes)


def test_bad_grid_and_crop():
    frame = {"original_size": (8, 8), "reshaped_size": (8, 8), "image_size": 8}
    with pytest.raises(ValueError, match="shape"):
        propose_masks(lambda *_: None, point_grid=np.zeros((3,)), **frame)
    with pytest.raises(ValueError, match="full_size"):
        propose_masks(lambda *_: None, crop_box=(0, 0, 4, 4), **frame)
