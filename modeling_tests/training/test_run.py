# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, SamConfig, SamModel, set_seed

from hf_segcap import SamCaptionForRegionCaptioning, SamCaptionProcessor
from hf_segcap.training.recipe import RECIPES, Recipe, dump_recipe, load_recipe
from hf_segcap.training.run import build_model, train
from hf_segcap.training.tokenizer import train_tokenizer
from modeling_tests.tiny import tiny_sam_caption_config, tiny_text_config, tiny_tokenizer
from modeling_tests.training.data import make_rows, run_two_processes

SECTIONS = ("vision_config", "prompt_encoder_config", "mask_caption_decoder_config")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with six images in the format of the reader."""
    root = tmp_path_factory.mktemp("data")
    with open(root / "regions.jsonl", "w") as lines:
        for row in make_rows(6):
            row["image"].save(root / f"{row['image_id']}.png")
            lines.write(json.dumps({"image": f"{row['image_id']}.png", "regions": row["regions"]}) + "\n")
    return root


@pytest.fixture
def recipe(data):
    config = tiny_sam_caption_config().to_diff_dict()
    text = {k: v for k, v in tiny_text_config().items() if not k.endswith("_id") and k != "vocab_size"}
    return {
        "model": {"config": {**{name: config[name] for name in SECTIONS}, "num_task_tokens": 3, "text_config": text}},
        "tokenizer": {"train": "word", "vocab_size": 50},
        "freeze": "all",
        "data": {
            "train": [{"source": "folder", "args": {"root": str(data)}}],
            "eval": [{"source": "folder", "args": {"root": str(data)}}],
        },
        "collator": {"max_regions": 2},
        "training": {
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_steps": 2,
            "use_cpu": True,
            "disable_tqdm": True,
        },
        "evaluation": {"max_rows": 4},
        "generation": {"max_new_tokens": 6},
    }


def history(output):
    state = json.loads((Path(output) / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def saved_model(output):
    return SamCaptionForRegionCaptioning.from_pretrained(output), SamCaptionProcessor.from_pretrained(output)


def test_a_model_from_scratch(recipe, tmp_path):
    metrics = train(recipe, output=tmp_path)
    assert np.isfinite(metrics["train_loss"]) and 0 <= metrics["eval_word_f1"] <= 1
    model, processor = saved_model(tmp_path)
    assert model.generation_config.max_new_tokens == 6
    text = model.config.text_config
    tokenizer = processor.tokenizer
    assert (
        text.vocab_size
        == len(tokenizer)
        == 3 + len(["a", "the", "red", "green", "blue", "yellow", "disc", "square", "cup", "cat"])
    )
    assert (text.eos_token_id, text.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1)
    row = make_rows(1)[0]
    inputs = processor(images=row["image"], input_boxes=[[region["box"] for region in row["regions"]]])
    inputs = {k: v for k, v in inputs.items() if "sizes" not in k}
    captions = processor.post_process_captions(model.generate(**inputs))
    assert len(captions[0]) == 3
    # the saved recipe is complete: it gives the same run
    again = load_recipe(tmp_path / "recipe.yaml")
    assert again == load_recipe(recipe)


def test_a_single_process_needs_no_process_group(recipe, tmp_path, monkeypatch):
    """Recipes for two processes name their `ddp_backend`; without torchrun they train all the same."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    metrics = train(recipe, ["training.ddp_backend=gloo", "training.max_steps=1"], tmp_path)
    assert np.isfinite(metrics["train_loss"]) and not torch.distributed.is_initialized()


def test_a_run_can_be_repeated_and_resumed(recipe, tmp_path):
    options = ["large_scale_jitter.min_scale=0.5", "training.dataloader_num_workers=1"]
    train(recipe, options, tmp_path / "a")
    train(recipe, options, tmp_path / "b")
    losses = history(tmp_path / "a")
    assert len(losses) == 4 and losses == history(tmp_path / "b")
    with pytest.raises(ValueError, match="--resume"):
        train(recipe, options, tmp_path / "a")

    interrupted = [*options, "training.save_total_limit=1"]
    # a finished model is not overwritten either
    (tmp_path / "finished").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "b" / name).rename(tmp_path / "finished" / name)
        for resume in (False, True):
            with pytest.raises(ValueError, match=f"holds a model already .*{'resume' if resume else 'overwritten'}"):
                train(recipe, options, tmp_path / "finished", resume)
    assert sorted(path.name for path in (tmp_path / "finished").iterdir()) == ["config.json", "model.safetensors"]

    first = tmp_path / "a" / "checkpoint-2"
    os.makedirs(tmp_path / "c")
    first.rename(tmp_path / "c" / "checkpoint-2")
    train(recipe, interrupted, tmp_path / "c", resume=True)
    assert history(tmp_path / "c") == pytest.approx(losses, rel=1e-5)
    left, right = (load_file(tmp_path / name / "model.safetensors") for name in "ac")
    assert all(torch.allclose(left[name], right[name], atol=1e-5) for name in left)


