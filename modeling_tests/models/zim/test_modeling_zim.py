# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""ZIM against its description, with mixed and ragged prompts; SAM's weights, losses, freezing, saving, adapters."""

import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForImageMatting, SamConfig, SamModel

from hf_segcap import SamCaptionConfig, SamPromptableConfig, ZimConfig, ZimForMatting, ZimModel
from hf_segcap.models.zim import detail_decoder
from hf_segcap.models.zim.losses import matting_loss
from modeling_tests.tiny import IMAGE_SIZE, tiny_sam_promptable, tiny_sam_promptable_config, tiny_zim, tiny_zim_config

from .plain_zim import plain_mattes

SIDE = IMAGE_SIZE // 2  # of the mattes
VARIANTS = {
    "paper": {},
    "both": {"masked_attention": ["token_to_image", "image_to_token"], "mask_final_attention": True},
    "image_to_token": {"masked_attention": ["image_to_token"], "detail_norm": "layer"},
    "unmasked": {"masked_attention": [], "fusion_mode": "add"},
    "final": {"masked_attention": [], "mask_final_attention": True, "detail_norm": "none"},
    "sam_pixel_decoder": {"pixel_decoder": "sam"},
}


@cache
def model_of(variant: str = "paper", attention: str = "sdpa") -> ZimForMatting:
    model = tiny_zim(spread=0.2, **VARIANTS[variant])
    model.set_attn_implementation(attention)
    return model


def pictures(batch: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))


def boxes_of(images: int, objects: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(images, objects, 2, generator=generator) * IMAGE_SIZE / 2
    return torch.cat([corner, corner + 6 + torch.rand(images, objects, 2, generator=generator) * 20], dim=-1)


# (number of points, box) of each object, per image; None is an object that pads
MIXTURE = [[(2, False), (0, True), (1, True), (3, False)], [(0, True), (1, False), None, None]]


def mixed_batch() -> tuple[dict[str, torch.Tensor], list[tuple[int, int, dict[str, torch.Tensor]]]]:
    """The mixture as one batch, and each object's own points, labels and box."""
    generator = torch.Generator().manual_seed(3)
    batch = {
        "input_boxes": boxes_of(2, 4),
        "input_points": torch.rand(2, 4, 3, 2, generator=generator) * IMAGE_SIZE,
        "point_labels": torch.randint(0, 2, (2, 4, 3), generator=generator),
        "has_box": torch.zeros(2, 4, dtype=torch.bool),
        "prompt_mask": torch.zeros(2, 4, dtype=torch.bool),
    }
    alone = []
    for i, objects in enumerate(MIXTURE):
        for j, kinds in enumerate(objects):
            points, box = kinds or (0, False)
            batch["point_labels"][i, j, points:] = -2
            batch["has_box"][i, j], batch["prompt_mask"][i, j] = box, kinds is not None
            own = {}
            if points:
                own |= {"points": batch["input_points"][i, j, :points], "labels": batch["point_labels"][i, j, :points]}
            if box:
                own["box"] = batch["input_boxes"][i, j]
            if own:
                alone.append((i, j, own))
    return batch, alone


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 2e-5) -> None:
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual, expected, atol=atol * scale, rtol=0)


# --- the description ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_mixed_prompts_equal_the_description(variant: str, attention: str, gradients: bool) -> None:
    model = model_of(variant, attention)
    batch, alone = mixed_batch()
    with torch.set_grad_enabled(gradients):
        output = model(pixel_values=pictures(), **batch)
    side = SIDE // 2 if variant == "sam_pixel_decoder" else SIDE  # SAM's decoder: a quarter of the patch size
    assert output.alphas.shape == (2, 4, 4, side, side) and output.iou_scores.shape == (2, 4, 4)
    for i, j, own in alone:
        with torch.no_grad():
            details = [features[i : i + 1] for features in output.detail_features]
            mattes, scores = plain_mattes(model, output.image_embeddings[i : i + 1], details, **own)
        close(output.alphas[i, j].detach(), mattes)
        close(output.iou_scores[i, j].detach(), scores)
    assert not output.alphas[1, 2:].any() and not output.iou_scores[1, 2:].any()
    assert (output.alphas[0, 0] - output.alphas[0, 3]).abs().max() > 0.05


