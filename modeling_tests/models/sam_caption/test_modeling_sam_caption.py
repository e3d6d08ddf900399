# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""What a user does with SamCaption beyond the recorded tensors: ragged prompts, generation, freezing, loading."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessor,
    LogitsProcessorList,
    SamConfig,
    SamModel,
)
from transformers.generation.streamers import BaseStreamer

from hf_segcap import SamCaptionConfig, SamCaptionForRegionCaptioning
from hf_segcap.models.sam_caption.mask_caption_decoder import roi_align
from hf_segcap.prompts import PADDING_LABEL
from modeling_tests.tiny import IMAGE_SIZE, VOCABULARY, tiny_sam_caption, tiny_sam_caption_config

FIXTURES = Path(__file__).parents[2] / "fixtures" / "sca"
BOXES = torch.tensor(
    [[[2.0, 3, 40, 30], [10, 10, 60, 50], [5, 20, 25, 60]], [[0.0, 0, 63, 63], [30, 2, 50, 20], [1, 1, 9, 9]]]
)


def pixels(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(3))


def captions(batch: int = 2, prompts: int = 3, length: int = 5) -> dict:
    ids = torch.randint(3, len(VOCABULARY), (batch, prompts, length), generator=torch.Generator().manual_seed(4))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


@pytest.fixture(scope="module")
def model() -> SamCaptionForRegionCaptioning:
    return tiny_sam_caption()


@torch.no_grad()
def test_image_embeddings_replace_pixel_values(model):
    embeddings = model.get_image_embeddings(pixels())
    a = model(pixel_values=pixels(), input_boxes=BOXES, **captions())
    b = model(image_embeddings=embeddings, input_boxes=BOXES, **captions())
    torch.testing.assert_close(a.loss, b.loss)
    torch.testing.assert_close(a.pred_masks, b.pred_masks)


def test_image_embeddings_carry_gradients(model):
    values = pixels().requires_grad_()
    model.get_image_embeddings(values).square().sum().backward()
    assert values.grad.abs().sum() > 0


