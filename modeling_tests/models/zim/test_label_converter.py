# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The label converter: Hiera's numbers, refinement, losses, batches, checkpoints, freezing, and its processor."""

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoModelForImageMatting, AutoProcessor, HieraConfig, HieraModel, ViTConfig

from hf_segcap import ZimLabelConverter, ZimLabelConverterConfig, ZimLabelConverterProcessor
from hf_segcap.models.zim.losses import gradient_loss, l1_loss
from hf_segcap.models.zim.modeling_label_converter import refine
from modeling_tests.tiny import (
    IMAGE_SIZE,
    random_image,
    tiny_label_converter,
    tiny_label_converter_config,
    tiny_label_converter_processor,
)

TINY_HIERA = {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4], "mlp_ratio": 2.0}


@cache
def model_of(attention: str = "sdpa") -> ZimLabelConverter:
    model = tiny_label_converter(spread=0.2)
    model.set_attn_implementation(attention)
    return model


def batch(images: int = 2, masks: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.zeros(images, masks, IMAGE_SIZE, IMAGE_SIZE)
    for i in range(images):
        for j in range(masks):
            x, y = torch.randint(0, 30, (2,), generator=generator).tolist()
            coarse[i, j, y : y + 20, x : x + 25] = 1
    pixels = torch.randn(images, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    return {"pixel_values": pixels, "coarse_masks": coarse}


# --- the model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_backbone_computes_what_hiera_does(attention):
    ours = model_of(attention).backbone
    theirs = HieraModel(HieraConfig(**TINY_HIERA, num_channels=4, image_size=[64, 64]), add_pooling_layer=False).eval()
    theirs.load_state_dict(ours.state_dict())
    inputs = torch.randn(2, 4, IMAGE_SIZE, IMAGE_SIZE)
    got, expected = (m(inputs, output_hidden_states=True, output_attentions=True) for m in (ours, theirs))
    for a, b in zip(got.reshaped_hidden_states, expected.reshaped_hidden_states, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    if attention == "eager":
        for a, b in zip(got.attentions, expected.attentions, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_default_is_hiera_base_plus_at_1024():
    config = ZimLabelConverterConfig()
    with torch.device("meta"):
        model = ZimLabelConverter(config)
    assert config.image_size == (1024, 1024) and config.backbone_config.num_channels == 4
    # Hiera-B+ has 69.9 million with its classifier (0.9) and the position table of 224 pixels (0.4)
    assert round(sum(p.numel() for n, p in model.backbone.named_parameters() if "position" not in n) / 1e6, 1) == 68.7
    again = ZimLabelConverterConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()


def test_a_mask_gives_the_same_matte_alone_and_in_any_batch():
    inputs, model = batch(2, 3), model_of()
    prompt_mask = torch.tensor([[True, True, True], [True, False, False]])
    with torch.no_grad():
        whole = model(**inputs, prompt_mask=prompt_mask, masks_per_batch=8).alphas
        single = model(**inputs, prompt_mask=prompt_mask, masks_per_batch=1)
        alone = model(inputs["pixel_values"][1:], inputs["coarse_masks"][1:, :1]).alphas
    assert whole.shape == (2, 3, IMAGE_SIZE, IMAGE_SIZE) and whole[prompt_mask].std() > 0.1
    torch.testing.assert_close(single.alphas, whole, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone[0, 0], whole[1, 0], atol=1e-4, rtol=1e-4)
    assert not whole[~prompt_mask].any()
    assert [s.shape[-1] for s in single.side_alphas] == [IMAGE_SIZE // 8, IMAGE_SIZE // 4, IMAGE_SIZE]


def test_the_mask_and_the_image_matter():
    inputs, model = batch(1, 2), model_of()
    with torch.no_grad():
        first, second = model(**inputs).alphas[0]
        other = model(-inputs["pixel_values"], inputs["coarse_masks"]).alphas[0, 0]
    assert (first - second).abs().max() > 0.1 and (first - other).abs().max() > 0.1


def test_finer_mattes_replace_what_is_unsure_and_its_neighbours():
    coarse, fine = torch.full((1, 1, 20, 20), -9.0), torch.full((1, 1, 20, 20), 3.0)
    coarse[..., 10:] = 9.0
    coarse[0, 0, 5, 4] = 0.5
    for width, reach in ((1, 0), (5, 2), (4, 2)):
        expected = coarse.clone()
        expected[0, 0, 5 - reach : 6 + reach, 4 - reach : 5 + reach] = 3
        assert torch.equal(refine(coarse, fine, (0.01, 0.99), width), expected)
    assert torch.equal(refine(coarse, fine, (0.0, 1.0), 1), fine)


def test_inference_composes_its_three_mattes():
    model = model_of()
    with torch.no_grad():
        out = model(**batch(1, 1))
    size = (IMAGE_SIZE, IMAGE_SIZE)
    result, *finer = (F.interpolate(s, size, mode="bilinear", align_corners=False) for s in out.side_alphas)
    for side in finer:
        result = refine(result, side, model.config.unknown_range, model.config.refinement_width)
    torch.testing.assert_close(out.alphas, result)


def test_loss_is_that_of_each_step_of_the_refinement():
    model, inputs = model_of(), batch(2, 2)
    labels = F.avg_pool2d(inputs["coarse_masks"], 5, stride=1, padding=2)
    labels[:, :, :, 50:] = -1
    prompt_mask = torch.tensor([[True, True], [True, False]])
    out = model(**inputs, labels=labels, prompt_mask=prompt_mask)
    steps = model._refine(tuple(side[prompt_mask][:, None] for side in out.side_alphas))
    l1 = gradient = 0
    for weight, logits in zip((1, 2, 3), steps):
        alphas, targets = logits[:, 0].sigmoid(), labels[prompt_mask]
        l1, gradient = (
            l1 + weight * l1_loss(alphas, targets).mean(),
            gradient + weight * gradient_loss(alphas, targets).mean(),
        )
    torch.testing.assert_close(out.l1_loss, l1)
    torch.testing.assert_close(out.gradient_loss, gradient)
    torch.testing.assert_close(out.loss, l1 + 10 * gradient)
    out.loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    model.zero_grad()


def test_a_batch_of_padding_trains_nothing():
    model, inputs = tiny_label_converter().train(), batch(2, 1)
    out = model(**inputs, labels=inputs["coarse_masks"], prompt_mask=torch.zeros(2, 1, dtype=torch.bool))
    out.loss.backward()
    assert out.loss == 0 and not out.alphas.any()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_other_norms(norm):
    model = tiny_label_converter(decoder_norm=norm)
    assert not any("batch_norm" in name for name in model.state_dict())
    assert model(**batch(1, 1)).alphas.isfinite().all()


def test_wrong_inputs_say_what_is_expected():
    model, inputs = model_of(), batch()
    pixels, masks = inputs["pixel_values"], inputs["coarse_masks"]
    wrong = [
        ({"pixel_values": pixels}, "both"),
        ({"pixel_values": pixels[..., :32], "coarse_masks": masks}, r"\(B, 3, 64, 64\)"),
        ({"pixel_values": pixels, "coarse_masks": masks[:1]}, r"\(2, P, 64, 64\)"),
        ({"pixel_values": pixels, "coarse_masks": masks[:, 0]}, r"\(2, P, 64, 64\)"),
        ({"pixel_values": pixels, "coarse_masks": masks[:, :0]}, "no mask"),
        ({"pixel_values": pixels, "coarse_masks": masks * 255}, "from 0 to 255"),
        ({"pixel_values": pixels, "coarse_masks": masks - 1}, "from -1 to 0"),
        ({**inputs, "prompt_mask": torch.ones(2, 3, dtype=torch.bool)}, r"\(2, 2\), got \(2, 3\)"),
        ({**inputs, "labels": masks[..., ::2, ::2]}, "shape of coarse_masks"),
        ({**inputs, "labels": masks * 255}, "maximum of 255"),
        ({**inputs, "masks_per_batch": 0}, "at least 1"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            model(**arguments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone_config": {"image_size": [64, 70]}}, "multiples of"),
        ({"backbone_config": {"depths": [1, 1], "num_heads": [1, 2], "num_query_pool": 1}}, "4 stages"),
        ({"backbone_config": {"patch_stride": [2, 2]}}, "strides"),
        ({"backbone_config": ViTConfig()}, "must describe a Hiera"),
        ({"decoder_hidden_sizes": [8, 8]}, "decoder_hidden_sizes needs 3"),
        ({"refinement_loss_weights": [1.0, -1.0, 1.0]}, "above 0"),
        ({"detail_hidden_size": 0}, "at least 1"),
        ({"refinement_width": 0}, "at least 1"),
        ({"training_refinement_width": [5, 3]}, "least and a largest"),
        ({"unknown_range": [0.9, 0.1]}, "lower first"),
    ],
)
def test_wrong_configurations(fields, message):
    with pytest.raises(ValueError, match=message):
        ZimLabelConverterConfig(**fields)


# --- checkpoints and training ------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path):
    model, inputs = model_of(), batch(1, 1)
    model.save_pretrained(tmp_path)
    tiny_label_converter_processor().save_pretrained(tmp_path)
    again = AutoModelForImageMatting.from_pretrained(tmp_path).eval()
    assert type(again) is ZimLabelConverter and again.config._attn_implementation == "sdpa"
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).alphas, model(**inputs).alphas)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is ZimLabelConverterProcessor


def test_start_from_a_hiera(tmp_path):
    torch.manual_seed(0)
    hiera = HieraModel(HieraConfig(**TINY_HIERA, image_size=[32, 32], num_labels=7))
    hiera.save_pretrained(tmp_path)
    sizes = {"decoder_hidden_sizes": [16, 12, 8], "detail_hidden_size": 4}
    model = ZimLabelConverter.from_hiera(tmp_path, image_size=IMAGE_SIZE, **sizes)
    assert model.config.image_size == (IMAGE_SIZE, IMAGE_SIZE) and model.config.backbone_config.num_labels == 2
    ours, theirs = model.backbone.state_dict(), hiera.state_dict()
    table = "embeddings.position_embeddings"
    projection = "embeddings.patch_embeddings.projection.weight"
    assert torch.equal(ours[projection][:, :3], theirs[projection]) and not ours[projection][:, 3].any()
    coarse, fine = (t[table].unflatten(1, (n, n))[0] for t, n in ((theirs, 8), (ours, 16)))
    assert (
        fine.unflatten(0, (8, 2)).unflatten(2, (8, 2)).mean((1, 3)) - coarse
    ).abs().max() < 0.3 * coarse.abs().max()
    others = [name for name in ours if name not in (table, projection)]
    assert all(torch.equal(ours[name], theirs[name]) for name in others)
    inputs = batch(1, 1)
    plain = model.backbone(torch.cat([inputs["pixel_values"], inputs["coarse_masks"]], 1)).last_hidden_state
    blank = model.backbone(torch.cat([inputs["pixel_values"], 0 * inputs["coarse_masks"]], 1)).last_hidden_state
    torch.testing.assert_close(plain, blank)  # zeros to begin with
    with pytest.raises(TypeError, match="HieraModel"):
        ZimLabelConverter.from_hiera(model_of())


def test_checkpoints_of_other_models_are_refused(tmp_path):
    HieraModel(HieraConfig(**TINY_HIERA, image_size=[64, 64])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="from_hiera"):
        ZimLabelConverter.from_pretrained(tmp_path, config=tiny_label_converter_config(), ignore_mismatched_sizes=True)


def test_freezing():
    model = tiny_label_converter()
    model.freeze_for("decoder")
    trained = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"decoder"}
    model.freeze_for("all")
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="LoRA weights"):
        model.freeze_for("decoder+lora")
    with pytest.raises(ValueError, match="policy"):
        model.freeze_for("text_mixer")


def test_refinement_width_is_drawn_in_training(monkeypatch):
    from hf_segcap.models.zim import modeling_label_converter as module

    widths = []
    monkeypatch.setattr(module, "refine", lambda coarse, fine, limits, width: widths.append(width) or fine)
    model, inputs = tiny_label_converter(training_refinement_width=[2, 9]).train(), batch(2, 1)
    for _ in range(12):
        model._refine((inputs["coarse_masks"],) * 3)
    assert len(set(widths)) > 3 and min(widths) >= 2 and max(widths) <= 9
    model.eval()._refine((inputs["coarse_masks"],) * 3)
    assert widths[-2:] == [3, 3]


# --- the processor -----------------------------------------------------------------------------------------------------


def square(size, rows, columns):
    mask = np.zeros(size, dtype=bool)
    mask[rows, columns] = True
    return mask


def test_masks_follow_their_image_into_the_frame():
    processor = tiny_label_converter_processor()
    images = [random_image(0, (128, 96)), random_image(1, (32, 64))]
    first = [square((96, 128), slice(16, 48), slice(32, 96)), square((96, 128), slice(0, 96), slice(0, 128))]
    out = processor(images=images, coarse_masks=[first, [square((64, 32), slice(10, 20), slice(3, 9))]])
    assert out["coarse_masks"].shape == (2, 2, IMAGE_SIZE, IMAGE_SIZE) and out["coarse_masks"].dtype == torch.float32
    assert out["prompt_mask"].tolist() == [[True, True], [True, False]]
    expected = torch.zeros(2, 2, IMAGE_SIZE, IMAGE_SIZE)
    expected[0, 0, 8:24, 16:48], expected[0, 1, :48], expected[1, 0, 10:20, 3:9] = 1, 1, 1
    assert torch.equal(out["coarse_masks"], expected)
    later = processor(original_sizes=out["original_sizes"][:1], coarse_masks=[first])
    assert torch.equal(later["coarse_masks"][0], expected[0]) and "pixel_values" not in later


def test_a_tiny_mask_survives_and_kinds_of_masks_agree():
    processor, image = tiny_label_converter_processor(), random_image(0, (640, 640))
    tiny = square((640, 640), 100, 200)
    assert processor(images=image, coarse_masks=tiny)["coarse_masks"].sum() == 1
    mask = square((640, 640), slice(20, 300), slice(100, 400))
    kinds = [mask, mask.astype(np.uint8) * 255, Image.fromarray(mask), torch.from_numpy(mask), mask.tolist()]
    results = [processor(images=image, coarse_masks=kind)["coarse_masks"] for kind in kinds]
    assert all(torch.equal(result, results[0]) for result in results)


def test_mattes_have_the_size_of_their_image():
    processor = tiny_label_converter_processor()
    logits = torch.full((2, 2, IMAGE_SIZE, IMAGE_SIZE), -20.0)
    logits[0, :, 8:24, 16:48] = 20
    sizes = [(96, 128), (64, 32)], [(48, 64), (64, 32)]
    mattes = processor.post_process_alphas(logits, *sizes, prompt_mask=torch.tensor([[True, True], [False, True]]))
    assert [m.shape for m in mattes] == [(2, 96, 128), (1, 64, 32)]
    assert torch.equal(mattes[0][0] > 0.5, torch.from_numpy(square((96, 128), slice(16, 48), slice(32, 96))))
    coded = processor.post_process_alphas(logits, *sizes, dtype="uint8")[0]
    assert coded.dtype == torch.uint8 and coded.max() == 255
    with pytest.raises(ValueError, match=r"\(P, H, W\)"):
        processor.post_process_alphas(logits[:, 0], *sizes)
    with pytest.raises(ValueError, match="1 image"):
        processor.post_process_alphas(logits[:1], *sizes)


def test_wrong_calls_of_the_processor():
    processor, image = tiny_label_converter_processor(), random_image(0)
    size = (image.height, image.width)
    good = square(size, slice(2, 9), slice(2, 9))
    wrong = [
        ({}, "Nothing to process"),
        ({"coarse_masks": good}, "original_sizes"),
        ({"images": image, "original_sizes": [size], "coarse_masks": good}, "not both"),
        ({"images": image, "coarse_masks": [[good, good.T]]}, "image 0, prompt 1"),
        ({"images": image, "coarse_masks": np.zeros(size, dtype=bool)}, "empty"),
        ({"images": image, "coarse_masks": good.astype(np.uint8) * 7}, "0, 255"),
        ({"images": image, "coarse_masks": good.astype(np.float32)}, "boolean"),
        ({"images": [image, image], "coarse_masks": [good]}, "2 image"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            processor(**arguments)
    with pytest.raises(ValueError, match="booleans"):
        processor(images=random_image(0, (256, 256)), coarse_masks=np.zeros((256, 256), dtype=np.float32))