def test_incomplete_checkpoints_are_passed_over(recipe, tmp_path, caplog):
    """A run that is killed while it writes a checkpoint goes on from the one before."""
    train(recipe, [], tmp_path)
    losses, last = history(tmp_path), tmp_path / "checkpoint-4"
    for damage in ("cut", "missing"):
        if damage == "cut":
            (last / "trainer_state.json").write_text('{"best_metric": nu')
        else:
            (last / "trainer_state.json").unlink()
        caplog.clear()
        train(recipe, [], tmp_path, resume=True)
        assert "checkpoint-4 is incomplete" in caplog.text
        assert history(tmp_path) == pytest.approx(losses, rel=1e-5)


def test_a_resumed_run_keeps_its_recipe(recipe, tmp_path):
    train(recipe, ["training.max_steps=2"], tmp_path)
    before = (tmp_path / "recipe.yaml").read_text()
    for option, name in (
        ("seed=7", "seed"),
        ("training.learning_rate=0.5", "training.learning_rate"),
        ("collator.max_regions=1", "collator.max_regions"),
        ("data.train.0.args.limit=2", "data.train.0.args.limit"),
    ):
        with pytest.raises(ValueError, match=rf"another recipe \({name} in recipe.yaml\)"):
            train(recipe, ["training.max_steps=2", option], tmp_path, resume=True)
    assert (tmp_path / "recipe.yaml").read_text() == before
    train(recipe, ["training.max_steps=3", "training.save_steps=1", "evaluation.max_rows=1"], tmp_path, resume=True)
    assert len(history(tmp_path)) == 3 and load_recipe(tmp_path / "recipe.yaml").training["max_steps"] == 3


def test_frozen_features_do_not_change_the_losses(recipe, tmp_path):
    options = ["freeze=text_mixer", "evaluation.generate=false"]
    train(recipe, options, tmp_path / "a")
    metrics = train(recipe, [*options, f"frozen_features={tmp_path / 'features'}"], tmp_path / "b")
    assert history(tmp_path / "b") == pytest.approx(history(tmp_path / "a"), rel=1e-3)
    assert json.loads((tmp_path / "features" / "index.json").read_text())["features"] == 6
    assert np.isfinite(metrics["eval_loss"])


def test_lora_saves_adapter_and_merged_model(recipe, tmp_path):
    train(recipe, ["freeze=text_mixer+lora", "lora.r=2", "training.learning_rate=1e-2"], tmp_path)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    merged, _ = saved_model(tmp_path)
    # The start is the same for the same seed: what differs is what was trained.
    set_seed(42)
    start = build_model(load_recipe(recipe, ["freeze=text_mixer"]), _rows(recipe))[0].state_dict()
    changed = {name for name, value in merged.state_dict().items() if not torch.equal(value, start[name])}
    assert {"task_tokens.weight", "language_project.weight"} <= changed
    assert "language_model.transformer.h.0.attn.c_attn.weight" in changed
    assert all(name.startswith(merged.text_mixer_modules) or ".c_" in name for name in changed)
    assert (tmp_path / "checkpoint-4" / "adapter_model.safetensors").exists()
    longer = ["freeze=text_mixer+lora", "lora.r=2", "training.learning_rate=1e-2", "training.max_steps=5"]
    train(recipe, longer, tmp_path, resume=True)
    assert len(history(tmp_path)) == 5


def _rows(recipe):
    from hf_segcap.data.folder import RegionFolder

    return RegionFolder(recipe["data"]["train"][0]["args"]["root"])


