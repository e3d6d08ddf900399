# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The generated world and the photographs: rows are deterministic, complete and true."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from hf_segcap.data.composites import CompositeRegions, photograph_piece
from hf_segcap.data.describe import COLOURS, RegionWords, describe_region
from hf_segcap.data.mattes import MatteComposites
from hf_segcap.data.photographs import (
    PHOTOGRAPHS,
    PhotographRegions,
    load_photograph,
    photograph_names,
    random_box,
)
from hf_segcap.data.synthetic import SyntheticRegions, generate_scene, random_colour
from hf_segcap.masks import decode_rle


def test_rows_depend_on_seed_and_index_only():
    first, again, other = SyntheticRegions(5, seed=3), SyntheticRegions(9, seed=3), SyntheticRegions(5, seed=4)
    assert first[2]["regions"] == again[2]["regions"] and first[2]["regions"] != other[2]["regions"]
    assert np.array_equal(first[2]["image"], again[2]["image"])
    with pytest.raises(IndexError):
        first[5]


def test_rows_are_true():
    data = SyntheticRegions(12, seed=0)
    for i in range(len(data)):
        row = data[i]
        image = np.asarray(row["image"])
        assert image.shape == (row["height"], row["width"], 3) and row["regions"]
        covered = np.zeros(image.shape[:2], dtype=int)
        for region in row["regions"]:
            mask = np.asarray(decode_rle(region["mask"]), dtype=bool)
            ys, xs = np.nonzero(mask)
            assert region["box"] == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            words = RegionWords.parse(region["phrases"][0])
            assert words == describe_region(
                image, region["box"], mask, texture=words.texture, shape=region["category"]
            )
            covered += mask
        assert covered.max() == 1  # masks are what is visible


def test_words_are_spread():
    data = SyntheticRegions(60, seed=1)
    words = [RegionWords.parse(r["phrases"][0]) for i in range(len(data)) for r in data[i]["regions"]]
    assert set(Counter(w.colour for w in words)) == set(COLOURS)
    assert len({w.place for w in words}) == 9 and len({w.texture for w in words}) == 4
    rng = np.random.default_rng(0)
    assert all(random_colour(rng).shape == (3,) for _ in range(5))


def test_scene_of_a_given_size():
    scene = generate_scene(np.random.default_rng(0), (50, 80), num_objects=2)
    assert scene.image.shape == (50, 80, 3) and scene.image.dtype == np.uint8 and len(scene.objects) <= 2


class TestPhotographs:
    def test_splits_are_disjoint(self):
        assert not set(PHOTOGRAPHS["train"]) & set(PHOTOGRAPHS["held_out"])
        assert all(max(load_photograph(n).size) <= 448 for names in PHOTOGRAPHS.values() for n in names)
        with pytest.raises(ValueError, match="split must be one of"):
            PhotographRegions(1, split="test")

    def test_a_folder_of_your_own_joins_those_of_training(self, tmp_path):
        Image.new("RGB", (900, 300), (200, 30, 30)).save(tmp_path / "red.png")
        names = photograph_names("train", tmp_path)
        assert names == (*PHOTOGRAPHS["train"], str(tmp_path / "red.png"))
        photograph = load_photograph(names[-1])
        assert photograph.size == (448, 149) and photograph.getpixel((200, 70)) == (200, 30, 30)
        piece = photograph_piece(np.random.default_rng(0), names[-1:], (20, 30), zoom=(0.5, 1.0))
        assert piece.shape == (20, 30, 3) and np.ptp(piece.reshape(-1, 3), axis=0).max() < 1

    @pytest.mark.parametrize("source", [CompositeRegions, MatteComposites])
    def test_they_are_drawn_in_generated_data(self, tmp_path, source):
        Image.new("RGB", (90, 60), (200, 30, 30)).save(tmp_path / "red.png")
        own, plain = source(40, seed=3, photographs=tmp_path), source(40, seed=3)
        assert own.photographs[-1] == str(tmp_path / "red.png")
        assert any(own[i]["image"].tobytes() != plain[i]["image"].tobytes() for i in range(8))
        with pytest.raises(ValueError, match="held-out ones stay the same"):
            source(40, split="held_out", photographs=tmp_path)

    def test_bad_folders(self, tmp_path):
        (tmp_path / "empty").mkdir()
        (tmp_path / "damaged.png").write_bytes(b"no image")
        with pytest.raises(ValueError, match="no folder .*none"):
            photograph_names("train", tmp_path / "none")
        with pytest.raises(ValueError, match="empty holds no image, expected files ending in .jpg"):
            photograph_names("train", tmp_path / "empty")
        with pytest.raises(ValueError, match="is for the split \"train\", got 'held_out'"):
            photograph_names("held_out", tmp_path)
        with pytest.raises(ValueError, match="damaged.png"):
            load_photograph(photograph_names("train", tmp_path)[-1])

    @pytest.mark.parametrize("augment", [False, True])
    def test_rows_are_true(self, augment):
        data = PhotographRegions(3, split="held_out", seed=5, augment=augment)
        masks = 0
        for i in range(len(data)):
            row = data[i]
            image = np.asarray(row["image"])
            assert data[i]["regions"] == row["regions"] and len(row["regions"]) >= 6
            for region in row["regions"]:
                mask = None if region["mask"] is None else np.asarray(decode_rle(region["mask"]), dtype=bool)
                masks += mask is not None
                assert region["phrases"] == [describe_region(image, region["box"], mask).caption()]
        assert masks

    def test_random_boxes_stay_inside(self):
        rng = np.random.default_rng(0)
        boxes = np.array([random_box(rng, (40, 90)) for _ in range(300)])
        assert boxes.min() >= 0 and boxes[:, 2].max() <= 90 and boxes[:, 3].max() <= 40
        assert ((boxes[:, 2:] - boxes[:, :2]) >= 4).all()
