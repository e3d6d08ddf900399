# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""SAM with mixed, ragged and absent prompts, text prompts, refinement, losses, freezing, and transformers' checkpoints."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskGeneration,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    SamConfig,
    SamModel,
    SamVisionConfig,
)
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from hf_segcap import SamForPromptableSegmentation, SamPromptableConfig, SamPromptableProcessor
from modeling_tests.tiny import (
    IMAGE_PROCESSOR_SIZES,
    IMAGE_SIZE,
    LOW_RES_MASK_SIZE,
    VOCABULARY,
    tiny_clip_text_config,
    tiny_sam_promptable,
    tiny_sam_promptable_config,
)

WIDTH = 20  # of text embeddings


@pytest.fixture(scope="module")
def model() -> SamForPromptableSegmentation:
    return tiny_sam_promptable(spread=0.2)


@pytest.fixture(scope="module")
def text_model() -> SamForPromptableSegmentation:
    return tiny_sam_promptable(spread=0.2, text=True)


@pytest.fixture(scope="module")
def embeddings(model: SamForPromptableSegmentation) -> torch.Tensor:
    with torch.no_grad():
        return model.get_image_embeddings(pictures())


def pictures(batch: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))


def random_prompts(images: int, objects: int, points: int = 3, seed: int = 1) -> dict[str, torch.Tensor]:
    """Every kind of prompt for every object."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(images, objects, *shape, generator=generator)

    corner = uniform(2) * IMAGE_SIZE / 2
    return {
        "input_points": uniform(points, 2) * IMAGE_SIZE,
        "point_labels": torch.randint(0, 2, (images, objects, points), generator=generator),
        "input_boxes": torch.cat([corner, corner + 6 + uniform(2) * 20], dim=-1),
        "input_masks": 4 * torch.randn(images, objects, LOW_RES_MASK_SIZE, LOW_RES_MASK_SIZE, generator=generator),
        "text_embeds": torch.randn(images, objects, WIDTH, generator=generator),
    }


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual, expected, atol=atol * scale, rtol=0)


# --- prompts of different kinds ----------------------------------------------------------------------------------------

# (points, box, mask, text) of each object, per image; () is an object that pads
MIXTURE = [
    [(3, True, False, False), (1, False, True, True), (0, True, True, False), (0, False, False, True)],
    [(0, False, True, False), (2, False, False, False), (3, True, True, True), ()],
]


def mixed_batch() -> tuple[dict[str, torch.Tensor], list[tuple[int, int, dict[str, torch.Tensor]]]]:
    """The mixture as one batch, and each object's own arguments (image, object, arguments)."""
    prompts = random_prompts(2, 4)
    flags = {name: torch.zeros(2, 4, dtype=torch.bool) for name in ("has_box", "has_mask", "has_text", "prompt_mask")}
    labels, alone = prompts["point_labels"], []
    for i, objects in enumerate(MIXTURE):
        for j, kinds in enumerate(objects):
            if not kinds:
                labels[i, j] = -2
                continue
            points, *present = kinds
            own = {}
            if points:
                own["input_points"] = prompts["input_points"][i, j, :points][None, None]
                own["point_labels"] = labels[i, j, :points].clone()[None, None]
            labels[i, j, points:] = -2
            flags["prompt_mask"][i, j] = True
            kinds_of = (("has_box", "input_boxes"), ("has_mask", "input_masks"), ("has_text", "text_embeds"))
            for (flag, name), given in zip(kinds_of, present, strict=True):
                flags[flag][i, j] = given
                if given:
                    own[name] = prompts[name][i, j][None, None]
            alone.append((i, j, own))
    return {**prompts, **flags}, alone


