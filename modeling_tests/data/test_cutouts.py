# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest
from PIL import Image

from hf_segcap.data.alpha import decode_alpha
from hf_segcap.data.composites import CompositeRegions
from hf_segcap.data.cutouts import CUTOUT, Cutouts, load_cutout
from hf_segcap.data.mattes import MatteComposites
from hf_segcap.masks import decode_rle

RED = (220, 10, 10)


@pytest.fixture
def folder(tmp_path):
    """A red disc with a half-transparent rim on a large empty canvas."""
    ys, xs = np.mgrid[:120, :160]
    distance = np.hypot(ys - 60, xs - 100)
    alpha = np.where(distance < 30, 255, np.where(distance < 36, 128, 0)).astype(np.uint8)
    pixels = np.concatenate([np.full((120, 160, 3), RED, np.uint8), alpha[..., None]], axis=2)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "disc.png")
    return tmp_path


def test_pictures_are_cut_to_their_object(folder):
    picture = load_cutout(str(folder / "disc.png"))
    assert picture.mode == "RGBA" and picture.size == (71, 71)
    large = Image.new("RGBA", (2000, 1000), (0, 0, 0, 0))
    large.paste((*RED, 255), (100, 100, 1900, 900))
    large.save(folder / "large.png")
    assert load_cutout(str(folder / "large.png")).size == (448, 199)


def test_drawn_as_large_as_asked_and_without_a_fringe(folder):
    cutouts = Cutouts(folder, 1.0)
    for seed in range(10):
        top, left, alpha, colours = cutouts.draw(np.random.default_rng(seed), np.array([50.0, 60.0]), 20.0, (100, 120))
        assert alpha.dtype == colours.dtype == np.float32 and colours.shape == (*alpha.shape, 3)
        rows, columns = np.nonzero(alpha > 0.25)
        assert abs(np.ptp(rows) + 1 - 40) <= 3 and abs(np.ptp(columns) + 1 - 40) <= 3
        assert abs(rows.mean() + top - 50) < 1.5 and abs(columns.mean() + left - 60) < 1.5
        seen = colours[alpha > 0.4]
        assert np.ptp(seen, axis=0).max() < 40  # of one colour: no black from the transparent pixels
        assert 0.1 < ((alpha > 0.3) & (alpha < 0.7)).sum() / (alpha > 0.3).sum() < 0.5


def test_only_the_part_inside_the_image(folder):
    cutouts = Cutouts(folder, 1.0)
    top, left, alpha, _ = cutouts.draw(np.random.default_rng(0), np.array([0.0, 118.0]), 20.0, (100, 120))
    assert top == 0 and left + alpha.shape[1] <= 120 and alpha.max() == 1
    assert cutouts.draw(np.random.default_rng(0), np.array([-50.0, 60.0]), 20.0, (100, 120)) is None


@pytest.mark.parametrize("source", [CompositeRegions, MatteComposites])
def test_share_of_the_objects(folder, source):
    options = {"n": 40, "split": "train", "seed": 3, "min_size": 64, "max_size": 96}
    for share, low, high in ((0.0, 0, 0), (0.5, 0.2, 0.8), (1.0, 1, 1)):
        data = source(**options, cutouts=folder, cutout_share=share)
        layers = [layer for i in range(40) for layer in data.draw(np.random.default_rng(i))[1]]
        whole = [layer for layer in layers if layer.parent is None]
        assert low <= np.mean([layer.outline == CUTOUT for layer in whole]) <= high
    if source is MatteComposites:
        data = source(**options, cutouts=folder, cutout_share=1.0, max_objects=1)
        (region,) = data[0]["regions"]
        alpha = decode_alpha(region["alpha"])
        assert region["category"] == CUTOUT and 0 < ((alpha > 0.3) & (alpha < 0.7)).sum() < (alpha > 0.7).sum()
    else:
        region = source(**options, cutouts=folder, cutout_share=1.0, scene_share=0)[0]["regions"][0]
        assert region["phrases"] == ["an object"] and decode_rle(region["mask"]).any()


def test_rows_without_cut_outs_stay_the_same(folder):
    plain, none = (MatteComposites(5, seed=3, **options) for options in ({}, {"cutouts": None, "cutout_share": 1.0}))
    assert plain[4]["image"].tobytes() == none[4]["image"].tobytes()


@pytest.mark.parametrize("source", [CompositeRegions, MatteComposites])
def test_bad_folders(folder, source, tmp_path):
    with pytest.raises(ValueError, match="cutout_share"):
        source(5, cutouts=folder, cutout_share=1.5)
    with pytest.raises(ValueError, match="no folder"):
        source(5, cutouts=folder / "missing")
    with pytest.raises(ValueError, match='"train"'):
        source(5, split="held_out", cutouts=folder)


@pytest.mark.parametrize(
    ("name", "message"), [("opaque", "opaque"), ("empty", "transparent"), ("broken", "cannot read")]
)
def test_bad_pictures(tmp_path, name, message):
    path = tmp_path / f"{name}.png"
    Image.new("RGBA", (20, 20), (1, 2, 3, 255 if name == "opaque" else 0)).save(path)
    if name == "broken":
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=f"{name}.png.*{message}"):
        load_cutout(str(path))
