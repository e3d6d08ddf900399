# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The model that `pipeline("image-matting")` loads when none is named."""

import re
from pathlib import Path

import pytest
import torch
from transformers import pipeline

from hf_segcap import SamPromptableConfig, ZimConfig
from hf_segcap.assets import bundled_model
from hf_segcap.data.mattes import MatteComposites
from hf_segcap.evaluation.matting import MattePredictor, evaluate_mattes, photograph_rows, sad_ratios
from hf_segcap.training.recipe import load_recipe

FOLDER = Path(bundled_model("image-matting"))


@pytest.fixture(scope="module")
def matter():
    return pipeline("image-matting", device="cpu")


@pytest.fixture(scope="module")
def predictors(matter):
    segmenter = pipeline("promptable-segmentation", device="cpu")
    return {
        "ZIM": MattePredictor(matter.model, matter.processor),
        "SAM": MattePredictor(segmenter.model, segmenter.processor, None),
    }


def test_files():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 4_000_000
    assert not list(FOLDER.glob("*.bin")) and (FOLDER / "model.safetensors").exists()


def test_it_is_the_model_of_the_recipes(matter):
    assert matter.model.dtype == torch.float32
    config = ZimConfig.from_pretrained(FOLDER)
    stages = ("", "_sharp", "_cutouts")
    first, *later = (load_recipe(f"image_matting_default{stage}").model.config for stage in stages)
    wanted = {**first, **{name: value for stage in later for name, value in stage.items()}}
    wanted["vision_config"] |= {"image_size": 528}  # the last step of the card
    wanted["point_sigma"] *= 528 / 288
    segmenter = SamPromptableConfig.from_pretrained(bundled_model("promptable-segmentation")).vision_config
    vision = segmenter.to_dict() | wanted.pop("vision_config")
    del vision["dtype"], vision["transformers_version"]  # not of the architecture
    assert {name: getattr(config.vision_config, name) for name in vision} == vision
    assert {name: getattr(config, name) for name in wanted} == wanted


def test_mattes_are_better_than_masks(predictors):
    """A small sample of what the model card reports; the bars leave room for the size of the sample."""
    generated = evaluate_mattes(predictors, MatteComposites(12, split="held_out", seed=99), prompts=("box",))
    assert len(generated) >= 2 * 20
    assert sad_ratios(generated)["box"]["SAM"] <= 0.65
    photograph = evaluate_mattes(predictors, photograph_rows(), prompts=("box",))
    assert sad_ratios(photograph)["box"]["SAM"] <= 0.6
    assert max(result["zim"]["sad"] for result in photograph if result["model"] == "ZIM") < 8  # thousands of pixels


def test_everything(matter):
    row = MatteComposites(1, split="held_out", seed=5)[0]
    found = matter(row["image"])
    assert found and all(result["alpha"].size == row["image"].size for result in found)


def test_model_card_states_what_was_measured():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    ratios = re.findall(r"^\| (?:generated|lemur), \w+ \| \d+ \| [\d.]+ \| [\d.]+ \| ([\d.]+) \|", card, re.M)
    assert len(ratios) == 4 and float(ratios[0]) <= 0.6 and float(ratios[2]) <= 0.6
    assert "naver-iv/zim-anything" in card and "image_matting_default" in card