@pytest.mark.parametrize("multimask_output", [True, False, None])
@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_mixture_equals_one_call_per_object(
    text_model: SamForPromptableSegmentation, attention: str, gradients: bool, multimask_output: bool | None
) -> None:
    batch, alone = mixed_batch()
    try:
        text_model.set_attn_implementation(attention)
        text_model.mask_decoder.config._attn_implementation = attention
        with torch.set_grad_enabled(gradients):
            embeddings = text_model.get_image_embeddings(pictures()).detach()
            output = text_model(image_embeddings=embeddings, **batch, multimask_output=multimask_output)
            assert len(alone) == 7
            for i, j, own in alone:
                single = text_model(image_embeddings=embeddings[i : i + 1], **own, multimask_output=multimask_output)
                close(output.pred_masks[i, j], single.pred_masks[0, 0])
                close(output.iou_scores[i, j], single.iou_scores[0, 0])
                assert output.best_mask_index[i, j] == single.best_mask_index[0, 0]
    finally:
        text_model.set_attn_implementation("sdpa")
        text_model.mask_decoder.config._attn_implementation = "sdpa"
    number = 3 if multimask_output else 1
    assert output.pred_masks.shape == (2, 4, number, LOW_RES_MASK_SIZE, LOW_RES_MASK_SIZE)
    assert output.iou_scores.shape == (2, 4, number) and output.best_mask_index.shape == (2, 4)
    assert not output.pred_masks[1, 3].any() and not output.iou_scores[1, 3].any()


def test_every_prompt_matters(text_model: SamForPromptableSegmentation) -> None:
    batch, _ = mixed_batch()
    with torch.no_grad():
        embeddings = text_model.get_image_embeddings(pictures())
        before = text_model(image_embeddings=embeddings, **batch).pred_masks
        for name, where in (
            ("input_points", (0, 0)),
            ("input_boxes", (0, 2)),
            ("input_masks", (1, 0)),
            ("text_embeds", (0, 3)),
        ):
            changed = {**batch, name: batch[name].clone()}
            changed[name][where] = changed[name][where].flip(-1) * 0.7 + 1
            after = text_model(image_embeddings=embeddings, **changed).pred_masks
            difference = (after - before).abs().flatten(2).amax(-1)
            others = torch.ones(2, 4, dtype=torch.bool)
            others[where] = False
            assert difference[where] > 1e-3, name
            assert difference[others].max() < 1e-4, name  # no other object notices


def test_absent_kinds_do_not_count(model: SamForPromptableSegmentation, embeddings: torch.Tensor) -> None:
    """What stands where a flag is False is never looked at."""
    prompts = random_prompts(2, 2)
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    points = {name: prompts[name] for name in ("input_points", "point_labels")}
    with torch.no_grad():
        expected = model(image_embeddings=embeddings, **points)
        output = model(
            image_embeddings=embeddings,
            **points,
            input_boxes=torch.full((2, 2, 4), 1e4),
            has_box=nothing,
            input_masks=prompts["input_masks"],
            has_mask=nothing,
        )
    close(output.pred_masks, expected.pred_masks)
    assert torch.equal(output.best_mask_index, expected.best_mask_index)


def test_one_mask_prompt_for_all_objects(model: SamForPromptableSegmentation, embeddings: torch.Tensor) -> None:
    prompts = random_prompts(2, 3)
    shared = prompts["input_masks"][:, :1]
    with torch.no_grad():
        one = model(image_embeddings=embeddings, input_boxes=prompts["input_boxes"], input_masks=shared)
        each = model(
            image_embeddings=embeddings, input_boxes=prompts["input_boxes"], input_masks=shared.expand(-1, 3, -1, -1)
        )
    assert torch.equal(one.pred_masks, each.pred_masks)


def test_without_any_prompt_there_is_one_object(model: SamForPromptableSegmentation, embeddings: torch.Tensor) -> None:
    with torch.no_grad():
        output = model(image_embeddings=embeddings, multimask_output=True)
        (masks, scores) = model.segment(
            embeddings, prompt_mask=torch.ones(2, 1, dtype=torch.bool), prompts_required=False
        )
    assert output.pred_masks.shape == (2, 1, 3, LOW_RES_MASK_SIZE, LOW_RES_MASK_SIZE)
    assert torch.equal(masks, output.pred_masks) and torch.equal(scores, output.iou_scores)


def test_batch_of_padding_alone(model: SamForPromptableSegmentation, embeddings: torch.Tensor) -> None:
    prompts = random_prompts(2, 2)
    with torch.no_grad():
        output = model(
            image_embeddings=embeddings,
            input_boxes=prompts["input_boxes"],
            prompt_mask=torch.zeros(2, 2, dtype=torch.bool),
        )
    assert output.pred_masks.shape[:2] == (2, 2) and not output.pred_masks.any()


