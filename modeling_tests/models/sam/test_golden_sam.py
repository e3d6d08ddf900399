# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""SAM's model and processor against tensors recorded from the official implementation (tiny weights, float32, CPU).

Coordinates are given to the processor in pixels of the picture, and what it makes of them to the model. Stored low-resolution
masks hold every second row and column.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hf_segcap.models.sam.modeling_sam import SamForPromptableSegmentation, num_prompt_tokens
from hf_segcap.models.sam.processing_sam import SamPromptableProcessor
from hf_segcap.models.sam.prompt_rows import PromptRows

GOLDEN = Path(__file__).parents[2] / "fixtures" / "sam"
pytestmark = pytest.mark.golden

LOGITS, SCORES, LAYERS = 3e-5, 1e-6, 1e-5
# name -> kinds of prompts; the feedback cases get an earlier prediction as mask prompt
CASES = {
    "no_prompt": "",
    "one_point": "points",
    "one_point_single": "points",
    "points": "points",
    "points_single": "points",
    "box": "box",
    "box_single": "box",
    "box_points": "points box",
    "box_points_multi": "points box",
    "feedback_points": "points mask",
    "feedback_multi": "points mask",
    "feedback_box": "box mask",
    "mask_only": "mask",
}
PATHS = pytest.mark.parametrize(
    ("attention", "gradients"),
    [("eager", False), ("sdpa", False), ("sdpa", True)],
    ids=["eager", "folded", "training"],
)


@cache
def golden(name: str = "predictor") -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


@cache
def image_embedding() -> torch.Tensor:
    return load_file(GOLDEN / "encoder.safetensors")["image_embedding"]


