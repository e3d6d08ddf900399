# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The model that `pipeline("promptable-segmentation")` loads when none is named."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import pipeline

from hf_segcap import SamForPromptableSegmentation, SamPromptableConfig
from hf_segcap.assets import bundled_model
from hf_segcap.data.composites import CompositeRegions
from hf_segcap.data.synthetic import SyntheticRegions
from hf_segcap.evaluation.segmentation import evaluate_masks, evaluate_text
from hf_segcap.models.sam.frame import change_frame
from hf_segcap.models.sam.grow import double_decoder, insert_layer
from hf_segcap.training.recipe import load_recipe

FOLDER = Path(bundled_model("promptable-segmentation"))
TEXT_FOLDER = Path(bundled_model("promptable-segmentation", "text"))


@pytest.fixture(scope="module")
def segmenter():
    return pipeline("promptable-segmentation", device="cpu")


@pytest.fixture(scope="module")
def text_segmenter():
    return pipeline("promptable-segmentation", model=str(TEXT_FOLDER), device="cpu")


@pytest.mark.parametrize("folder", [FOLDER, TEXT_FOLDER])
def test_files(folder):
    assert sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) <= 4_000_000
    assert not list(folder.glob("*.bin")) and (folder / "model.safetensors").exists()


@pytest.mark.parametrize("folder", [FOLDER, TEXT_FOLDER])
def test_it_is_the_model_of_the_recipes(folder):
    """The variant for words starts from the second stage, before the model grows and its grid gets finer."""
    config = SamPromptableConfig.from_pretrained(folder)
    stages = ("", "_fine", "_grown", "_frame")  # the later ones change no size
    first, fine, grown, *finer = (load_recipe(f"promptable_segmentation_default{stage}").model for stage in stages)
    wanted = SamForPromptableSegmentation(SamPromptableConfig(**first.config))
    wanted = change_frame(wanted, patch_size=fine.config["vision_config"]["patch_size"])
    if folder == FOLDER:
        assert grown.double_decoder
        wanted = double_decoder(wanted)
        for index in grown.insert_layers:
            wanted = insert_layer(wanted, index)
        for stage in finer:
            wanted = change_frame(wanted, **stage.config["vision_config"])
        wanted = change_frame(wanted, image_size=336)  # the last step of the card
    for part in ("vision_config", "mask_decoder_config", "prompt_encoder_config"):
        ours, theirs = getattr(config, part).to_dict(), getattr(wanted.config, part).to_dict()
        assert {k: v for k, v in ours.items() if k != "dtype"} == {k: v for k, v in theirs.items() if k != "dtype"}
    assert config.everything == wanted.config.everything


@pytest.mark.parametrize(("data", "min_area"), [({}, 150), ({"scene_share": 0}, 400)])
def test_masks_on_held_out_composites(segmenter, data, min_area):
    """A small sample of what the model card reports; the bars leave room for the size of the sample."""
    assert segmenter.model.dtype == torch.float32
    rows = CompositeRegions(12, split="held_out", seed=99, **data)
    scores = evaluate_masks(segmenter.model, segmenter.processor, rows, num_points=(1, 3), min_area=min_area)
    assert scores["num_objects"] > 25
    assert scores["miou@1"] >= 0.80 and scores["box_miou"] >= 0.88 and scores["miou@3"] >= 0.81


def test_words_alone_select_the_named_object(text_segmenter):
    """Scenes that nothing was trained on; a small sample of what the model card of the variant reports."""
    scores = evaluate_text(text_segmenter, SyntheticRegions(25, seed=4321), min_area=400)
    assert scores["num_objects"] > 50 and scores["text_miou"] >= 0.7


def test_everything_finds_distinct_masks(segmenter):
    row = CompositeRegions(1, split="held_out", seed=5)[0]
    found = segmenter(row["image"])
    assert len(found) >= 2 and all(np.count_nonzero(result["mask"]) == result["area"] for result in found)


def test_other_variants_are_refused():
    with pytest.raises(ValueError, match="variant 'words'. Bundled: .*promptable-segmentation/text"):
        bundled_model("promptable-segmentation", "words")
    with pytest.raises(ValueError, match="for the task 'segmentation'. Bundled: "):
        bundled_model("segmentation")


def test_text_is_refused_with_a_reason(segmenter):
    with pytest.raises(ValueError, match="tokenizer"):
        segmenter(CompositeRegions(1, split="held_out", seed=5)[0]["image"], text="the red star")


def test_model_card_states_what_was_measured():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for line, least in (("one click", 80), ("three clicks", 83), ("box", 90)):
        (value,) = re.findall(rf"^\| {line} \| ([\d.]+) %", card, re.M)
        assert float(value) >= least
    assert "facebook/sam-vit-base" in card and "promptable_segmentation_default" in card