def test_best_mask_and_chosen_mask(model: SamForPromptableSegmentation, embeddings: torch.Tensor) -> None:
    """A point or a box alone is ambiguous, two points or a point with a box are not."""
    prompts = random_prompts(2, 5)
    boxes, two = prompts["input_boxes"], prompts["input_points"][:, :, :2]
    one = two[:, :, :1]
    with torch.no_grad():
        for given, ambiguous in (
            ({"input_points": one}, True),
            ({"input_boxes": boxes}, True),
            ({"input_points": two}, False),
            ({"input_points": one, "input_boxes": boxes}, False),
        ):
            three, single, chosen = (
                model(image_embeddings=embeddings, **given, multimask_output=flag) for flag in (True, False, None)
            )
            assert torch.equal(three.best_mask_index, three.iou_scores.argmax(-1))
            assert not single.best_mask_index.any() and not chosen.best_mask_index.any()
            best = three.best_mask_index[..., None, None, None].expand(-1, -1, 1, LOW_RES_MASK_SIZE, LOW_RES_MASK_SIZE)
            expected = three.pred_masks.gather(2, best) if ambiguous else single.pred_masks
            assert torch.equal(chosen.pred_masks, expected)


@pytest.mark.parametrize("multimask_output", [True, False, None])
def test_refinement_equals_feeding_back_by_hand(
    model: SamForPromptableSegmentation, embeddings: torch.Tensor, multimask_output: bool | None
) -> None:
    prompts = {name: random_prompts(2, 3)[name] for name in ("input_points", "point_labels")}
    with torch.no_grad():
        output = model(image_embeddings=embeddings, **prompts, multimask_output=multimask_output, refine_steps=2)
        masks = None
        for _ in range(3):
            by_hand = model(
                image_embeddings=embeddings, **prompts, input_masks=masks, multimask_output=multimask_output
            )
            index = by_hand.best_mask_index[..., None, None, None]
            masks = by_hand.pred_masks.gather(2, index.expand(-1, -1, 1, *by_hand.pred_masks.shape[-2:]))[:, :, 0]
    close(output.pred_masks, by_hand.pred_masks)
    assert output.pred_masks.shape[2] == (3 if multimask_output else 1)
    for steps in (-1, 1.5, "2"):
        with pytest.raises(ValueError, match="refine_steps must be a whole number of 0 or more, got"):
            model(image_embeddings=embeddings, **prompts, refine_steps=steps)


def test_a_refined_mask_is_the_one_for_unambiguous_prompts(
    model: SamForPromptableSegmentation, embeddings: torch.Tensor
) -> None:
    """One click is ambiguous, but training answers a mask that is fed back with token 0 alone."""
    click = {"input_points": torch.full((2, 1, 1, 2), 20.0), "point_labels": torch.ones(2, 1, 1, dtype=torch.long)}
    with torch.no_grad():
        first = model(image_embeddings=embeddings, **click)
        again = {**click, "input_masks": first.pred_masks[:, :, 0]}
        refined = model(image_embeddings=embeddings, **click, refine_steps=1)
        by_hand = model(image_embeddings=embeddings, **again, multimask_output=False)
        best_of_three = model(image_embeddings=embeddings, **again, multimask_output=True)
    close(refined.pred_masks, by_hand.pred_masks)
    assert all((refined.pred_masks[:, :, 0] - best_of_three.pred_masks[:, :, i]).abs().max() > 1e-3 for i in range(3))


