# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest

from hf_segcap.evaluation.region_words import evaluate, word_accuracy

TRUE = "a small dark red striped round region at the upper left"


def test_word_accuracy():
    captions = [
        TRUE,
        "a small red striped round region at the upper left",
        "a small dark blue striped round region at the top",
        "nonsense",
    ]
    scores = word_accuracy(captions, [TRUE] * 4)
    assert scores == {
        "colour": 0.5,
        "place": 0.5,
        "size": 0.75,
        "tone": 0.5,
        "texture": 0.75,
        "shape": 0.75,
        "whole caption": 0.25,
        "well formed": 0.75,
    }
    assert word_accuracy([TRUE, "an object"], ["an object"] * 2)["whole caption"] == 0.5
    with pytest.raises(ValueError, match="as many captions as truths"):
        word_accuracy([TRUE], [])
    with pytest.raises(ValueError, match="at least one"):
        word_accuracy([], [])


def test_evaluate_prompts_with_the_boxes_of_the_rows():
    images = [np.full((5, 5, 3), value, dtype=np.uint8) for value in (0, 128)]
    images[1][:] = (0, 0, 255)
    rows = [{"image": i, "regions": [{"box": [0, 0, n, n], "phrases": [TRUE]} for n in (3, 4)]} for i in images]

    def captioner(items, **options):
        assert [item["image"] is image for item, image in zip(items, images)] == [True, True]
        assert items[0]["boxes"] == [[0, 0, 3, 3], [0, 0, 4, 4]]
        return [[{"caption": TRUE}, {"caption": TRUE.replace("red", "blue")}] for _ in items]

    scores = evaluate(captioner, rows)
    assert scores["colour"] == 0.5 and scores["place"] == 1.0
    assert scores["colour, mean or commonest"] == 0.75  # most pixels of the second image are blue
