# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""From the masks of SA-1B to mattes that train: one image, whole folders, interruptions, bad files, the command."""

import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hf_segcap import matte_engine
from hf_segcap.cli import app
from hf_segcap.data.alpha import decode_alpha
from hf_segcap.data.matte_collator import MatteCollator
from hf_segcap.data.sources import load_source
from hf_segcap.masks import decode_rle, encode_rle
from hf_segcap.matte_engine import convert_masks, label_mattes
from hf_segcap.records import list_sa1b, write_sa1b
from modeling_tests.tiny import (
    random_image,
    tiny_label_converter,
    tiny_label_converter_processor,
    tiny_zim_processor,
)

SIZE = (44, 60)


@pytest.fixture(scope="module")
def converter():
    return tiny_label_converter(spread=0.15), tiny_label_converter_processor()


def rectangles(count, seed):
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, *SIZE), dtype=bool)
    for mask in masks:
        y, x = rng.integers(0, 24, 2)
        mask[y : y + 15, x : x + 20] = True
    return masks


@pytest.fixture
def sa1b(tmp_path):
    """Four images with 3 masks each, one of them empty."""
    root = tmp_path / "sa1b"
    root.mkdir()
    for number in range(4):
        random_image(number).save(root / f"sa_{number}.png")
        masks = rectangles(3, number)
        masks[1] = False
        records = [
            {
                "segmentation": encode_rle(mask),
                "area": int(mask.sum()),
                "bbox": [0, 0, 1, 1],
                "predicted_iou": 0.75,
                "stability_score": 0.5,
                "point_coords": [[3, 4]],
            }
            for mask in masks
        ]
        name = f"sa_{number}.png"
        write_sa1b(root / f"sa_{number}.json", records, image_id=number, file_name=name, width=60, height=44)
    return root


def test_masks_of_one_image(converter, monkeypatch):
    model, processor = converter
    masks, image = rectangles(5, 0), random_image(0)
    inputs = processor(images=image, coarse_masks=masks)
    with torch.no_grad():
        alphas = model(inputs["pixel_values"], inputs["coarse_masks"]).alphas
    (expected,) = processor.post_process_alphas(alphas, inputs["original_sizes"], inputs["reshaped_input_sizes"])
    monkeypatch.setattr(matte_engine, "MASKS_AT_ONCE", 2)
    model.train()
    got = convert_masks(model, processor, image, masks)
    assert model.training and got.shape == (5, *SIZE)
    model.eval()
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    as_rle = convert_masks(model, processor, image, [encode_rle(mask) for mask in masks[:2]], dtype="uint8")
    torch.testing.assert_close(as_rle, (expected[:2] * 255).round().to(torch.uint8), atol=1, rtol=0)
    assert convert_masks(model, processor, image, masks[0]).shape == (1, *SIZE)
    with pytest.raises(ValueError, match="prompt 3"):
        convert_masks(model, processor, image, [*masks[:3], masks[0].T])
    with pytest.raises(ValueError, match="at least one mask"):
        convert_masks(model, processor, image, [])


