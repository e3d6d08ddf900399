# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The model that `pipeline("region-captioning")` loads when none is named."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import pipeline

import hf_segcap
from hf_segcap.assets import bundled_model, bundled_photograph
from hf_segcap.data.describe import RegionWords
from hf_segcap.data.photographs import PhotographRegions
from hf_segcap.evaluation.region_words import evaluate
from hf_segcap.training.recipe import load_recipe

FOLDER = Path(bundled_model("region-captioning"))


@pytest.fixture(scope="module")
def captioner():
    return pipeline("region-captioning", device="cpu")


def test_files():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 4 * 2**20
    assert not list(FOLDER.glob("*.bin")) and (FOLDER / "model.safetensors").exists()


def test_it_is_the_model_of_the_recipe():
    config = hf_segcap.SamCaptionConfig.from_pretrained(FOLDER)
    wanted = hf_segcap.SamCaptionConfig(**load_recipe("region_captioning_default").model.config)
    for part in ("vision_config", "mask_caption_decoder_config", "prompt_encoder_config"):
        ours, theirs = getattr(config, part).to_dict(), getattr(wanted, part).to_dict()
        assert {k: v for k, v in ours.items() if k != "dtype"} == {k: v for k, v in theirs.items() if k != "dtype"}
    assert config.everything == wanted.everything and config.text_config.n_layer == wanted.text_config.n_layer


def test_it_runs_in_float32(captioner):
    assert captioner.model.dtype == torch.float32


def test_words_on_held_out_photographs(captioner):
    """A small sample of what the model card reports; the bars leave room for the size of the sample."""
    rows = PhotographRegions(6, "held_out", seed=4321, boxes=20, segments=0, augment=False)
    scores = evaluate(captioner, (rows[i] for i in range(len(rows))))
    assert scores["well formed"] == 1.0
    assert scores["place"] >= 0.9 and scores["colour"] >= 0.85


def test_points_and_everything(captioner):
    photograph = bundled_photograph("lemur")
    (result,) = captioner(photograph, points=[[70, 100]])
    assert RegionWords.parse(result["caption"]) is not None
    found = captioner(photograph)
    assert found and all(RegionWords.parse(region["caption"]) for region in found)
    assert all(np.count_nonzero(region["mask"]) for region in found)


def test_model_card_states_what_was_measured():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for word in ("colour", "place"):
        (value,) = re.findall(rf"\| held-out photographs, {word} \| \*?\*?([\d.]+) %", card)
        assert float(value) >= {"colour": 80, "place": 90}[word]
    assert "xk-huang/segment-caption-anything" in card and "region_captioning_default" in card
