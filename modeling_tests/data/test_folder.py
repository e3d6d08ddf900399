# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import json

import numpy as np
import pytest
from PIL import Image

from hf_segcap.data.collator import RegionCollator
from hf_segcap.data.folder import RegionFolder
from hf_segcap.data.matte_collator import MatteCollator
from hf_segcap.data.sources import SOURCES, MixedRows, iter_texts, load_source
from hf_segcap.data.visual_genome import VisualGenomeRegions
from hf_segcap.masks import encode_rle
from modeling_tests.tiny import random_image, tiny_processor, tiny_zim_processor

GOOD = {"image": "a.png", "regions": [{"box": [1, 2, 30, 40], "phrases": ["a red cup", "a cup"]}]}


@pytest.fixture
def folder(tmp_path):
    """Writes lines (dicts or texts) next to two images and returns the folder."""
    random_image(0).save(tmp_path / "a.png")
    random_image(1, (50, 50)).save(tmp_path / "b.png")

    def write(*lines):
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (tmp_path / "regions.jsonl").write_text("\n".join(texts))
        return tmp_path

    return write


def test_rows_have_the_common_format(folder):
    mask = encode_rle(np.ones((50, 50), np.uint8))
    region = {"box": [0.5, 1, 9, 8], "phrase": "a dog", "mask": mask, "category": "dog"}
    second = {"image": "b.png", "image_id": 17, "caption": "two things", "task": "recognition", "regions": [region]}
    rows = RegionFolder(folder(GOOD, "", second))
    assert len(rows) == 2
    first = rows[0]
    assert first["image"].size == (first["width"], first["height"]) == (60, 44)
    assert first["image_id"] == 0 and first["caption"] is None
    expected = {"box": [1, 2, 30, 40], "phrases": ["a red cup", "a cup"], "mask": None, "category": None}
    assert first["regions"] == [expected]
    expected = {"box": [0.5, 1, 9, 8], "phrases": ["a dog"], "mask": mask, "category": "dog"}
    assert rows[1]["regions"] == [expected] and rows[1]["image_id"] == 17 and rows[1]["task"] == "recognition"
    assert list(rows.texts()) == ["a red cup", "a cup", "a dog"]


def test_a_mask_alone_is_a_region(folder):
    mask = np.zeros((44, 60), np.uint8)
    mask[5:9, 10:30] = 1
    row = RegionFolder(folder({"image": "a.png", "regions": [{"mask": encode_rle(mask)}]}))[0]
    assert row["regions"][0]["box"] == [10, 5, 30, 9] and row["regions"][0]["phrases"] == []
    table = [{"mask": encode_rle(mask), "box": None, "phrases": None, "phrase": None, "alpha": None, "category": None}]
    assert RegionFolder(folder({"image": "a.png", "regions": table}))[0]["regions"] == row["regions"]
    for damaged, message in (({"size": [44, 60], "counts": "~~"}, "RLE"), (encode_rle(mask * 0), "empty")):
        with pytest.raises(ValueError, match=f"line 1, region 0: .*{message}"):
            RegionFolder(folder({"image": "a.png", "regions": [{"mask": damaged}]}))


def test_mattes_of_ones_own(folder, tmp_path, caplog):
    matte = np.zeros((44, 60), np.uint8)
    matte[5:9, 10:30] = 120
    Image.fromarray(matte).save(tmp_path / "matte.png")
    hard = np.ones((44, 60), np.uint8)
    regions = [{"alpha": "matte.png"}, {"alpha": "matte.png", "mask": encode_rle(hard), "coarse": True, "note": 3}]
    rows = RegionFolder(folder({"image": "a.png", "regions": regions}))
    first, second = rows[0]["regions"]
    assert first["box"] == [10, 5, 30, 9] and "coarse" not in first and second["coarse"] is True
    assert "note of regions is not used" in caplog.text
    batch = MatteCollator(tiny_zim_processor(), train=False)([rows[0]])
    inside = batch["labels"][0, :, 5:9, 12:28]
    assert batch["prompt_mask"].tolist() == [[True, True]] and (inside - 120 / 255).abs().max() < 0.2
    Image.fromarray(matte * 0).save(tmp_path / "empty.png")
    Image.fromarray(matte[1:]).save(tmp_path / "small.png")
    for alpha in ("none.png", 3):
        with pytest.raises(ValueError, match="line 1, region 0: .*path of a matte"):
            RegionFolder(folder({"image": "a.png", "regions": [{"alpha": alpha}]}))
    for alpha, message in (("empty.png", "0 everywhere"), ("small.png", "has 43 x 60")):
        unusable = RegionFolder(folder({"image": "a.png", "regions": [{"alpha": alpha}]}))  # not opened yet
        with pytest.raises(ValueError, match=rf"row 0 \(0\), region 0: .*{message}"):
            unusable[0]
    with pytest.raises(ValueError, match=".coarse. is true or false, got 1"):
        RegionFolder(folder({"image": "a.png", "regions": [{"alpha": "matte.png", "coarse": 1}]}))


