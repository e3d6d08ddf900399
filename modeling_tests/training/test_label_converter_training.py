# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Recipes of the label converter: they run, resume, save what loads, start from a Hiera, and say what is wrong."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import HieraConfig, HieraModel

from hf_segcap import ZimLabelConverter, ZimLabelConverterProcessor
from hf_segcap.data.label_collator import LabelCollator
from hf_segcap.masks import encode_rle
from hf_segcap.matte_engine import convert_masks
from hf_segcap.training.recipe import RECIPES, load_recipe
from hf_segcap.training.run import build_model, train
from hf_segcap.training.trainer import SegCapTrainer
from modeling_tests.tiny import IMAGE_SIZE, random_image, tiny_label_converter, tiny_label_converter_processor
from modeling_tests.training.data import (
    ONE_STEP_OF_TWO,
    TRAIN_AND_REPORT,
    arguments,
    assert_loss_is_the_plain_mean,
    assert_ranks_agree,
    logged_losses,
    run_two_processes,
)

BACKBONE = {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4], "image_size": [64, 64]}
SIZES = {"decoder_hidden_sizes": [16, 12, 8], "detail_hidden_size": 4, "training_refinement_width": [1, 5]}


def make_rows(count=4):
    """Bright soft discs on dark images, fine and coarse by turns."""
    rng, rows = np.random.default_rng(0), []
    ys, xs = np.indices((IMAGE_SIZE, IMAGE_SIZE))
    for index in range(count):
        y, x = rng.uniform(20, 44, 2)
        alpha = np.clip((14 - np.hypot(ys - y, xs - x)) / 4 + 0.5, 0, 1).astype(np.float32)
        image = np.array(random_image(index, (IMAGE_SIZE, IMAGE_SIZE))) // 4
        image = (image + (255 - image) * alpha[..., None]).astype(np.uint8)
        region = {"box": [x - 14, y - 14, x + 14, y + 14], "phrases": [], "mask": encode_rle(alpha > 0.5)}
        rows.append({"image": image, "image_id": index, "regions": [region | ({"alpha": alpha} if index % 2 else {})]})
    return rows


def make_trainer(output, model=None, **options):
    return SegCapTrainer(
        model=tiny_label_converter() if model is None else model,
        args=arguments(output, **options),
        data_collator=LabelCollator(tiny_label_converter_processor()),
        train_dataset=make_rows(),
        eval_dataset=make_rows(),
    )


def test_loss_is_the_plain_mean_with_gradient_accumulation(tmp_path):
    collator = LabelCollator(tiny_label_converter_processor(), train=False)
    trainer = make_trainer(tmp_path, tiny_label_converter(training_refinement_width=[3, 3]), **ONE_STEP_OF_TWO)
    trainer.data_collator = collator
    assert_loss_is_the_plain_mean(trainer, make_rows(), collator)


def test_it_learns_mattes(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=60, learning_rate=3e-3, lr_scheduler_type="constant")
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert np.mean(logged_losses(trainer)[-5:]) < 0.5 * np.mean(logged_losses(trainer)[:3])
    assert trainer.evaluate()["eval_loss"] < 0.5 * before


