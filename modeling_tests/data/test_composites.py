# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest

from hf_segcap.data import composites
from hf_segcap.data.composites import CompositeRegions, compose, visible_masks
from hf_segcap.data.describe import RegionWords
from hf_segcap.data.photographs import load_photograph
from hf_segcap.masks import decode_rle

pytest.importorskip("skimage", reason="the photographs come with scikit-image")


def rows(**options):
    return CompositeRegions(40, **{"split": "held_out", "seed": 3, "scene_share": 0.0, **options})


def test_rows_depend_on_seed_and_index_only():
    first, again, other = rows(), rows(), rows(seed=4)
    for index in (0, 7):
        assert first[index]["image"].tobytes() == again[index]["image"].tobytes()
        assert first[index]["regions"] == again[index]["regions"]
        assert first[index]["image"].tobytes() != other[index]["image"].tobytes()


def test_masks_are_the_visible_pixels():
    """Taking a layer away changes the picture inside its mask (and the soft outline) and nowhere else."""
    data, checked = rows(max_objects=4), 0
    for index in range(12):
        background, layers = data.draw(np.random.default_rng([3, index]))
        masks = visible_masks(layers, background.shape[:2])
        picture = compose(background, layers)
        for i, mask in enumerate(masks):
            if any(layer.parent is not None for layer in layers) or mask.sum() < 40:
                continue
            without = compose(background, layers[:i] + layers[i + 1 :])
            changed = np.abs(picture - without).max(-1) > 0.5
            border = np.zeros_like(mask)
            border[layers[i].place] = (layers[i].alpha > 0) & (layers[i].alpha < 1)
            for later in layers[i + 1 :]:
                border[later.place] |= (later.alpha > 0) & (later.alpha < 1)
            assert not (changed & ~mask & ~border).any()
            checked += changed[mask].mean() > 0.5
    assert checked >= 8


def test_regions_have_tight_boxes_and_enough_pixels():
    for index in range(15):
        row = rows(min_pixels=50)[index]
        assert row["image"].size == (row["width"], row["height"]) and row["regions"]
        for region in row["regions"]:
            mask = decode_rle(region["mask"])
            ys, xs = np.nonzero(mask)
            assert mask.shape == (row["height"], row["width"]) and mask.sum() >= 50
            assert region["box"] == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_words_are_given_where_they_are_known():
    parsed = [
        RegionWords.parse(region["phrases"][0])
        for index in range(15)
        for region in rows(texture_share=1.0)[index]["regions"]
    ]
    assert all(words is not None and words.texture for words in parsed)
    generic = {r["phrases"][0] for index in range(15) for r in rows(texture_share=0.0)[index]["regions"]}
    assert all(phrase.endswith(" object") for phrase in generic)


def test_a_share_of_rows_are_scenes():
    mixed = CompositeRegions(60, split="held_out", seed=5, scene_share=0.5)
    scenes = sum(mixed[i]["regions"][0]["category"] is not None and mixed._scenes[i] == mixed[i] for i in range(60))
    assert 15 <= scenes <= 45


def test_rows_of_few_photographs(monkeypatch):
    used = []

    def load(name):
        used[-1].add(name)
        return load_photograph(name)

    monkeypatch.setattr(composites, "load_photograph", load)
    for few in (None, 1, 2):
        data = rows(split="train", texture_share=0.0, photographs_per_row=few)
        most = 0
        for index in range(15):
            used.append(set())
            data.draw(np.random.default_rng(index))
            most = max(most, len(used[-1]))
        assert most == few or (few is None and most > 2)
    assert len(set().union(*used[15:30])) > 2  # other ones in other rows


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split": "test"}, "split must be one of"),
        ({"min_size": 300}, "min_size"),
        ({"max_objects": 0}, "max_objects"),
        ({"scene_share": 1.5}, "shares"),
        ({"photographs_per_row": 0}, "photographs_per_row"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        rows(**options)
    with pytest.raises(IndexError):
        rows()[40]
