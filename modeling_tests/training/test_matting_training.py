# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import copy
import io

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import Trainer

from hf_segcap import SamForPromptableSegmentation, ZimConfig, ZimForMatting, ZimProcessor
from hf_segcap.assets import bundled_model
from hf_segcap.data.augmentation import LargeScaleJitter
from hf_segcap.data.matte_collator import MatteCollator
from hf_segcap.data.sources import SOURCES
from hf_segcap.models.sam.frame import change_frame
from hf_segcap.training.recipe import load_recipe
from hf_segcap.training.run import build_model, train
from hf_segcap.training.trainer import SegCapTrainer
from modeling_tests.tiny import IMAGE_SIZE, random_image, tiny_sam_promptable, tiny_zim, tiny_zim_processor
from modeling_tests.training.data import (
    ONE_STEP_OF_TWO,
    TRAIN_AND_REPORT,
    arguments,
    assert_loss_is_the_plain_mean,
    assert_ranks_agree,
    logged_losses,
    run_two_processes,
)

PROCESSOR = tiny_zim_processor()
ENCODER = "vision_encoder."
SIZE = (60, 44)
SEGMENTATION = {"task": "promptable-segmentation", "model": {"from_pretrained": "x"}, "collator": {}}


def soft_disc(x, y, radius):
    """A bright disc with a soft border: matte (H, W)."""
    ys, xs = np.ogrid[: SIZE[1], : SIZE[0]]
    return ((radius - np.hypot(ys - y, xs - x)) / 4 + 0.5).clip(0, 1).astype(np.float32)


def make_rows(count=6, objects=2):
    rows = []
    rng = np.random.default_rng(0)
    for index in range(count):
        image, regions = np.array(random_image(index, SIZE), dtype=np.float32), []
        for left in range(objects):
            alpha = soft_disc(15 + 30 * left, rng.integers(14, 30), rng.integers(7, 13))
            image += alpha[..., None] * (255 - image)
            regions.append({"box": [0, 0, 5, 5], "phrases": [], "alpha": alpha})
        rows.append({"image": image.astype(np.uint8), "image_id": index, "regions": regions})
    return rows


def make_trainer(output, trainer_class=SegCapTrainer, model=None, rows=None, collator=None, policy="all", **kwargs):
    options = kwargs.pop("options", {})
    model = tiny_zim() if model is None else model
    model.freeze_for(policy)
    return trainer_class(
        model=model,
        args=arguments(output, **options),
        data_collator=collator or MatteCollator(PROCESSOR),
        train_dataset=make_rows() if rows is None else rows,
        **kwargs,
    )


def test_loss_is_the_plain_mean_with_gradient_accumulation(tmp_path):
    rows, collator = make_rows(4), MatteCollator(PROCESSOR, train=False)
    trainer = make_trainer(tmp_path, rows=rows, collator=collator, options=ONE_STEP_OF_TWO)
    assert_loss_is_the_plain_mean(trainer, rows, collator)


