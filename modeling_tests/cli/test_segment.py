# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""`hf-segcap segment`, in process, with the model of the golden data."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline
from typer.testing import CliRunner

from hf_segcap import SamForPromptableSegmentation, SamPromptableProcessor
from hf_segcap.assets import bundled_model
from hf_segcap.cli import app
from hf_segcap.data.sources import load_source
from hf_segcap.data.synthetic import SyntheticRegions
from hf_segcap.masks import decode_rle

GOLDEN = Path(__file__).parents[1] / "fixtures" / "sam"
IMAGE = str(GOLDEN / "image0.png")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segment")
    loaded = SamForPromptableSegmentation.from_pretrained(GOLDEN / "tiny")
    loaded.config.everything = {"points_per_side": 4, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.5}
    loaded.save_pretrained(folder)
    SamPromptableProcessor.from_pretrained(GOLDEN / "tiny").save_pretrained(folder)
    return str(folder)


def run(*arguments):
    return CliRunner().invoke(app, ["segment", IMAGE, *map(str, arguments)])


def test_boxes_and_points_in_one_call(model, tmp_path):
    out, file = tmp_path / "masks.png", tmp_path / "results.json"
    result = run(
        "--model", model, "--box=40,30,160,150", "--point=100,60", "--point=20,20", "--out", out, "--json", file
    )
    assert result.exit_code == 0, result.output
    lines = result.stdout.strip().splitlines()
    assert lines[0].split()[-1] == "area" and len(lines) == 4
    results = json.loads(file.read_text())
    with Image.open(IMAGE) as image, Image.open(out) as picture:
        assert picture.size == image.size
        assert all(decode_rle(r["mask"]).shape == (image.height, image.width) for r in results)
    assert [r["area"] for r in results] == [int(line.split()[-1]) for line in lines[1:]]


def test_words_go_to_the_bundled_variant_that_knows_them(tmp_path):
    row = SyntheticRegions(1, seed=3)[0]
    (path, file), name = (tmp_path / "scene.png", tmp_path / "results.json"), row["regions"][0]["phrases"][0]
    row["image"].save(path)
    result = CliRunner().invoke(app, ["segment", str(path), "--text", name, "--json", str(file)])
    assert result.exit_code == 0, result.output
    (found,) = json.loads(file.read_text())
    segmenter = pipeline("promptable-segmentation", model=bundled_model("promptable-segmentation", "text"))
    (expected,) = segmenter(row["image"], text=[name])
    assert np.array_equal(decode_rle(found["mask"]), expected["mask"])


def test_everything_as_sa1b_and_as_the_official_folder(model, tmp_path):
    file, folder = tmp_path / "all.json", tmp_path / "masks"
    result = run("--model", model, "--everything", "--json", file, "--mask-folder", folder)
    assert result.exit_code == 0, result.output
    (row,) = load_source("sa1b", root=str(tmp_path))
    regions = row["regions"]
    assert row["image"].size == (row["width"], row["height"])
    assert len(regions) == len(result.stdout.strip().splitlines()) - 1 > 0
    with Image.open(folder / "0.png") as first:
        assert (np.asarray(first).astype(bool) == decode_rle(regions[0]["mask"])).all()
    assert len((folder / "metadata.csv").read_text().splitlines()) == len(regions) + 1
    fewer = run("--model", model, "--setting", "points_per_side=1", "--setting", "pred_iou_thresh=0.6")
    assert fewer.exit_code == 0 and len(fewer.stdout.splitlines()) < len(result.stdout.splitlines())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--everything", "--point=3,4"], "--everything"),
        (["--box=1,2,3"], "--box takes 4 numbers"),
        (["--point=3,4", "--mask-folder=x"], "--mask-folder"),
        (["--point=3,4", "--setting=points_per_side=2"], "--setting is for everything"),
        (["--everything", "--refine-steps=2"], "--refine-steps is for named regions"),
        (["--out=x.nothing"], "--out x.nothing: no picture format has this suffix"),
        (["--out=x.psd"], "--out x.psd: no picture format has this suffix"),
        (["--json=/"], "--json /: this is a folder"),
        (["--setting=point_grids=[[0.5"], "--setting 'point_grids=[[0.5': "),
        (["--mask-folder=/"], "exists already"),
        (["--setting=points=2"], "expected name=value with one of points_per_side"),
    ],
)
def test_contradictions_are_refused(arguments, message):
    result = run(*arguments)
    assert isinstance(result.exception, ValueError) and message in str(result.exception)