@pytest.mark.parametrize("prompts_per_batch", [None, 1, 2, 5])
def test_chunks_do_not_change_anything(prompts_per_batch: int | None) -> None:
    model, batch = model_of(), mixed_batch()[0]
    with torch.no_grad():
        whole = model(pixel_values=pictures(), **batch, prompts_per_batch=100)
        output = model(pixel_values=pictures(), **batch, prompts_per_batch=prompts_per_batch)
        close(output.alphas, whole.alphas)
        single = model(pixel_values=pictures(), **batch, multimask_output=False)
    assert single.alphas.shape == (2, 4, 1, SIDE, SIDE)
    close(single.alphas, whole.alphas[:, :, :1])
    close(single.iou_scores, whole.iou_scores[:, :, :1])


def test_eager_attention_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, sizes = model_of(attention="eager"), mixed_batch()[0], []
    forward = model.mask_decoder.forward
    monkeypatch.setattr(
        model.mask_decoder, "forward", lambda stream, *args: sizes.append(len(stream)) or forward(stream, *args)
    )
    with torch.no_grad():
        whole = model(pixel_values=pictures(), **batch)
        parts = model(pixel_values=pictures(), **batch, prompts_per_batch=3)
        recorded = model(pixel_values=pictures(), **batch, prompts_per_batch=3, output_attentions=True)
    assert sizes == [6, 3, 1, 2, 6]  # four prompts of one image, two of the other
    close(parts.alphas, whole.alphas)
    assert [len(weights) for weights in recorded.mask_decoder_attentions] == [6, 6]


def test_image_features_are_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = model_of(), mixed_batch()[0]
    seen = []
    project = detail_decoder.ZimFusionBlock.project_details
    forward = detail_decoder.ZimFusionBlock.forward
    monkeypatch.setattr(
        detail_decoder.ZimFusionBlock, "project_details", lambda *args: seen.append("image") or project(*args)
    )

    def watched(self, x, details, finish=None):
        seen.append(len(details))
        return forward(self, x, details, finish)

    monkeypatch.setattr(detail_decoder.ZimFusionBlock, "forward", watched)
    with torch.no_grad():
        embeddings, details = model.encode_image(pictures())
        output = model(image_embeddings=embeddings, detail_features=details, **batch, prompts_per_batch=2)
        close(output.alphas, model(pixel_values=pictures(), **batch).alphas)
    calls = seen[: 3 + 3 * 3]  # six prompts in three parts
    assert calls == ["image"] * 3 + [1] * 9  # details never repeated per prompt


def test_box_attention_sees_the_box_only() -> None:
    """With the image-to-token attention and the pixel decoder left out, the scores depend on what is in the box alone."""
    model = model_of("final")
    blocks = [model.mask_decoder.transformer.layers[i].cross_attn_token_to_image for i in range(2)]
    kept = [block.out_proj for block in blocks]
    try:
        for block in blocks:  # only the last attention, which is masked, hands image content to the tokens
            block.out_proj = torch.nn.Linear(kept[0].in_features, kept[0].out_features)
            torch.nn.init.zeros_(block.out_proj.weight)
        with torch.no_grad():
            embeddings = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(0))
            details = model.get_detail_features(pictures(1))
            box = torch.tensor([[[17.0, 17, 40, 30]]])  # cells 1, 2 across, 1 down
            changed_outside, changed_inside = embeddings.clone(), embeddings.clone()
            changed_outside[..., 2:, :] += 1
            changed_inside[..., 1, 2] += 1
            scores = [
                model(image_embeddings=e, detail_features=details, input_boxes=box).iou_scores
                for e in (embeddings, changed_outside, changed_inside)
            ]
    finally:
        for block, projection in zip(blocks, kept, strict=True):
            block.out_proj = projection
    assert torch.equal(scores[0], scores[1])
    assert (scores[0] - scores[2]).abs().max() > 1e-4


