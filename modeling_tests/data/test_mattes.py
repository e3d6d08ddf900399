# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest

from hf_segcap.data.alpha import alpha_box, decode_alpha
from hf_segcap.data.composites import Layer, compose
from hf_segcap.data.mattes import KINDS, MatteComposites, visible_alphas
from hf_segcap.data.sources import load_source
from hf_segcap.masks import decode_rle

pytest.importorskip("skimage", reason="the photographs come with scikit-image")


def rows(**options):
    return MatteComposites(40, **{"split": "held_out", "seed": 3, **options})


def test_rows_depend_on_seed_and_index_only():
    first, again, other, train = rows(), rows(), rows(seed=4), rows(split="train")
    for index in (0, 7):
        assert first[index]["image"].tobytes() == again[index]["image"].tobytes()
        assert first[index]["regions"] == again[index]["regions"]
        assert first[index]["image"].tobytes() != other[index]["image"].tobytes()
        assert first[index]["image"].tobytes() != train[index]["image"].tobytes()


def test_regions_have_matte_box_and_mask():
    for index in range(12):
        row = rows(min_pixels=50)[index]
        assert row["image"].size == (row["width"], row["height"]) and row["regions"]
        assert 160 <= max(row["image"].size) <= 256
        for region in row["regions"]:
            alpha = decode_alpha(region["alpha"], size=(row["height"], row["width"]))
            assert isinstance(region["alpha"], bytes) and alpha.sum() >= 49 and region["category"] in KINDS
            assert region["box"] == pytest.approx(alpha_box(alpha), abs=1)
            assert (decode_rle(region["mask"]) != (alpha > 0.5)).mean() < 0.01


def test_the_picture_is_the_sum_of_what_is_seen():
    data = rows()
    for index in range(6):
        background, layers = data.draw(np.random.default_rng(index))
        alphas = visible_alphas(layers, background.shape[:2])
        picture, left = np.zeros_like(background), np.ones(background.shape[:2], dtype=np.float32)
        for layer, alpha in zip(layers, alphas):
            picture[layer.place] += alpha[layer.place][..., None] * layer.fill
            left[layer.place] *= 1 - layer.alpha
        picture += left[..., None] * background
        np.testing.assert_allclose(picture, compose(background, layers), atol=0.05)
        np.testing.assert_allclose(sum(alphas) + left, 1, atol=1e-5)


def test_what_lies_below_is_seen_through_what_lies_above():
    fill = np.zeros((4, 4, 3), dtype=np.float32)
    below = Layer(0, 0, np.full((4, 4), 0.8, dtype=np.float32), fill, "solid", "")
    above = Layer(2, 2, np.full((4, 4), 0.25, dtype=np.float32), fill, "glass", "")
    alphas = visible_alphas([below, above], (8, 8))
    assert alphas[0][0, 0] == pytest.approx(0.8) and alphas[0][3, 3] == pytest.approx(0.6)
    assert alphas[1][3, 3] == 0.25 and alphas[0][5, 5] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_look_like_themselves(kind):
    """Shares of pixels that are partly covered, and of those that are covered completely."""
    data = rows(kinds={kind: 1}, max_objects=1)
    partly, fully = [], []
    for index in range(12):
        _, layers = data.draw(np.random.default_rng(index))
        for layer in layers:
            assert layer.outline == kind and layer.alpha.dtype == np.float32
            assert layer.alpha.min() >= 0 and layer.alpha.max() <= 1
            touched = layer.alpha > 0.02
            partly.append((touched & (layer.alpha < 0.98)).sum() / touched.sum())
            fully.append((layer.alpha >= 0.98).sum() / touched.sum())
    expected = {  # least and largest median share of partly covered pixels
        "solid": (0, 0.15),
        "hair": (0.15, 0.95),
        "fur": (0.05, 0.6),
        "soft": (0.2, 1),
        "lace": (0.1, 1),
        "blur": (0.25, 1),
        "glass": (0.95, 1),
    }[kind]
    assert len(partly) >= 8 and expected[0] <= np.median(partly) <= expected[1]
    if kind in ("solid", "fur"):
        assert np.median(fully) > 0.4
    if kind == "glass":
        assert np.median(fully) < 0.02


def test_most_objects_differ_from_what_is_behind_them():
    data, differences = rows(max_objects=1, kinds={"fur": 1, "solid": 1}), []
    for index in range(15):
        background, layers = data.draw(np.random.default_rng(index))
        for layer in layers:
            weight = layer.alpha[..., None] / layer.alpha.sum()
            differences.append(np.abs((weight * (layer.fill - background[layer.place])).sum((0, 1))).max())
    assert np.mean(np.array(differences) > 15) > 0.8


def test_pied_objects_have_patches_of_other_colours():
    def spread(share):
        data, found = rows(max_objects=1, kinds={"fur": 1, "solid": 1}, pied_share=share), []
        for index in range(30):
            _, layers = data.draw(np.random.default_rng(index))
            found += [layer.fill[layer.alpha > 0.5].std(axis=0).mean() for layer in layers]
        return np.mean(found)

    assert spread(1.0) > 1.3 * spread(0.0)
    glass = rows(kinds={"glass": 1}), rows(kinds={"glass": 1}, pied_share=1.0)
    assert glass[0][2]["image"].tobytes() == glass[1][2]["image"].tobytes()


def test_all_kinds_are_drawn_and_listed_as_a_source():
    data = load_source("mattes", n=60, split="train", seed=1, max_objects=4, min_size=64, max_size=96)
    assert {region["category"] for index in range(60) for region in data[index]["regions"]} == set(KINDS)
    assert list(data.texts()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "split must be one of"),
        ({"min_size": 300}, "min_size"),
        ({"max_objects": 0}, "max_objects"),
        ({"kinds": {"smoke": 1}}, "kinds"),
        ({"kinds": {"hair": 0}}, "kinds"),
        ({"pied_share": 2}, "pied_share"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        rows(**options)
    with pytest.raises(IndexError):
        rows()[40]
