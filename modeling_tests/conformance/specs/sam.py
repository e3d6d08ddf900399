# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""SAM: the model without and with text prompts, the processor. Its image processor is judged with SCA's spec."""

from __future__ import annotations

from typing import Any

import torch

from hf_segcap import SamForPromptableSegmentation, SamPromptableConfig, SamPromptableProcessor
from modeling_tests.tiny import (
    IMAGE_SIZE,
    PATCH_SIZE,
    VOCABULARY,
    random_image,
    tiny_image_processor,
    tiny_sam_promptable,
    tiny_sam_promptable_config,
    tiny_tokenizer,
)

from ..spec_types import ModelSpec, PipelineSpec, ProcessorSpec
from .shared import recorded, reloads_behind_the_refusal, retains_gradients

OBJECTS, TEXT_LENGTH = 2, 5
GRID = IMAGE_SIZE // PATCH_SIZE


def prompts(config: SamPromptableConfig, batch_size: int) -> dict[str, torch.Tensor]:
    """Images with a box and two points for each object."""
    corner = torch.rand(batch_size, OBJECTS, 2) * IMAGE_SIZE / 2
    return {
        "pixel_values": torch.rand(batch_size, 3, IMAGE_SIZE, IMAGE_SIZE),
        "input_boxes": torch.cat([corner, corner + 8 + torch.rand(batch_size, OBJECTS, 2) * 16], dim=-1),
        "input_points": corner[:, :, None] + torch.rand(batch_size, OBJECTS, 2, 2) * 8,
        "point_labels": torch.tensor([1, 0]).repeat(batch_size, OBJECTS, 1),
    }


def prompts_with_text(config: SamPromptableConfig, batch_size: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, len(VOCABULARY), (batch_size, OBJECTS, TEXT_LENGTH))
    ids[..., -1] = config.text_config.eos_token_id
    return {**prompts(config, batch_size), "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def labels(config: SamPromptableConfig, inputs: dict[str, torch.Tensor], model_class: type) -> dict[str, torch.Tensor]:
    """The box of each object is its mask."""
    pixels = torch.arange(IMAGE_SIZE) + 0.5
    x0, y0, x1, y1 = inputs["input_boxes"].cpu()[..., None].unbind(-2)
    inside = ((pixels > y0) & (pixels < y1))[..., :, None] & ((pixels > x0) & (pixels < x1))[..., None, :]
    return {"labels": inside.float()}


# ---- replacements of common tests that look for flat `hidden_states` and `attentions`; ours are named by part --------


def _shapes(tensors: tuple[torch.Tensor, ...]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors]


def _test_hidden_states_output(self):
    config, out = recorded(self, SamForPromptableSegmentation, output_hidden_states=True)
    vision = (self.model_tester.batch_size, GRID, GRID, config.vision_config.hidden_size)
    self.assertEqual(_shapes(out.vision_hidden_states), [vision] * (config.vision_config.num_hidden_layers + 1))


def _test_attention_outputs(self):
    config, out = recorded(self, SamForPromptableSegmentation, output_attentions=True)
    self.assertEqual(len(out.vision_attentions), config.vision_config.num_hidden_layers)
    # the second vision layer is global: one window that holds the whole grid
    heads = self.model_tester.batch_size * config.vision_config.num_attention_heads
    self.assertEqual(out.vision_attentions[1].numel(), heads * GRID**4)
    rows, decoder = self.model_tester.batch_size * OBJECTS, config.mask_decoder_config
    self.assertEqual(len(out.mask_decoder_attentions), decoder.num_hidden_layers)
    # IoU token, four mask tokens, two points, two corners, perhaps a text
    tokens = 9 + (config.text_config is not None)
    for attention in out.mask_decoder_attentions:
        self.assertEqual(attention.shape[0], rows)
        self.assertEqual(attention.shape[-2:], (tokens, GRID**2))
    for attention in (*out.vision_attentions, *out.mask_decoder_attentions):
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))