def test_masks_of_a_loss_are_those_of_its_last_round(
    model: SamForPromptableSegmentation, embeddings: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second round on several prompts are given, for which token 0 is the answer."""
    monkeypatch.setattr(model.config, "interactive_rounds", 3)
    decoded = []
    decode = model.decode_rows
    monkeypatch.setattr(model, "decode_rows", lambda *args: decoded.append(decode(*args)) or decoded[-1])
    labels = torch.zeros(2, 1, 64, 64)
    labels[..., 10:40, 20:50] = 1
    with torch.no_grad():
        output = model(image_embeddings=embeddings, labels=labels)
    assert len(decoded) == 3
    close(output.pred_masks[:, 0], decoded[-1].pred_masks[:, :1])
    close(output.iou_scores[:, 0], decoded[-1].iou_scores[:, :1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pixel_values": torch.zeros(2, 3, 64, 64)}, "exactly one of pixel_values and image_embeddings"),
        ({"input_boxes": torch.zeros(1, 2, 4)}, r"input_boxes must have shape \(B, P, 4\) with B = 2 images"),
        ({"input_boxes": torch.zeros(2, 4)}, r"input_boxes must have shape \(B, P, 4\)"),
        ({"has_box": torch.ones(2, 2).bool()}, "has_box was given without input_boxes"),
        ({"has_text": torch.ones(2, 2).bool()}, "has_text was given without text_embeds"),
        ({"point_labels": torch.ones(2, 2, 1)}, "point_labels must have the shape of input_points"),
        (
            {"input_boxes": torch.zeros(2, 2, 4), "input_points": torch.zeros(2, 3, 1, 2)},
            "number of prompts per image differs",
        ),
        ({"input_boxes": torch.zeros(2, 2, 3)}, r"input_boxes must have shape \(B, P, 4\), got \(2, 2, 3\)"),
        ({"input_points": torch.zeros(2, 2, 1, 3)}, r"input_points must have shape \(B, P, n, 2\), got"),
        ({"input_masks": torch.ones(2, 2, 16, 16).bool()}, "input_masks are logits .*floats, got torch.bool"),
        (
            {"labels": torch.zeros(2, 1, 30, 60)},
            r"labels must have shape \(B, P, h, h\).*square, got \(2, 1, 30, 60\)",
        ),
        ({"labels": torch.zeros(2, 1, 64, 64), "refine_steps": 1}, "refine_steps are for predictions"),
        (
            {"input_boxes": torch.ones(2, 2, 4), "labels": torch.zeros(2, 1, 64, 64)},
            r"with \(B, P\) = \(2, 2\), one mask per prompt",
        ),
        ({"input_masks": torch.zeros(2, 2, 10, 10)}, r"logits of shape \(B, P, \d+, \d+\).* got masks of \(10, 10\)"),
        ({"text_embeds": torch.ones(2, 1, 20)}, "was not trained with text prompts .*add_text_prompts"),
        ({"input_ids": torch.ones(2, 1, 3).long()}, "no text model, as the released SAM checkpoints"),
        (
            {"input_ids": torch.ones(2, 1, 3).long(), "text_embeds": torch.ones(2, 1, 20)},
            "text_embeds or input_ids, not both",
        ),
    ],
)
def test_bad_input(
    model: SamForPromptableSegmentation, embeddings: torch.Tensor, arguments: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message), torch.no_grad():
        model(image_embeddings=embeddings, **arguments)


def test_names_of_transformers_and_of_the_pipeline(
    model: SamForPromptableSegmentation, embeddings: torch.Tensor
) -> None:
    """transformers' pipeline "mask-generation" gives `input_labels`; what else is unknown is not passed over in silence."""
    points, labels = torch.ones(2, 1, 1, 2), torch.zeros(2, 1, 1, dtype=torch.int64)
    with torch.no_grad():
        ours, theirs, inside = (
            model(image_embeddings=embeddings, input_points=points, **more).pred_masks
            for more in ({"point_labels": labels}, {"input_labels": labels}, {})
        )
    assert torch.equal(ours, theirs) and not torch.equal(ours, inside)
    for name in ("boxes", "masks", "text"):  # of the pipeline
        with pytest.raises(TypeError, match=f"no argument {name}: this model knows no such prompt"):
            model(image_embeddings=embeddings, **{name: torch.zeros(2, 1, 4)})


# --- text --------------------------------------------------------------------------------------------------------------


def test_words_equal_their_embeddings(text_model: SamForPromptableSegmentation) -> None:
    ids = torch.randint(3, len(VOCABULARY), (2, 3, 5))
    ids[..., -1] = 0
    attention = torch.ones_like(ids)
    with torch.no_grad():
        embeds = text_model.get_text_embeds(ids, attention)
        words = text_model(pixel_values=pictures(), input_ids=ids, attention_mask=attention)
        vectors = text_model(pixel_values=pictures(), text_embeds=7 * embeds)  # their length does not count
    assert embeds.shape == (2, 3, WIDTH)
    close(embeds.norm(dim=-1), torch.ones(2, 3))
    close(words.pred_masks, vectors.pred_masks)
    assert (words.pred_masks[:, 0] - words.pred_masks[:, 1]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="text_embeds must have 20 numbers each, got 19"), torch.no_grad():
        text_model(pixel_values=pictures(), text_embeds=embeds[..., 1:])


def clip_text_model() -> CLIPTextModelWithProjection:
    torch.manual_seed(3)
    return CLIPTextModelWithProjection(CLIPTextConfig(**tiny_clip_text_config())).eval()


def test_added_text_prompts_are_refused_until_trained(tmp_path: Path) -> None:
    model = tiny_sam_promptable()
    with torch.no_grad():
        before = model(pixel_values=pictures(), input_boxes=random_prompts(2, 2)["input_boxes"]).pred_masks
    model.add_text_prompts(clip_text_model())
    ids = torch.randint(3, len(VOCABULARY), (2, 1, 4))
    expected = torch.nn.functional.normalize(clip_text_model()(input_ids=ids.flatten(0, 1)).text_embeds, dim=-1)
    close(model.get_text_embeds(ids)[:, 0], expected)
    labels = torch.zeros(2, 1, 64, 64)
    labels[..., 10:40, 10:40] = 1

    def assert_refused() -> None:
        embeddings = model.get_image_embeddings(pictures())
        with torch.no_grad(), pytest.raises(ValueError, match="was not trained with text prompts"):
            model(image_embeddings=embeddings, input_ids=ids)
        with torch.no_grad(), pytest.raises(ValueError, match="was not trained with text prompts"):
            model.segment(embeddings, text_embeds=expected[:, None])

    assert_refused()
    with torch.no_grad():  # nothing else changes
        after = model(pixel_values=pictures(), input_boxes=random_prompts(2, 2)["input_boxes"]).pred_masks
        assert model(
            pixel_values=pictures(), input_ids=ids, labels=labels
        ).loss.isfinite()  # evaluation before training
    assert torch.equal(before, after)
    model.train().text_projection.requires_grad_(False)
    model(pixel_values=pictures(), input_ids=ids, labels=labels)
    assert_refused()  # it was not among what is trained

    model.text_projection.requires_grad_(True)
    model(pixel_values=pictures(), input_ids=ids, labels=labels).loss.backward()
    assert model.text_projection.weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in model.text_model.parameters())
    assert not model.text_model.training and model.mask_decoder.training
    model.eval().save_pretrained(tmp_path)
    reloaded = SamForPromptableSegmentation.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        close(
            reloaded(pixel_values=pictures(), input_ids=ids).iou_scores,
            model(pixel_values=pictures(), input_ids=ids).iou_scores,
        )
    with pytest.raises(ValueError, match="has text prompts already"):
        model.add_text_prompts(clip_text_model())