@torch.no_grad()
def test_padded_prompts_change_nothing(model):
    text = captions()
    mask = torch.tensor([[True, True, False], [True, False, False]])
    text["labels"][~mask] = -100
    padded = model(pixel_values=pixels(), input_boxes=BOXES, prompt_mask=mask, **text)
    losses = []
    for image, count in enumerate((2, 1)):
        one = model(
            pixel_values=pixels()[image : image + 1],
            input_boxes=BOXES[image : image + 1, :count],
            **{k: v[image : image + 1, :count] for k, v in text.items()},
        )
        torch.testing.assert_close(padded.logits[image : image + 1, :count], one.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(padded.pred_masks[image : image + 1, :count], one.pred_masks, atol=1e-5, rtol=1e-5)
        losses.append(one.loss * count)
        sequences = model.generate(pixel_values=pixels(), input_boxes=BOXES, prompt_mask=mask)
        alone = model.generate(pixel_values=pixels()[image : image + 1], input_boxes=BOXES[image : image + 1, :count])
        assert torch.equal(sequences[image, :count, : alone.shape[-1]], alone[0])
    torch.testing.assert_close(padded.loss, sum(losses) / 3)
    assert padded.logits[1, 1:].abs().sum() == 0


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("with_boxes", [False, True])
def test_absent_points_change_nothing(with_boxes, attention):
    model = tiny_sam_caption()
    model.set_attn_implementation(attention)
    points = torch.tensor([[[[5.0, 6], [20, 30], [40, 50]], [[9.0, 9], [7, 7], [0, 0]]]])
    labels = torch.tensor([[[1, 0, 1], [1, PADDING_LABEL, PADDING_LABEL]]])
    boxes = {"input_boxes": BOXES[:1, :2]} if with_boxes else {}
    both = model(pixel_values=pixels(1), input_points=points, point_labels=labels, **boxes)
    alone = model(
        pixel_values=pixels(1),
        input_points=points[:, 1:, :1],
        point_labels=labels[:, 1:, :1],
        **({"input_boxes": BOXES[:1, 1:2]} if with_boxes else {}),
    )
    torch.testing.assert_close(both.pred_masks[:, 1:], alone.pred_masks, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both.caption_queries[:, 1:], alone.caption_queries, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_masks_per_prompt_and_shared(model):
    masks = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    together = model(pixel_values=pixels(1), input_boxes=BOXES[:1], input_masks=masks)
    for i in range(3):
        one = model(pixel_values=pixels(1), input_boxes=BOXES[:1], input_masks=masks[:, i : i + 1])
        torch.testing.assert_close(together.pred_masks[:, i], one.pred_masks[:, i], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_no_prompt_left(model):
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    outputs = model(pixel_values=pixels(), input_boxes=BOXES, prompt_mask=nothing, **captions())
    assert outputs.loss == 0 and outputs.logits.shape == (2, 3, 5, len(VOCABULARY))
    assert model.generate(pixel_values=pixels(), input_boxes=BOXES, prompt_mask=nothing).shape[:2] == (2, 3)
    assert model.generate(pixel_values=pixels(), input_boxes=torch.zeros(2, 0, 4)).shape[:2] == (2, 0)


@torch.no_grad()
def test_single_first_token_prediction_without_text(model):
    outputs = model(pixel_values=pixels(), input_boxes=BOXES)
    assert outputs.loss is None and outputs.logits.shape == (2, 3, 1, len(VOCABULARY))
    first = model.generate(pixel_values=pixels(), input_boxes=BOXES, max_new_tokens=1)
    assert torch.equal(outputs.logits[:, :, 0].argmax(-1), first[..., 0])


@torch.no_grad()
def test_loss_is_smoothed_cross_entropy(model):
    text = captions()
    text["labels"][0, 1, 3:] = -100
    outputs = model(pixel_values=pixels(), input_boxes=BOXES, **text)
    log_p = outputs.logits.log_softmax(-1).numpy()
    terms = []
    for index in np.ndindex(*text["labels"].shape):
        if text["labels"][index] != -100:
            terms.append(-0.9 * log_p[index][text["labels"][index]] - 0.1 * log_p[index].mean())
    assert outputs.loss.item() == pytest.approx(np.mean(terms), abs=1e-5)


@pytest.mark.parametrize("gradients", [False, True])
def test_autocast(model, gradients):
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16):
        half = model(pixel_values=pixels(), input_boxes=BOXES, **captions())
        assert model.generate(pixel_values=pixels(), input_boxes=BOXES, max_new_tokens=2).shape == (2, 3, 2)
    full = model(pixel_values=pixels(), input_boxes=BOXES, **captions())
    assert half.loss.dtype == torch.float32
    torch.testing.assert_close(half.loss, full.loss, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("name", ["input_ids", "labels", "target_masks"])
def test_one_entry_per_prompt(model, name):
    with pytest.raises(ValueError, match="one entry per prompt"):
        model(pixel_values=pixels(), input_boxes=BOXES, **{**captions(), name: torch.ones(2, 2, 5, dtype=torch.long)})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights(dtype):
    """Pixels and prompts stay float32, as the processor gives them; prompts keep their precision."""
    model, full = tiny_sam_caption().to(dtype), tiny_sam_caption()
    with torch.no_grad():
        half = model(pixel_values=pixels(), input_boxes=BOXES, **captions())
        torch.testing.assert_close(
            half.loss, full(pixel_values=pixels(), input_boxes=BOXES, **captions()).loss, atol=0.05, rtol=0.05
        )
    assert half.pred_masks.dtype == dtype
    assert model.generate(pixel_values=pixels(), input_boxes=BOXES).shape[:2] == (2, 3)


def test_positions_are_encoded_in_float32():
    """Also under autocast; bfloat16 phases would shift points by about a pixel."""
    encoding = tiny_sam_caption().shared_image_embedding
    points = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    exact = encoding(points)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoding(points), exact)
    assert encoding.to(torch.bfloat16)(points).dtype == torch.float32


@torch.no_grad()
def test_labels_alone_suffice(model):
    text = captions()
    a = model(pixel_values=pixels(), input_boxes=BOXES, **text).loss
    torch.testing.assert_close(model(pixel_values=pixels(), input_boxes=BOXES, labels=text["labels"]).loss, a)


def test_recorded_states_and_attentions():
    model = tiny_sam_caption()
    model.set_attn_implementation("eager")
    config = tiny_sam_caption_config(attn_implementation="eager")
    model = SamCaptionForRegionCaptioning(config).eval()
    outputs = model(
        pixel_values=pixels(), input_boxes=BOXES, output_hidden_states=True, output_attentions=True, **captions()
    )
    assert len(outputs.vision_hidden_states) == 3 and len(outputs.vision_attentions) == 2
    assert len(outputs.mask_decoder_attentions) == 2 + 2  # SAM's mixer, caption mixer
    attention = outputs.mask_decoder_attentions[-1]
    assert attention.shape[0] == 6 and attention.shape[-1] == 64  # six prompts, an 8 x 8 grid
    torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
    assert len(outputs.language_model_hidden_states) == 3 and len(outputs.language_model_attentions) == 2


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "exactly one of pixel_values and image_embeddings"),
        ({"pixel_values": pixels(), "image_embeddings": pixels()}, "exactly one"),
        ({"pixel_values": pixels()}, "No prompt"),
        ({"pixel_values": pixels(), "input_boxes": BOXES[0]}, r"input_boxes must have shape \(B, P, 4\)"),
        ({"pixel_values": pixels(1), "input_boxes": BOXES}, "B = 1 images"),
        ({"pixel_values": pixels(), "input_boxes": BOXES, "prompt_mask": torch.ones(2, 2)}, "number of prompts"),
        ({"pixel_values": pixels(), "input_boxes": BOXES, "point_labels": torch.ones(2, 3, 1)}, "point_labels"),
        ({"pixel_values": pixels(), "input_boxes": BOXES, "task": "translate"}, "task must be one of"),
        (
            {"pixel_values": pixels(), "input_boxes": BOXES, "task": torch.zeros(3, dtype=torch.long)},
            "one integer per",
        ),
        ({"pixel_values": pixels()[..., :32], "input_boxes": BOXES}, "size"),
    ],
)
def test_bad_inputs(model, inputs, message):
    with pytest.raises(ValueError, match=message):
        model(**inputs)
    with pytest.raises(ValueError, match=message):
        model.generate(**inputs)


