# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from hf_segcap.data.collator import RegionCollator
from hf_segcap.training.trainer import SegCapTrainer
from modeling_tests.tiny import tiny_processor, tiny_sam_caption
from modeling_tests.training.data import arguments, logged_losses, make_rows


def lora_config(model, **options):
    return LoraConfig(r=2, lora_alpha=8, target_modules=model.lora_target_modules, **options)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def trained(request, tmp_path_factory):
    """A model with LoRA (and its text mixer) after a few steps, and a batch."""
    processor, rows = tiny_processor(), make_rows(4)
    model = tiny_sam_caption(request.param)
    model = get_peft_model(model, lora_config(model, modules_to_save=list(model.text_mixer_modules)))
    output = tmp_path_factory.mktemp("peft")
    trainer = SegCapTrainer(
        model=model,
        args=arguments(output, max_steps=12, save_strategy="steps", save_steps=6, learning_rate=1e-2),
        data_collator=RegionCollator(processor),
        train_dataset=rows,
        eval_dataset=rows,
    )
    trainer.train()
    return request.param, trainer, RegionCollator(processor, train=False)(rows), output


def run(model, batch):
    model.eval()
    prompts = {name: value for name, value in batch.items() if name not in ("labels", "input_ids", "attention_mask")}
    with torch.no_grad():
        return model(**batch).logits, model.generate(**prompts, max_new_tokens=6)


@pytest.mark.parametrize("text", ["gpt2", "llama", "opt", "qwen2"])
def test_the_published_regex_finds_the_language_model_only(text):
    model = tiny_sam_caption(text)
    names = [name for name, _ in model.named_modules() if re.fullmatch(model.lora_target_modules, name)]
    assert len(names) >= 2 * model.config.text_config.num_hidden_layers
    assert all(name.startswith("language_model.") for name in names)


def test_it_trains_lora_and_the_text_mixer_only(trained):
    text, trainer, _, _ = trained
    losses = logged_losses(trainer)
    assert losses[-1] < losses[0]
    fresh = tiny_sam_caption(text).state_dict()
    changed = set()
    for name, value in trainer.model.get_base_model().state_dict().items():
        plain = name.replace(".base_layer", "").replace(".original_module", "")
        if plain in fresh and not torch.equal(value, fresh[plain]):
            changed.add(name)
    assert not changed  # what was there before is untouched: the trained copies have names of their own


def test_checkpoints_hold_the_adapter_only(trained):
    _, trainer, batch, output = trained
    folder = output / "checkpoint-12"
    saved = load_file(folder / "adapter_model.safetensors")
    assert not (folder / "model.safetensors").exists()
    assert all("lora_" in name or name.split("base_model.model.")[1].startswith(_mixer(trainer)) for name in saved)
    assert any("lora_" in name for name in saved) and any("task_tokens" in name for name in saved)


def _mixer(trainer):
    return trainer.model.get_base_model().text_mixer_modules


def test_the_adapter_reloads(trained):
    text, trainer, batch, output = trained
    logits, ids = run(trainer.model, batch)
    reloaded = PeftModel.from_pretrained(tiny_sam_caption(text), output / "checkpoint-12")
    other_logits, other_ids = run(reloaded, batch)
    torch.testing.assert_close(other_logits, logits)
    assert torch.equal(other_ids, ids)
    assert not torch.allclose(run(tiny_sam_caption(text), batch)[0], logits, atol=1e-3)


def test_it_resumes(trained, tmp_path):
    text, trainer, _, output = trained
    model = tiny_sam_caption(text)
    model = get_peft_model(model, lora_config(model, modules_to_save=list(model.text_mixer_modules)))
    resumed = SegCapTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=12, learning_rate=1e-2),
        data_collator=RegionCollator(tiny_processor()),
        train_dataset=make_rows(4),
    )
    resumed.train(resume_from_checkpoint=str(output / "checkpoint-6"))
    assert logged_losses(resumed) == pytest.approx(logged_losses(trainer), rel=1e-4)


def test_merging_keeps_the_answers(trained, tmp_path):
    text, trainer, batch, output = trained
    model = PeftModel.from_pretrained(tiny_sam_caption(text), output / "checkpoint-12")
    logits, ids = run(model, batch)
    merged = model.merge_and_unload()
    assert type(merged) is type(tiny_sam_caption(text))
    merged_logits, merged_ids = run(merged, batch)
    torch.testing.assert_close(merged_logits, logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(merged_ids, ids)
    merged.save_pretrained(tmp_path)
    again_logits, _ = run(type(merged).from_pretrained(tmp_path), batch)
    torch.testing.assert_close(again_logits, merged_logits)


def test_evaluation_generates_through_the_wrapper(trained):
    _, trainer, _, _ = trained
    predictions = trainer.predict(make_rows(2)).predictions
    assert predictions.shape[:2] == (2, 3) and (predictions >= 0).any()


def test_policy_with_adapters_added_in_place():
    model = tiny_sam_caption()
    with pytest.raises(ValueError, match="needs LoRA weights"):
        model.freeze_for("text_mixer+lora")
    model.add_adapter(lora_config(model))
    model.freeze_for("text_mixer+lora")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or name.startswith(model.text_mixer_modules) for name in trained)
    assert any("lora_" in name for name in trained) and "task_tokens.weight" in trained