def test_rows_go_through_the_collator(folder):
    batch = RegionCollator(tiny_processor())([RegionFolder(folder(GOOD))[0]])
    assert batch["prompt_mask"].tolist() == [[True]] and batch["task"].tolist() == [1]


def test_boxes_refer_to_the_upright_image(folder, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    random_image(0, (60, 44)).save(tmp_path / "turned.jpg", exif=exif)
    row = RegionFolder(folder({**GOOD, "image": "turned.jpg"}))[0]
    assert (row["width"], row["height"]) == (44, 60) == row["image"].size


def test_limit_and_other_file_names(folder, tmp_path):
    folder(GOOD, GOOD, GOOD)
    (tmp_path / "regions.jsonl").rename(tmp_path / "train.jsonl")
    assert len(RegionFolder(tmp_path, "train.jsonl", limit=2)) == 2
    with pytest.raises(ValueError, match="there is no .*regions.jsonl"):
        RegionFolder(tmp_path)


def broken(**changes):
    return {**GOOD, "regions": [{**GOOD["regions"][0], **changes}]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "a.png",', "not valid JSON"),
        ("[1, 2]", "expected an object"),
        ({"regions": []}, 'path of an "image"'),
        ({**GOOD, "image": "missing.png"}, "there is no image .*missing.png"),
        ({"image": "a.png"}, 'list of "regions", got None'),
        ({"image": "a.png", "regions": [3]}, "region 0: expected an object"),
        (broken(phrases=[]), "region 0: expected .phrases."),
        (broken(phrases="a cup"), "region 0: expected .phrases."),
        (broken(phrases=[3]), "region 0: expected .phrases."),
        (broken(box=[1, 2, 3]), "region 0: expected a .box. of 4 finite numbers"),
        (broken(box=["a", 2, 3, 4]), "region 0: expected a .box. of 4 finite numbers"),
        (broken(box=None), "region 0: expected a .box. of 4 finite numbers"),
        (broken(box=[1, 2, float("nan"), 4]), "region 0: expected a .box. of 4 finite numbers"),
        (broken(box=[30, 2, 20, 40]), "empty or inverted.*not width and height"),
        (broken(mask=[[1, 0]]), "region 0: expected a .mask."),
    ],
)
def test_errors_name_file_and_line(folder, line, message):
    with pytest.raises(ValueError, match=message) as error:
        RegionFolder(folder(GOOD, line))
    assert "regions.jsonl, line 2" in str(error.value)


def test_an_empty_file_is_refused(folder):
    with pytest.raises(ValueError, match="has no rows"):
        RegionFolder(folder(""))


# --- Visual Genome ----------------------------------------------------------------------------------------------------


