# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""`device_map`: parts of a model whose weights lie on the disk until they are called."""

import pytest
import torch

from modeling_tests.tiny import tiny_sam_caption, tiny_sam_promptable, tiny_zim


@pytest.mark.parametrize("make", [tiny_sam_promptable, tiny_sam_caption, tiny_zim])
def test_prompts_and_decoder_on_the_disk(make, tmp_path):
    model = make().eval()
    model.save_pretrained(tmp_path / "model")
    size = model.config.vision_config.image_size
    inputs = {
        "pixel_values": torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)),
        "input_boxes": torch.tensor([[[4.0, 6.0, 30.0, 40.0], [2.0, 2.0, 50.0, 20.0]]]),
        "input_points": torch.tensor([[[[10.0, 12.0]], [[20.0, 8.0]]]]),
        "point_labels": torch.tensor([[[1], [0]]]),
        "has_box": torch.tensor([[True, False]]),
    }
    if make is tiny_sam_caption:
        del inputs["has_box"], inputs["input_points"], inputs["point_labels"]
    parts = dict.fromkeys((name for name, _ in model.named_children()), "cpu")
    parts |= {"prompt_encoder": "disk", "mask_decoder" if "mask_decoder" in parts else "mask_caption_decoder": "disk"}
    offloaded = (
        type(model).from_pretrained(tmp_path / "model", device_map=parts, offload_folder=tmp_path / "offload").eval()
    )
    assert {parameter.device.type for parameter in offloaded.prompt_encoder.parameters()} == {"meta"}
    with torch.no_grad():
        expected, found = (each(**inputs).iou_scores for each in (model, offloaded))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