def test_text_prompts_from_a_whole_clip_and_from_a_folder(tmp_path: Path) -> None:
    torch.manual_seed(4)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    text = {k: v for k, v in tiny_clip_text_config().items() if k != "projection_dim"}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)).eval()
    clip.save_pretrained(tmp_path)
    ids = torch.randint(3, len(VOCABULARY), (1, 2, 4))
    with torch.no_grad():
        features = clip.get_text_features(input_ids=ids[0])
        features = getattr(features, "pooler_output", features)
    for source in (clip, str(tmp_path)):
        model = tiny_sam_promptable()
        model.add_text_prompts(source)
        with torch.no_grad():
            close(model.get_text_embeds(ids)[0], torch.nn.functional.normalize(features, dim=-1))


# --- training ----------------------------------------------------------------------------------------------------------


def squares(images: int, objects: int) -> torch.Tensor:
    labels = torch.zeros(images, objects, IMAGE_SIZE, IMAGE_SIZE)
    for i in range(images):
        for j in range(objects):
            labels[i, j, 4 + 8 * i : 30 + 8 * i, 6 + 10 * j : 36 + 10 * j] = 1
    return labels


@pytest.mark.parametrize("rounds", [1, 4])
def test_loss_reaches_every_parameter(rounds: int) -> None:
    model = tiny_sam_promptable(spread=0.1, interactive_rounds=rounds).train()
    prompts = random_prompts(2, 2)
    output = model(
        pixel_values=pictures(),
        **{k: prompts[k] for k in ("input_points", "point_labels", "input_boxes")},
        labels=squares(2, 2),
    )
    assert output.loss.ndim == 0 and output.loss.isfinite()
    close(output.loss, 20 * output.focal_loss + output.dice_loss + output.iou_loss)
    output.loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    if rounds == 1:  # no mask prompt yet, points with a box have no padding point, and only the single mask is trained
        assert all(name.startswith(("prompt_encoder.mask_embed", "prompt_encoder.not_a_point")) for name in without)
    else:
        assert without <= {"prompt_encoder.not_a_point_embed.weight"}
    assert model.vision_encoder.layers[0].attn.qkv.weight.grad.abs().max() > 0
    assert "shared_image_embedding.positional_embedding" not in dict(model.named_parameters())


