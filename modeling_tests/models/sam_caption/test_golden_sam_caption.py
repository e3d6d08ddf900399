# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""SamCaption against tensors recorded from the official implementation (tiny random weights, float32, CPU)."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_segcap import SamCaptionConfig, SamCaptionForRegionCaptioning

GOLDEN = Path(__file__).parents[2] / "fixtures" / "sca"
pytestmark = pytest.mark.golden


@cache
def golden(name: str):
    inputs, outputs = (load_file(GOLDEN / name / f"{part}.safetensors") for part in ("inputs", "outputs"))
    return inputs, outputs, json.loads((GOLDEN / name / "meta.json").read_text())


@cache
def official_model(name: str, attention: str = "sdpa") -> SamCaptionForRegionCaptioning:
    model, info = SamCaptionForRegionCaptioning.from_pretrained(
        GOLDEN / name / "checkpoint", attn_implementation=attention, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


def close(actual: torch.Tensor, expected: torch.Tensor, of_scale: bool = True) -> None:
    """1e-5, absolutely or of the largest value. (Float32 rounding puts the recorded masks up to 2.3e-5 from float64.)"""
    atol = 1e-5 * max(1.0, expected.abs().max().item() if of_scale else 1.0)
    torch.testing.assert_close(actual.reshape(expected.shape), expected, atol=atol, rtol=0)


def prompts(scenario: str, inputs: dict) -> dict:
    boxes = {"input_boxes": inputs["input_boxes"]}
    points = {"input_points": inputs["input_points"], "point_labels": inputs["input_labels"]}
    masks = {"input_masks": inputs["input_masks"]}
    return {
        "box": boxes,
        "no_task_type": boxes,
        "single_mask": {**boxes, "multimask_output": False},
        "point": points,
        "point_box": {**points, **boxes},
        "mask_box": {**masks, **boxes},
        "mask_only": masks,
    }[scenario]


def texts(scenario: str, inputs: dict) -> dict:
    """Teacher forcing: our labels have no leading -100, and a mask alone prompts one region per image."""
    regions = slice(0, 1) if scenario == "mask_only" else slice(None)
    return {
        "input_ids": inputs["input_ids"][:, regions],
        "attention_mask": inputs["attention_mask"][:, regions],
        "labels": inputs["labels"][:, regions, 1:],
    }


def until_end(sequences: torch.Tensor, end: int) -> list[list[int]]:
    rows = sequences.reshape(-1, sequences.shape[-1]).tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


SCENARIOS = ("box", "point", "point_box", "mask_box", "single_mask", "mask_only", "no_task_type")
OUTPUTS = {
    "loss": "loss",
    "pred_masks": "decoder/low_res_masks",
    "iou_scores": "decoder/iou_scores",
    "caption_queries": "decoder/caption_queries",
    "language_model_inputs": "projected_query_logits",
    "image_embeddings": "vision/image_embeddings",
}


@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_forward(name, scenario, attention, gradients):
    inputs, expected, meta = golden(name)
    task = None if scenario == "no_task_type" else meta["task_type"]
    with torch.set_grad_enabled(gradients):
        outputs = official_model(name, attention)(
            pixel_values=inputs["pixel_values"], task=task, **prompts(scenario, inputs), **texts(scenario, inputs)
        )
    compared = 0
    for ours, theirs in OUTPUTS.items():
        if f"{scenario}/{theirs}" in expected:
            # eager runs the official order of operations
            close(outputs[ours].detach(), expected[f"{scenario}/{theirs}"], of_scale=attention != "eager")
            compared += 1
    if f"{scenario}/logits" in expected:  # the official tensor ends with the unused prediction behind the last token
        close(outputs.logits.detach(), expected[f"{scenario}/logits"][:, :-1])
        compared += 1
    assert compared >= (1 if scenario == "no_task_type" else 4)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_intermediate_tensors(name):
    """Every block of encoder and mixers, and the language model's inputs."""
    inputs, expected, meta = golden(name)
    model = official_model(name, "eager")  # eager runs block by block over full-size streams
    seen = {}

    def record(key, pick=lambda output: output):
        return lambda module, args, output: seen.__setitem__(key, pick(output))

    decoder = model.mask_decoder
    hooks = [
        model.vision_encoder.patch_embed.register_forward_hook(record("vision/patch_embed")),
        decoder.transformer.register_forward_hook(record("sam_mixer/out_queries", lambda o: o[0])),
        model.language_project.register_forward_hook(record("decoder/language_project")),
        model.prompt_encoder.register_forward_hook(record("prompt/sparse", lambda o: o[0])),
    ]
    for i, layer in enumerate(model.vision_encoder.layers):
        hooks.append(layer.register_forward_hook(record(f"vision/layer_{i}")))
    for mixer, module in (("sam_mixer", decoder.transformer), ("caption_mixer", decoder.additional_transformer)):
        for i, layer in enumerate(module.layers):
            hooks.append(layer.register_forward_hook(record(f"{mixer}/layer_{i}/queries", lambda o: o[0])))
            hooks.append(layer.register_forward_hook(record(f"{mixer}/layer_{i}/keys", lambda o: o[1])))
    hooks.append(
        model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.update(
                {"lm/inputs_embeds": kwargs["inputs_embeds"], "lm/attention_mask": kwargs["attention_mask"]}
            ),
            with_kwargs=True,
        )
    )
    try:
        with torch.no_grad():
            model(
                pixel_values=inputs["pixel_values"],
                task=meta["task_type"],
                **prompts("box", inputs),
                **texts("box", inputs),
            )
    finally:
        for hook in hooks:
            hook.remove()
    positions = model.shared_image_embedding.grid(8).T
    seen["image_positional_embedding"] = positions
    seen["prompt/dense"] = model.prompt_encoder.no_mask_embed.weight.T[None, :, :, None].expand(2, -1, 8, 8)
    compared = [key for key in seen if f"box/{key}" in expected]
    for key in compared:
        close(seen[key].detach().float(), expected[f"box/{key}"].float())
    recorded = {key for key in expected if key.startswith(("box/vision/", "box/sam_mixer/", "box/lm/", "box/prompt/"))}
    assert recorded - {f"box/{key}" for key in compared} == {"box/vision/image_embeddings"}  # compared in test_forward
    assert {"caption_mixer/layer_0/keys", "caption_mixer/layer_2/queries"} <= set(compared)