def test_mattes_become_training_data(converter, sa1b, tmp_path):
    model, processor = converter
    shards = label_mattes(model, processor, sa1b, tmp_path / "out", images_per_shard=3, progress=False)
    assert len(shards) == 2
    rows = load_source("sa1b_mattes", root=str(tmp_path / "out"))
    assert [rows[i]["image_id"] for i in range(len(rows))] == [0, 1, 2, 3] and list(rows.texts()) == []
    row, masks = rows[2], rectangles(3, 2)[[0, 2]]
    expected = convert_masks(model, processor, random_image(2), masks, dtype="uint8").numpy()
    assert row["image"].tobytes() == random_image(2).tobytes() and len(row["regions"]) == 2
    for region, matte, mask in zip(row["regions"], expected, masks):
        alpha = decode_alpha(region["alpha"])
        assert np.array_equal(np.rint(alpha * 255).astype(np.uint8), matte)
        assert np.array_equal(decode_rle(region["mask"]), alpha > 0.5)
        assert np.array_equal(decode_rle(region["coarse_mask"]), mask)
        inside = alpha > 0.5
        assert region["mask_iou"] == pytest.approx((inside & mask).sum() / (inside | mask).sum())
        assert region["points"] == [[3, 4]] and region["predicted_iou"] == 0.75
    batch = MatteCollator(tiny_zim_processor(), max_mattes=None, max_area=1.0)([rows[0], rows[1]])
    assert batch["prompt_mask"].sum() == 4 and batch["labels"].max() <= 1

    ious = [region["mask_iou"] for i in range(4) for region in rows[i]["regions"]]
    limit = sorted(ious)[3] + 1e-9
    kept = load_source("sa1b_mattes", root=str(tmp_path / "out"), min_iou=limit)
    assert [r["mask_iou"] for i in range(4) for r in kept[i]["regions"]] == [iou for iou in ious if iou >= limit]
    assert len(load_source("sa1b_mattes", root=str(tmp_path / "out"), limit=2)) == 2


def test_the_images_may_move(converter, sa1b, tmp_path):
    label_mattes(*converter, sa1b, tmp_path / "out", limit=1, progress=False)
    sa1b.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="sa_0.png"):
        load_source("sa1b_mattes", root=str(tmp_path / "out"))[0]
    rows = load_source("sa1b_mattes", root=str(tmp_path / "out"), images=str(tmp_path / "elsewhere"))
    assert rows[0]["image"].size == (60, 44)
    random_image(0, (30, 22)).save(tmp_path / "elsewhere" / "sa_0.png")
    with pytest.raises(ValueError, match="44 x 60"):
        rows[0]


