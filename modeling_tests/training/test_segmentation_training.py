# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import copy
import json

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, Trainer

from hf_segcap.data import row_collator
from hf_segcap.data.augmentation import LargeScaleJitter
from hf_segcap.data.mask_collator import MaskCollator
from hf_segcap.data.sources import load_source
from hf_segcap.masks import encode_rle
from hf_segcap.models.sam.modeling_sam import SamForPromptableSegmentation
from hf_segcap.models.sam.processing_sam import SamPromptableProcessor
from hf_segcap.training.recipe import RECIPES, load_recipe
from hf_segcap.training.run import build_model, train
from hf_segcap.training.trainer import SegCapTrainer
from modeling_tests.tiny import IMAGE_SIZE, PATCH_SIZE, VOCABULARY, random_image, tiny_image_processor, tiny_tokenizer
from modeling_tests.training.data import (
    ONE_STEP_OF_TWO,
    TRAIN_AND_REPORT,
    arguments,
    assert_loss_is_the_plain_mean,
    assert_ranks_agree,
    logged_losses,
    run_two_processes,
)

WIDTH = 32
CONFIG = {
    "vision_config": {
        "hidden_size": 24,
        "output_channels": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "mlp_dim": 48,
        "num_pos_feats": WIDTH // 2,
        "window_size": 3,
        "global_attn_indexes": [1],
        "initializer_range": 0.1,
    },
    "prompt_encoder_config": {
        "hidden_size": WIDTH,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "mask_input_channels": 8,
    },
    "mask_decoder_config": {
        "hidden_size": WIDTH,
        "num_attention_heads": 4,
        "mlp_dim": 40,
        "num_hidden_layers": 2,
        "iou_head_hidden_dim": 24,
    },
    "initializer_range": 0.1,
    "interactive_rounds": 2,
}
PROCESSOR = SamPromptableProcessor(tiny_image_processor())
DECODER = ("prompt_encoder", "mask_decoder")


def tiny_sam(**overrides):
    torch.manual_seed(0)
    return SamForPromptableSegmentation(SamForPromptableSegmentation.config_class(**{**CONFIG, **overrides}))


