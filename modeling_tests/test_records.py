# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Records and their files, against those of the official command line and against pycocotools."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from hf_segcap.cli.options import to_json
from hf_segcap.data.sa1b import SA1BRegions
from hf_segcap.data.sources import iter_texts, load_source
from hf_segcap.everything import MaskProposals
from hf_segcap.masks import MaskRuns, decode_rle, encode_rle
from hf_segcap.records import (
    read_sa1b,
    to_records,
    write_coco_json,
    write_mask_folder,
    write_sa1b,
)

FIXTURES = Path(__file__).parent / "fixtures" / "sam"


@pytest.fixture(scope="module")
def official() -> list[dict]:
    return json.loads((FIXTURES / "amg_grid.json").read_text())["records_coco_rle"]


@pytest.fixture
def proposals() -> MaskProposals:
    """A rectangle, a mask of every pixel and one of none, in an image of 12 x 20 pixels."""
    masks = np.zeros((3, 12, 20), bool)
    masks[0, 2:6, 3:9] = True
    masks[1] = True
    runs = MaskRuns.encode(masks)
    return MaskProposals(
        runs,
        torch.from_numpy(runs.boxes()),
        torch.tensor([[4.5, 3.25], [10.0, 6.0], [1.0, 1.0]], dtype=torch.float64),
        torch.tensor([0.9, 0.8, 0.7]),
        torch.tensor([0.95, 1.0, float("nan")]),
        torch.tensor([[0, 0, 20, 12], [5, 2, 20, 12], [0, 0, 20, 12]]),
    )


def test_fields(proposals):
    records = to_records(proposals)
    assert list(records[0]) == [
        "segmentation",
        "area",
        "bbox",
        "predicted_iou",
        "point_coords",
        "stability_score",
        "crop_box",
    ]
    assert [record["area"] for record in records] == [24, 240, 0]
    assert [record["bbox"] for record in records] == [[3, 2, 5, 3], [0, 0, 19, 11], [0, 0, 0, 0]]
    assert records[1]["crop_box"] == [5, 2, 15, 10] and records[0]["point_coords"] == [[4.5, 3.25]]
    assert records[0]["predicted_iou"] == float(np.float32(0.9))
    masks = proposals.masks
    for index, record in enumerate(records):
        assert record["segmentation"].dtype == bool
        np.testing.assert_array_equal(record["segmentation"], masks[index])


def test_output_modes(proposals):
    masks = proposals.masks
    uncompressed = [record["segmentation"] for record in to_records(proposals, "uncompressed_rle")]
    assert uncompressed[1:] == [{"size": [12, 20], "counts": [0, 240]}, {"size": [12, 20], "counts": [240]}]
    assert all(type(count) is int for rle in uncompressed for count in rle["counts"])
    compressed = [record["segmentation"] for record in to_records(proposals, "coco_rle")]
    for mask, rle, short in zip(masks, uncompressed, compressed):
        assert coco.frPyObjects(rle, 12, 20)["counts"] == short["counts"].encode()
        np.testing.assert_array_equal(decode_rle(rle), mask)
    json.dumps(to_records(proposals, "coco_rle")[:2], allow_nan=False)
    with pytest.raises(ValueError, match="binary_mask"):
        to_records(proposals, "rle")


# --- the official command line ----------------------------------------------------------------------------------------


@pytest.mark.golden
def test_mask_folder_as_the_official_command_line_writes_it(official, tmp_path):
    folder = tmp_path / "out" / "image0"
    write_mask_folder(folder, official[:6])
    expected = FIXTURES / "amg_cli_grid"
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in expected.iterdir())
    assert (folder / "metadata.csv").read_bytes() == (expected / "metadata.csv").read_bytes()
    for index in range(6):
        ours, theirs = (Image.open(path / f"{index}.png") for path in (folder, expected))
        assert ours.mode == theirs.mode == "L"
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert [path.name for path in folder.parent.iterdir()] == ["image0"]  # nothing temporary is left


def test_mask_folder_appears_complete_or_not_at_all(proposals, tmp_path):
    records = to_records(proposals)
    write_mask_folder(tmp_path / "masks", records)
    assert np.asarray(Image.open(tmp_path / "masks" / "1.png")).min() == 255
    with pytest.raises(ValueError, match="exists already"):
        write_mask_folder(tmp_path / "masks", records)
    with pytest.raises(ValueError, match="Record 1 is incomplete.*crop_box"):
        write_mask_folder(tmp_path / "broken", [records[0], {k: v for k, v in records[1].items() if k != "crop_box"}])
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]
    write_mask_folder(tmp_path / "none", [])
    assert (tmp_path / "none" / "metadata.csv").read_text().startswith("id,area,")


# --- SA-1B ------------------------------------------------------------------------------------------------------------


def write(path, proposals, image_id=7, output_mode="coco_rle"):
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (20, 12)).save(path.with_suffix(".jpg"))
    records = to_records(proposals, output_mode)
    write_sa1b(path, records, image_id=image_id, file_name=f"{path.stem}.jpg", width=20, height=12)
    return path