def test_nothing_is_lost_by_an_interruption(converter, sa1b, tmp_path, monkeypatch):
    model, processor = converter
    converted = []
    original = matte_engine._convert_row

    def interrupted(model, processor, row, *args):
        if len(converted) == 2:
            raise KeyboardInterrupt
        converted.append(row["image_id"])
        return original(model, processor, row, *args)

    monkeypatch.setattr(matte_engine, "_convert_row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        label_mattes(model, processor, sa1b, tmp_path / "out", progress=False)
    assert len(load_source("sa1b_mattes", root=str(tmp_path / "out"))) == 2
    (tmp_path / "out" / ".mattes-1.zip.123.tmp").write_text("remains of a killed run")
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.zip")}
    converted.append(None)  # no interruption any more
    label_mattes(model, processor, sa1b, tmp_path / "out", progress=False)
    assert converted == [0, 1, None, 2, 3] and all(path.read_bytes() == old for path, old in before.items())
    assert len(load_source("sa1b_mattes", root=str(tmp_path / "out"))) == 4


def test_damaged_files_stop_nothing_and_are_tried_again(converter, sa1b, tmp_path, caplog):
    good = (sa1b / "sa_1.json").read_text()
    (sa1b / "sa_1.json").write_text("{")
    label_mattes(*converter, sa1b, tmp_path / "out", progress=False)
    assert len(load_source("sa1b_mattes", root=str(tmp_path / "out"))) == 3
    assert caplog.text.count("left out, ") == 1 and "sa_1.json" in caplog.text
    (sa1b / "sa_1.json").write_text(good)
    label_mattes(*converter, sa1b, tmp_path / "out", progress=False)
    assert len(load_source("sa1b_mattes", root=str(tmp_path / "out"))) == 4


def test_a_kill_loses_no_more_than_the_last_minute(converter, sa1b, tmp_path, monkeypatch):
    monkeypatch.setattr(matte_engine, "FLUSH_SECONDS", 0.0)
    assert len(label_mattes(*converter, sa1b, tmp_path / "out", progress=False)) == 4


def test_processes_share_a_folder(converter, sa1b, tmp_path):
    for index in (1, 0):
        label_mattes(*converter, sa1b, tmp_path / "out", process_index=index, num_processes=2, progress=False)
    shards = sorted((tmp_path / "out").glob("*.zip"))
    names = [sorted(name for name in zipfile.ZipFile(path).namelist() if name.endswith(".json")) for path in shards]
    assert sorted(names) == [["sa_0.json", "sa_2.json"], ["sa_1.json", "sa_3.json"]]


def test_16_bits_and_empty_mattes(converter, sa1b, tmp_path):
    model = tiny_label_converter()
    with torch.no_grad():
        for head in model.decoder.heads:
            head.projection.bias.fill_(-40)
    label_mattes(model, converter[1], sa1b, tmp_path / "empty", limit=1, progress=False)
    assert load_source("sa1b_mattes", root=str(tmp_path / "empty"))[0]["regions"] == []
    label_mattes(*converter, sa1b, tmp_path / "out", limit=1, bits=16, progress=False)
    alpha = load_source("sa1b_mattes", root=str(tmp_path / "out"))[0]["regions"][0]["alpha"]
    expected = convert_masks(*converter, random_image(0), rectangles(1, 0))[0].numpy()
    assert np.abs(decode_alpha(alpha) - expected).max() < 1e-4


def test_wrong_use(converter, sa1b, tmp_path):
    model, processor = converter
    for options in ({"bits": 12}, {"images_per_shard": 0}, {"process_index": 1}):
        with pytest.raises(ValueError, match="expected bits"):
            label_mattes(model, processor, sa1b, tmp_path / "out", **options)
    with pytest.raises(ValueError, match="no mattes"):
        load_source("sa1b_mattes", root=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="min_iou"):
        load_source("sa1b_mattes", root=str(tmp_path / "out"), min_iou=2)
    with pytest.raises(ValueError, match="there are no masks"):
        label_mattes(model, processor, tmp_path / "nothing", tmp_path / "out")
    label_mattes(model, processor, sa1b, tmp_path / "out", limit=1, progress=False)
    with pytest.raises(ValueError, match="other settings .converter;"):
        label_mattes(tiny_label_converter(seed=1), processor, sa1b, tmp_path / "out", progress=False)
    (shard,) = (tmp_path / "out").glob("*.zip")
    shard.write_bytes(shard.read_bytes()[:-30])
    for call in (
        lambda: label_mattes(model, processor, sa1b, tmp_path / "out", progress=False),
        lambda: load_source("sa1b_mattes", root=str(tmp_path / "out")),
    ):
        with pytest.raises(ValueError, match="damaged"):
            call()


def test_mattes_may_lie_beside_the_masks(converter, sa1b):
    shards = label_mattes(*converter, sa1b, sa1b, progress=False)
    before = [path.name for path in list_sa1b(sa1b)]
    assert label_mattes(*converter, sa1b, sa1b, progress=False) == shards
    assert before == [path.name for path in list_sa1b(sa1b)] and all(name.startswith("sa_") for name in before)
    (sa1b / "._sa_1.json").write_bytes(b"of another program")
    assert len(list_sa1b(sa1b)) == len(before)


def test_command(converter, sa1b, tmp_path):
    for part in converter:
        part.save_pretrained(tmp_path / "model")
    arguments = ["label-mattes", str(sa1b), "--model", str(tmp_path / "model"), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--limit", "2", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert len(load_source("sa1b_mattes", root=str(tmp_path / "out"))) == 2
    settings = json.loads((tmp_path / "out" / ".matte_settings").read_text())
    assert settings["bits"] == 8 and len(settings["converter"]) == 64
    with zipfile.ZipFile(next((tmp_path / "out").glob("*.zip"))) as shard, shard.open("sa_0/0.png") as file:
        assert Image.open(file).size == (60, 44)