class TestGenerate:
    def test_chunks_do_not_change_results(self, model):
        whole = model.generate(pixel_values=pixels(), input_boxes=BOXES)
        for size in (1, 2, 4):
            assert torch.equal(model.generate(pixel_values=pixels(), input_boxes=BOXES, prompts_per_batch=size), whole)

    def test_default_length_is_19_new_tokens(self, model):
        assert model.generate(pixel_values=pixels(), input_boxes=BOXES, min_new_tokens=19).shape == (2, 3, 19)

    def test_beams_and_returned_sequences(self, model):
        output = model.generate(
            pixel_values=pixels(),
            input_boxes=BOXES,
            num_beams=3,
            num_return_sequences=2,
            return_dict_in_generate=True,
            output_scores=True,
            prompts_per_batch=4,
        )
        assert output.sequences.shape[:3] == (2, 3, 2) and output.sequences_scores.shape == (2, 3, 2)
        assert (output.sequences_scores[..., 0] >= output.sequences_scores[..., 1]).all()
        assert output.pred_masks.shape == (2, 3, 3, 32, 32) and output.iou_scores.shape == (2, 3, 3)
        assert output.scores[0].shape[0] == 2 * 3 * 3
        best = model.generate(pixel_values=pixels(), input_boxes=BOXES, num_beams=3)
        assert torch.equal(best, output.sequences[:, :, 0, : best.shape[-1]])

    def test_scores_are_those_of_forward(self, model):
        output = model.generate(
            pixel_values=pixels(),
            input_boxes=BOXES,
            return_dict_in_generate=True,
            output_logits=True,
            max_new_tokens=3,
        )
        with torch.no_grad():
            forward = model(pixel_values=pixels(), input_boxes=BOXES)
        torch.testing.assert_close(output.logits[0], forward.logits.flatten(0, 2), atol=1e-5, rtol=1e-5)

    def test_sampling_follows_the_seed(self, model):
        def sample(seed):
            torch.manual_seed(seed)
            return model.generate(pixel_values=pixels(), input_boxes=BOXES, do_sample=True, min_new_tokens=8)

        assert torch.equal(sample(0), sample(0)) and not torch.equal(sample(0), sample(1))

    def test_logits_processor(self, model):
        class Only(LogitsProcessor):
            def __call__(self, input_ids, scores):
                forced = torch.full_like(scores, float("-inf"))
                forced[:, 7] = 0
                return forced

        ids = model.generate(
            pixel_values=pixels(), input_boxes=BOXES, logits_processor=LogitsProcessorList([Only()]), max_new_tokens=4
        )
        assert (ids == 7).all() and ids.shape == (2, 3, 4)

    def test_streamer_for_one_prompt(self, model):
        class Collect(BaseStreamer):
            def __init__(self):
                self.ids = []

            def put(self, value):
                self.ids += value.flatten().tolist()

            def end(self):
                pass

        streamer = Collect()
        ids = model.generate(pixel_values=pixels(1), input_boxes=BOXES[:1, :1], streamer=streamer, max_new_tokens=5)
        assert streamer.ids == ids.flatten().tolist()

    def test_outer_generation_config_rules(self, model):
        ids = model.generate(pixel_values=pixels(), input_boxes=BOXES, max_new_tokens=2)
        try:
            model.generation_config.max_new_tokens = 2
            assert torch.equal(model.generate(pixel_values=pixels(), input_boxes=BOXES), ids)
        finally:
            model.generation_config.max_new_tokens = None

    def test_a_given_configuration_is_completed_by_the_saved_one(self, model, monkeypatch):
        saved = model.generation_config
        monkeypatch.setattr(saved, "num_return_sequences", 2)
        monkeypatch.setattr(saved, "num_beams", 2)
        monkeypatch.setattr(saved, "eos_token_id", 5)
        given = GenerationConfig(length_penalty=0.5)
        whole = model.generate(pixel_values=pixels(), input_boxes=BOXES, generation_config=given)
        assert whole.shape[:3] == (2, 3, 2) and whole.shape[3] <= 19
        chunks = model.generate(pixel_values=pixels(), input_boxes=BOXES, generation_config=given, prompts_per_batch=1)
        assert torch.equal(whole, chunks)
        monkeypatch.setattr(saved, "return_dict_in_generate", True)
        output = model.generate(pixel_values=pixels(), input_boxes=BOXES, length_penalty=0.5)
        assert torch.equal(output.sequences, whole)

    def test_masks_can_be_left_out(self, model):
        output = model.generate(
            pixel_values=pixels(), input_boxes=BOXES, return_dict_in_generate=True, output_masks=False
        )
        assert output.pred_masks is None and output.iou_scores.shape == (2, 3, 3)

    def test_unknown_argument(self, model):
        with pytest.raises(ValueError, match="num_bems"):
            model.generate(pixel_values=pixels(), input_boxes=BOXES, num_bems=3)
        with pytest.raises(ValueError, match="prompts_per_batch"):
            model.generate(pixel_values=pixels(), input_boxes=BOXES, prompts_per_batch=0)

    @pytest.mark.parametrize("text", ["llama", "opt", "qwen2"])
    def test_other_language_models(self, text):
        """Trains and generates: the caption of each box is learnt by heart."""
        model = tiny_sam_caption(text)
        model.freeze_for("all")
        target = captions(length=3)
        target["labels"][..., -1] = target["input_ids"][..., -1] = model.config.text_config.eos_token_id
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(60):
            loss = model(pixel_values=pixels(), input_boxes=BOXES, **target).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ids = model.eval().generate(pixel_values=pixels(), input_boxes=BOXES, max_new_tokens=3)
        assert (ids == target["labels"]).float().mean() > 0.9