@pytest.mark.parametrize("output_mode", ["binary_mask", "uncompressed_rle", "coco_rle"])
def test_sa1b_round_trip(proposals, tmp_path, output_mode):
    path = write(tmp_path / "sa_7.json", proposals, output_mode=output_mode)
    content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["image"] == {"image_id": 7, "width": 20, "height": 12, "file_name": "sa_7.jpg"}
    assert [annotation["id"] for annotation in content["annotations"]] == [0, 1, 2]
    assert content["annotations"][0]["segmentation"] == encode_rle(proposals.masks[0])
    assert content["annotations"][0]["bbox"] == [3, 2, 5, 3]
    (row,) = read_sa1b(path)
    assert row.keys() == {"image", "image_id", "width", "height", "caption", "regions"}
    assert (row["image"], row["image_id"], row["width"], row["height"]) == (tmp_path / "sa_7.jpg", 7, 20, 12)
    first = row["regions"][0]
    assert first["box"] == [3.0, 2.0, 9.0, 6.0] and first["points"] == [[4.5, 3.25]] and first["phrases"] == []
    assert first["predicted_iou"] == float(np.float32(0.9)) and row["regions"][2]["stability_score"] is None
    assert row["regions"][2]["box"] == [0.0, 0.0, 0.0, 0.0]
    for region, mask in zip(row["regions"], proposals.masks):
        np.testing.assert_array_equal(decode_rle(region["mask"]), mask)
    assert [region["area"] for region in read_sa1b(path, max_area=0.9)[0]["regions"]] == [24, 0]
    assert sorted(os.listdir(tmp_path)) == ["sa_7.jpg", "sa_7.json"]


def test_number_types_are_loose(proposals, tmp_path):
    path = write(tmp_path / "sa_7.json", proposals)
    content = json.loads(path.read_text())
    annotation = content["annotations"][0]
    annotation |= {"bbox": [3.0, 2.0, 5.0, 3.0], "area": 24.0, "predicted_iou": 1, "point_coords": [[4, 3]]}
    annotation["segmentation"]["size"] = [12.0, 20.0]
    content["image"] |= {"width": 20.0, "height": "12"}
    path.write_text(json.dumps(content))
    region = read_sa1b(path)[0]["regions"][0]
    assert region["predicted_iou"] == 1.0 and region["points"] == [[4.0, 3.0]] and region["area"] == 24


def test_a_list_of_records_without_an_image_block(proposals, tmp_path):
    Image.new("RGB", (20, 12)).save(tmp_path / "photo.png")
    write_coco_json(tmp_path / "photo.json", to_records(proposals, "coco_rle")[:2])
    (row,) = read_sa1b(tmp_path)
    assert (row["image"], row["image_id"], row["width"]) == (tmp_path / "photo.png", "photo", 20)
    assert len(row["regions"]) == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-40], "not valid JSON"),
        (lambda text: "{}", 'expected an object with "image"'),
        (lambda text: text.replace('"annotations"', '"masks"'), "annotations"),
        (lambda text: text.replace('"segmentation"', '"mask"', 1), "mask 0: expected an object with an RLE"),
        (lambda text: text.replace('"counts": "', '"counts": "~', 1), "mask 0: .*Damaged RLE"),
        (lambda text: text.replace('"width": 20', '"width": 21', 1), "different sizes"),
        (lambda text: text.replace('"width": 20', '"width": null', 1), "in pixels"),
        (lambda text: text.replace('"predicted_iou": ', '"predicted_iou": "x", "p": ', 1), "mask 0: expected numbers"),
        (lambda text: text.replace('"point_coords": [', '"point_coords": [3, ', 1), "mask 0: expected numbers"),
    ],
)
def test_damaged_files(proposals, tmp_path, damage, message):
    path = write(tmp_path / "sa_7.json", proposals)
    damaged = damage(path.read_text())
    assert damaged != path.read_text()
    path.write_text(damaged)
    with pytest.raises(ValueError, match=f"sa_7.json.*{message}"):
        read_sa1b(path)


def test_the_nan_of_an_empty_mask_is_no_json(proposals, tmp_path):
    records = [record | {"stability_score": math.nan} for record in to_records(proposals, "coco_rle")]
    write_coco_json(tmp_path / "a.json", records)
    assert json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)[0]["stability_score"] is None
    shown = to_json({"mask": np.zeros((4, 5), bool), "stability_score": math.nan, "area": 0})
    assert json.loads(json.dumps(shown), parse_constant=pytest.fail)["stability_score"] is None


def test_bad_records(proposals, tmp_path):
    records = to_records(proposals)
    size = {"image_id": 1, "file_name": "a.jpg", "width": 20, "height": 12}
    with pytest.raises(ValueError, match="record 0 has the size"):
        write_sa1b(tmp_path / "a.json", records, **{**size, "width": 21})
    with pytest.raises(ValueError, match=r"Record 0 lacks \['segmentation'\]"):
        write_sa1b(tmp_path / "a.json", [{"area": 1, "bbox": [0, 0, 0, 0]}], **size)
    with pytest.raises(ValueError, match="no masks at"):
        read_sa1b(tmp_path / "nothing")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="no masks at"):
        read_sa1b(tmp_path)


def test_the_data_source(proposals, tmp_path):
    for number in (10, 9, 100):
        write(tmp_path / f"sa_{number}.json", proposals, image_id=number)
    rows = load_source("sa1b", root=tmp_path)
    assert isinstance(rows, SA1BRegions) and len(rows) == 3
    assert [row["image_id"] for row in rows] == [9, 10, 100]
    row = rows[0]
    assert row["image"].size == (20, 12) == (row["width"], row["height"])
    assert [region["area"] for region in row["regions"]] == [24, 0]  # the mask of the whole image is left out
    assert len(load_source("sa1b", root=tmp_path, max_area=None, limit=1)[0]["regions"]) == 3
    assert list(iter_texts(rows)) == []
    Image.new("RGB", (20, 13)).save(tmp_path / "sa_9.jpg")
    with pytest.raises(ValueError, match="sa_9.json.*12 x 20"):
        rows[0]
    with pytest.raises(ValueError, match="max_area"):
        SA1BRegions(tmp_path, max_area=90)
    with pytest.raises(ValueError, match="no masks"):
        SA1BRegions(tmp_path / "elsewhere")
