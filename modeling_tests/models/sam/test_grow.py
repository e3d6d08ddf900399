# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch

from hf_segcap import SamForPromptableSegmentation, SamPromptableConfig
from hf_segcap.models.sam.grow import double_decoder, insert_layer


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    vision = {
        "image_size": 64,
        "patch_size": 8,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "mlp_dim": 32,
        "window_size": 3,
        "global_attn_indexes": [1, 2],
        "output_channels": 16,
        "num_pos_feats": 8,
    }
    decoder = {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    model = SamForPromptableSegmentation(SamPromptableConfig(vision_config=vision, mask_decoder_config=decoder))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def outputs(model):
    generator = torch.Generator().manual_seed(1)
    prompts = {
        "input_points": torch.tensor([[[[20.0, 30.0], [40.0, 10.0]], [[5.0, 5.0], [0.0, 0.0]]]]),
        "point_labels": torch.tensor([[[1, 0], [1, -2]]]),
        "input_boxes": torch.tensor([[[4.0, 4.0, 40.0, 50.0], [0.0, 0.0, 0.0, 0.0]]]),
        "has_box": torch.tensor([[True, False]]),
        "input_masks": torch.randn(1, 2, 32, 32, generator=generator),
    }
    image = torch.randn(1, 3, 64, 64, generator=generator)
    with torch.no_grad():
        found = model(pixel_values=image, **prompts, multimask_output=True)
    return found.pred_masks, found.iou_scores


def test_a_doubled_decoder_predicts_the_same(model):
    larger = double_decoder(model)
    assert larger.config.mask_decoder_config.hidden_size == 32 and larger.config.vision_config.output_channels == 32
    assert not larger.training
    for before, after in zip(outputs(model), outputs(larger)):
        assert before.abs().max() > 0.01
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_channels_of_a_pair_part_in_training(model):
    larger = double_decoder(model).train()
    optimizer = torch.optim.SGD(larger.parameters(), lr=0.1)
    inputs = {"pixel_values": torch.randn(1, 3, 64, 64), "input_boxes": torch.tensor([[[4.0, 4.0, 40.0, 50.0]]])}
    for _ in range(2):
        loss = larger(**inputs).pred_masks.sigmoid().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weight = larger.vision_encoder.neck.conv1.weight
    assert ((weight[0::2] - weight[1::2]).flatten(1).abs().amax(1) > 0).all()


@pytest.mark.parametrize("index", [0, 2, 3])
def test_an_inserted_layer_changes_nothing_at_first_and_learns(model, index):
    larger = insert_layer(model, index)
    vision = larger.config.vision_config
    assert vision.num_hidden_layers == 4 and index not in vision.global_attn_indexes
    assert [layer.window_size for layer in larger.vision_encoder.layers].count(0) == 2
    for before, after in zip(outputs(model), outputs(larger)):
        torch.testing.assert_close(after, before)
    larger(pixel_values=torch.randn(1, 3, 64, 64), input_boxes=torch.ones(1, 1, 4)).pred_masks.sum().backward()
    assert larger.vision_encoder.layers[index].mlp.lin2.weight.grad.abs().max() > 0


def test_what_cannot_grow_is_refused(model):
    with pytest.raises(ValueError, match="index must be between 0 and 3, got 4"):
        insert_layer(model, 4)
    config = SamPromptableConfig.from_dict({**model.config.to_dict(), "text_embed_dim": 8})
    with pytest.raises(ValueError, match="without text prompts"):
        double_decoder(SamForPromptableSegmentation(config))