@pytest.mark.parametrize("trainer_class", [Trainer, SegCapTrainer])
def test_it_learns_the_mattes_of_a_batch(tmp_path, trainer_class):
    rows = make_rows(2)
    trainer = make_trainer(
        tmp_path,
        trainer_class,
        rows=rows,
        collator=MatteCollator(PROCESSOR, train=False),
        options={
            "max_steps": 80,
            "seed": 0,
            "learning_rate": 8e-3,
            "lr_scheduler_type": "cosine",
            "remove_unused_columns": False,
            "label_names": ["labels"],
        },
        eval_dataset=rows,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert np.mean(logged_losses(trainer)[-5:]) < 0.4 * np.mean(logged_losses(trainer)[:3])
    assert trainer.evaluate()["eval_loss"] < 0.5 * before


def test_boxes_and_points_train_every_part(tmp_path):
    trainer = make_trainer(tmp_path, options={"max_steps": 8, "per_device_train_batch_size": 4})
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    unchanged = [name for name, value in trainer.model.state_dict().items() if torch.equal(value, before[name])]
    # the Gaussian matrix is no parameter; biases in front of a softmax cannot matter
    assert "shared_image_embedding.positional_embedding" in unchanged
    assert all("positional_embedding" in name or name.endswith("k_proj.bias") for name in unchanged), unchanged


def test_the_frozen_encoder_stays(tmp_path):
    trainer = make_trainer(tmp_path, policy="decoder")
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    parts = {name.split(".")[0] for name in changed}
    assert parts == {"prompt_encoder", "detail_encoder", "mask_decoder"}
    assert "detail_encoder.convs.0.batch_norm.running_mean" in changed


@pytest.mark.parametrize("workers", [0, 1])
def test_resume_gives_the_same_losses(tmp_path, workers):
    options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3, "dataloader_num_workers": workers}

    def collator():
        return MatteCollator(PROCESSOR, max_mattes=2, augmentation=LargeScaleJitter(IMAGE_SIZE, 0.8, 1.2))

    whole = make_trainer(tmp_path / "a", collator=collator(), options=options)
    whole.train()
    resumed = make_trainer(tmp_path / "b", collator=collator(), options=options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert len(set(logged_losses(whole))) == 5
    assert logged_losses(resumed) == pytest.approx(logged_losses(whole), rel=1e-5)


def test_new_layers_learn_faster(tmp_path):
    options = {"learning_rate": 1e-3, "weight_decay": 0.1}
    factors = dict.fromkeys(ZimForMatting.new_modules, 10.0)
    trainer = make_trainer(tmp_path, options=options, learning_rate_factors=factors)
    trainer.create_optimizer_and_scheduler(4)
    settings = {}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            settings[parameter] = (group["initial_lr"], group["weight_decay"])
    named = dict(trainer.model.named_parameters())
    assert set(settings) == set(named.values())
    assert settings[named["detail_encoder.convs.0.conv.weight"]] == (1e-2, 0.1)
    assert settings[named["mask_decoder.fusion_blocks.1.batch_norm.bias"]] == (1e-2, 0.0)
    assert settings[named["mask_decoder.mask_tokens.weight"]] == (1e-3, 0.1)
    assert settings[named["vision_encoder.pos_embed"]] == (1e-3, 0.0)


# --- recipes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Foregrounds, mattes and backgrounds in three folders."""
    root = tmp_path_factory.mktemp("data")
    for name in ("foregrounds", "alphas", "backgrounds"):
        (root / name).mkdir()
    for row in make_rows(4, 1):
        Image.fromarray(row["image"]).save(root / "foregrounds" / f"{row['image_id']}.png")
        alpha = np.rint(255 * row["regions"][0]["alpha"]).astype(np.uint8)
        Image.fromarray(alpha).save(root / "alphas" / f"{row['image_id']}.png")
        random_image(50 + row["image_id"], SIZE).save(root / "backgrounds" / f"{row['image_id']}.png")
    return {"source": "foregrounds", "args": {n: str(root / n) for n in ("foregrounds", "alphas", "backgrounds")}}


@pytest.fixture(scope="module")
def sam_folder(tmp_path_factory):
    """A segmenter with text prompts."""
    folder = tmp_path_factory.mktemp("sam")
    tiny_sam_promptable(spread=0.05, text=True).save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(data, sam_folder):
    return {
        "task": "image-matting",
        "model": {"from_sam": str(sam_folder), "config": {"point_sigma": 1.5}},
        "data": {"train": [data], "eval": [data]},
        "collator": {"max_mattes": 2, "prompt_kinds": {"box": 0.5, "point": 0.5}},
        "training": {
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        },
    }


def test_a_recipe_starts_from_a_segmenter_and_one_continues(recipe, sam_folder, tmp_path):
    sam = SamForPromptableSegmentation.from_pretrained(sam_folder).state_dict()
    start = build_model(load_recipe(recipe), None)[0].state_dict()
    shared = set(start) & set(sam)
    assert all(torch.equal(start[name], sam[name]) for name in shared)
    assert all(name in shared or name.startswith(ZimForMatting.new_modules) for name in start)

    recipe |= {"save_dtype": "float16", "large_scale_jitter": {"min_scale": 0.8}, "new_layers_factor": 3}
    metrics = train(recipe, output=tmp_path / "a")
    assert np.isfinite(metrics["eval_loss"])
    assert load_recipe(tmp_path / "a" / "recipe.yaml") == load_recipe(recipe)
    model = ZimForMatting.from_pretrained(tmp_path / "a")
    assert model.dtype == torch.float32 and model.config.point_sigma == 1.5
    inputs = ZimProcessor.from_pretrained(tmp_path / "a")(random_image(0, SIZE), input_boxes=[[5, 5, 30, 30]])
    with torch.no_grad():
        output = model.eval()(**{name: value for name, value in inputs.items() if "sizes" not in name})
    assert output.alphas.shape == (1, 1, 4, 32, 32)

    recipe |= {"large_scale_jitter": None, "new_layers_factor": None, "muon_learning_rate": 1e-3}
    recipe["model"] = {"from_pretrained": str(tmp_path / "a"), "config": {"multimask_loss": False}}
    train(recipe | {"freeze": "decoder"}, output=tmp_path / "b")
    continued = ZimForMatting.from_pretrained(tmp_path / "b")
    assert continued.config.multimask_loss is False
    for name, value in continued.state_dict().items():
        if name.startswith(ENCODER):
            assert torch.equal(value, model.state_dict()[name]), name
    with pytest.raises(ValueError, match="has no field 'sigma'"):
        build_model(load_recipe(recipe, ["model.config.sigma=2"]), None)


def test_fields_that_a_segmenter_sets_are_refused(recipe):
    parsed = load_recipe(recipe, ["model.config.vision_config.hidden_size=2"])
    with pytest.raises(ValueError, match="beside what it has from SAM, ZimConfig has no vision_config"):
        build_model(parsed, None)


def test_a_recipe_starts_in_another_model_frame(recipe):
    parsed = load_recipe(recipe, ["model.config.vision_config.image_size=96"])
    model, processor = build_model(parsed, None)
    assert model.config.vision_config.image_size == 96
    assert processor.image_processor.pad_size["height"] == 96


def test_lora_on_the_encoder(recipe, tmp_path):
    recipe |= {"freeze": "decoder+lora", "lora": {"r": 2}}
    train(recipe, output=tmp_path)
    start, _ = build_model(load_recipe({**recipe, "freeze": "all", "lora": None}), None)
    model = ZimForMatting.from_pretrained(tmp_path)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    before, after = start.state_dict(), model.state_dict()
    assert set(before) == set(after)
    changed = {name for name in before if name.startswith(ENCODER) and not torch.equal(before[name], after[name])}
    assert changed == {f"{ENCODER}layers.{i}.attn.qkv.weight" for i in range(2)}


def test_an_adapter_is_saved_and_reloads(tmp_path):
    parts = ["prompt_encoder", "detail_encoder", "mask_decoder"]

    def wrapped():
        model = tiny_zim()
        return get_peft_model(model, LoraConfig(r=2, target_modules=model.lora_target_modules, modules_to_save=parts))

    trainer = SegCapTrainer(
        model=wrapped(),
        args=arguments(tmp_path, max_steps=4, save_strategy="steps", save_steps=4, learning_rate=1e-2),
        data_collator=MatteCollator(PROCESSOR),
        train_dataset=make_rows(),
    )
    trainer.train()
    batch = MatteCollator(PROCESSOR, train=False)(make_rows(2))
    reloaded = PeftModel.from_pretrained(tiny_zim(), tmp_path / "checkpoint-4")
    with torch.no_grad():
        expected = trainer.model.eval()(**batch).alphas
        torch.testing.assert_close(reloaded.eval()(**batch).alphas, expected)
        assert not torch.allclose(tiny_zim()(**batch).alphas, expected, atol=1e-2)
        merged = reloaded.merge_and_unload()
        torch.testing.assert_close(merged(**batch).alphas, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"collator": {"max_masks": 3}}, "recipe.collator: unknown key 'max_masks'"),
        ({"model": {"from_sam": "x", "from_pretrained": "y"}}, "expected one of from_pretrained, from_sam, config"),
        ({"model": {}}, "expected one of from_pretrained, from_sam, config, got none"),
        ({"model": {"from_sam": "x", "language_model": "y"}}, "image-matting reads no words"),
        ({"tokenizer": {"train": "word"}}, "image-matting reads no words"),
        ({"frozen_features": "x"}, "frozen_features"),
        ({"new_layers_factor": 0}, "must be above 0"),
        ({"new_layers_factor": 2, "layer_decay": 0.8}, "cannot be combined"),
        ({**SEGMENTATION, "new_layers_factor": 2}, "is for image-matting"),
        ({"lora": {"r": 2}}, "decoder.lora"),
    ],
)
def test_bad_recipes_are_refused(recipe, changes, message):
    with pytest.raises(ValueError, match=message):
        load_recipe({**recipe, **changes})