def test_evaluation_draws_the_same_prompts_every_time() -> None:
    model = tiny_sam_promptable(spread=0.1, interactive_rounds=3)
    with torch.no_grad():
        losses = [model(pixel_values=pictures(), labels=squares(2, 3)).loss for _ in range(2)]
        assert torch.equal(*losses)
        padded = model(pixel_values=pictures(), labels=squares(2, 3), prompt_mask=torch.zeros(2, 3, dtype=torch.bool))
    assert padded.loss == 0


def test_padded_objects_do_not_change_the_loss() -> None:
    model = tiny_sam_promptable(spread=0.1)
    prompts, labels = random_prompts(2, 3), squares(2, 3)
    prompt_mask = torch.tensor([[True, True, True], [True, False, False]])
    with torch.no_grad():
        embeddings = model.get_image_embeddings(pictures())
        whole = model(
            image_embeddings=embeddings, input_boxes=prompts["input_boxes"], labels=labels, prompt_mask=prompt_mask
        ).loss
        parts = [
            model(
                image_embeddings=embeddings[[i]], input_boxes=prompts["input_boxes"][[i], :n], labels=labels[[i], :n]
            ).loss
            * n
            for i, n in ((0, 3), (1, 1))
        ]
    close(whole, sum(parts) / 4)


def test_training_lowers_the_loss() -> None:
    model = tiny_sam_promptable().train()
    model.freeze_for("decoder")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    boxes = torch.tensor([[[6.0, 4, 36, 30]], [[6.0, 12, 36, 38]]])
    losses = []
    for _ in range(30):
        loss = model(pixel_values=pictures(), input_boxes=boxes, labels=squares(2, 1)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_freezing() -> None:
    model = tiny_sam_promptable(text=True).train()

    def trained() -> set[str]:
        return {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}

    model.freeze_for("decoder")
    assert trained() == {"prompt_encoder", "mask_decoder", "text_projection"}
    assert not model.vision_encoder.training and model.mask_decoder.training
    model.freeze_for("decoder", frozen_in_eval=False)
    assert model.vision_encoder.training
    model.freeze_for("all")
    assert trained() == {"vision_encoder", "prompt_encoder", "mask_decoder", "text_projection"}
    assert model.train().vision_encoder.training and not model.text_model.training
    with pytest.raises(ValueError, match="policy must be 'decoder', 'decoder\\+lora' or 'all', got 'head'"):
        model.freeze_for("head")
    with pytest.raises(ValueError, match="needs LoRA weights in the model"):
        model.freeze_for("decoder+lora")


def test_half_precision(model: SamForPromptableSegmentation) -> None:
    half = tiny_sam_promptable(spread=0.1).to(torch.bfloat16)
    exact = tiny_sam_promptable(spread=0.1)
    prompts = {k: v for k, v in random_prompts(2, 2).items() if k != "text_embeds"}
    with torch.no_grad():
        output, expected = half(pixel_values=pictures(), **prompts), exact(pixel_values=pictures(), **prompts)
    assert output.pred_masks.dtype == torch.bfloat16 and output.pred_masks.isfinite().all()
    difference = (output.pred_masks.float() - expected.pred_masks).square().mean().sqrt()
    assert difference < 0.1 * expected.pred_masks.std()
    half.train()(pixel_values=pictures(), **prompts, labels=squares(2, 2)).loss.backward()


def test_replicas_of_data_parallel_have_no_parameters_to_ask(
    model: SamForPromptableSegmentation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        expected = model(pixel_values=pictures(), input_points=torch.ones(2, 1, 1, 2))
        monkeypatch.setattr(torch.nn.Module, "parameters", lambda self, recurse=True: iter(()))
        found = model(pixel_values=pictures(), input_points=torch.ones(2, 1, 1, 2))
    assert torch.equal(found.pred_masks, expected.pred_masks)


# --- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sam_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What transformers saves: a folder laid out as facebook/sam-vit-*."""
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
    SamImageProcessorPil(**IMAGE_PROCESSOR_SIZES).save_pretrained(folder)
    return folder


def test_reads_checkpoints_of_transformers(sam_folder: Path, tmp_path: Path) -> None:
    config = json.loads((sam_folder / "config.json").read_text())
    assert config["model_type"] == "sam" and config["mask_decoder_config"]["layer_norm_eps"] == 1e-6
    assert (sam_folder / "preprocessor_config.json").exists()
    model = SamForPromptableSegmentation.from_pretrained(sam_folder).eval()
    assert type(model.config) is SamPromptableConfig and model.config.mask_decoder_config.layer_norm_eps == 1e-5
    assert all(block.layer_norm1.eps == 1e-5 for block in model.mask_decoder.transformer.layers)
    eager = SamForPromptableSegmentation.from_pretrained(sam_folder, attn_implementation="eager")
    assert eager.config._attn_implementation == "eager"
    assert (
        SamForPromptableSegmentation.from_pretrained(sam_folder, interactive_rounds=5).config.interactive_rounds == 5
    )
    assert SamForPromptableSegmentation.from_pretrained(sam_folder, dtype=torch.bfloat16).dtype == torch.bfloat16

    reference = SamModel.from_pretrained(sam_folder).eval()
    for module in reference.mask_decoder.transformer.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5
    prompts = random_prompts(2, 3)
    with torch.no_grad():
        ours = model(
            pixel_values=pictures(),
            input_points=prompts["input_points"],
            point_labels=prompts["point_labels"],
            multimask_output=True,
        )
        theirs = reference(
            pixel_values=pictures(), input_points=prompts["input_points"], input_labels=prompts["point_labels"]
        )
    close(ours.pred_masks, theirs.pred_masks)
    close(ours.iou_scores, theirs.iou_scores)

    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "sam_promptable"
    reloaded = SamForPromptableSegmentation.from_pretrained(tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), reloaded.state_dict().values(), strict=True)
    )
    auto = AutoModelForMaskGeneration.from_pretrained(tmp_path)
    assert type(auto) is SamForPromptableSegmentation