class TestFreezing:
    def test_parameter_count_of_the_paper(self):
        """SAM ViT-H and GPT2-large: 19,432,832 trained parameters (spec of the released model)."""
        config = SamCaptionConfig(
            vision_config={
                "hidden_size": 1280,
                "num_hidden_layers": 32,
                "num_attention_heads": 16,
                "global_attn_indexes": [7, 15, 23, 31],
            },
            text_config=GPT2Config(n_embd=1280, n_layer=36, n_head=20),
        )
        with torch.device("meta"):
            model = SamCaptionForRegionCaptioning(config)
        model.freeze_for("text_mixer")
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 19_432_832
        # without the Gaussian matrix, which is a buffer here
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(1434.6e6, abs=0.1e6)

    def test_frozen_parts_stay_in_eval_mode(self):
        model = tiny_sam_caption().freeze_for("text_mixer").train()
        assert model.training and model.mask_decoder.additional_transformer.training
        assert not model.language_model.training and not model.vision_encoder.layers[0].training
        model.freeze_for("text_mixer", frozen_in_eval=False).train()
        assert model.language_model.training
        model.freeze_for("all").train()
        assert model.language_model.training and all(p.requires_grad for p in model.parameters())

    def test_only_the_text_mixer_gets_gradients(self):
        model = tiny_sam_caption().freeze_for("text_mixer").train()
        model(pixel_values=pixels(), input_boxes=BOXES, **captions()).loss.backward()
        with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
        assert with_gradient and all(name.startswith(model.text_mixer_modules) for name in with_gradient)

    def test_bad_policies(self, model):
        with pytest.raises(ValueError, match="policy must be"):
            model.freeze_for("decoder")
        with pytest.raises(ValueError, match="LoRA"):
            model.freeze_for("text_mixer+lora")


