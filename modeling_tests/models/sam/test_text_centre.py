# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Text embeddings without their mean, see `SamForPromptableSegmentation.centre_text`."""

import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from hf_segcap import SamForPromptableSegmentation
from modeling_tests.tiny import tiny_sam_promptable


def test_centre_is_subtracted_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=12,
    )
    model = tiny_sam_promptable()
    model.add_text_prompts(CLIPTextModelWithProjection(config).eval())
    ids = torch.randint(3, 30, (40, 6))
    before = model.get_text_embeds(ids)
    model.centre_text(ids)
    after = model.get_text_embeds(ids)
    expected = torch.nn.functional.normalize(before - before.mean(0), dim=-1)
    assert torch.allclose(after, expected, atol=1e-5) and before.mean(0).norm() > 2 * after.mean(0).norm()
    model.save_pretrained(tmp_path)
    loaded = SamForPromptableSegmentation.from_pretrained(tmp_path)
    assert torch.allclose(loaded.get_text_embeds(ids), after, atol=1e-6)
    model.centre_text(ids)  # again: of the embeddings themselves, not of centred ones
    assert torch.allclose(model.get_text_embeds(ids), after, atol=1e-6)