def test_reads_the_processor_of_transformers(sam_folder: Path) -> None:
    processor = SamPromptableProcessor.from_pretrained(sam_folder)
    assert processor.tokenizer is None and processor.low_res_mask_size == LOW_RES_MASK_SIZE
    assert processor.image_processor.size["longest_edge"] == IMAGE_SIZE
    with pytest.raises(ValueError, match="the released SAM checkpoints know no text prompts"):
        processor(text="a dog")


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    tiny_sam_promptable().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"weights of {tmp_path} are damaged or incomplete"):
        SamForPromptableSegmentation.from_pretrained(tmp_path)


def test_transformers_vision_configuration_will_do() -> None:
    config = tiny_sam_promptable_config()
    config.vision_config = SamVisionConfig(**config.vision_config.to_dict())
    assert SamForPromptableSegmentation(config).vision_encoder.layers[0].drop_path.rate == 0


def test_incomplete_checkpoints_are_refused(sam_folder: Path, tmp_path: Path) -> None:
    weights = load_file(sam_folder / "model.safetensors")
    del weights["mask_decoder.iou_token.weight"]
    (tmp_path / "config.json").write_text((sam_folder / "config.json").read_text())
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match="not a complete SamForPromptableSegmentation .* mask_decoder.iou_token.weight"
    ):
        SamForPromptableSegmentation.from_pretrained(tmp_path)
    # a text model that the checkpoint does not have
    save_file(load_file(sam_folder / "model.safetensors"), tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="weights are missing, e.g. text_projection"):
        SamForPromptableSegmentation.from_pretrained(tmp_path, text_embed_dim=8)


def test_configuration_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="text_embed_dim is 7, but the projection_dim of text_config is 20"):
        tiny_sam_promptable_config(text=True, text_embed_dim=7)
    with pytest.raises(ValueError, match="interactive_rounds must be at least 1, got 0"):
        tiny_sam_promptable_config(interactive_rounds=0)