class TestLoading:
    def test_save_and_reload(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        again, info = SamCaptionForRegionCaptioning.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
        assert (tmp_path / "model.safetensors").exists() and not list(tmp_path.glob("*.bin"))

    @pytest.mark.parametrize("part", SamCaptionForRegionCaptioning.text_mixer_modules)
    def test_missing_trained_parts_raise(self, part, tmp_path):
        shutil.copytree(FIXTURES / "gpt2/checkpoint", tmp_path, dirs_exist_ok=True)
        weights = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
        torch.save({k: v for k, v in weights.items() if not k.startswith(part)}, tmp_path / "pytorch_model.bin")
        with pytest.raises(ValueError, match="not a complete SamCaptionForRegionCaptioning checkpoint.*from_sam_and"):
            SamCaptionForRegionCaptioning.from_pretrained(tmp_path)

    def test_half_precision_and_old_buffers(self, tmp_path):
        shutil.copytree(FIXTURES / "gpt2/checkpoint", tmp_path, dirs_exist_ok=True)
        weights = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
        weights = {k: v.half() for k, v in weights.items()}
        weights["language_model.transformer.h.0.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool)
        weights["language_model.transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
        torch.save(weights, tmp_path / "pytorch_model.bin")
        for dtype in (torch.float16, torch.float32):
            model, info = SamCaptionForRegionCaptioning.from_pretrained(
                tmp_path, dtype=dtype, output_loading_info=True
            )
            assert model.dtype == dtype and not any(info.values())

    @pytest.mark.parametrize("architecture", ["ScaTimmMultitaskV2Model", "SAMCaptionerModel"])
    def test_unsupported_official_classes_are_named(self, architecture):
        with pytest.raises(ValueError, match=architecture):
            SamCaptionConfig(architectures=[architecture])

    def test_encoder_decoder_is_refused(self):
        with pytest.raises(ValueError, match="decoder-only"):
            SamCaptionConfig(text_config={"model_type": "t5"})

    def test_new_training_from_sam_and_a_language_model(self, tmp_path):
        tiny = tiny_sam_caption_config()
        sam = SamModel(
            SamConfig(
                vision_config=tiny.vision_config.to_dict(),
                prompt_encoder_config=tiny.prompt_encoder_config.to_dict(),
                mask_decoder_config={
                    "hidden_size": 32,
                    "num_attention_heads": 4,
                    "mlp_dim": 40,
                    "iou_head_hidden_dim": 24,
                },
            )
        ).eval()
        language_model = GPT2LMHeadModel(tiny.text_config).eval()
        for name, part in (("sam", sam), ("gpt2", language_model)):
            part.save_pretrained(tmp_path / name)
        model = SamCaptionForRegionCaptioning.from_sam_and_language_model(
            str(tmp_path / "sam"), str(tmp_path / "gpt2"), num_caption_tokens=4, additional_num_hidden_layers=1
        ).eval()
        sam.mask_decoder.transformer.layers[0].layer_norm1.eps = 1e-5
        for layer in sam.mask_decoder.transformer.layers:
            for i in range(1, 5):
                getattr(layer, f"layer_norm{i}").eps = 1e-5
        with torch.no_grad():
            ours = model(pixel_values=pixels(), input_boxes=BOXES)
            theirs = sam(pixel_values=pixels(), input_boxes=BOXES)
        torch.testing.assert_close(ours.pred_masks, theirs.pred_masks, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.iou_scores, theirs.iou_scores, atol=1e-5, rtol=1e-5)
        ids = torch.tensor([[5, 6, 7]])
        torch.testing.assert_close(model.language_model(ids).logits, language_model(ids).logits)


class TestMaskLoss:
    def test_adds_to_the_caption_loss(self, model):
        targets = torch.zeros(2, 3, 32, 32)
        targets[..., 8:20, 8:20] = 1
        text = captions()
        outputs = model(pixel_values=pixels(), input_boxes=BOXES, target_masks=targets, **text)
        plain = model(pixel_values=pixels(), input_boxes=BOXES, **text)
        torch.testing.assert_close(outputs.loss, plain.loss + outputs.mask_loss)
        alone = model(pixel_values=pixels(), input_boxes=BOXES, target_masks=targets)
        torch.testing.assert_close(alone.loss, outputs.mask_loss)

    def test_regions_without_a_mask_are_left_out(self, model):
        targets = torch.zeros(2, 3, 32, 32)
        targets[..., 8:20, 8:20] = 1
        targets[1] = float("nan")
        some = model(pixel_values=pixels(), input_boxes=BOXES, target_masks=targets).mask_loss
        first = model(pixel_values=pixels(1), input_boxes=BOXES[:1], target_masks=targets[:1]).mask_loss
        torch.testing.assert_close(some, first)
        none = model(pixel_values=pixels(), input_boxes=BOXES, target_masks=torch.full_like(targets, float("nan")))
        assert none.mask_loss == 0


def test_roi_align_against_direct_sampling():
    """Independent reference: bilinear samples taken one by one."""
    features = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0.3, 1.1, 6.9, 4.2], [-0.4, 2.0, 8.3, 7.7]])

    def sample(channel, y, x):
        if y < -1 or y > 8 or x < -1 or x > 8:
            return 0.0
        y, x = min(max(y, 0), 7), min(max(x, 0), 7)
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, 7), min(x0 + 1, 7)
        dy, dx = y - y0, x - x0
        top = channel[y0, x0] * (1 - dx) + channel[y0, x1] * dx
        return float(top * (1 - dy) + (channel[y1, x0] * (1 - dx) + channel[y1, x1] * dx) * dy)

    result = roi_align(features, boxes, 2)
    for r, (x0, y0, x1, y1) in enumerate((boxes - 0.5).tolist()):
        width, height = (x1 - x0) / 2, (y1 - y0) / 2
        nx, ny = int(np.ceil(width)), int(np.ceil(height))
        for c, i, j in np.ndindex(3, 2, 2):
            values = [
                sample(
                    features[r, c], y0 + i * height + (a + 0.5) * height / ny, x0 + j * width + (b + 0.5) * width / nx
                )
                for a in range(ny)
                for b in range(nx)
            ]
            assert result[r, c, i, j].item() == pytest.approx(np.mean(values), abs=1e-5)


@pytest.mark.parametrize("projector", ["linear", "mlp"])
@pytest.mark.parametrize("norm", ["none", "pre", "post"])
def test_roi_align_design(projector, norm):
    model = tiny_sam_caption(
        mixer_context="roi_align", roi_size=2, vl_projector_type=projector, vl_projector_norm_type=norm
    )
    assert not hasattr(model.mask_decoder, "additional_transformer")
    assert "language_project.0.weight" in model.state_dict()
    outputs = model(pixel_values=pixels(), input_boxes=BOXES, **captions())
    assert outputs.caption_queries.shape == (2, 3, 1, 4, 32)
    with torch.no_grad():
        inference = model(pixel_values=pixels(), input_boxes=BOXES, **captions())
    torch.testing.assert_close(outputs.loss, inference.loss, atol=1e-5, rtol=1e-5)
    outputs.loss.backward()
    with pytest.raises(ValueError, match="input_boxes are required"):
        model(pixel_values=pixels(), input_points=BOXES[:, :, None, :2])
