# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The stages of the data engine, with the model of the golden data."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import pipeline
from typer.testing import CliRunner

from hf_segcap import SamForPromptableSegmentation, SamPromptableProcessor
from hf_segcap.cli import app
from hf_segcap.data.sources import load_source
from hf_segcap.data_engine import label_images, list_images, precompute_embeddings, prefill_masks
from hf_segcap.masks import decode_rle

GOLDEN = Path(__file__).parent / "fixtures" / "sam"
SETTINGS = {"points_per_side": 3, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.5}


def golden_segmenter():
    return pipeline(
        "promptable-segmentation",
        model=SamForPromptableSegmentation.from_pretrained(GOLDEN / "tiny"),
        processor=SamPromptableProcessor.from_pretrained(GOLDEN / "tiny"),
    )


@pytest.fixture(scope="module")
def segmenter():
    return golden_segmenter()


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(2):
        shutil.copy(GOLDEN / f"image{number}.png", folder / f"{number}.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_embeddings_are_those_of_the_model_and_are_kept(segmenter, photos, tmp_path):
    files = precompute_embeddings(segmenter, list_images(photos), tmp_path / "out", progress=False)
    inputs = segmenter.processor(images=str(photos / "1.png"))
    with torch.no_grad():
        expected = segmenter.model.get_image_embeddings(inputs["pixel_values"])
    stored = np.load(files[1], allow_pickle=False)
    assert stored.dtype == np.float32 and np.allclose(stored, expected.numpy(), atol=1e-6)
    np.save(files[0], np.zeros(1))
    precompute_embeddings(segmenter, list_images(photos), tmp_path / "out", progress=False)
    assert np.load(files[0]).shape == (1,)  # a second call does not touch what is there


def test_prefilling_keeps_confident_masks_only(segmenter, photos):
    boxes = [[40, 30, 160, 150], [10, 10, 60, 60], [100, 60, 150, 150]]
    everything = prefill_masks(segmenter, str(photos / "0.png"), boxes, pred_iou_thresh=0, stability_score_thresh=0)
    assert [result["index"] for result in everything] == [0, 1, 2]
    limit = sorted(result["score"] for result in everything)[1]
    kept = prefill_masks(
        segmenter, str(photos / "0.png"), boxes, [0.9, 0.2, 0.6], pred_iou_thresh=limit, stability_score_thresh=0
    )
    expected = [r["index"] for r in everything if r["score"] >= limit - 1e-6 and r["index"] != 1]
    assert [result["index"] for result in kept] == expected
    with pytest.raises(ValueError, match="2 confidences for 3 boxes"):
        prefill_masks(segmenter, str(photos / "0.png"), boxes, [1, 1])


def test_labels_are_training_data_and_survive_a_kill(segmenter, photos, tmp_path):
    output = tmp_path / "labels"
    files = label_images(segmenter, list_images(photos), output, progress=False, **SETTINGS)
    rows = load_source("sa1b", root=str(output))
    expected = segmenter(str(photos / "0.png"), **SETTINGS)
    regions = rows[0]["regions"]
    assert len(rows) == 2 and len(regions) == len(expected) > 0
    assert all((decode_rle(a["mask"]) == b["mask"]).all() for a, b in zip(regions, expected))
    assert rows[0]["image"].size == (rows[0]["width"], rows[0]["height"])
    before = files[0].read_bytes()
    files[1].unlink()  # as if killed between the two
    (output / ".1.json.123.tmp").write_text("{")
    shutil.copy(photos / "0.png", photos / "-1.png")  # a third image, before the others
    again = label_images(segmenter, list_images(photos), output, progress=False, **SETTINGS, points_per_batch=2)
    assert files[0].read_bytes() == before and again[1:] == files
    assert len({json.loads(file.read_text())["image"]["image_id"] for file in again}) == 3


def test_results_of_another_run_are_not_taken_for_those_of_this_one(segmenter, photos, tmp_path):
    images = list_images(photos)
    label_images(segmenter, images[:1], tmp_path / "labels", progress=False, **SETTINGS)
    with pytest.raises(ValueError, match=r"other settings \(points_per_side; "):
        label_images(segmenter, images, tmp_path / "labels", progress=False, **{**SETTINGS, "points_per_side": 2})
    with pytest.raises(ValueError, match="other settings"):
        precompute_embeddings(segmenter, images, tmp_path / "labels", progress=False)
    precompute_embeddings(segmenter, images, tmp_path / "embeddings", progress=False)
    other = golden_segmenter()
    torch.nn.init.zeros_(other.model.mask_decoder.iou_token.weight)
    with pytest.raises(ValueError, match=r"other settings \(model; "):
        precompute_embeddings(other, images, tmp_path / "embeddings", progress=False)


@pytest.mark.parametrize("job", [label_images, precompute_embeddings])
def test_images_of_the_same_name_are_refused(segmenter, photos, tmp_path, job):
    (tmp_path / "more").mkdir()
    shutil.copy(photos / "1.png", tmp_path / "more" / "0.png")
    with pytest.raises(ValueError, match="both called '0'"):
        job(segmenter, [photos / "0.png", tmp_path / "more" / "0.png"], tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_damaged_images_stop_nothing(segmenter, photos, tmp_path, caplog):
    (photos / "0.png").write_bytes((photos / "0.png").read_bytes()[:300])
    embeddings = precompute_embeddings(segmenter, list_images(photos), tmp_path / "a", progress=False)
    labels = label_images(segmenter, list_images(photos), tmp_path / "b", progress=False, **SETTINGS)
    assert [path.name for path in (*embeddings, *labels)] == ["1.npy", "1.json"]
    assert caplog.text.count("left out, ") == 2 and "0.png" in caplog.text
    with pytest.raises(ValueError, match="points_per_side"):  # wrong for all of them
        label_images(segmenter, list_images(photos), tmp_path / "b", progress=False, points_per_side=0)


def test_masks_of_nearly_the_whole_image_are_left_out(segmenter, photos, tmp_path):
    expected = [r["area"] for r in segmenter(str(photos / "0.png"), **SETTINGS)]
    height, width = segmenter(str(photos / "0.png"), points=[[9, 9]])[0]["mask"].shape
    limit = max(expected) / (height * width)
    (file,) = label_images(segmenter, [photos / "0.png"], tmp_path, limit, progress=False, **SETTINGS)
    areas = [a["area"] for a in json.loads(file.read_text())["annotations"]]
    assert areas == [area for area in expected if area < max(expected)] and len(areas) < len(expected)


def test_command(segmenter, photos, tmp_path):
    segmenter.save_pretrained(tmp_path / "model")
    options = [f"--setting={name}={value}" for name, value in SETTINGS.items()]
    arguments = ["label", str(photos), "--output", str(tmp_path / "out"), "--model", str(tmp_path / "model")]
    result = CliRunner().invoke(app, [*arguments, *options])
    assert result.exit_code == 0 and len(list((tmp_path / "out").glob("*.json"))) == 2, result.output
    bad = CliRunner().invoke(app, [*arguments, "--setting", "points=3"])
    assert isinstance(bad.exception, ValueError) and "points_per_side" in str(bad.exception)


def test_bad_folders(tmp_path, photos):
    shutil.copy(photos / "0.png", photos / "0.jpg")
    (tmp_path / "empty").mkdir()
    for folder, message in ((tmp_path / "none", "no folder"), (tmp_path / "empty", "no image"), (photos, "'0'")):
        with pytest.raises(ValueError, match=message):
            list_images(folder)