@pytest.mark.parametrize(("name", "sam"), [("b", "facebook/sam-vit-base"), ("l", "facebook/sam-vit-large")])
def test_the_recipes_of_the_paper(name, sam):
    recipe = load_recipe(f"zim_vit_{name}")
    assert recipe.task == "image-matting" and recipe.model.from_sam == sam
    training = recipe.training
    assert (training["learning_rate"], training["max_steps"]) == (1e-5, 500_000)
    assert (training["lr_scheduler_type"], training["weight_decay"], training["warmup_steps"]) == (
        "cosine",
        0.05,
        1000,
    )
    config = ZimConfig(**recipe.model.config)
    assert (config.vision_config.image_size, config.gradient_loss_weight, config.point_sigma) == (1024, 10, 21)
    assert recipe.collator.box_jitter == 0.1 and set(recipe.collator.prompt_kinds) == {"box", "point"}
    assert recipe.new_layers_factor == 10 and recipe.data.train[0].source in SOURCES


def test_the_bundled_model_s_recipe():
    model, processor = build_model(load_recipe("image_matting_default"), None)
    vision = model.config.vision_config
    sam = SamForPromptableSegmentation.from_pretrained(bundled_model("promptable-segmentation"))
    sam = change_frame(sam, vision.image_size, vision.patch_size).state_dict()
    for name, value in model.state_dict().items():
        if name.startswith(ENCODER):
            assert torch.equal(value, sam[name]), name
    file = io.BytesIO()
    torch.save(model.half().state_dict(), file)
    assert file.tell() < 4e6
    assert processor.image_processor.pad_size["height"] == vision.image_size
    assert model.config.point_sigma / 21 == (vision.image_size / vision.patch_size) / 64


# --- several processes -------------------------------------------------------------------------------------------------

_SCRIPT = """
import json, sys
from modeling_tests.training.test_matting_training import *

if __name__ == "__main__":
    model = tiny_zim()
    rows = make_rows(8)
    for row in rows[:3]:
        row["regions"] = []  # some processes meet batches without objects
    trainer = SegCapTrainer(
        model=model, args=arguments(sys.argv[1], ddp_backend="gloo", per_device_train_batch_size=1, max_steps=4),
        data_collator=MatteCollator(PROCESSOR), train_dataset=rows, eval_dataset=make_rows(3),
    )
"""


def test_two_processes_train_one_model(tmp_path):
    run_two_processes(tmp_path, _SCRIPT + TRAIN_AND_REPORT, tmp_path)
    assert_ranks_agree(tmp_path, 4)