def test_caption_mixer_output_tokens():
    """The folded path stops the final attention at the caption queries, so all its tokens are compared here."""
    inputs, expected, _ = golden("gpt2")
    model = official_model("gpt2")
    mixer = model.mask_decoder.additional_transformer
    stream = expected["box/sam_mixer/layer_1/keys"][:, 0]
    queries = model.mask_decoder.caption_tokens.weight.expand(6, -1, -1)
    tokens = torch.cat([queries, expected["box/sam_mixer/out_queries"].flatten(0, 1)], dim=1)
    with torch.no_grad():
        out, _ = mixer(tokens, stream, model.shared_image_embedding.grid(8))
    close(out, expected["box/caption_mixer/out_queries"])


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("scenario", ["box", "point"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_generate(name, scenario, beams):
    inputs, expected, meta = golden(name)
    model = official_model(name)
    output = model.generate(
        pixel_values=inputs["pixel_values"],
        task=meta["task_type"],
        num_beams=beams,
        return_dict_in_generate=True,
        **prompts(scenario, inputs),
    )
    end = model.generation_config.eos_token_id
    # column 0 of the official ids is a begin token that was never fed
    assert until_end(output.sequences, end) == until_end(
        expected[f"generate/{scenario}/beams{beams}/sequences"][..., 1:], end
    )
    close(output.iou_scores, expected[f"generate/{scenario}/iou_scores"])
    if scenario == "box":
        close(output.language_model_inputs, expected["generate/box/projected_query_logits"])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_generate_in_chunks(name):
    inputs, expected, meta = golden(name)
    model = official_model(name)
    sequences = model.generate(
        pixel_values=inputs["pixel_values"], task=meta["task_type"], prompts_per_batch=2, **prompts("box", inputs)
    )
    end = model.generation_config.eos_token_id
    assert until_end(sequences, end) == until_end(expected["generate/box_chunk2/beams1/sequences"][..., 1:], end)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_gradients(name):
    inputs, expected, meta = golden(name)
    model = official_model(name)
    model.zero_grad()
    model(
        pixel_values=inputs["pixel_values"], task=meta["task_type"], **prompts("box", inputs), **texts("box", inputs)
    ).loss.backward()
    parameters = dict(model.named_parameters())
    keys = [key for key in expected if key.startswith("grad/")]
    assert len(keys) == 5
    for key in keys:
        close(parameters[key.removeprefix("grad/")].grad, expected[key])
    model.zero_grad()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_trainable_parameters_are_the_official_ones(name):
    model = SamCaptionForRegionCaptioning(SamCaptionConfig.from_pretrained(GOLDEN / name / "checkpoint"))
    model.freeze_for("text_mixer")
    trained = {parameter_name for parameter_name, p in model.named_parameters() if p.requires_grad}
    assert trained == set(golden(name)[2]["trainable_parameters"])


VARIANTS = {  # official class, replacement of the caption query table, mask decoder fields
    "two_caption_heads": ("ScaMultitaskV2Model", "caption_tokens_two_heads", {"num_caption_heads": 2}),
    "split_mixer": ("ScaMultitaskSplitMixerModel", None, {}),
    "multitask_v1": ("ScaMultitaskModel", "caption_tokens_per_mask_token", {}),
    "first_version": ("ScaModel", "caption_tokens_per_mask_token", {}),
    "direct_decoding_v2_image0": ("ScaDirectDecodingV2Model", None, {}),
    "direct_decoding_v2_image0_single_mask": ("ScaDirectDecodingV2Model", None, {}),
}


@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant, gradients):
    """The mixer designs of the paper's ablation are configuration, chosen by the class that config.json names."""
    architecture, queries, decoder_fields = VARIANTS[variant]
    inputs, _, meta = golden("gpt2")
    replacements, expected = (load_file(GOLDEN / "variants" / f"{part}.safetensors") for part in ("inputs", "outputs"))
    config = json.loads((GOLDEN / "gpt2/checkpoint/config.json").read_text())
    config["architectures"] = [architecture]
    config["mask_caption_decoder_config"].update(decoder_fields)
    weights = torch.load(GOLDEN / "gpt2/checkpoint/pytorch_model.bin", weights_only=True)
    if queries:
        weights["mask_decoder.caption_tokens.weight"] = replacements[queries]
    model = SamCaptionForRegionCaptioning.from_pretrained(None, config=SamCaptionConfig(**config), state_dict=weights)
    model.eval()

    images = slice(0, 1) if "image0" in variant else slice(None)
    batch = {
        "pixel_values": inputs["pixel_values"][images],
        "input_boxes": inputs["input_boxes"][images],
        "task": meta["task_type"][images],
        "multimask_output": "single_mask" not in variant,
    }
    with torch.set_grad_enabled(gradients):
        outputs = model(**batch, **{k: v[images] for k, v in texts("box", inputs).items()})
    close(outputs.loss.detach(), expected[f"{variant}/loss"])
    close(outputs.caption_queries.detach(), expected[f"{variant}/query_logits"])
    close(outputs.iou_scores.detach(), expected[f"{variant}/iou_scores"])

    with torch.no_grad():  # the last position predicts what follows the whole caption
        padded = {k: torch.cat([v[images], v[images][..., -1:]], -1) for k, v in texts("box", inputs).items()}
        last = model(**batch, **padded).logits[..., -1, :]
    close(last, expected[f"{variant}/logits_last_position"])
    if f"{variant}/generate/beams1/sequences" in expected:
        sequences = model.generate(**batch)
        wanted = expected[f"{variant}/generate/beams1/sequences"][..., 1:]
        assert until_end(sequences, 0) == until_end(wanted, 0)