@pytest.mark.parametrize("variant", ["paper", "both"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_prompts_without_any_cell_give_finite_mattes(variant: str, attention: str) -> None:
    model = model_of(variant, attention)
    boxes = torch.tensor([[[-90.0, -90, -40, -40], [70, 70, 90, 90], [5, 5, 6, 6], [5, 5, 5, 5]]])
    with torch.no_grad():
        assert model(pixel_values=pictures(1), input_boxes=boxes).alphas.isfinite().all()
        outside = model(pixel_values=pictures(1), input_points=torch.tensor([[[[500.0, 5]]]]))
    assert outside.alphas.isfinite().all()


def test_points_with_a_box() -> None:
    """Officially the box is the prompt and the points make the map; jointly, both are both."""
    points, boxes = torch.tensor([[[[8.0, 50]]]]), torch.tensor([[[20.0, 4, 60, 40]]])
    prompts = {"pixel_values": pictures(1), "input_boxes": boxes}
    with torch.no_grad():
        both = model_of()(**prompts, input_points=points).alphas
        negative = model_of()(**prompts, input_points=points, point_labels=torch.tensor([[[0]]])).alphas
        moved = model_of()(**prompts, input_points=points + 3).alphas  # the same cell
        box = model_of()(**prompts).alphas
        joint = tiny_zim(spread=0.2, joint_prompts=True)
        assert (joint(**prompts, input_points=points).alphas - joint(**prompts, input_points=points + 3).alphas).any()
    assert torch.equal(both, negative) and torch.equal(both, moved)
    assert (both - box).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "No prompt: give input_boxes"),
        ({"prompt_mask": torch.ones(2, 1, dtype=torch.bool)}, "No prompt"),
        (
            {"input_points": torch.zeros(2, 3, 0, 2)},
            r"input_points of shape \(2, 3, 0, 2\) hold no point: leave them out",
        ),
        ({"input_boxes": boxes_of(2, 3), "input_points": torch.zeros(2, 3, 0, 2)}, "hold no point"),
        ({"input_boxes": torch.zeros(2, 4)}, r"input_boxes must have shape \(B, P, 4\)"),
        ({"input_boxes": boxes_of(2, 1), "prompts_per_batch": 0}, "prompts_per_batch must be at least 1, got 0"),
        ({"input_boxes": boxes_of(2, 1), "detail_features": []}, r"detail_features of shapes \[\(2, 4, 32, 32\)"),
        ({"input_boxes": boxes_of(2, 1), "labels": torch.full((2, 1, 64, 64), 255.0)}, "maximum of 255: divide 8-bit"),
        ({"input_boxes": boxes_of(2, 1), "labels": torch.full((2, 1, 64, 64), torch.nan)}, "maximum of nan"),
        ({"input_boxes": boxes_of(2, 1), "labels": torch.zeros(2, 3, 64, 64)}, r"with \(B, P\) = \(2, 1\)"),
        ({"input_boxes": boxes_of(2, 1), "labels": torch.zeros(2, 1, 64)}, r"labels must have shape \(B, P, h, h\)"),
        (
            {"input_boxes": boxes_of(2, 1), "labels": torch.zeros(2, 1, 48, 64)},
            "the padded model frame, which is square",
        ),
        (
            {"input_boxes": boxes_of(2, 1), "labels": torch.full((2, 1, 64, 64), -0.5)},
            "a minimum of -0.5: mattes are not",
        ),
    ],
)
def test_bad_input(arguments: dict, message: str) -> None:
    model = model_of()
    embeddings, details = torch.zeros(2, 32, 4, 4), model.get_detail_features(pictures())
    with pytest.raises(ValueError, match=message), torch.no_grad():
        model(**{"image_embeddings": embeddings, "detail_features": details, **arguments})


@pytest.mark.parametrize("name", ["input_labels", "input_masks"])
def test_prompts_that_it_does_not_know_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match=f"ZimForMatting has no argument {name}"):
        model_of()(pixel_values=pictures(), input_boxes=boxes_of(2, 1), **{name: torch.zeros(2, 1, 1)})


