# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from hf_segcap.training.layer_decay import layer_decay_parameter_groups, scaled_parameter_groups
from modeling_tests.tiny import tiny_sam_caption

RATE, DECAY, WEIGHT_DECAY = 1e-3, 0.5, 0.1


@pytest.fixture(scope="module")
def model():
    return tiny_sam_caption().requires_grad_(True)  # two blocks


def settings(model):
    """Name -> (factor of the learning rate, weight decay)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = layer_decay_parameter_groups(model, RATE, DECAY, WEIGHT_DECAY)
    listed = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert len(listed) == len(set(listed))
    return {
        names[id(parameter)]: (pytest.approx(group["lr"] / RATE), group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize(
    "name, factor, decays",
    [
        ("vision_encoder.pos_embed", 0.125, False),
        ("vision_encoder.patch_embed.projection.weight", 0.125, True),
        ("vision_encoder.patch_embed.projection.bias", 0.125, False),
        ("vision_encoder.layers.0.attn.qkv.weight", 0.25, True),
        ("vision_encoder.layers.0.layer_norm1.weight", 0.25, False),
        ("vision_encoder.layers.0.attn.rel_pos_h", 0.25, False),
        ("vision_encoder.layers.1.mlp.lin2.weight", 0.5, True),
        ("vision_encoder.layers.1.mlp.lin2.bias", 0.5, False),
        ("vision_encoder.layers.1.attn.rel_pos_w", 0.5, False),
        ("vision_encoder.neck.conv1.weight", 1.0, True),
        ("vision_encoder.neck.layer_norm1.weight", 1.0, False),
        ("prompt_encoder.no_mask_embed.weight", 1.0, True),
        ("mask_decoder.transformer.layers.0.mlp.lin1.weight", 1.0, True),
        ("language_model.transformer.wpe.weight", 1.0, False),
        ("language_model.transformer.h.0.mlp.c_fc.weight", 1.0, True),
    ],
)
def test_factors(model, name, factor, decays):
    assert settings(model)[name] == (factor, WEIGHT_DECAY if decays else 0.0)


def test_every_trainable_parameter_once(model):
    assert settings(model).keys() == {name for name, _ in model.named_parameters()}


def test_frozen_parameters_are_left_out_but_count_as_depth():
    model = tiny_sam_caption().requires_grad_(False)
    for name in ("layers.0", "neck"):
        model.vision_encoder.get_submodule(name).requires_grad_(True)
    found = settings(model)
    assert {name.rsplit("vision_encoder.")[1].split(".")[0] for name in found} == {"layers", "neck"}
    assert found["vision_encoder.layers.0.attn.qkv.weight"] == (0.25, WEIGHT_DECAY)


def test_adapters_follow_their_block():
    model = get_peft_model(tiny_sam_caption(), LoraConfig(r=2, target_modules=r"vision_encoder.*\.qkv"))
    found = settings(model)
    assert len(found) == 4
    for block, factor in enumerate((0.25, 0.5)):
        name = f"base_model.model.vision_encoder.layers.{block}.attn.qkv.lora_A.default.weight"
        assert found[name] == (factor, WEIGHT_DECAY)


def test_optimizer_and_scheduler_keep_the_ratios(model):
    groups = layer_decay_parameter_groups(model, RATE, DECAY, WEIGHT_DECAY)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1)
    rates = sorted({group["lr"] for group in optimizer.param_groups})
    assert rates == pytest.approx([0.1 * RATE * factor for factor in (0.125, 0.25, 0.5, 1.0)])


def test_refusals(model):
    with pytest.raises(ValueError, match="decay must be above 0 and at most 1, got 1.5"):
        layer_decay_parameter_groups(model, RATE, 1.5, 0.0)
    with pytest.raises(ValueError, match="Linear has no parameters under `vision_encoder.layers`"):
        layer_decay_parameter_groups(torch.nn.Linear(2, 2), RATE, DECAY, 0.0)


def test_factors_by_name():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 5))
    model[2].bias.requires_grad_(False)
    groups = scaled_parameter_groups(model, 0.1, {"1.weight": 2.0, "1.": 0.5}, 0.3)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert found == {
        id(model[0].weight): (0.1, 0.3),
        id(model[0].bias): (0.1, 0.0),
        id(model[1].weight): (0.2, 0.3),
        id(model[1].bias): (0.05, 0.0),
        id(model[2].weight): (0.1, 0.3),
    }
    with pytest.raises(ValueError, match="no parameter whose name begins with 'x.'"):
        scaled_parameter_groups(model, 0.1, {"x.": 2.0}, 0.3)
    with pytest.raises(ValueError, match="must be above 0"):
        scaled_parameter_groups(model, 0.1, {"1.": 0.0}, 0.3)