@pytest.fixture
def visual_genome(tmp_path):
    for folder in ("VG_100K", "VG_100K_2"):
        (tmp_path / folder).mkdir()
    random_image(1, (80, 60)).save(tmp_path / "VG_100K" / "1.jpg")
    random_image(2, (40, 30)).save(tmp_path / "VG_100K_2" / "2.jpg")
    base = "https://example.org/rak248"
    images = [
        {"image_id": 1, "width": 80, "height": 60, "url": f"{base}/VG_100K/1.jpg"},
        {"image_id": 2, "width": 40, "height": 30, "url": f"{base}/VG_100K_2/2.jpg"},
        {"image_id": 3, "width": 40, "height": 30, "url": f"{base}/VG_100K_2/3.jpg"},
    ]
    region = {"x": 5, "y": 6, "width": 10, "height": 20}
    descriptions = [
        {
            "id": 1,
            "regions": [
                {"region_id": 11, "image_id": 1, "phrase": "a red bus", **region},
                {"region_id": 12, "image_id": 1, "phrase": "the sky", **region, "x": 0},
            ],
        },
        {"id": 2, "regions": [{"region_id": 21, "image_id": 2, "phrase": "a dog", **region}]},
        {"id": 3, "regions": []},
    ]
    files = {
        "image_data.json": images,
        "region_descriptions.json": descriptions,
        "densecap_splits.json": {"train": [1, 3], "val": [], "test": [2]},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


def test_visual_genome_rows(visual_genome):
    rows = VisualGenomeRegions(visual_genome)
    assert len(rows) == 1  # image 3 has no region
    row = rows[0]
    assert (row["image_id"], row["width"], row["height"], row["image"].size) == (1, 80, 60, (80, 60))
    assert [region["box"] for region in row["regions"]] == [[5, 6, 15, 26], [0, 6, 10, 26]]
    assert [region["phrases"] for region in row["regions"]] == [["a red bus"], ["the sky"]]
    assert [region["region_id"] for region in row["regions"]] == [11, 12]
    test = VisualGenomeRegions(visual_genome, split="test")
    assert test[0]["image"].size == (40, 30) and list(test.texts()) == ["a dog"]


def test_visual_genome_errors(visual_genome):
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        VisualGenomeRegions(visual_genome, split="dev")
    (visual_genome / "image_data.json").write_text("[]")
    with pytest.raises(ValueError, match="image 1 of the split is not in"):
        VisualGenomeRegions(visual_genome)
    (visual_genome / "densecap_splits.json").unlink()
    with pytest.raises(ValueError, match="there is no .*densecap_splits.json"):
        VisualGenomeRegions(visual_genome)


# --- sources and mixtures ---------------------------------------------------------------------------------------------


def test_sources_are_named_not_imported(folder):
    assert len(load_source("folder", root=folder(GOOD))) == 1
    with pytest.raises(ValueError, match=f"unknown data source 'os:system', expected one of .*{sorted(SOURCES)[0]}"):
        load_source("os:system")
    with pytest.raises(ValueError, match="'folder' does not accept these args.*rot"):
        load_source("folder", rot="x")


class Letters:
    def __init__(self, letters):
        self.letters = letters

    def __len__(self):
        return len(self.letters)

    def __getitem__(self, index):
        return {"regions": [{"phrases": [self.letters[index]]}]}


def order(mixture):
    return "".join(mixture[i]["regions"][0]["phrases"][0] for i in range(len(mixture)))


def test_a_mixture_interleaves_until_all_are_exhausted():
    text = order(MixedRows([Letters("abcdefgh"), Letters("XY")], [1, 1], seed=3))
    assert [c for c in text if c.islower()] == list("abcdefgh" * 20)[: sum(map(str.islower, text))]
    assert [c for c in text if c.isupper()] == list("XY" * 200)[: sum(map(str.isupper, text))]
    assert "h" in text and "Y" in text
    # it ends with the row that completes the last source
    assert text[-1] in "hY" and text.count(text[-1]) == 1
    assert text == order(MixedRows([Letters("abcdefgh"), Letters("XY")], [1, 1], seed=3))
    assert text != order(MixedRows([Letters("abcdefgh"), Letters("XY")], [1, 1], seed=4))


def test_weights_are_relative_frequencies():
    mixture = MixedRows([Letters("a" * 3000), Letters("X" * 10)], [30, 10])
    text = order(mixture)
    assert text.count("X") / len(text) == pytest.approx(0.25, abs=0.03)
    assert sorted(iter_texts(mixture)) == sorted("a" * 3000 + "X" * 10)


@pytest.mark.parametrize(
    ("sources", "weights", "message"),
    [
        ([], [], "one weight per source"),
        ([Letters("a")], [0], "positive"),
        ([Letters("a"), Letters("")], [1, 1], "source 1"),
    ],
)
def test_bad_mixtures_are_refused(sources, weights, message):
    with pytest.raises(ValueError, match=message):
        MixedRows(sources, weights)