def test_resume_gives_the_same_losses(tmp_path):
    options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3}
    whole = make_trainer(tmp_path / "a", **options)
    whole.train()
    resumed = make_trainer(tmp_path / "b", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert len(set(logged_losses(whole))) == 5
    assert logged_losses(resumed) == pytest.approx(logged_losses(whole), rel=1e-4)


@pytest.fixture
def recipe(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    with open(data / "regions.jsonl", "w") as lines:
        for row in make_rows():
            Image.fromarray(row["image"]).save(data / f"{row['image_id']}.png")
            region = {name: row["regions"][0][name] for name in ("box", "mask")}
            lines.write(json.dumps({"image": f"{row['image_id']}.png", "regions": [region]}) + "\n")
    return {
        "task": "matte-conversion",
        "model": {"config": {"backbone_config": BACKBONE, **SIZES}},
        "data": {
            "train": [
                {"source": "folder", "args": {"root": str(data)}, "weight": 0.5},
                {"source": "mattes", "args": {"n": 3, "min_size": 64, "max_size": 64}, "weight": 0.5},
            ],
            "eval": [{"source": "folder", "args": {"root": str(data)}}],
        },
        "training": {"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "use_cpu": True},
    }


def test_a_recipe_trains_and_what_it_saves_converts(recipe, tmp_path):
    metrics = train(recipe, output=tmp_path / "out")
    assert np.isfinite(metrics["train_loss"]) and np.isfinite(metrics["eval_loss"])
    model = ZimLabelConverter.from_pretrained(tmp_path / "out")
    processor = ZimLabelConverterProcessor.from_pretrained(tmp_path / "out")
    assert processor.image_processor.pad_size["height"] == IMAGE_SIZE
    mask = np.zeros((50, 40), dtype=bool)
    mask[10:30, 10:30] = True
    matte = convert_masks(model, processor, random_image(0, (40, 50)), mask)
    assert matte.shape == (1, 50, 40) and matte.std() > 0
    again = {**recipe, "model": {"from_pretrained": str(tmp_path / "out"), "config": {"gradient_loss_weight": 3.0}}}
    reloaded, _ = build_model(load_recipe(again), None)
    assert reloaded.config.gradient_loss_weight == 3.0
    saved = model.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in reloaded.state_dict().items())


def test_start_from_a_hiera_with_lora(recipe, tmp_path):
    backbone = {name: value for name, value in BACKBONE.items() if name != "image_size"}
    HieraModel(HieraConfig(**backbone, image_size=[32, 32])).save_pretrained(tmp_path / "hiera")
    recipe["model"] = {"from_hiera": str(tmp_path / "hiera"), "config": {"image_size": IMAGE_SIZE, **SIZES}}
    start, _ = build_model(load_recipe(recipe), None)
    recipe |= {"freeze": "decoder+lora", "lora": {"r": 2}}
    train(recipe, output=tmp_path / "out")
    trained = ZimLabelConverter.from_pretrained(tmp_path / "out").state_dict()
    changed = {name for name, value in start.state_dict().items() if not torch.equal(value, trained[name])}
    encoder = {name for name in changed if name.startswith("backbone.")}
    assert encoder and all(name.endswith("qkv.weight") for name in encoder) and changed - encoder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {}}, "expected one of from_pretrained, from_hiera, config"),
        ({"model": {"from_pretrained": "a", "from_hiera": "b"}}, "expected one of"),
        ({"model": {"from_sam": "a", "config": {}}}, "expected one of"),
        ({"model": {"from_sam": "a", "from_hiera": "b"}}, "remove model: from_sam"),
        ({"frozen_features": "folder"}, "region-captioning"),
        ({"layer_decay": 0.8}, "SAM image encoder"),
        ({"collator": {"label_size": 64}}, "label_size"),
        ({"task": "promptable-segmentation", "model": {"from_hiera": "a"}}, "from_hiera is for matte-conversion"),
        ({"freeze": "decoder+lora"}, "lora"),
    ],
)
def test_contradictions(recipe, changes, message):
    with pytest.raises(ValueError, match=message):
        load_recipe({**recipe, **changes})


def test_oblong_models_are_refused(recipe):
    recipe["model"]["config"]["backbone_config"] = {**BACKBONE, "image_size": [64, 96]}
    with pytest.raises(ValueError, match="64 x 96"):
        build_model(load_recipe(recipe), None)


def test_the_recipe_of_the_paper():
    recipe = load_recipe(RECIPES / "zim_label_converter.yaml")
    assert recipe.training["learning_rate"] == 1e-3 and recipe.training["max_steps"] == 500000
    assert recipe.training["lr_scheduler_type"] == "cosine" and recipe.collator.sga_probability == 0.5
    assert recipe.model.config == {"image_size": 1024, "gradient_loss_weight": 10.0}
    assert recipe.data.train[-1].weight == sum(source.weight for source in recipe.data.train[:-1])  # 1 : 1


# --- several processes -------------------------------------------------------------------------------------------------

_SCRIPT = """
import json, sys
from modeling_tests.training.test_label_converter_training import *

if __name__ == "__main__":
    model = tiny_label_converter()
    trainer = make_trainer(sys.argv[1], model, ddp_backend="gloo", per_device_train_batch_size=1, max_steps=3)
"""


def test_two_processes_train_one_model(tmp_path):
    run_two_processes(tmp_path, _SCRIPT + TRAIN_AND_REPORT, tmp_path)
    assert_ranks_agree(tmp_path, 3)
