# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""ZIM's label converter: model and processor. Its image processor is judged with SCA's spec."""

from __future__ import annotations

import torch

from hf_segcap import ZimLabelConverter, ZimLabelConverterConfig, ZimLabelConverterProcessor
from modeling_tests.tiny import IMAGE_SIZE, tiny_image_processor, tiny_label_converter_config

from ..spec_types import ModelSpec, ProcessorSpec
from .shared import recorded, reloads_behind_the_refusal

MASKS = 2


def images_and_masks(config: ZimLabelConverterConfig, batch_size: int) -> dict[str, torch.Tensor]:
    """Images with two rectangles each."""
    sides = torch.rand(batch_size, MASKS, 4, 1, 1) * IMAGE_SIZE / 2
    x, y, width, height = sides.unbind(2)
    pixels = torch.arange(IMAGE_SIZE)
    columns, rows = pixels[None], pixels[:, None]
    inside = (columns >= x) & (columns < x + width + 8) & (rows >= y) & (rows < y + height + 8)
    return {"pixel_values": torch.rand(batch_size, 3, IMAGE_SIZE, IMAGE_SIZE), "coarse_masks": inside.float()}


def labels(
    config: ZimLabelConverterConfig, inputs: dict[str, torch.Tensor], model_class: type
) -> dict[str, torch.Tensor]:
    """The masks with soft borders."""
    return {"labels": torch.nn.functional.avg_pool2d(inputs["coarse_masks"], 5, stride=1, padding=2)}


# ---- replacements of common tests that count layers: Hiera has one attention map and one hidden state per stage ------


def _test_hidden_states_output(self):
    config, out = recorded(self, ZimLabelConverter, output_hidden_states=True)
    width, rows, tokens = (
        config.backbone_config.embed_dim,
        self.model_tester.batch_size * MASKS,
        (IMAGE_SIZE // 4) ** 2,
    )
    expected = [(rows, tokens, width)] + [(rows, tokens // 4**i, width * 2**i) for i in range(4)]
    self.assertEqual([tuple(tensor.shape) for tensor in out.hidden_states], expected)


def _test_attention_outputs(self):
    config, out = recorded(self, ZimLabelConverter, output_attentions=True)
    self.assertEqual(len(out.attentions), len(config.backbone_config.depths))
    for attention, heads in zip(out.attentions, config.backbone_config.num_heads):
        self.assertEqual(attention.shape[:2], (self.model_tester.batch_size * MASKS, heads))
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))


def _test_retain_grad(self):
    # the attention weights that are returned are a rearrangement of those that are used
    _, out = recorded(self, ZimLabelConverter, output_hidden_states=True)
    out.hidden_states[0].retain_grad()
    sum(side.sum() for side in out.side_alphas).backward()
    self.assertGreater(out.hidden_states[0].grad.abs().max().item(), 0)


MODELS = [
    ModelSpec(
        name="ZimLabelConverter",
        model_classes=(ZimLabelConverter,),
        config=tiny_label_converter_config,
        inputs=images_and_masks,
        vision_embeddings=True,
        labels=labels,
        tester={"hidden_size": 8, "num_attention_heads": 1},
        flags={"test_resize_embeddings": False},
        config_tester={"has_text_modality": False},
        overfit={"steps": 30, "lr": 1e-2},
        override={
            "test_attention_outputs": _test_attention_outputs,
            "test_hidden_states_output": _test_hidden_states_output,
            "test_retain_grad_hidden_states_attentions": _test_retain_grad,
            "test_model_weights_reload_no_missing_tied_weights": reloads_behind_the_refusal(ZimLabelConverter),
        },
    )
]

PROCESSORS = [
    ProcessorSpec(
        name="ZimLabelConverter",
        processor_class=ZimLabelConverterProcessor,
        components=lambda: {"image_processor": tiny_image_processor()},
    )
]