@cache
def official_model(attention: str = "sdpa") -> SamForPromptableSegmentation:
    model, info = SamForPromptableSegmentation.from_pretrained(
        GOLDEN / "tiny", attn_implementation=attention, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


@cache
def processor() -> SamPromptableProcessor:
    return SamPromptableProcessor.from_pretrained(GOLDEN / "tiny", backend="pil")


@cache
def picture(name: str = "image0") -> Image.Image:
    return Image.open(GOLDEN / f"{name}.png").convert("RGB")


def prompts_of(case: str) -> dict:
    """Arguments of the processor for one object of image0, as lists [image][object]."""
    stored, kinds, prompts = golden(), CASES[case].split(), {}
    if "points" in kinds:
        prompts["input_points"] = [[stored[f"{case}/in/point_coords"].tolist()]]
        prompts["point_labels"] = [[stored[f"{case}/in/point_labels"].tolist()]]
    if "box" in kinds:
        prompts["input_boxes"] = [[stored[f"{case}/in/box"].tolist()]]
    if "mask" in kinds:
        prompts["input_masks"] = [[stored["feedback/mask_input"][0].numpy()]]
    return prompts


def model_inputs(prompts: dict) -> dict:
    """In the frame of the model, with the official image embedding."""
    size = (picture().height, picture().width)
    inputs = processor()(original_sizes=[size], **prompts) if prompts else {}
    return {k: v for k, v in inputs.items() if not k.endswith("sizes")} | {"image_embeddings": image_embedding()}


def unpacked(stored: dict, name: str) -> torch.Tensor:
    shape = stored[f"{name}/shape"].tolist()
    bits = np.unpackbits(stored[f"{name}/packed"].numpy())
    return torch.from_numpy(bits[: int(np.prod(shape))].reshape(shape).astype(bool))


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(actual.detach().reshape(expected.shape), expected, atol=atol, rtol=0)


def close_masks(actual: torch.Tensor, expected: torch.Tensor) -> None:
    every = actual.shape[-1] // expected.shape[-1]
    close(actual[..., ::every, ::every], expected, LOGITS)


def multimask(case: str) -> bool:
    return bool(golden()[f"{case}/in/multimask_output"])


# --- one object --------------------------------------------------------------------------------------------------------


@PATHS
@pytest.mark.parametrize("case", CASES)
def test_prompts_of_every_kind(case, attention, gradients):
    with torch.set_grad_enabled(gradients):
        output = official_model(attention)(
            multimask_output=multimask(case), **model_inputs(prompts_of(case)), refine_steps=0
        )
    assert output.pred_masks.shape[:3] == (1, 1, 3 if multimask(case) else 1)
    close_masks(output.pred_masks, golden()[f"{case}/low_res_masks"])
    close(output.iou_scores, golden()[f"{case}/iou_predictions"], SCORES)
    assert output.best_mask_index.item() == golden()[f"{case}/iou_predictions"].argmax()
    assert output.pred_masks.requires_grad == gradients  # the official code never has gradients


@pytest.mark.parametrize("case", CASES)
def test_processor_scales_as_the_official_code(case):
    inputs, stored = model_inputs(prompts_of(case)), golden()
    for name, kind in (("transformed_points", "input_points"), ("transformed_box", "input_boxes")):
        assert (f"{case}/{name}" in stored) == (kind in inputs)
        if kind in inputs:  # the official predictor casts to float32, too
            assert torch.equal(inputs[kind].flatten(), stored[f"{case}/{name}"].float().flatten())


def test_preprocessing():
    inputs, stored = processor()(images=picture()), golden()
    assert inputs["original_sizes"].tolist() == [stored["preprocess/original_size"].tolist()]
    assert inputs["reshaped_input_sizes"].tolist() == [stored["preprocess/input_size"].tolist()]
    close(inputs["pixel_values"][..., ::4, ::4], stored["preprocess/pixel_values_every_4th"], 1e-6)


def test_masks_of_image_size():
    """Picture and prompts in, masks of image size out: nothing of the official run is used but its weights."""
    stored = golden()
    for case in ("one_point", "points_single", "box_points", "feedback_box", "no_prompt"):
        inputs = processor()(images=picture(), **prompts_of(case))
        sizes = {name: inputs.pop(name) for name in ("original_sizes", "reshaped_input_sizes")}
        with torch.no_grad():
            output = official_model()(**inputs, multimask_output=multimask(case))
        (masks,) = processor().post_process_masks(output.pred_masks, **sizes)
        expected = unpacked(stored, f"{case}/masks")
        # neither rounding nor the encoder's other order of sums may move a border by more than single pixels
        assert (masks[0] != expected).sum() <= 2
        close_masks(output.pred_masks, stored[f"{case}/low_res_masks"])


def test_full_resolution_logits():
    with torch.no_grad():
        output = official_model("eager")(multimask_output=False, **model_inputs(prompts_of("one_point_single")))
    sizes = {k: v for k, v in processor()(images=picture()).items() if k.endswith("sizes")}
    (logits,) = processor().post_process_masks(output.pred_masks, **sizes, binarize=False)
    close(logits[..., ::4, ::4], golden()["one_point_single/mask_logits_fullres"], LOGITS)


# --- inside ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["one_point", "box_points", "feedback_points"])
def test_intermediate_tensors(case):
    """Prompt tokens, dense embedding, every block of the mixer, upscaled image, per-mask vectors, all four scores."""
    model, expected, seen = official_model("eager"), golden("layers"), {}
    decoder, mixer = model.mask_decoder, model.mask_decoder.transformer

    def record(key, module, pick=lambda output: output):
        return module.register_forward_hook(lambda _, args, output: seen.__setitem__(key, pick(output)))

    hooks = [
        record("transformer/tokens", mixer, lambda out: out[0]),
        record("transformer/image", mixer, lambda o: o[1]),
    ]
    hooks.append(mixer.register_forward_pre_hook(lambda _, args: seen.update({"transformer/in_tokens": args[0]})))
    hooks.append(record("sparse", model.prompt_encoder, lambda out: out[0]))
    hooks.append(record("iou_all", decoder.iou_prediction_head))
    for i, layer in enumerate(mixer.layers):
        hooks.append(record(f"layer_{i}/queries", layer, lambda out: out[0]))
        hooks.append(record(f"layer_{i}/keys", layer, lambda out: out[1]))
    for i, network in enumerate(decoder.output_hypernetworks_mlps):
        hooks.append(record(f"hyper_in_{i}", network))
    hooks.append(record("upscaled", decoder.upscale_conv2, lambda out: decoder.activation(out)[..., ::2, ::2]))
    try:
        with torch.no_grad():
            inputs = model_inputs(prompts_of(case))
            model(**inputs, multimask_output=True)
            dense = model.prompt_encoder.embed_masks(inputs["input_masks"][0] if "input_masks" in inputs else None)
    finally:
        for hook in hooks:
            hook.remove()
    stored = {key.removeprefix(f"{case}/"): value for key, value in expected.items() if key.startswith(f"{case}/")}
    grid = stored["dense"].shape[-1]
    seen["dense"] = (
        dense.T[None, :, :, None] if grid == 1 else dense.unflatten(1, (16, 16))[:, ::2, ::2].permute(0, 3, 1, 2)
    )
    # the sparse tokens of a box and points: ours and the official code agree on their order
    assert set(stored) <= set(seen) and len(stored) >= 10
    for key, value in stored.items():
        # transformer/image and layer_i/keys reach 20, where a relative error of 1e-6 exceeds 1e-5
        torch.testing.assert_close(
            seen[key].reshape(value.shape), value, atol=LAYERS, rtol=2e-6, msg=lambda m, k=key: f"{k}: {m}"
        )


def test_dense_position_encoding():
    positions = official_model().shared_image_embedding.grid(16).T.reshape(1, 32, 16, 16)
    close(positions[..., ::2, ::2], golden("layers")["dense_pe"], LAYERS)


# --- several objects ---------------------------------------------------------------------------------------------------


BATCHES = {
    "batch_boxes": "boxes",
    "batch_boxes_multi": "boxes",
    "batch_boxes_points_mask": "boxes points mask",
    "batch_points_mask_per_object": "points mask",
    "batch_points_ragged_label": "points",  # with labels -1
}


@PATHS
@pytest.mark.parametrize("case", BATCHES)
def test_objects_of_one_image(case, attention, gradients):
    stored, kinds, inputs = golden("batches"), BATCHES[case].split(), {}
    if "boxes" in kinds:
        inputs["input_boxes"] = stored[f"{case}/in_model_frame/boxes"][None]
    if "points" in kinds:
        inputs["input_points"] = stored[f"{case}/in_model_frame/point_coords"][None]
        inputs["point_labels"] = stored[f"{case}/in_model_frame/point_labels"][None].long()
    if "mask" in kinds:
        inputs["input_masks"] = stored["batch_boxes/low_res_masks"][None, :, 0]
    expected = stored[f"{case}/iou_predictions"]
    with torch.set_grad_enabled(gradients):
        output = official_model(attention)(
            image_embeddings=image_embedding(), **inputs, multimask_output=expected.shape[1] == 3
        )
    close_masks(output.pred_masks, stored[f"{case}/low_res_masks"])
    close(output.iou_scores, expected, SCORES)
    if case == "batch_points_ragged_label":
        assert (inputs["point_labels"] == -1).any()


MIXTURES = [
    ("one_point", "points", "box", "box_points_multi"),
    ("feedback_multi", "box", "points", "mask_only", "one_point"),
    ("box_points_multi", "feedback_multi"),
    ("points_single", "feedback_points", "box_single", "one_point_single", "feedback_box", "box_points"),
    ("mask_only", "one_point", "box"),
]


@PATHS
@pytest.mark.parametrize("cases", MIXTURES, ids=" ".join)
def test_mixture_in_one_batch_equals_separate_official_calls(cases, attention, gradients):
    alone = [prompts_of(case) for case in cases]
    mixture = {}
    for name, nothing in (("input_points", []), ("point_labels", []), ("input_boxes", None), ("input_masks", None)):
        if any(name in prompts for prompts in alone):
            mixture[name] = [[prompts[name][0][0] if name in prompts else nothing for prompts in alone]]
    inputs = model_inputs(mixture)
    with torch.set_grad_enabled(gradients):
        output = official_model(attention)(**inputs, multimask_output=multimask(cases[0]))
    for i, case in enumerate(cases):
        close_masks(output.pred_masks[:, i], golden()[f"{case}/low_res_masks"])
        close(output.iou_scores[:, i], golden()[f"{case}/iou_predictions"], SCORES)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_two_images_with_different_prompts(attention):
    """The official batched forward: three boxes on one image, two objects of three points on another."""
    stored = golden("batches")
    boxes = stored["forward/image0/in/boxes"].tolist()
    points = stored["forward/image1/in/point_coords"].tolist()
    labels = stored["forward/image1/in/point_labels"].tolist()
    inputs = processor()(
        images=[picture("image0"), picture("image1")],
        input_boxes=[boxes, [None, None]],
        input_points=[[[], [], []], points],
        point_labels=[[[], [], []], labels],
    )
    sizes = {name: inputs.pop(name) for name in ("original_sizes", "reshaped_input_sizes")}
    with torch.no_grad():
        output = official_model(attention)(**inputs, multimask_output=True)
    assert inputs["prompt_mask"].tolist() == [[True, True, True], [True, True, False]]
    for i, count in enumerate((3, 2)):
        close_masks(output.pred_masks[i, :count], stored[f"forward/image{i}/low_res_logits_every_2nd"])
        close(output.iou_scores[i, :count], stored[f"forward/image{i}/iou_predictions"], SCORES)
    assert output.pred_masks[1, 2].abs().max() == 0
    masks = processor().post_process_masks(output.pred_masks, **sizes, prompt_mask=inputs["prompt_mask"])
    expected = unpacked(stored, "forward/image1/masks")
    assert masks[1].shape == expected.shape and (masks[1] != expected).sum() <= 4


# --- refinement, and which mask ----------------------------------------------------------------------------------------


def test_refinement_feeds_the_best_mask_back():
    """One step from the click of `one_point` is the official second call with its best mask."""
    inputs = model_inputs(prompts_of("one_point"))
    with torch.no_grad():
        first = official_model()(multimask_output=True, **inputs)
        output = official_model()(multimask_output=True, refine_steps=1, **inputs)
    assert first.best_mask_index.item() == golden()["feedback/best_index"]
    close(first.pred_masks[0, 0, first.best_mask_index.item()], golden()["feedback/mask_input"], LOGITS)
    close_masks(output.pred_masks, golden()["feedback_multi/low_res_masks"])
    close(output.iou_scores, golden()["feedback_multi/iou_predictions"], SCORES)


ONNX_CASES = ("point", "box", "two_points", "box_point", "point_mask", "two_points_mask")


def exported_inputs(case: str) -> dict:
    """The prompts of the official export wrapper, whose points hold box corners (2, 3) and padding (-1), as ours."""
    stored = golden("onnx_wrapper")
    coords, labels = stored[f"{case}/in/point_coords"], stored[f"{case}/in/point_labels"].long()
    inputs = {"image_embeddings": image_embedding()}
    corners, points = labels >= 2, (labels == 0) | (labels == 1)
    if points.any():
        inputs |= {"input_points": coords[points][None, None], "point_labels": labels[points][None, None]}
    if corners.any():
        inputs["input_boxes"] = coords[corners].reshape(1, 1, 4)
    if stored[f"{case}/in/has_mask_input"].item():
        inputs["input_masks"] = golden()["feedback/mask_input"][None]
    return inputs


@PATHS
@pytest.mark.parametrize("case", ONNX_CASES)
def test_mask_chosen_by_number_of_prompts(case, attention, gradients):
    stored, model, inputs = golden("onnx_wrapper"), official_model(attention), exported_inputs(case)
    embeddings = inputs.pop("image_embeddings")
    with torch.set_grad_enabled(gradients):
        rows = PromptRows.from_inputs(1, **inputs)
        decoded = model.decode_rows(embeddings, rows)
        output = model(image_embeddings=embeddings, **inputs)
    close(decoded.iou_scores, stored[f"{case}/all/iou_predictions"], SCORES)
    if f"{case}/all/low_res_masks" in stored:
        close_masks(decoded.pred_masks, stored[f"{case}/all/low_res_masks"])
    assert num_prompt_tokens(rows).item() == stored[f"{case}/in/point_labels"].shape[1]
    index = stored[f"{case}/single/low_res_is_index"].item()
    close(output.iou_scores, stored[f"{case}/single/iou_predictions"], SCORES)
    close(output.pred_masks[:, 0], decoded.pred_masks[:, [index]].detach(), LOGITS)
    assert output.pred_masks.shape[:3] == (1, 1, 1) and output.best_mask_index.item() == 0
    if f"{case}/single/masks_gt0/packed" in stored:
        sizes = {k: v for k, v in processor()(images=picture()).items() if k.endswith("sizes")}
        (masks,) = processor().post_process_masks(output.pred_masks, **sizes)
        assert (masks != unpacked(stored, f"{case}/single/masks_gt0")).sum() <= 2


def test_selection_is_per_object():
    """A click, a box and a click with a box in one batch: the first two are ambiguous, the third is not."""
    cases = ("one_point", "box", "box_points")
    alone = [prompts_of(case) for case in cases]
    inputs = model_inputs(
        {
            "input_points": [[p["input_points"][0][0] if "input_points" in p else [] for p in alone]],
            "point_labels": [[p["point_labels"][0][0] if "point_labels" in p else [] for p in alone]],
            "input_boxes": [[p["input_boxes"][0][0] if "input_boxes" in p else None for p in alone]],
        }
    )
    with torch.no_grad():
        output = official_model()(**inputs)
    for i, case in enumerate(cases):
        scores = golden()[f"{case}/iou_predictions"]
        best = scores.argmax()
        close(output.iou_scores[0, i, 0], scores[best], SCORES)
        close_masks(output.pred_masks[0, i, 0], golden()[f"{case}/low_res_masks"][best])


def test_rows_do_not_influence_each_other():
    """Rows of absent points change nothing, however many there are."""
    inputs = model_inputs(prompts_of("one_point"))
    rows = PromptRows.from_inputs(1, input_points=inputs["input_points"], point_labels=inputs["point_labels"])
    padded = replace(
        rows,
        points=torch.cat([rows.points, torch.full((1, 9, 2), 77.0)], dim=1),
        point_labels=torch.cat([rows.point_labels, torch.full((1, 9), -2)], dim=1),
    )
    with torch.no_grad():
        alone, together = (official_model().decode_rows(image_embedding(), r) for r in (rows, padded))
    close(together.pred_masks, alone.pred_masks, LOGITS)
    close(together.iou_scores, alone.iou_scores, SCORES)
