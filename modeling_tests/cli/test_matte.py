# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""`hf-segcap matte`, in process, with a tiny model."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline
from typer.testing import CliRunner

from hf_segcap.cli import app
from hf_segcap.images import load_image
from modeling_tests.tiny import random_image, tiny_zim, tiny_zim_processor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model and a picture, `image.png`."""
    folder = tmp_path_factory.mktemp("matte")
    model = tiny_zim(spread=0.2)
    model.config.everything = {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    model.save_pretrained(folder)
    tiny_zim_processor().save_pretrained(folder)
    random_image(0).save(folder / "image.png")
    return folder


def run(folder, *arguments):
    words = ["matte", str(folder / "image.png"), "--model", str(folder), *map(str, arguments)]
    return CliRunner().invoke(app, words)


def test_named_objects_are_cut_out_together(folder, tmp_path):
    out, alpha, file = tmp_path / "cutout.png", tmp_path / "alpha.png", tmp_path / "results.json"
    result = run(
        folder, "--box=4,5,40,30", "--point=30,20", "--point=5,6", "--out", out, "--alpha", alpha, "--json", file
    )
    assert result.exit_code == 0, result.output
    lines = result.stdout.strip().splitlines()
    assert lines[0].split()[-1] == "alpha" and len(lines) == 4 and all(line.endswith("%") for line in lines[1:])
    pipe = pipeline("image-matting", model=str(folder), device="cpu")
    expected = pipe(str(folder / "image.png"), boxes=[[4, 5, 40, 30], None, None], points=[[], [[30, 20]], [[5, 6]]])
    mattes = [np.asarray(item["alpha"]) for item in expected]
    with Image.open(out) as picture, Image.open(alpha) as together:
        assert picture.mode == "RGBA" and together.mode == "L"
        assert np.array_equal(np.asarray(together), np.maximum.reduce(mattes))
        assert np.array_equal(np.asarray(picture.getchannel("A")), np.asarray(together))
    stored = json.loads(file.read_text())
    for item, reference, matte in zip(stored, expected, mattes, strict=True):
        assert item["box"] == reference["box"]
        assert np.array_equal(np.asarray(load_image(item["alpha"]).convert("L")), matte)


def test_everything_as_a_picture_and_as_json(folder, tmp_path):
    out, file = tmp_path / "new" / "sheet.png", tmp_path / "all.json"
    result = run(folder, "--everything", "--guided", "--out", out, "--json", file)
    assert result.exit_code == 0, result.output
    stored = json.loads(file.read_text())
    assert len(stored) == len(result.stdout.strip().splitlines()) - 1 > 1
    assert {"segmentation", "stability_score", "point_coords"} <= set(stored[0])
    with Image.open(out) as picture:
        assert picture.mode == "RGB" and picture.width > 400
    no_filter = [f"--setting={name}=0" for name in ("pred_iou_thresh", "stability_score_thresh")]
    assert run(folder, "--setting=points_per_side=2", *no_filter, "--json", file).exit_code == 0
    assert "NaN" not in file.read_text()
    fewer = run(folder, "--setting", "points_per_side=1")
    assert fewer.exit_code == 0 and len(fewer.stdout.splitlines()) < len(result.stdout.splitlines())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--everything", "--point=3,4"], "--everything takes no"),
        (["--box=1,2,3"], "--box takes 4 numbers"),
        (["--point=3,4", "--setting=points_per_side=2"], "--setting is for everything"),
        (["--point=3,4", "--alpha=a.nothing"], "--alpha a.nothing: no picture format"),
        (["--alpha=a.png"], "--alpha is for named objects"),
        (
            ["--point=3,4", "--out=x.jpg"],
            "x.jpg cannot hold the transparency of cut-outs: give a name with .png, .webp",
        ),
    ],
)
def test_contradictions_are_refused(folder, arguments, message, monkeypatch):
    monkeypatch.setattr("transformers.pipeline", None)  # before any work
    result = run(folder, *arguments)
    assert isinstance(result.exception, ValueError) and message in str(result.exception)