def test_lora_and_text_mixer_are_what_is_trained(recipe, tmp_path):
    from hf_segcap.training.run import _with_lora

    parsed = load_recipe(recipe, ["freeze=text_mixer+lora", "lora.dropout=0.1"])
    model, _ = build_model(parsed, _rows(recipe))
    wrapped = _with_lora(model, parsed)
    trained = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name or ".modules_to_save." in name for name in trained)
    wrapped.train()
    assert not model.vision_encoder.training and model.language_model.training


def test_a_new_training_from_sam_and_a_language_model(recipe, tmp_path):
    config = tiny_sam_caption_config()
    decoder = {k: v for k, v in config.mask_caption_decoder_config.to_dict().items() if k != "model_type"}
    sam = SamModel(
        SamConfig(
            vision_config=config.vision_config.to_dict(),
            prompt_encoder_config=config.prompt_encoder_config.to_dict(),
            mask_decoder_config=decoder,
        )
    )
    sam.save_pretrained(tmp_path / "sam")
    text = {k: v for k, v in tiny_text_config().items() if k != "model_type"}
    language_model = GPT2LMHeadModel(GPT2Config(**text))
    language_model.save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer(pad_token=False).save_pretrained(tmp_path / "gpt2")
    recipe |= {
        "model": {
            "from_sam": str(tmp_path / "sam"),
            "language_model": str(tmp_path / "gpt2"),
            "config": {"num_caption_tokens": 4, "additional_num_hidden_layers": 2, "num_task_tokens": 3},
        },
        "freeze": "text_mixer",
    }
    del recipe["tokenizer"]
    train(recipe, output=tmp_path / "out")
    model, processor = saved_model(tmp_path / "out")
    assert torch.equal(model.vision_encoder.pos_embed, sam.vision_encoder.pos_embed)
    assert torch.equal(model.language_model.transformer.wte.weight, language_model.transformer.wte.weight)
    assert model.config.mask_caption_decoder_config.num_caption_tokens == 4
    assert processor.image_processor.size["longest_edge"] == 64

    # and on from there
    recipe["model"] = {"from_pretrained": str(tmp_path / "out")}
    metrics = train(recipe, ["save_dtype=bfloat16"], tmp_path / "more")
    assert np.isfinite(metrics["train_loss"])
    saved = load_file(tmp_path / "more" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}


def test_half_precision_checkpoints_are_trained_in_full_precision(recipe, tmp_path):
    build_model(load_recipe(recipe), _rows(recipe))[0].half().save_pretrained(tmp_path)
    build_model(load_recipe(recipe), _rows(recipe))[1].save_pretrained(tmp_path)
    recipe["model"] = {"from_pretrained": str(tmp_path)}
    del recipe["tokenizer"]
    model, _ = build_model(load_recipe(recipe), None)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_several_sources_are_mixed(recipe, tmp_path, data):
    source = {"source": "folder", "args": {"root": str(data), "limit": 1}}
    recipe["data"]["train"] = [{**source, "weight": 3}, {"source": "folder", "args": {"root": str(data)}}]
    recipe["data"]["eval"] = [source, source]
    metrics = train(recipe, output=tmp_path)
    assert np.isfinite(metrics["eval_loss"])


_SCRIPT = """
import sys
from hf_segcap import SamCaptionForRegionCaptioning
from hf_segcap.training.run import leave_process_group, train
from modeling_tests.training.data import assert_ends_gloo

if __name__ == "__main__":
    overrides = ["training.ddp_backend=gloo", "freeze=text_mixer", f"frozen_features={sys.argv[2]}/features"]
    for output in (sys.argv[2], f"{sys.argv[2]}_again"):
        train(sys.argv[1], overrides, output)
        SamCaptionForRegionCaptioning.from_pretrained(output)  # both processes find it complete
    assert_ends_gloo(leave_process_group)
"""


