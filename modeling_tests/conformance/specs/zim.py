# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""ZIM: the model with and without a loss, the processor, the pipeline. Its image processor is judged with SCA's spec."""

from __future__ import annotations

from typing import Any

import torch

from hf_segcap import ZimConfig, ZimForMatting, ZimModel, ZimProcessor
from modeling_tests.tiny import IMAGE_SIZE, random_image, tiny_image_processor, tiny_zim, tiny_zim_config

from ..spec_types import ModelSpec, PipelineSpec, ProcessorSpec
from .shared import recorded, reloads_behind_the_refusal, retains_gradients

OBJECTS, GRID = 2, 4


def prompts(config: ZimConfig, batch_size: int) -> dict[str, torch.Tensor]:
    """Images with one object that has a box, and one that has two points."""
    corner = torch.rand(batch_size, OBJECTS, 2) * IMAGE_SIZE / 2
    return {
        "pixel_values": torch.rand(batch_size, 3, IMAGE_SIZE, IMAGE_SIZE),
        "input_boxes": torch.cat([corner, corner + 8 + torch.rand(batch_size, OBJECTS, 2) * 16], dim=-1),
        "has_box": torch.tensor([True, False]).repeat(batch_size, 1),
        "input_points": corner[:, :, None] + torch.rand(batch_size, OBJECTS, 2, 2) * 8,
        "point_labels": torch.tensor([[-2, -2], [1, 0]]).repeat(batch_size, 1, 1),
    }


def labels(config: ZimConfig, inputs: dict[str, torch.Tensor], model_class: type) -> dict[str, torch.Tensor]:
    """Soft discs in the boxes."""
    x0, y0, x1, y1 = inputs["input_boxes"].cpu()[..., None, None].unbind(2)
    pixels = torch.arange(IMAGE_SIZE) + 0.5
    distance = ((pixels - (x0 + x1) / 2).square() + (pixels[:, None] - (y0 + y1) / 2).square()).sqrt()
    return {"labels": ((x1 - x0) / 2 - distance).div(3).sigmoid()}


# ---- replacements of common tests that look for flat `hidden_states` and `attentions`; ours are named by part --------


def _test_hidden_states_output(self):
    config, out = recorded(self, ZimForMatting, output_hidden_states=True)
    shapes = [tuple(tensor.shape) for tensor in out.vision_hidden_states]
    expected = (self.model_tester.batch_size, GRID, GRID, config.vision_config.hidden_size)
    self.assertEqual(shapes, [expected] * (config.vision_config.num_hidden_layers + 1))


def _test_attention_outputs(self):
    config, out = recorded(self, ZimForMatting, output_attentions=True)
    self.assertEqual(len(out.vision_attentions), config.vision_config.num_hidden_layers)
    # the second vision layer is global: one window that holds the whole grid
    heads = self.model_tester.batch_size * config.vision_config.num_attention_heads
    self.assertEqual(out.vision_attentions[1].numel(), heads * GRID**4)
    self.assertEqual(len(out.mask_decoder_attentions), config.mask_decoder_config.num_hidden_layers)
    for attention in out.mask_decoder_attentions:
        self.assertEqual(attention.shape[0], self.model_tester.batch_size * OBJECTS)
        # IoU token, four mask tokens, two points and their padding point, two corners
        self.assertEqual(attention.shape[-2:], (10, GRID**2))
    for attention in (*out.vision_attentions, *out.mask_decoder_attentions):
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))


MODELS = [
    ModelSpec(
        name="Zim",
        model_classes=(ZimModel, ZimForMatting),
        base_classes=(ZimModel,),
        config=tiny_zim_config,
        inputs=prompts,
        vision_embeddings=True,
        labels=labels,
        tester={"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 3},
        flags={
            # arguments of forward that the eager-versus-sdpa tests may extend with random values
            "additional_model_inputs": ["input_boxes", "input_points"],
            "test_resize_embeddings": False,
        },
        config_tester={"has_text_modality": False},
        overfit={"steps": 40, "lr": 1e-2},
        override={
            "test_attention_outputs": _test_attention_outputs,
            "test_hidden_states_output": _test_hidden_states_output,
            "test_retain_grad_hidden_states_attentions": retains_gradients(
                ZimForMatting, "alphas", "vision_hidden_states", "vision_attentions", "mask_decoder_attentions"
            ),
            "test_model_weights_reload_no_missing_tied_weights": reloads_behind_the_refusal(ZimModel),
        },
        skip={"test_model_base_model_prefix": "ZimForMatting is a ZimModel with a loss: no base model inside"},
    )
]

PROCESSORS = [
    ProcessorSpec(
        name="Zim",
        processor_class=ZimProcessor,
        components=lambda: {"image_processor": tiny_image_processor()},
    )
]


def _save(folder: str) -> None:
    tiny_zim(spread=0.2).save_pretrained(folder)
    ZimProcessor(tiny_image_processor()).save_pretrained(folder)


_CALLS: dict[str, dict[str, Any]] = {
    "Boxes": {"boxes": [[0, 0, 20, 20], [5, 5, 40, 30]], "foreground": True},
    "Points": {"points": [[[10, 12], [30, 8]], [[5, 5]]], "multimask_output": True, "alpha_dtype": "uint16"},
}
PIPELINES = [
    PipelineSpec(
        name=f"Zim{name}",
        task="image-matting",
        save=_save,
        calls=[(random_image(0), kwargs), (random_image(1, (50, 64)), kwargs)],
        skip={
            "test_task_is_registered": "official repositories hold no processor: the pipeline itself reports damage"
        },
    )
    for name, kwargs in _CALLS.items()
]
