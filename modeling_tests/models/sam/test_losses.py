# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import math

import numpy as np
import pytest
import torch

from hf_segcap.models.sam.losses import dice_loss, focal_loss, mask_iou, mask_loss

ROWS, SIDE = 5, 6


def case(masks=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(ROWS, masks, SIDE, SIDE, generator=generator, dtype=dtype)
    scores = torch.rand(ROWS, masks, generator=generator, dtype=dtype)
    targets = (torch.rand(ROWS, SIDE, SIDE, generator=generator) > 0.6).to(dtype)
    return logits, scores, targets


def slow_terms(logits, score, target):
    """Focal, dice and IoU terms of one mask, pixel by pixel from the formulas."""
    focal = overlap = total = inside = union = 0.0
    for x, t in zip(np.ravel(logits), np.ravel(target)):
        p = 1 / (1 + math.exp(-x))
        correct = p if t else 1 - p
        focal += (0.25 if t else 0.75) * (1 - correct) ** 2 * -math.log(correct)
        overlap += p * t
        total += p + t
        inside += bool(x > 0 and t)
        union += bool(x > 0 or t)
    return (
        focal / target.numel(),
        1 - (2 * overlap + 1) / (total + 1),
        (float(score) - inside / max(union, 1)) ** 2,
    )


@pytest.mark.parametrize("single", [None, [True, False, False, True, False]])
def test_terms_equal_the_formulas(single):
    logits, scores, targets = case()
    flags = None if single is None else torch.tensor(single)
    loss = mask_loss(logits, scores, targets, flags)
    for row in range(ROWS):
        candidates = range(4) if single is None else ([0] if single[row] else range(1, 4))
        terms = {m: slow_terms(logits[row, m], scores[row, m], targets[row]) for m in candidates}
        best = min(terms, key=lambda m: 20 * terms[m][0] + terms[m][1])
        focal, dice, iou = terms[best]
        assert loss.best[row] == best
        np.testing.assert_allclose(
            [loss.focal[row], loss.dice[row], loss.iou[row], loss.total[row]],
            [focal, dice, iou, 20 * focal + dice + iou],
            rtol=1e-6,
        )


@pytest.mark.parametrize("single", [None, [True, False, False, True, False]])
def test_all_competing_scores_learn_on_request(single):
    logits, scores, targets = case()
    scores.requires_grad_()
    flags = None if single is None else torch.tensor(single)
    loss = mask_loss(logits, scores, targets, flags, all_iou=True)
    loss.iou.sum().backward()
    for row in range(ROWS):
        competing = range(4) if single is None else ([0] if single[row] else range(1, 4))
        errors = [slow_terms(logits[row, m], scores[row, m].detach(), targets[row])[2] for m in competing]
        assert loss.iou[row].item() == pytest.approx(np.mean(errors), rel=1e-6)
        assert (scores.grad[row] != 0).nonzero()[:, 0].tolist() == list(competing)
    others = mask_loss(logits, scores, targets, flags)
    assert torch.equal(loss.best, others.best) and torch.equal(loss.focal, others.focal)


def test_gradients_equal_finite_differences():
    logits, scores, targets = case()
    logits, scores = logits[:2].requires_grad_(), scores[:2].requires_grad_()
    flags = torch.tensor([True, False])
    assert torch.autograd.gradcheck(
        lambda x, s: mask_loss(x, s, targets[:2], flags).total.sum(), (logits, scores), eps=1e-6, atol=1e-7
    )


def test_only_the_best_mask_gets_gradients():
    logits, scores, targets = case()
    logits.requires_grad_(), scores.requires_grad_()
    single = torch.tensor([True, False, False, True, False])
    loss = mask_loss(logits, scores, targets, single)
    loss.total.sum().backward()
    touched = (logits.grad != 0).flatten(2).any(2)
    expected = torch.nn.functional.one_hot(loss.best, 4).bool()
    assert torch.equal(touched, expected) and torch.equal(scores.grad != 0, expected)
    assert set(loss.best[single].tolist()) == {0} and (loss.best[~single] > 0).all()


def test_the_lowest_mask_loss_wins_not_the_highest_score():
    targets = torch.zeros(1, SIDE, SIDE)
    targets[:, 1:4, 1:4] = 1
    good = 8 * (2 * targets - 1)
    logits = torch.stack([-good, -good, good, -good], dim=1)
    scores = torch.tensor([[0.9, 0.9, 0.1, 0.9]])
    loss = mask_loss(logits, scores, targets, torch.tensor([False]))
    assert loss.best.item() == 2 and loss.iou.item() == pytest.approx(0.81)
    assert mask_loss(logits, scores, targets, torch.tensor([True])).best.item() == 0


def test_small_logits_are_enlarged_to_the_target():
    logits, scores, _ = case(masks=1)
    targets = (torch.rand(ROWS, 24, 24) > 0.5).double()
    loss = mask_loss(logits, scores, targets)
    large = torch.nn.functional.interpolate(logits, (24, 24), mode="bilinear")
    torch.testing.assert_close(loss.focal, focal_loss(large[:, 0], targets))
    torch.testing.assert_close(loss.dice, dice_loss(large[:, 0], targets))


def test_half_precision_logits_give_float32_losses():
    logits, scores, targets = case(dtype=torch.float32)
    loss = mask_loss(logits.bfloat16(), scores.bfloat16(), targets.to(torch.uint8))
    assert loss.total.dtype == torch.float32
    torch.testing.assert_close(loss.total, mask_loss(logits, scores, targets).total, rtol=0.05, atol=0.02)


def test_empty_masks_and_targets_are_finite():
    empty = torch.full((2, 4, 4), -30.0)
    targets = torch.zeros(2, 4, 4)
    assert mask_iou(empty, targets).tolist() == [0, 0]
    assert dice_loss(empty, targets).abs().max() < 1e-6 and focal_loss(empty, targets).max() < 1e-6
    assert mask_iou(-empty, targets + 1).tolist() == [1, 1]