def test_two_processes(recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    damaged = tmp_path / "out" / "features" / "features-1.safetensors"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"damaged")
    run_two_processes(tmp_path, _SCRIPT, tmp_path / "recipe.yaml", tmp_path / "out")
    assert not damaged.exists()
    for output in ("out", "out_again"):
        assert len(history(tmp_path / output)) == 4
        saved_model(tmp_path / output)


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle.x=1", "recipe: unknown key 'modle', allowed are collator, data"),
        ("model.size=1", "recipe.model: unknown key 'size', allowed are config"),
        ("data.train.0.sorce=x", r"recipe.data.train\[0\]: unknown key 'sorce'"),
        ("training.lr=1", "training: unknown key 'lr', allowed are .*learning_rate"),
        ("training.output_dir=x", "unknown key 'output_dir'"),
        ("seed=abc", "seed"),
        ("collator=3", "recipe.collator: expected a mapping"),
        ("data.train=[]", "at least one source"),
        ("model.from_pretrained=x", "config cannot be changed"),
        ("model.config=null", "expected one of from_pretrained, from_sam, config"),
        ("model.language_model=gpt2", "given together"),
        ("model.dtype=float8", "unknown dtype 'float8'"),
        ("model.dtype=float16", "model: dtype: float16 weights cannot be trained.*fp16: true"),
        ("save_dtype=float8", "unknown dtype 'float8'"),
        ("tokenizer.train=null", "tokenizer: a model from scratch"),
        ("freeze=text_mixer+lora", "lora goes with freeze"),
        ("data.train.5.weight=1", "'5' is not inside a section"),
        ("seed", "expected key=value"),
    ],
)
def test_bad_recipes_name_the_key(recipe, override, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe, [override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["freeze=text_mixer", "frozen_features=x", "large_scale_jitter.max_scale=1.0"], "changes every image"),
        (["frozen_features=x"], "frozen image encoder"),
        (["freeze=nothing"], "policy must be"),
        (["tokenizer.train=char"], "unknown kind of tokenizer 'char'"),
        (["generation.max_tokens=3"], "generation: unknown keys .'max_tokens'"),
        (["data.train.0.source=nowhere"], "unknown data source 'nowhere'"),
        (["data.train.0.args.folder=x"], "'folder' does not accept these args"),
    ],
)
def test_bad_values_are_refused_before_the_training(recipe, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        train(recipe, overrides, tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_numbers_are_read_as_people_write_them(recipe):
    parsed = load_recipe(recipe, ["training.learning_rate=4e-4", "training.weight_decay=1E2", "data.train.0.weight=2"])
    assert parsed.training["learning_rate"] == 4e-4 and parsed.training["weight_decay"] == 100.0
    assert parsed.data.train[0].weight == 2


def test_a_recipe_survives_being_written(recipe):
    parsed = load_recipe(recipe, ["large_scale_jitter.max_scale=1.5", "seed=7"])
    assert load_recipe(yaml.safe_load(dump_recipe(parsed))) == parsed


def test_recipes_of_python_values(recipe, data):
    source = {"source": "folder", "args": {"root": Path(data), "limit": np.int64(2)}}
    parsed = load_recipe({**recipe, "data": {"train": (source,)}})
    assert parsed.data.train[0].args == {"root": str(data), "limit": 2}
    with pytest.raises(ValueError, match="recipe: .*object"):
        load_recipe({**recipe, "seed": object()})


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(ValueError, match="no recipe 'nothing'.*region_captioning_sca"):
        load_recipe("nothing")
    (tmp_path / "a.yaml").write_text("model: [")
    with pytest.raises(ValueError, match="a.yaml is not valid YAML"):
        load_recipe(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("3")
    with pytest.raises(ValueError, match="expected a mapping"):
        load_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_bundled_recipes_are_valid(path):
    assert isinstance(load_recipe(path.stem), Recipe)


def test_the_recipe_of_the_paper():
    recipe = load_recipe("region_captioning_sca")
    settings = recipe.training
    assert (settings["learning_rate"], settings["weight_decay"], settings["warmup_steps"]) == (4e-4, 1e-4, 200)
    assert settings["max_steps"] == 200_000 and settings["lr_scheduler_type"] == "cosine"
    assert recipe.freeze == "text_mixer" and recipe.collator.max_regions == 16
    assert (recipe.large_scale_jitter.min_scale, recipe.large_scale_jitter.max_scale) == (0.1, 2.0)


# --- tokenizers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_trained_tokenizers(kind, tmp_path):
    texts = ["a red cup", "the green cup on the table"] * 3
    tokenizer = train_tokenizer(texts, kind, 400)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    for text in texts:
        ids = again(text)["input_ids"]
        assert ids == tokenizer(text)["input_ids"] and again.decode(ids, skip_special_tokens=True) == text
    assert tokenizer("A RED cup zebra")["input_ids"][-1] == 2 or kind == "bpe"
