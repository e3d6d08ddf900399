# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""SCA: the model with two language models, the processor, and the region-captioning pipeline.

The image processor is transformers' own (`SamImageProcessor`): judged is its use as the one registered with SCA.
"""

from __future__ import annotations

import torch

from hf_segcap import SamCaptionConfig, SamCaptionForRegionCaptioning, SamCaptionProcessor
from modeling_tests.tiny import (
    IMAGE_PROCESSOR_SIZES,
    IMAGE_SIZE,
    PATCH_SIZE,
    VOCABULARY,
    random_image,
    sam_image_processors,
    tiny_image_processor,
    tiny_processor,
    tiny_sam_caption,
    tiny_sam_caption_config,
    tiny_tokenizer,
)

from ..spec_types import ImageProcessorSpec, ModelSpec, PipelineSpec, ProcessorSpec
from .shared import recorded, reloads_behind_the_refusal, retains_gradients

PROMPTS, CAPTION_LENGTH = 2, 5
GRID = IMAGE_SIZE // PATCH_SIZE


def _captions(batch_size: int) -> torch.Tensor:
    return torch.randint(3, len(VOCABULARY), (batch_size, PROMPTS, CAPTION_LENGTH))


def prompts(config: SamCaptionConfig, batch_size: int) -> dict[str, torch.Tensor]:
    """Images with a box and two points for each region."""
    corner = torch.rand(batch_size, PROMPTS, 2) * IMAGE_SIZE / 2
    return {
        "pixel_values": torch.rand(batch_size, 3, IMAGE_SIZE, IMAGE_SIZE),
        "input_boxes": torch.cat([corner, corner + 8 + torch.rand(batch_size, PROMPTS, 2) * 16], dim=-1),
        "input_points": corner[:, :, None] + torch.rand(batch_size, PROMPTS, 2, 2) * 8,
        "point_labels": torch.tensor([1, 0]).repeat(batch_size, PROMPTS, 1),
    }


def inputs(config: SamCaptionConfig, batch_size: int) -> dict[str, torch.Tensor]:
    captions = _captions(batch_size)
    return {**prompts(config, batch_size), "input_ids": captions, "attention_mask": torch.ones_like(captions)}


def labels(config: SamCaptionConfig, inputs: dict[str, torch.Tensor], model_class: type) -> dict[str, torch.Tensor]:
    return {"labels": _captions(len(inputs["pixel_values"]))}


# ---- replacements of common tests that look for flat `hidden_states` and `attentions`; ours are named by part --------


def _shapes(tensors: tuple[torch.Tensor, ...]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors]


def _prefix_length(config: SamCaptionConfig) -> int:
    return config.num_task_tokens + config.mask_caption_decoder_config.num_caption_tokens


def _test_hidden_states_output(self):
    config, out = recorded(self, SamCaptionForRegionCaptioning, output_hidden_states=True)
    rows, length = self.model_tester.batch_size * PROMPTS, _prefix_length(config) + CAPTION_LENGTH
    vision = (self.model_tester.batch_size, GRID, GRID, config.vision_config.hidden_size)
    self.assertEqual(_shapes(out.vision_hidden_states), [vision] * (config.vision_config.num_hidden_layers + 1))
    text = (rows, length, config.text_config.hidden_size)
    self.assertEqual(_shapes(out.language_model_hidden_states), [text] * (config.text_config.num_hidden_layers + 1))


def _test_attention_outputs(self):
    config, out = recorded(self, SamCaptionForRegionCaptioning, output_attentions=True)
    rows, length = self.model_tester.batch_size * PROMPTS, _prefix_length(config) + CAPTION_LENGTH
    self.assertEqual(len(out.vision_attentions), config.vision_config.num_hidden_layers)
    # the second vision layer is global: one window that holds the whole grid
    heads = self.model_tester.batch_size * config.vision_config.num_attention_heads
    self.assertEqual(out.vision_attentions[1].shape[-2:], (GRID**2, GRID**2))
    self.assertEqual(out.vision_attentions[1].numel(), heads * GRID**4)
    text = (rows, config.text_config.num_attention_heads, length, length)
    self.assertEqual(_shapes(out.language_model_attentions), [text] * config.text_config.num_hidden_layers)
    decoder = config.mask_caption_decoder_config
    self.assertEqual(
        len(out.mask_decoder_attentions), decoder.num_hidden_layers + decoder.additional_num_hidden_layers
    )
    for attention in (*out.vision_attentions, *out.language_model_attentions, *out.mask_decoder_attentions):
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))


def _test_every_parameter_has_a_gradient(self):
    """Replaces the check of the gradient-checkpointing tests: no single call uses all parts of the model."""
    config, batch = self.model_tester.prepare_config_and_inputs_for_common()
    model = SamCaptionForRegionCaptioning(config).train().requires_grad_(True)
    side = 4 * GRID
    targets = (torch.rand(len(batch["pixel_values"]), PROMPTS, side, side) > 0.5).float()
    batch.update(labels(config, batch, SamCaptionForRegionCaptioning), target_masks=targets)
    model(**batch).loss.backward()
    for name in ("input_boxes", "input_points", "point_labels"):
        del batch[name]
    model(**batch, input_masks=torch.randn_like(targets), multimask_output=False).loss.backward()
    self.assertEqual([name for name, parameter in model.named_parameters() if parameter.grad is None], [])


def _model(name: str, text: str) -> ModelSpec:
    return ModelSpec(
        name=name,
        model_classes=(SamCaptionForRegionCaptioning,),
        config=lambda: tiny_sam_caption_config(text),
        inputs=inputs,
        labels=labels,
        generate=prompts,
        tester={"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 3, "seq_length": CAPTION_LENGTH},
        # arguments of forward that the eager-versus-sdpa tests may extend with random values
        flags={
            "additional_model_inputs": ["input_boxes", "input_points", "input_ids"],
            "test_all_params_have_gradient": False,  # see test_every_parameter_has_a_gradient
        },
        config_tester={"has_text_modality": False},
        overfit={"steps": 40, "lr": 1e-2},
        override={
            "test_every_parameter_has_a_gradient": _test_every_parameter_has_a_gradient,
            "test_attention_outputs": _test_attention_outputs,
            "test_hidden_states_output": _test_hidden_states_output,
            "test_retain_grad_hidden_states_attentions": retains_gradients(
                SamCaptionForRegionCaptioning,
                "logits",
                "vision_hidden_states",
                "vision_attentions",
                "mask_decoder_attentions",
                "language_model_hidden_states",
                "language_model_attentions",
            ),
            "test_model_weights_reload_no_missing_tied_weights": reloads_behind_the_refusal(
                SamCaptionForRegionCaptioning
            ),
        },
        skip={
            "test_model_base_model_prefix": "image encoder, mask decoder and language model are siblings: no base model"
        },
    )


MODELS = [_model("SamCaptionGpt2", "gpt2"), _model("SamCaptionLlama", "llama")]

PROCESSORS = [
    ProcessorSpec(
        name="SamCaption",
        processor_class=SamCaptionProcessor,
        components=lambda: {"image_processor": tiny_image_processor(), "tokenizer": tiny_tokenizer()},
        skip={"test_replacement_offsets": "captions hold no placeholder tokens for images"},
    )
]


IMAGE_PROCESSORS = [
    ImageProcessorSpec(
        name="SamCaption",
        backends=sam_image_processors(),
        init_kwargs=IMAGE_PROCESSOR_SIZES,
        output_shape=lambda channels: (channels, IMAGE_SIZE, IMAGE_SIZE),
    )
]


def _save(folder: str) -> None:
    tiny_sam_caption().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)


_BOXES = {"boxes": [[0, 0, 20, 20], [5, 5, 40, 30], [1, 2, 13, 24]], "max_new_tokens": 3}
_POINTS = {"points": [[10, 12], [30, 8]], "max_new_tokens": 3, "prompts_per_batch": 1}
PIPELINES = [
    PipelineSpec(
        name=f"SamCaption{name}",
        task="region-captioning",
        save=_save,
        calls=[(random_image(0), kwargs), (random_image(1, (50, 64)), kwargs)],
    )
    for name, kwargs in (("Boxes", _BOXES), ("Points", _POINTS))
]