def make_rows(count=6, objects=3):
    """Bright rectangles on random images."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(count):
        image, regions = np.array(random_image(index)), []
        for left in range(objects):
            mask = np.zeros(image.shape[:2], dtype=bool)
            y, height, width = (int(rng.integers(low, high)) for low, high in ((2, 20), (8, 20), (8, 16)))
            mask[y : y + height, 20 * left + 2 : 20 * left + 2 + width] = True
            image[mask] = 255
            box = [20 * left + 2, y, 20 * left + 2 + width, y + height]
            regions.append({"box": box, "phrases": ["a patch"], "mask": encode_rle(mask)})
        rows.append({"image": image, "image_id": index, "regions": regions})
    return rows


def make_trainer(output, trainer_class=SegCapTrainer, model=None, rows=None, collator=None, policy="all", **kwargs):
    options = kwargs.pop("options", {})
    model = tiny_sam() if model is None else model
    model.freeze_for(policy)
    return trainer_class(
        model=model,
        args=arguments(output, **options),
        data_collator=collator or MaskCollator(PROCESSOR, label_size=32),
        train_dataset=make_rows() if rows is None else rows,
        **kwargs,
    )


def test_loss_is_the_plain_mean_with_gradient_accumulation(tmp_path):
    rows, collator = make_rows(4), MaskCollator(PROCESSOR, train=False, label_size=32, prompt_kinds={"box": 1.0})
    trainer = make_trainer(
        tmp_path, model=tiny_sam(interactive_rounds=1), rows=rows, collator=collator, options=ONE_STEP_OF_TWO
    )
    assert_loss_is_the_plain_mean(trainer, rows, collator)


@pytest.mark.parametrize("trainer_class", [Trainer, SegCapTrainer])
def test_it_learns_the_masks_of_a_batch(tmp_path, trainer_class):
    rows = make_rows(2)
    trainer = make_trainer(
        tmp_path,
        trainer_class,
        rows=rows,
        collator=MaskCollator(PROCESSOR, train=False, label_size=32, prompt_kinds={"box": 1.0}),
        options={
            "max_steps": 40,
            "learning_rate": 4e-3,
            "lr_scheduler_type": "constant",
            "remove_unused_columns": False,
            "label_names": ["labels"],
        },
        eval_dataset=rows,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert np.mean(logged_losses(trainer)[-5:]) < 0.5 * np.mean(logged_losses(trainer)[:3])
    assert trainer.evaluate()["eval_loss"] < 0.5 * before


def test_prompts_drawn_by_the_model_train_every_part(tmp_path):
    trainer = make_trainer(tmp_path, options={"max_steps": 6}, eval_dataset=make_rows(2))
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    unchanged = [name for name, value in trainer.model.state_dict().items() if torch.equal(value, before[name])]
    # the Gaussian matrix is no parameter; biases in front of a softmax cannot matter
    assert "shared_image_embedding.positional_embedding" in unchanged
    assert all("positional_embedding" in name or name.endswith("k_proj.bias") for name in unchanged), unchanged
    first, second = (trainer.evaluate()["eval_loss"] for _ in range(2))
    assert first == second and np.isfinite(first)


def test_the_frozen_encoder_stays(tmp_path):
    trainer = make_trainer(tmp_path, policy="decoder")
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith(DECODER) for name in changed)


@pytest.mark.parametrize("workers", [0, 1])
def test_resume_gives_the_same_losses(tmp_path, workers):
    options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3, "dataloader_num_workers": workers}

    def collator():
        return MaskCollator(PROCESSOR, max_masks=2, label_size=32, augmentation=LargeScaleJitter(IMAGE_SIZE, 0.8, 1.2))

    whole = make_trainer(tmp_path / "a", collator=collator(), options=options)
    whole.train()
    resumed = make_trainer(tmp_path / "b", collator=collator(), options=options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert len(set(logged_losses(whole))) == 5
    assert logged_losses(resumed) == pytest.approx(logged_losses(whole), rel=1e-5)


def test_learning_rates_fall_with_depth_and_at_steps(tmp_path):
    options = {"max_steps": 8, "warmup_steps": 2, "learning_rate": 1.0, "weight_decay": 0.1}
    trainer = make_trainer(tmp_path, options=options, layer_decay=0.5, lr_drop_steps=[4, 6])
    trainer.create_optimizer_and_scheduler(8)
    rates = {}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            rates[parameter] = (group["initial_lr"], group["weight_decay"])
    named = dict(trainer.model.named_parameters())
    assert rates[named["vision_encoder.layers.0.attn.qkv.weight"]] == (0.25, 0.1)
    assert rates[named["vision_encoder.patch_embed.projection.weight"]] == (0.125, 0.1)
    assert rates[named["mask_decoder.iou_token.weight"]] == (1.0, 0.1)
    assert rates[named["mask_decoder.upscale_conv1.bias"]] == (1.0, 0.0)
    assert set(rates) == {p for p in named.values() if p.requires_grad}
    factors = []
    for _ in range(8):
        factors.append(trainer.optimizer.param_groups[-1]["lr"])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert factors == pytest.approx([0.5, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    from PIL import Image

    with open(root / "regions.jsonl", "w") as lines:
        for row in make_rows(4):
            Image.fromarray(row["image"]).save(root / f"{row['image_id']}.png")
            lines.write(json.dumps({"image": f"{row['image_id']}.png", "regions": row["regions"]}) + "\n")
    return root


@pytest.fixture
def recipe(data):
    return {
        "task": "promptable-segmentation",
        "model": {"config": CONFIG},
        "data": {
            "train": [{"source": "folder", "args": {"root": str(data)}}],
            "eval": [{"source": "folder", "args": {"root": str(data)}}],
        },
        "collator": {"max_masks": 2, "label_size": 32},
        "training": {
            "max_steps": 3,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        },
    }


def test_a_recipe_from_scratch_and_one_that_continues(recipe, tmp_path):
    recipe |= {"layer_decay": 0.8, "lr_drop_steps": [2], "save_dtype": "float16"}
    metrics = train(recipe, output=tmp_path / "a")
    assert np.isfinite(metrics["eval_loss"])
    assert load_recipe(tmp_path / "a" / "recipe.yaml") == load_recipe(recipe)
    model = SamForPromptableSegmentation.from_pretrained(tmp_path / "a")
    assert model.config.interactive_rounds == 2 and model.dtype == torch.float32

    recipe["model"] = {
        "from_pretrained": str(tmp_path / "a"),
        "config": {"interactive_rounds": 1, "vision_config": {"drop_path_rate": 0.3}},
    }
    recipe |= {"freeze": "decoder", "layer_decay": None, "collator": {"prompt_kinds": {"box": 1.0}}}
    train(recipe, output=tmp_path / "b")
    continued = SamForPromptableSegmentation.from_pretrained(tmp_path / "b")
    assert continued.config.interactive_rounds == 1 and continued.config.vision_config.drop_path_rate == 0.3
    for (name, left), right in zip(model.state_dict().items(), continued.state_dict().values()):
        if not name.startswith(DECODER):
            torch.testing.assert_close(left, right, atol=1e-3, rtol=1e-3, msg=name)  # stored as float16 in between
    with pytest.raises(ValueError, match="has no field 'rounds'"):
        build_model(load_recipe(recipe, ["model.config.rounds=2"]), None)

    pixels = SamPromptableProcessor.from_pretrained(tmp_path / "a")
    pixels.image_processor.image_mean = [0.25, 0.5, 0.75]
    pixels.save_pretrained(tmp_path / "a")
    moved, processor = build_model(load_recipe(recipe, ["model.config.vision_config.patch_size=4"]), None)
    assert list(processor.image_processor.image_mean) == [0.25, 0.5, 0.75]  # as the encoder knows its pixels
    assert moved.vision_encoder.patch_embed.projection.weight.shape[-1] == 4
    assert moved.config.vision_config.drop_path_rate == 0.3
    assert processor.image_processor.mask_size["longest_edge"] == moved.config.vision_config.image_size

    grown, _ = build_model(load_recipe(recipe, ["model.double_decoder=true", "model.insert_layers=[0, 1]"]), None)
    vision, before = grown.config.vision_config, continued.config.vision_config
    assert vision.num_hidden_layers == before.num_hidden_layers + 2
    assert vision.output_channels == 2 * before.output_channels
    with pytest.raises(ValueError, match="are for promptable-segmentation with from_pretrained"):
        load_recipe(recipe, ["model.from_pretrained=null", "model.insert_layers=[0]"])


def test_only_named_parameters_are_trained(recipe):
    names = ["prompt_encoder.mask_embed", "mask_decoder.mask_tokens"]
    model, _ = build_model(load_recipe({**recipe, "trained": names}), None)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith(tuple(names))}
    for names, message in ((["mask_decoder", "head"], r"\['head'\]"), ([], "any of an empty list")):
        with pytest.raises(ValueError, match=f"trained: no parameter that freeze leaves begins with {message}"):
            build_model(load_recipe({**recipe, "trained": names}), None)
    with pytest.raises(ValueError, match="begins with .'vision_encoder'"):
        build_model(load_recipe({**recipe, "freeze": "decoder", "trained": ["vision_encoder"]}), None)
    with pytest.raises(ValueError, match="trained and lora both"):
        load_recipe({**recipe, "freeze": "decoder+lora", "lora": {"r": 2}, "trained": ["mask_decoder"]})


def test_data_without_masks_is_refused(recipe, tmp_path, monkeypatch):
    random_image(0).save(tmp_path / "a.png")
    line = {"image": "a.png", "regions": [{"box": [1, 2, 30, 40], "phrases": ["a red cup"]}]}
    (tmp_path / "regions.jsonl").write_text(json.dumps(line))
    recipe["data"] = {"train": [{"source": "folder", "args": {"root": str(tmp_path)}}]}
    with pytest.raises(ValueError, match="none of the first 1 rows has a region with a mask: nothing to train on"):
        train(recipe, output=tmp_path / "out")
    warnings = []  # given once only, perhaps to a test before
    monkeypatch.setattr(row_collator.logger, "warning_once", warnings.append)
    batch = MaskCollator(PROCESSOR)([load_source("folder", root=str(tmp_path))[0]])
    assert not batch["prompt_mask"].any() and "no object to train on" in warnings[0]


def test_lora_on_the_encoder(recipe, tmp_path):
    pytest.importorskip("peft")
    recipe |= {"freeze": "decoder+lora", "lora": {"r": 2}, "evaluation": {"max_rows": 2}}
    train(recipe, output=tmp_path)
    start, _ = build_model(load_recipe({**recipe, "freeze": "all", "lora": None}), None)
    model = SamForPromptableSegmentation.from_pretrained(tmp_path)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert set(start.state_dict()) == set(model.state_dict())


@pytest.mark.parametrize("settings", [{}, {"centre": True, "memory_scale": 20, "noise": 0.2}])
def test_text_prompts(recipe, tmp_path, settings):
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision["projection_dim"] = 12
    text = {
        **vision,
        "vocab_size": len(VOCABULARY),
        "max_position_embeddings": 12,
        "eos_token_id": 0,
        "bos_token_id": 0,
    }
    clip = CLIPConfig(
        vision_config={**vision, "image_size": 32, "patch_size": 8},
        text_config={**text, "pad_token_id": 1},
        projection_dim=12,
    )
    torch.manual_seed(0)
    CLIPModel(clip).save_pretrained(tmp_path / "clip")
    tiny_tokenizer().save_pretrained(tmp_path / "clip")
    recipe |= {"text": {"clip": str(tmp_path / "clip"), "min_area": 20, **settings}}
    recipe["collator"]["prompt_kinds"] = {"text": 0.7, "point": 0.3}
    train(recipe, output=tmp_path / "model")
    model = SamForPromptableSegmentation.from_pretrained(tmp_path / "model").eval()
    processor = SamPromptableProcessor.from_pretrained(tmp_path / "model")
    assert model.config.text_embed_dim == 12 and model.config.text_trained
    assert model.config.text_centred == settings.get("centre", False)
    original = CLIPModel.from_pretrained(tmp_path / "clip").text_projection.weight
    torch.testing.assert_close(model.text_model.text_projection.weight, original)  # never trained
    inputs = processor(images=random_image(0), text=["cat", "dog"])
    inputs = {name: value for name, value in inputs.items() if "sizes" not in name}
    with torch.no_grad():
        masks = model(**inputs).pred_masks
    assert masks.shape[:2] == (1, 2) and not torch.equal(masks[0, 0], masks[0, 1])

    # weights that were trained tell so themselves where the configuration does not, as that of an adapter's base
    model.config.text_trained = False
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).pred_masks, masks)
        model.text_projection.bias.zero_()
        with pytest.raises(ValueError, match="was not trained with text prompts"):
            model(**inputs)

    recipe["model"] = {"from_pretrained": str(tmp_path / "model")}
    build_model(load_recipe(recipe), None if not settings.get("centre") else make_rows(2))
    torch.manual_seed(1)
    CLIPModel(clip).save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="is not the CLIP whose text model"):
        build_model(load_recipe(recipe), None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "detection"}, "unknown task 'detection', expected one of"),
        ({"collator": {"max_regions": 3}}, "recipe.collator: unknown key 'max_regions'"),
        ({"model": {"from_sam": "x", "language_model": "y"}}, "starts from from_pretrained"),
        ({"model": {}}, "expected one of from_pretrained, config"),
        ({"tokenizer": {"train": "word"}}, "tokenizer: promptable-segmentation"),
        ({"frozen_features": "x"}, "frozen_features"),
        ({"layer_decay": 1.5}, "layer_decay must be"),
        ({"lr_drop_steps": [5], "training": {"lr_scheduler_type": "cosine"}}, "lr_drop_steps"),
        ({"lora": {"r": 2}}, "decoder.lora"),
    ],
)
def test_bad_recipes_are_refused(recipe, changes, message):
    with pytest.raises(ValueError, match=message):
        load_recipe({**recipe, **changes})


@pytest.mark.parametrize(
    "name",
    [
        "vit_b",
        "vit_l",
        "vit_h",
        "finetune",
        "default",
        "default_fine",
        "default_grown",
        "default_edges",
        "default_frame",
        "default_corrections",
        "default_text",
    ],
)
def test_the_bundled_recipes(name, tmp_path):
    recipe = load_recipe(f"promptable_segmentation_{name}")
    assert (RECIPES / f"promptable_segmentation_{name}.yaml").exists() and recipe.task == "promptable-segmentation"
    if recipe.model.from_pretrained:
        return
    with torch.device("meta"):
        config = SamForPromptableSegmentation.config_class(**recipe.model.config)
        model = SamForPromptableSegmentation(config)
    size = sum(parameter.numel() for parameter in model.parameters())
    # parameters of the released models, without the Gaussian matrix
    expected = {"vit_b": 93_735_472, "vit_l": 312_342_832, "vit_h": 641_090_608}
    assert size == expected[name] if name in expected else 2 * size < 4e6
    if name == "vit_h":
        assert (recipe.training["learning_rate"], recipe.layer_decay, recipe.lr_drop_steps) == (
            8e-4,
            0.8,
            [60000, 86666],
        )
        assert recipe.training["max_steps"] == 90000 and config.interactive_rounds == 11


_SCRIPT = """
import json, sys
from modeling_tests.training.data import arguments, logged_losses
from modeling_tests.training.test_segmentation_training import PROCESSOR, MaskCollator, SegCapTrainer, make_rows, tiny_sam

if __name__ == "__main__":
    model = tiny_sam()
    rows = make_rows(8)
    for row in rows[:3]:
        row["regions"] = []  # some processes meet batches without objects
    trainer = SegCapTrainer(
        model=model, args=arguments(sys.argv[1], ddp_backend="gloo", per_device_train_batch_size=1, max_steps=4),
        data_collator=MaskCollator(PROCESSOR, label_size=32), train_dataset=rows, eval_dataset=make_rows(3, 2),
    )
"""


def test_two_processes_train_one_model(tmp_path):
    run_two_processes(tmp_path, _SCRIPT + TRAIN_AND_REPORT, tmp_path)
    assert_ranks_agree(tmp_path, 4)
