# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import math

import numpy as np
import pytest
import torch

from hf_segcap.models.zim.losses import gradient_loss, l1_loss, matting_loss, soft_iou

ROWS, MATTES, SIDE = 3, 4, 7
SOBEL = ([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], [[-1, -2, -1], [0, 0, 0], [1, 2, 1]])


def case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(ROWS, MATTES, SIDE, SIDE, generator=generator, dtype=torch.float64)
    scores = torch.rand(ROWS, MATTES, generator=generator, dtype=torch.float64)
    targets = torch.rand(ROWS, SIDE, SIDE, generator=generator, dtype=torch.float64)
    targets[:, :, 5:] = -1  # padding
    targets[2, 0, 0] = -1
    return logits, scores, targets


def slow_terms(logits: torch.Tensor, target: torch.Tensor, kind: str = "sobel") -> tuple[float, float, float]:
    """L1, gradient and soft IoU of one matte, pixel by pixel."""
    alpha = [[1 / (1 + math.exp(-value)) for value in row] for row in logits.tolist()]
    wanted = target.tolist()
    counted = [(y, x) for y in range(SIDE) for x in range(SIDE) if wanted[y][x] >= 0]
    l1 = sum(abs(alpha[y][x] - wanted[y][x]) for y, x in counted) / max(1, len(counted))
    gradients = []
    for y, x in counted:
        around = [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        if not all(place in counted for place in around):
            continue
        error = {place: alpha[place[0]][place[1]] - wanted[place[0]][place[1]] for place in around}
        if kind == "forward":
            dx, dy = error[y, x + 1] - error[y, x], error[y + 1, x] - error[y, x]
        else:
            dx, dy = (
                sum(kernel[j][i] * error[y + j - 1, x + i - 1] for j in range(3) for i in range(3)) / 8
                for kernel in SOBEL
            )
        gradients.append(abs(dx) + abs(dy))
    overlap = sum(min(alpha[y][x], wanted[y][x]) for y, x in counted)
    union = sum(max(alpha[y][x], wanted[y][x]) for y, x in counted)
    return l1, sum(gradients) / max(1, len(gradients)), overlap / union if union else 1.0


@pytest.mark.parametrize("kind", ["sobel", "forward"])
@pytest.mark.parametrize("multimask", [True, False])
def test_terms_equal_the_formulas(kind: str, multimask: bool) -> None:
    logits, scores, targets = case()
    loss = matting_loss(
        logits, scores, targets, gradient_weight=7, gradient_filter=kind, multimask=multimask, iou_weight=3
    )
    for row in range(ROWS):
        terms = [slow_terms(logits[row, m], targets[row], kind) for m in range(MATTES)]
        best = min(range(1, MATTES), key=lambda m: terms[m][0] + 7 * terms[m][1]) if multimask else 0
        l1, gradient = (terms[0][i] + (terms[best][i] if multimask else 0) for i in (0, 1))
        iou = np.mean([(scores[row, m].item() - terms[m][2]) ** 2 for m in range(MATTES)])
        assert loss.best[row] == best
        np.testing.assert_allclose(
            [loss.l1[row], loss.gradient[row], loss.iou[row], loss.total[row]],
            [l1, gradient, iou, l1 + 7 * gradient + 3 * iou],
            rtol=1e-9,
        )


@pytest.mark.parametrize("multimask", [True, False])
def test_cross_entropy_of_the_trained_mattes(multimask: bool) -> None:
    logits, scores, targets = case()
    plain = matting_loss(logits, scores, targets, multimask=multimask)
    loss = matting_loss(logits, scores, targets, multimask=multimask, cross_entropy_weight=5)
    assert plain.cross_entropy is None and loss.cross_entropy is not None
    for row in range(ROWS):
        counted = targets[row] >= 0
        expected = 0.0
        for matte in {0, int(loss.best[row])}:
            alpha, target = logits[row, matte].sigmoid()[counted], targets[row][counted]
            expected -= (target * alpha.log() + (1 - target) * (1 - alpha).log()).mean().item()
        np.testing.assert_allclose(loss.cross_entropy[row], expected, rtol=1e-9)
    torch.testing.assert_close(loss.total, plain.total + 5 * loss.cross_entropy)


def test_cross_entropy_leaves_an_empty_matte() -> None:
    targets = torch.zeros(1, SIDE, SIDE)
    targets[:, 2:4, 2:4] = 1
    steps = []
    for weight in (0.0, 1.0):
        logits = torch.full((1, 1, SIDE, SIDE), -12.0, requires_grad=True)
        matting_loss(logits, torch.zeros(1, 1), targets, cross_entropy_weight=weight).total.sum().backward()
        steps.append(logits.grad[0, 0, 2, 2].abs().item())
    assert steps[0] < 1e-4 < 1e-2 < steps[1]


def test_derivatives_equal_finite_differences() -> None:
    logits, scores, targets = case(1)
    logits, scores = logits[:2, :2].requires_grad_(), scores[:2, :2].requires_grad_()
    fixed = matting_loss(logits, scores, targets[:2]).iou.detach()  # the true IoU is a constant for the scores

    def total(logits: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        loss = matting_loss(logits, scores, targets[:2])
        return (loss.l1 + 10 * loss.gradient).sum()

    assert torch.autograd.gradcheck(total, (logits, scores.detach()))
    (of_scores,) = torch.autograd.grad(matting_loss(logits, scores, targets[:2]).iou.sum(), scores)
    step = 1e-6
    for row in range(2):
        for m in range(2):
            moved = scores.detach().clone()
            moved[row, m] += step
            difference = (matting_loss(logits, moved, targets[:2]).iou - fixed).sum() / step
            assert difference.item() == pytest.approx(of_scores[row, m].item(), abs=1e-5)
    (of_logits,) = torch.autograd.grad(matting_loss(logits, scores, targets[:2]).iou.sum(), logits, allow_unused=True)
    assert of_logits is None or not of_logits.any()


def test_logits_are_enlarged_before_the_sigmoid() -> None:
    logits, scores, targets = case()
    large = torch.nn.functional.interpolate(targets[:, None].clamp(min=0), scale_factor=2)[:, 0]
    loss = matting_loss(logits, scores, large)
    alphas = torch.nn.functional.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False).sigmoid()
    expected = l1_loss(alphas[:, 0], large) + torch.stack([l1_loss(a, large) for a in alphas.unbind(1)], 1).gather(
        1, loss.best[:, None]
    ).squeeze(1)
    torch.testing.assert_close(loss.l1, expected)


def test_constant_offset_and_padding_have_no_gradient_term() -> None:
    targets = torch.full((1, 8, 8), 0.25)
    targets[:, 5:] = -1
    assert gradient_loss(targets + 0.5, targets).item() == pytest.approx(0, abs=1e-7)
    # a ramp of slope one tenth per pixel
    ramp = 0.25 + 0.1 * torch.arange(8.0).expand(1, 8, 8)
    for kind in ("sobel", "forward"):
        assert gradient_loss(ramp, targets, kind).item() == pytest.approx(0.1, abs=1e-6)


def test_nothing_to_learn_from_is_zero() -> None:
    alphas, nothing = torch.rand(2, 6, 6), -torch.ones(2, 6, 6)
    for function in (l1_loss, gradient_loss):
        assert function(alphas, nothing).tolist() == [0, 0]
    assert soft_iou(alphas, nothing).tolist() == [1, 1]
    assert soft_iou(torch.zeros(1, 3, 3), torch.zeros(1, 3, 3)).item() == 1
    assert gradient_loss(torch.rand(1, 2, 2), torch.rand(1, 2, 2)).item() == 0


def test_unknown_filter() -> None:
    with pytest.raises(ValueError, match="gradient_filter must be one of sobel, forward, got 'scharr'"):
        gradient_loss(torch.rand(1, 4, 4), torch.rand(1, 4, 4), "scharr")
