# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch

from hf_segcap import SamForPromptableSegmentation, SamPromptableConfig, ZimConfig, ZimForMatting
from hf_segcap.models.sam.frame import change_frame, resize_patch_embedding, resize_relative_positions


def segmenter(image_size=64, patch_size=8):
    torch.manual_seed(0)
    vision = {
        "image_size": image_size,
        "patch_size": patch_size,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_dim": 32,
        "window_size": 4,
        "global_attn_indexes": [1],
        "output_channels": 16,
        "num_pos_feats": 8,
        "initializer_range": 0.2,
    }
    decoder = {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    config = SamPromptableConfig(vision_config=vision, mask_decoder_config=decoder)
    model = SamForPromptableSegmentation(config).eval()
    torch.nn.init.normal_(model.vision_encoder.pos_embed)
    for layer in model.vision_encoder.layers:
        torch.nn.init.normal_(layer.attn.rel_pos_h)
    return model


def test_the_same_frame_gives_the_same_model():
    model = segmenter()
    before = torch.random.get_rng_state()
    same = change_frame(model)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in same.state_dict().items())


@pytest.mark.parametrize("patch_size", [12, 16])
def test_larger_patches_see_enlarged_images_as_before(patch_size):
    """Each patch enlarged by itself: the embeddings, and all that follows, do not change."""
    model = segmenter()
    larger = change_frame(model, image_size=8 * patch_size, patch_size=patch_size)
    image = torch.randn(1, 3, 64, 64)
    patches = torch.nn.functional.unfold(image, 8, stride=8).reshape(3, 8, 8, 64).permute(3, 0, 1, 2)
    patches = torch.nn.functional.interpolate(patches, (patch_size, patch_size), mode="bilinear", antialias=True)
    columns = patches.permute(1, 2, 3, 0).reshape(1, -1, 64)
    enlarged = torch.nn.functional.fold(columns, (8 * patch_size,) * 2, patch_size, stride=patch_size)
    point, frame = torch.tensor([[[[20.0, 30.0]]]]), patch_size / 8
    with torch.no_grad():
        expected = model(pixel_values=image, input_points=point)
        found = larger(pixel_values=enlarged, input_points=(point + 0.5) * frame - 0.5)
    torch.testing.assert_close(found.image_embeddings, expected.image_embeddings, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.pred_masks, expected.pred_masks, atol=1e-4, rtol=1e-4)


def test_smaller_patches_see_smooth_patches_nearly_as_before():
    weight = torch.randn(4, 3, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    ramp = torch.linspace(-1, 1, 8)
    patch = (ramp[:, None] + 2 * ramp).expand(3, 8, 8)
    small = torch.nn.functional.interpolate(patch[None], (4, 4), mode="bilinear", antialias=True)[0]
    old = torch.einsum("hcyx,cyx->h", weight, patch)
    new = torch.einsum("hcyx,cyx->h", resize_patch_embedding(weight, 4), small)
    assert (new - old).abs().max() < 0.2 * old.abs().max()


def test_a_larger_frame_interpolates_positions():
    model = segmenter()
    larger = change_frame(model, image_size=96)
    assert larger.vision_encoder.pos_embed.shape == (1, 12, 12, 16)
    assert larger.vision_encoder.layers[1].attn.rel_pos_h.shape == (23, 8)
    assert torch.equal(larger.vision_encoder.layers[0].attn.rel_pos_h, model.vision_encoder.layers[0].attn.rel_pos_h)
    assert larger.config.prompt_encoder_config.image_embedding_size == 12
    output = larger(pixel_values=torch.randn(1, 3, 96, 96), input_boxes=torch.tensor([[[5.0, 5, 50, 60]]]))
    assert output.pred_masks.shape[-2:] == (48, 48)
    line = torch.arange(15.0)[:, None]
    assert (resize_relative_positions(line, 23).diff(dim=0) >= 0).all()
    assert model.config.vision_config.image_size == 64


@pytest.mark.parametrize(("image_size", "patch_size"), [(60, 8), (4, 8), (64, -8)])
def test_patches_that_do_not_fit_are_refused(image_size, patch_size):
    with pytest.raises(ValueError, match="multiple of the patch size"):
        change_frame(segmenter(), image_size, patch_size)


def test_mattes_keep_their_strides():
    model = ZimForMatting(ZimConfig.from_sam(segmenter().config))
    assert change_frame(model, image_size=96).config.vision_config.image_size == 96
    with pytest.raises(ValueError, match="one for each stride"):
        change_frame(model, image_size=128, patch_size=16)