def _test_every_parameter_has_a_gradient(self):
    """Replaces the check of the gradient-checkpointing tests: no single call uses all parts of the model."""
    config, batch = self.model_tester.prepare_config_and_inputs_for_common()
    config.interactive_rounds = 2  # the second has a mask prompt
    model = SamForPromptableSegmentation(config).train()
    targets = labels(config, batch, SamForPromptableSegmentation)
    model(**batch, **targets).loss.backward()
    points = {name: batch[name][:, :, :1] for name in ("input_points", "point_labels")}
    model(pixel_values=batch["pixel_values"], **points, **targets).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    self.assertEqual([name for name in without if not name.startswith("text_model.")], [])
    self.assertEqual(any("text_model" in name for name in without), config.text_config is not None)


def _model(name: str, text: bool) -> ModelSpec:
    return ModelSpec(
        name=name,
        model_classes=(SamForPromptableSegmentation,),
        config=lambda: tiny_sam_promptable_config(text=text),
        inputs=prompts_with_text if text else prompts,
        vision_embeddings=True,
        labels=labels,
        tester={"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 3},
        flags={
            # arguments of forward that the eager-versus-sdpa tests may extend with random values
            "additional_model_inputs": ["input_boxes", "input_points"],
            "test_all_params_have_gradient": False,  # see test_every_parameter_has_a_gradient
            "test_resize_embeddings": False,
        },
        config_tester={"has_text_modality": False},
        overfit={"steps": 40, "lr": 1e-2},
        override={
            "test_every_parameter_has_a_gradient": _test_every_parameter_has_a_gradient,
            "test_attention_outputs": _test_attention_outputs,
            "test_hidden_states_output": _test_hidden_states_output,
            "test_retain_grad_hidden_states_attentions": retains_gradients(
                SamForPromptableSegmentation,
                "pred_masks",
                "vision_hidden_states",
                "vision_attentions",
                "mask_decoder_attentions",
            ),
            "test_model_weights_reload_no_missing_tied_weights": reloads_behind_the_refusal(
                SamForPromptableSegmentation
            ),
        },
        skip={"test_model_base_model_prefix": "image encoder and mask decoder are siblings: no base model"},
    )


MODELS = [_model("Sam", text=False), _model("SamText", text=True)]

_FLAT_TEXT_TESTS = (
    "test_kwargs_overrides_default_subprocessor_kwargs_0_images",
    "test_subprocessor_defaults_0_text",
    "test_subprocessor_defaults_preserved_by_kwargs_0_images",
)
_FLAT_BATCH_TESTS = ("test_processor_text_has_no_visual", "test_unstructured_kwargs_batched_0_images")

PROCESSORS = [
    ProcessorSpec(
        name="Sam",
        processor_class=SamPromptableProcessor,
        components=lambda: {"image_processor": tiny_image_processor(), "tokenizer": tiny_tokenizer(add_end=True)},
        skip={
            "test_replacement_offsets": "text prompts hold no placeholder tokens for images",
            **dict.fromkeys(_FLAT_TEXT_TESTS, "one text per object: input_ids are (images, objects, tokens)"),
            **dict.fromkeys(_FLAT_BATCH_TESTS, "a flat list of texts are the objects of one image, not one per image"),
        },
    )
]


def _save(folder: str) -> None:
    tiny_sam_promptable().save_pretrained(folder)
    SamPromptableProcessor(tiny_image_processor()).save_pretrained(folder)


_CALLS: dict[str, dict[str, Any]] = {
    "Boxes": {"boxes": [[0, 0, 20, 20], [5, 5, 40, 30]], "multimask_output": True},
    "Points": {"points": [[[10, 12], [30, 8]], [[5, 5]]], "refine_steps": 1},
}
PIPELINES = [
    PipelineSpec(
        name=f"Sam{name}",
        task="promptable-segmentation",
        save=_save,
        calls=[(random_image(0), kwargs), (random_image(1, (50, 64)), kwargs)],
    )
    for name, kwargs in _CALLS.items()
]
