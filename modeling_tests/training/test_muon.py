# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from hf_segcap.training.muon import MuonAdamW, muon_parameter_groups
from hf_segcap.training.trainer import SegCapTrainer
from modeling_tests.tiny import tiny_sam_caption


@pytest.fixture
def model():
    return tiny_sam_caption().requires_grad_(True)


def kinds(model):
    """Name -> (trained by Muon, learning rate, weight decay)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = muon_parameter_groups(model, 0.02, 1e-3, 0.1)
    listed = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert len(listed) == len(set(listed))
    return {
        names[id(parameter)]: (group["muon"], group["lr"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize(
    "name, expected",
    [
        ("vision_encoder.layers.0.attn.qkv.weight", (True, 0.02, 0.1)),
        ("mask_decoder.transformer.layers.0.mlp.lin1.weight", (True, 0.02, 0.1)),
        ("language_model.transformer.h.0.mlp.c_fc.weight", (True, 0.02, 0.1)),  # a Conv1D
        ("vision_encoder.layers.0.attn.qkv.bias", (False, 1e-3, 0.0)),
        ("vision_encoder.layers.0.attn.rel_pos_h", (False, 1e-3, 0.0)),
        ("vision_encoder.layers.0.layer_norm1.weight", (False, 1e-3, 0.0)),
        ("vision_encoder.patch_embed.projection.weight", (False, 1e-3, 0.1)),
        ("vision_encoder.neck.conv1.weight", (False, 1e-3, 0.1)),
        ("prompt_encoder.no_mask_embed.weight", (False, 1e-3, 0.1)),
        ("language_model.transformer.wte.weight", (False, 1e-3, 0.1)),  # tied to the output vocabulary
        ("language_model.transformer.wpe.weight", (False, 1e-3, 0.0)),
    ],
)
def test_who_trains_what(model, name, expected):
    assert kinds(model)[name] == expected


def test_every_trainable_parameter_once(model):
    model.vision_encoder.requires_grad_(False)
    assert kinds(model).keys() == {name for name, p in model.named_parameters() if p.requires_grad}


def test_output_vocabulary_that_is_not_tied_is_not_orthogonalised():
    config = GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=11, tie_word_embeddings=False)
    assert kinds(GPT2LMHeadModel(config))["lm_head.weight"] == (False, 1e-3, 0.1)


def linear_problem():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.LayerNorm(4))
    inputs, targets = torch.randn(16, 6), torch.randn(16, 4)
    return model, lambda: (model(inputs) - targets).square().mean()


def test_updates_of_matrices_are_orthogonal_and_those_of_the_rest_are_adams():
    model, loss = linear_problem()
    twin = copy.deepcopy(model)
    optimizer = MuonAdamW(muon_parameter_groups(model, 0.01, 0.01, 0.0))
    adam = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.0)
    loss().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters()):
        theirs.grad = ours.grad.clone()
    before = model[0].weight.detach().clone()
    optimizer.step()
    adam.step()
    update = (before - model[0].weight.detach()) / (0.01 * 0.2 * 6**0.5)  # 0.2 sqrt(longer side): the size of Adam's
    singular = torch.linalg.svdvals(update)
    # Muon's five Newton-Schulz steps leave singular values around one; the norm takes one of the four directions away
    assert singular[2] > 0.5 and singular[0] < 1.35
    torch.testing.assert_close(model[0].bias, twin[0].bias)
    torch.testing.assert_close(model[1].weight, twin[1].weight)


def test_a_loaded_state_continues_the_same():
    model, loss = linear_problem()
    optimizer = MuonAdamW(muon_parameter_groups(model, 0.02, 0.01, 0.1))

    def steps(count):
        for _ in range(count):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

    steps(3)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    steps(3)
    expected = copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    optimizer = MuonAdamW(muon_parameter_groups(model, 0.5, 0.5, 0.0))  # the loaded settings replace these
    optimizer.load_state_dict(state)
    steps(3)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in expected.items())
    assert len(optimizer.state) == 4


def test_learning_rates_of_both_follow_the_schedule():
    model, loss = linear_problem()
    optimizer = MuonAdamW(muon_parameter_groups(model, 0.02, 0.01, 0.1))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    for _ in range(2):
        loss().backward()
        optimizer.step()
        schedule.step()
        before = copy.deepcopy(model.state_dict())
    loss().backward()
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_trainer_uses_it_and_refuses_layer_decay_beside_it(model, tmp_path):
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, learning_rate=3e-4, weight_decay=0.1)
    trainer = SegCapTrainer(model=model, args=args, muon_learning_rate=0.02)
    optimizer = trainer.create_optimizer()
    assert isinstance(optimizer, MuonAdamW)
    assert {group["muon"]: group["lr"] for group in optimizer.param_groups} == {True: 0.02, False: 3e-4}
    with pytest.raises(ValueError, match="cannot be combined"):
        SegCapTrainer(model=model, args=args, muon_learning_rate=0.02, layer_decay=0.5)
