# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The pixel decoder's parts against the plain formulation, which repeats the details for every prompt."""

import copy

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model

from hf_segcap.models.zim import detail_decoder
from hf_segcap.models.zim.detail_decoder import ZimFusionBlock

DETAILS, INPUTS, OUTPUTS = 5, 7, 6


def block_of(norm: str = "batch", mode: str = "concat", inputs: int = INPUTS, factor: int = 2) -> ZimFusionBlock:
    torch.manual_seed(0)
    details = DETAILS if mode == "concat" else inputs
    block = ZimFusionBlock(details, inputs, OUTPUTS, norm, mode, factor)
    with torch.no_grad():
        for tensor in (*block.parameters(), *block.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if tensor.ndim == 1 else tensor.normal_()
    return block


def tensors(rows: int = 3, inputs: int = INPUTS, details: int = DETAILS) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, inputs, 5, 6, generator=generator), torch.randn(1, details, 10, 12, generator=generator)


def plain(block: ZimFusionBlock, x: torch.Tensor, details: torch.Tensor) -> torch.Tensor:
    """relu(norm(conv([details, up(x)]))), details repeated."""
    up = F.interpolate(x, scale_factor=block.factor, mode="bilinear", align_corners=False)
    details = details.expand(len(x), -1, -1, -1)
    joined = block.conv(torch.cat([details, up], 1) if block.upsampled_part.start else details + up)
    if hasattr(block, "batch_norm"):
        joined = block.batch_norm(joined)
    if hasattr(block, "layer_norm"):
        norm = block.layer_norm
        joined = F.layer_norm(joined.permute(0, 2, 3, 1), (OUTPUTS,), norm.weight, norm.bias, norm.eps)
        joined = joined.permute(0, 3, 1, 2)
    return joined.relu()


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("mode", ["concat", "add"])
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_fusion_equals_the_plain_formulation(norm: str, mode: str, gradients: bool) -> None:
    block = block_of(norm, mode).eval()
    x, details = tensors(details=DETAILS if mode == "concat" else INPUTS)
    with torch.set_grad_enabled(gradients):
        result = block(x, block.project_details(details))
        torch.testing.assert_close(result, plain(block, x, details), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_strips_of_rows_make_the_whole(norm: str, factor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detail_decoder, "_STRIP_BYTES", 1)  # as few rows as it ever takes
    block = block_of(norm, factor=factor).eval()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, INPUTS, 9, 6, generator=generator)
    details = torch.randn(1, DETAILS, 9 * factor, 6 * factor, generator=generator)
    seen: list[int] = []

    def finish(rows: torch.Tensor) -> torch.Tensor:
        seen.append(rows.shape[2])
        return rows[:, :1] + 1

    with torch.no_grad():
        result = block(x, block.project_details(details), finish)
        torch.testing.assert_close(result, plain(block, x, details)[:, :1] + 1, atol=2e-5, rtol=1e-5)
    assert len(seen) > 1 and sum(seen) == 9 * factor


@pytest.mark.parametrize("mode", ["concat", "add"])
def test_training_equals_the_plain_formulation(mode: str) -> None:
    ours = block_of("batch", mode).train()
    theirs = copy.deepcopy(ours)
    x, details = tensors(details=DETAILS if mode == "concat" else INPUTS)
    inputs = [(x.clone().requires_grad_(), details.clone().requires_grad_()) for _ in range(2)]
    results = [ours(inputs[0][0], ours.project_details(inputs[0][1])), plain(theirs, *inputs[1])]
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)
    weight = torch.randn(results[0].shape, generator=torch.Generator().manual_seed(2))
    for result in results:
        (result * weight).sum().backward()
    for mine, other in zip(inputs[0], inputs[1], strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-4, rtol=1e-4)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-4, rtol=1e-4, msg=name)
    for mine, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_adapters_around_the_convolution_take_part(norm: str) -> None:
    block = block_of(norm).eval()
    x, details = tensors()
    with torch.no_grad():
        before = block(x, block.project_details(details))
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["conv"], init_lora_weights=False), block)
        expected = plain(block, x, details)
        torch.testing.assert_close(block(x, block.project_details(details)), expected, atol=2e-5, rtol=1e-5)
        assert (before - expected).abs().max() > 1e-2
