# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import itertools

import numpy as np
import pytest

from hf_segcap.data.describe import (
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    TEXTURES,
    TONES,
    RegionWords,
    colour_words,
    describe_region,
    place_word,
    rgb_to_lab,
    size_word,
    texture_word,
    vocabulary_captions,
)


def test_captions_can_be_read_back():
    for size, tone, colour, texture, shape, place in itertools.product(
        SIZES, ("", *TONES), COLOURS, TEXTURES, ("", *SHAPES), PLACES
    ):
        words = RegionWords(size=size, tone=tone, colour=colour, texture=texture, shape=shape, place=place)
        assert RegionWords.parse(words.caption()) == words


def test_example_of_a_caption():
    words = RegionWords(size="small", tone="dark", colour="red", texture="striped", place="upper left")
    assert words.caption() == "a small dark red striped region at the upper left"


@pytest.mark.parametrize(
    "text", ["", "a red region", "a small red plain region at the moon", "small red plain region"]
)
def test_other_texts_are_no_captions(text):
    assert RegionWords.parse(text) is None


def test_vocabulary_captions_have_every_word():
    seen = " ".join(vocabulary_captions()).split()
    wanted = " ".join((*SIZES, *TONES, *COLOURS, *TEXTURES, *SHAPES, *PLACES, "a region at the")).split()
    assert set(seen) == set(wanted)


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        ((0, 0, 0), ("", "black")),
        ((255, 255, 255), ("", "white")),
        ((128, 128, 128), ("", "grey")),
        ((60, 60, 62), ("dark", "grey")),
        ((190, 190, 188), ("light", "grey")),
        ((220, 20, 30), ("", "red")),
        ((100, 5, 10), ("dark", "red")),
        ((255, 130, 0), ("light", "orange")),
        ((250, 240, 40), ("light", "yellow")),
        ((20, 160, 40), ("", "green")),
        ((0, 60, 10), ("dark", "green")),
        ((0, 0, 255), ("dark", "blue")),
        ((0, 0, 128), ("dark", "blue")),
        ((135, 206, 235), ("light", "blue")),
        ((128, 0, 128), ("dark", "purple")),
        ((255, 192, 203), ("light", "pink")),
        ((139, 69, 19), ("", "brown")),
        ((210, 180, 140), ("light", "brown")),
    ],
)
def test_colours_that_nobody_disputes(rgb, expected):
    colour, tone = colour_words(np.array(rgb))
    assert (str(tone), str(colour)) == expected


def test_lab_of_known_colours():
    lab = rgb_to_lab(np.array([[255, 0, 0], [255, 255, 255], [0, 0, 0]]))
    np.testing.assert_allclose(lab, [[53.2, 80.1, 67.2], [100, 0, 0], [0, 0, 0]], atol=0.1)


def test_sizes_and_places():
    assert [size_word(f) for f in (0.005, 0.03, 0.1, 0.5)] == list(SIZES)
    boxes = [(x, y, x + 10, y + 10) for y in (0, 45, 90) for x in (0, 95, 190)]
    assert [place_word(box, (100, 200)) for box in boxes] == list(PLACES)
    assert place_word((190, 90, 210, 110), (100, 200)) == "lower right"  # centre on the corner of the image


def test_texture_of_photographs():
    rng = np.random.default_rng(0)
    assert texture_word(np.full((20, 20, 3), 90, dtype=np.uint8)) == "plain"
    assert texture_word(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)) == "textured"
    assert texture_word(np.zeros((1, 1, 3), dtype=np.uint8)) == "plain"


def test_masks_count_instead_of_boxes():
    image = np.zeros((60, 60, 3), dtype=np.uint8)
    mask = np.zeros((60, 60), dtype=bool)
    mask[2:8, 2:8] = True
    image[mask] = (220, 20, 30)
    by_box = describe_region(image, (0, 0, 40, 40))
    by_mask = describe_region(image, (0, 0, 40, 40), mask, texture="striped", shape="square")
    assert (by_box.colour, by_box.size, by_box.shape) == ("black", "large", "")
    assert (by_mask.colour, by_mask.size, by_mask.texture, by_mask.shape) == ("red", "small", "striped", "square")