@pytest.mark.parametrize("fill", [-1e9, -math.inf])
def test_any_fill_of_the_attention_maps_is_finite(fill: float) -> None:
    """Graphs of others may hold another number than ours."""
    outside = torch.tensor([[[500.0, 500, 510, 510]]])
    for dtype in (torch.float32, torch.float16):
        with torch.no_grad():
            output = tiny_zim(attention_map_fill=fill).to(dtype)(pixel_values=pictures(1), input_boxes=outside)
        assert output.alphas.dtype == dtype and output.alphas.isfinite().all()


def test_pixels_and_features_exclude_each_other() -> None:
    model = model_of()
    with pytest.raises(ValueError, match="pixel_values, or image_embeddings with detail_features, not both"):
        model(
            pixel_values=pictures(), detail_features=model.get_detail_features(pictures()), input_boxes=boxes_of(2, 1)
        )
    with pytest.raises(ValueError, match="exactly one of pixel_values and image_embeddings"):
        model(input_boxes=boxes_of(2, 1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"masked_attention": ["tokens"]},
            "masked_attention may name token_to_image and image_to_token, got 'tokens'",
        ),
        ({"detail_hidden_sizes": [4, 8]}, "detail_hidden_sizes needs 3 positive numbers"),
        ({"fusion_mode": "add", "detail_hidden_sizes": [4, 8, 16]}, r"needs detail_hidden_sizes=\[8, 16, 32\], got"),
        ({"vision_config": {"patch_size": 15, "image_size": 60}}, "need an even patch size of at least 4, got 15"),
        ({"point_sigma": 0}, "point_sigma must be above 0 cells"),
        ({"prompt_encoder_config": {"image_size": 1024}}, "has image_size 1024, but by vision_config it is 64"),
    ],
)
def test_configuration_refuses_nonsense(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_zim_config(**fields)


@pytest.mark.parametrize("config_class", [ZimConfig, SamPromptableConfig, SamCaptionConfig])
def test_the_prompt_encoder_has_the_sizes_of_the_image_encoder(config_class: type) -> None:
    vision = {"image_size": 96, "patch_size": 8, "output_channels": 32}
    for given in (None, {"mask_input_channels": 8}):
        config = config_class(vision_config=vision, prompt_encoder_config=given)
        part = config.prompt_encoder_config
        assert (part.image_size, part.patch_size, part.image_embedding_size, part.hidden_size) == (96, 8, 12, 32)
        assert config_class.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert config_class().prompt_encoder_config.image_size == 1024
    with pytest.raises(ValueError, match="prompt_encoder_config has patch_size 16, but by vision_config it is 8"):
        config_class(vision_config=vision, prompt_encoder_config={"patch_size": 16})


def test_size_of_the_paper_s_model() -> None:
    with torch.device("meta"):
        model = ZimForMatting(ZimConfig())
    assert (model.config.detail_hidden_sizes, model.config.fusion_hidden_sizes) == ([32, 64, 128], [128, 64, 32])
    new = [p.numel() for name, p in model.named_parameters() if name.startswith(ZimModel.new_modules)]
    assert sum(new) == 93_024 + 580_608 + 2 * 448  # detail and fusion convolutions, norms


def test_smaller_patches_have_fewer_levels() -> None:
    model = tiny_zim(vision_config={"patch_size": 8})
    assert (model.config.detail_hidden_sizes, model.config.fusion_hidden_sizes) == ([4, 8], [8, 4])
    with torch.no_grad():
        assert model(pixel_values=pictures(1), input_boxes=boxes_of(1, 2)).alphas.shape == (1, 2, 4, SIDE, SIDE)


def test_patches_that_are_no_power_of_two() -> None:
    model = tiny_zim(spread=0.2, vision_config={"patch_size": 12, "image_size": 48})
    assert [block.factor for block in model.mask_decoder.fusion_blocks] == [3, 2]
    box = torch.tensor([5.0, 8.0, 30.0, 40.0])
    with torch.no_grad():
        output = model(pixel_values=pictures(1)[..., :48, :48], input_boxes=box[None, None])
        mattes, scores = plain_mattes(model, output.image_embeddings, list(output.detail_features), box=box)
    assert output.alphas.shape == (1, 1, 4, 24, 24)
    close(output.alphas[0, 0], mattes)
    close(output.iou_scores[0, 0], scores)


# --- training ----------------------------------------------------------------------------------------------------------


def soft_discs(images: int, objects: int) -> torch.Tensor:
    """Mattes (images, objects, S, S) of discs with soft edges in the boxes of `boxes_of`; the last rows are padding."""
    x0, y0, x1, y1 = boxes_of(images, objects)[..., None, None].unbind(2)
    pixels = torch.arange(IMAGE_SIZE) + 0.5
    distance = ((pixels - (x0 + x1) / 2).square() + (pixels[:, None] - (y0 + y1) / 2).square()).sqrt()
    mattes = ((x1 - x0) / 2 - distance).div(4).sigmoid()
    mattes[..., 56:, :] = -1
    return mattes


@pytest.mark.parametrize("multimask", [True, False])
def test_loss_equals_its_terms_and_reaches_every_parameter(multimask: bool) -> None:
    model = tiny_zim(spread=0.1, multimask_loss=multimask, gradient_loss_weight=7, iou_loss_weight=0.5).train()
    batch, labels = mixed_batch()[0], soft_discs(2, 4)
    output = model(pixel_values=pictures(), **batch, labels=labels, output_attentions=False)
    close(output.loss, output.l1_loss + 7 * output.gradient_loss + 0.5 * output.iou_loss)
    valid = batch["prompt_mask"]
    expected = matting_loss(
        output.alphas[valid], output.iou_scores[valid], labels[valid], multimask=multimask, gradient_weight=7
    )
    close(output.l1_loss, expected.l1.mean())
    close(output.gradient_loss, expected.gradient.mean())
    close(output.iou_loss, expected.iou.mean())
    output.loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert model.detail_encoder.convs[0].conv.weight.grad.abs().max() > 0
    assert model.vision_encoder.layers[0].attn.qkv.weight.grad.abs().max() > 0


def test_padded_objects_and_padded_pixels_do_not_count() -> None:
    model, (batch, _), labels = model_of(), mixed_batch(), soft_discs(2, 4)
    with torch.no_grad():
        loss = model(pixel_values=pictures(), **batch, labels=labels).loss
        labels[1, 2:] = torch.nan  # objects that pad
        assert torch.equal(model(pixel_values=pictures(), **batch, labels=labels).loss, loss)
        cut = model(pixel_values=pictures(), **batch, labels=labels.clamp(min=0)).loss
        nothing = model(
            pixel_values=pictures(), **{**batch, "prompt_mask": batch["prompt_mask"] & False}, labels=labels
        )
    assert nothing.loss == 0 and not nothing.alphas.any()
    assert cut != loss


def test_all_prompts_share_the_statistics_of_batch_norm() -> None:
    """In training mode, without gradients too: one batch, as without parts."""
    results = []
    for gradients in (True, False):
        model = tiny_zim(spread=0.2).train()
        with torch.set_grad_enabled(gradients):
            output = model(pixel_values=pictures(), **mixed_batch()[0], prompts_per_batch=1)
        results.append((output.alphas.detach(), model.mask_decoder.fusion_blocks[2].batch_norm.running_var))
    close(*(alphas for alphas, _ in results))
    torch.testing.assert_close(*(variance for _, variance in results))


def test_training_lowers_the_loss() -> None:
    model = tiny_zim().train()
    model.freeze_for("decoder")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(30):
        loss = model(pixel_values=pictures(), input_boxes=boxes_of(2, 1), labels=soft_discs(2, 1)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_freezing() -> None:
    model = tiny_zim().train()
    model.freeze_for("decoder")
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"prompt_encoder", "detail_encoder", "mask_decoder"}
    assert not model.vision_encoder.training and model.detail_encoder.training
    model.freeze_for("all")
    assert all(parameter.requires_grad for parameter in model.parameters()) and model.train().vision_encoder.training


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_zim(spread=0.1, masked_attention=["token_to_image", "image_to_token"]).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(pixel_values=pictures(), **mixed_batch()[0], labels=soft_discs(2, 4)).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_half_precision() -> None:
    half, exact = tiny_zim(spread=0.2).to(torch.bfloat16), tiny_zim(spread=0.2)
    batch = mixed_batch()[0]
    with torch.no_grad():
        output, expected = half(pixel_values=pictures(), **batch), exact(pixel_values=pictures(), **batch)
    assert output.alphas.dtype == torch.bfloat16
    difference = (output.alphas.float() - expected.alphas).square().mean().sqrt()
    assert difference < 0.1 * expected.alphas.std()
    half.train()(pixel_values=pictures(), **batch, labels=soft_discs(2, 4)).loss.backward()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        mixed = exact(pixel_values=pictures(), **batch).alphas.float()
    assert (mixed - expected.alphas).square().mean().sqrt() < 0.1 * expected.alphas.std()


def test_lora_on_the_encoder_and_on_the_mixer() -> None:
    """The published pattern, and adapters in the masked attention, whose folded products would pass them by."""
    batch = mixed_batch()[0]
    for targets, count in (
        (ZimForMatting.lora_target_modules, 2),
        (r"mask_decoder\.transformer\..*cross_attn.*\.(k|q)_proj", 8),
    ):
        model = tiny_zim(spread=0.2)
        with torch.no_grad():
            before = model(pixel_values=pictures(), **batch).alphas
        model.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
        adapted = [name for name, _ in model.named_parameters() if "lora_A" in name]
        assert len(adapted) == count
        with torch.no_grad():
            after = model(pixel_values=pictures(), **batch).alphas
        gradients = model(pixel_values=pictures(), **batch).alphas.detach()
        assert (after - before).abs().max() > 1e-3
        close(gradients, after)


def test_recorded_attention_follows_the_map() -> None:
    output = model_of("paper", "eager")(
        pixel_values=pictures(1), input_boxes=torch.tensor([[[17.0, 17, 40, 30]]]), output_attentions=True
    )
    assert len(output.mask_decoder_attentions) == 2
    for attention in output.mask_decoder_attentions:
        attention = attention.unflatten(-1, (4, 4)).sum((0, 1, 2)).detach()
        inside = torch.zeros(4, 4, dtype=torch.bool)
        inside[1, 1:3] = True
        assert attention[inside].gt(0).all() and not attention[~inside].any()


# --- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sam_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What transformers saves: a folder laid out as facebook/sam-vit-*, with patches of 8 pixels."""
    folder = tmp_path_factory.mktemp("sam")
    config = tiny_sam_promptable_config()
    parts = {
        name: {k: v for k, v in getattr(config, name).to_dict().items() if k not in ("model_type", "drop_path_rate")}
        for name in ("vision_config", "prompt_encoder_config", "mask_decoder_config")
    }
    parts["mask_decoder_config"]["layer_norm_eps"] = 1e-6
    torch.manual_seed(0)
    model = SamModel(SamConfig(**parts)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


def test_starts_from_sam(sam_folder: Path, tmp_path: Path) -> None:
    sam = SamModel.from_pretrained(sam_folder)
    model = ZimForMatting.from_sam(sam_folder, point_sigma=3, detail_hidden_sizes=[5, 6])
    assert not model.training and model.config.mask_decoder_config.layer_norm_eps == 1e-5
    assert model.config.point_sigma == 3 and model.config.detail_hidden_sizes == [5, 6]
    theirs, ours = sam.state_dict(), model.state_dict()
    new = {name for name in ours if name not in theirs}
    assert all(name.startswith(("detail_encoder.", "mask_decoder.fusion_blocks.")) for name in new)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name not in new)
    dropped = {name for name in theirs if name not in ours and "shared_embedding" not in name}
    assert {name.split(".")[1].rstrip("0123456789") for name in dropped} == {
        "mask_embed",
        "upscale_conv",
        "upscale_layer_norm",  # fmt: skip
    }
    with torch.no_grad():
        output = model(pixel_values=pictures(), **mixed_batch()[0])
    assert output.alphas.isfinite().all() and output.alphas.std() > 0
    # the same from our own SAM, in a folder and loaded
    tiny_sam_promptable(text=True).save_pretrained(tmp_path)
    models = [ZimForMatting.from_sam(tmp_path), ZimModel.from_sam(tiny_sam_promptable(text=True))]
    for name in ("mask_decoder.iou_token.weight", "vision_encoder.pos_embed"):
        assert torch.equal(models[0].state_dict()[name], models[1].state_dict()[name])
    assert type(models[1]) is ZimModel


def test_sam_s_own_decoder_without_maps_is_sam(sam_folder: Path) -> None:
    """With both ablations, what is left is SAM, all four of its masks."""
    model = ZimForMatting.from_sam(sam_folder, pixel_decoder="sam", masked_attention=[])
    sam = SamModel.from_pretrained(sam_folder).eval()
    for module in sam.mask_decoder.transformer.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5
    with torch.no_grad():
        output = model(pixel_values=pictures(), input_boxes=boxes_of(2, 3))
        multiple = sam(pixel_values=pictures(), input_boxes=boxes_of(2, 3).double())
        single = sam(pixel_values=pictures(), input_boxes=boxes_of(2, 3).double(), multimask_output=False)
    close(output.alphas, torch.cat([single.pred_masks, multiple.pred_masks], dim=2))
    close(output.iou_scores, torch.cat([single.iou_scores, multiple.iou_scores], dim=2))


def test_sam_weights_that_do_not_fit(sam_folder: Path) -> None:
    with pytest.raises(ValueError, match="fusion_hidden_sizes must end with the width of SAM's hypernetworks, 4"):
        ZimForMatting.from_sam(sam_folder, fusion_hidden_sizes=[8, 7])
    with pytest.raises(TypeError, match="Expected a SAM model or the name or folder of one, got ZimForMatting"):
        ZimForMatting.from_sam(tiny_zim())


def test_save_and_load(tmp_path: Path) -> None:
    model = model_of("both")
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "zim"
    batch = mixed_batch()[0]
    with torch.no_grad():
        expected = model(pixel_values=pictures(), **batch)
        for loaded in (
            ZimForMatting.from_pretrained(tmp_path),
            AutoModelForImageMatting.from_pretrained(tmp_path),
            AutoModel.from_pretrained(tmp_path),
        ):
            output = loaded(pixel_values=pictures(), **batch)
            close(output.alphas, expected.alphas, 1e-6)
    assert type(loaded) is ZimModel
    assert ZimForMatting.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_sam_folder_is_no_zim_checkpoint(sam_folder: Path) -> None:
    config = tiny_zim_config(vision_config={"patch_size": 8})
    with pytest.raises(ValueError, match=r"not a complete ZimForMatting .* ZimForMatting.from_sam\(sam\)"):
        ZimForMatting.from_pretrained(sam_folder, config=config)


def test_norms_that_are_not_trained_keep_their_statistics(tmp_path: Path) -> None:
    """LoRA as peft documents it: what the adapter holds is all that changed."""
    model = tiny_zim(spread=0.2)
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=ZimForMatting.lora_target_modules))
    adapted.train()
    adapted(pixel_values=pictures(), **mixed_batch()[0], labels=soft_discs(2, 4)).loss.backward()
    after = adapted.get_base_model().state_dict()
    assert before and all(torch.equal(after[name], value) for name, value in before.items())
    trained = tiny_zim(spread=0.2).train()
    trained(pixel_values=pictures(), **mixed_batch()[0], labels=soft_discs(2, 4)).loss.backward()
    after = trained.state_dict()
    assert not any(torch.equal(after[name], value) for name, value in before.items())


def test_from_sam_knows_its_options(sam_folder: Path) -> None:
    with pytest.raises(ValueError, match="ZimConfig has no masked_atention"):
        ZimForMatting.from_sam(sam_folder, masked_atention=[])
    with pytest.raises(ValueError, match="has no vision_config"):
        ZimForMatting.from_sam(sam_folder, vision_config={})
