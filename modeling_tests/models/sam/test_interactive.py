# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
from dataclasses import replace

import pytest
import torch

from hf_segcap.models.sam.interactive import (
    add_box_noise,
    first_prompts,
    interactive_loss,
    next_points,
    one_prompt,
    pixel_centres,
    round_schedule,
    sample_pixels,
    target_boxes,
)
from hf_segcap.models.sam.losses import mask_loss
from hf_segcap.models.sam.mask_decoder import RowMasks
from hf_segcap.models.sam.prompt_rows import PromptRows

SIDE = 64  # of the model frame


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_rows(images=1, objects=1, **prompts):
    valid = torch.ones(images, objects, dtype=torch.bool)
    return PromptRows.from_inputs(images, prompt_mask=valid, prompts_required=False, **prompts)


def discs(*places, side=16):
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([(x - cx) ** 2 + (y - cy) ** 2 <= radius**2 for cx, cy, radius in places])


class Recorder:
    """Answers with fixed parameters and remembers the prompts."""

    def __init__(self, rows, side=16, seed=0):
        self.masks = torch.randn(rows, 4, side, side, generator=seeded(seed)).requires_grad_()
        self.scores = torch.rand(rows, 4, generator=seeded(seed)).requires_grad_()
        self.seen = []

    def __call__(self, rows):
        self.seen.append(rows)
        return RowMasks(self.masks * 1, self.scores * 1)


@pytest.mark.parametrize(
    ("rounds", "points"), [(1, 0), (2, 1), (3, 2), (4, 1), (5, 2), (11, 8)]
)  # number of rounds with a new point
def test_the_schedule(rounds, points):
    for seed in range(20):
        schedule = round_schedule(rounds, seeded(seed))
        assert len(schedule) == rounds - 1 and sum(schedule) == points
        assert rounds < 4 or schedule[-1] is False
    if rounds == 11:
        places = {round_schedule(11, seeded(seed)).index(False) for seed in range(200)}
        assert places == set(range(8))
    with pytest.raises(ValueError, match="num_rounds"):
        round_schedule(0)


def test_the_rounds_as_the_decoder_sees_them():
    targets = discs((4, 4, 3), (10, 9, 4))
    decoder = Recorder(2)
    result = interactive_loss(
        decoder, make_rows(objects=2), targets, image_size=SIDE, num_rounds=11, generator=seeded(3)
    )
    seen = decoder.seen
    assert len(seen) == 11 and seen[0].masks is None and seen[0].points.shape == (2, 1, 2)
    schedule = round_schedule(11, seeded(3))  # the first draw of the generator
    numbers = [rows.points.shape[1] for rows in seen]
    assert numbers == [1 + sum(schedule[:i]) for i in range(11)] and numbers[-1] == 9
    for before, after in zip(seen, seen[1:]):
        kept = before.points.shape[1]
        assert torch.equal(after.points[:, :kept], before.points) and torch.equal(after.boxes, before.boxes)
        assert not after.masks.requires_grad and after.has_mask is None
    # first the best of three by predicted score, then always the single mask
    row = torch.arange(2)
    assert torch.equal(seen[1].masks, decoder.masks[row, 1 + decoder.scores[:, 1:].argmax(1)])
    assert all(torch.equal(rows.masks, decoder.masks[:, 0]) for rows in seen[2:])
    first = mask_loss(decoder.masks, decoder.scores, targets, torch.zeros(2, dtype=torch.bool))
    later = mask_loss(decoder.masks, decoder.scores, targets, torch.ones(2, dtype=torch.bool))
    for name, value in (("total", result.loss), ("focal", result.focal), ("dice", result.dice), ("iou", result.iou)):
        torch.testing.assert_close(value, (getattr(first, name) + 10 * getattr(later, name)).mean())
    torch.testing.assert_close(result.loss, 20 * result.focal + result.dice + result.iou)
    assert result.pred_masks.shape == (2, 4, 16, 16) and result.iou_scores.shape == (2, 4)


def test_new_points_correct_what_the_previous_mask_got_wrong():
    targets = discs((4, 4, 3), (10, 9, 4), side=32)
    for seed in range(10):
        decoder = Recorder(2, side=32, seed=seed)
        interactive_loss(decoder, make_rows(objects=2), targets, image_size=SIDE, num_rounds=3, generator=seeded(seed))
        for before, after in zip(decoder.seen, decoder.seen[1:]):
            wrong = (after.masks > 0) ^ targets
            x, y = ((after.points[:, -1] + 0.5) / 2 - 0.5).long().unbind(1)
            row = torch.arange(2)
            assert after.points.shape[1] == before.points.shape[1] + 1
            assert wrong[row, y, x].all()
            assert torch.equal(after.point_labels[:, -1] == 1, targets[row, y, x])


def test_three_masks_only_for_a_single_prompt_row_by_row():
    points = torch.zeros(1, 5, 2, 2)
    labels = torch.tensor([[[1, -2], [1, 0], [-2, -2], [-2, -2], [1, -2]]])
    has_box = torch.tensor([[False, False, True, False, True]])
    has_text = torch.tensor([[False, False, False, True, False]])
    rows = make_rows(
        objects=5,
        input_points=points,
        point_labels=labels,
        input_boxes=torch.ones(1, 5, 4),
        has_box=has_box,
        text_embeds=torch.ones(1, 5, 3),
        has_text=has_text,
    )
    assert one_prompt(rows).tolist() == [True, False, True, True, False]
    masks = torch.zeros(5, 16, 16)
    some = torch.tensor([True, False, False, False, False])
    assert one_prompt(replace(rows, masks=masks, has_mask=some)).tolist() == [False, False, True, True, False]
    assert not one_prompt(replace(rows, masks=masks)).any()

    decoder = Recorder(5)
    targets = discs(*[(5, 5, 3)] * 5)
    interactive_loss(decoder, rows, targets, image_size=SIDE, num_rounds=1).loss.backward()
    assert decoder.seen[0] is rows  # given prompts are the first round
    touched = (decoder.masks.grad != 0).flatten(2).any(2)
    assert touched[:, 0].tolist() == [False, True, False, False, True]
    assert touched.sum(1).tolist() == [1] * 5


def test_gradients_through_fed_back_masks_are_an_option():
    targets = discs((5, 5, 3))

    def gradient(detach):
        weight = torch.ones((), requires_grad=True)

        def decode(rows):
            # the answer depends on what is fed back, the parameter acts in the first round only
            base = discs((7, 7, 4)).float()[:, None].expand(-1, 4, -1, -1) - 0.4
            masks = base * weight if rows.masks is None else rows.masks[:, None].expand(-1, 4, -1, -1) * 2
            return RowMasks(masks, torch.zeros(1, 4))

        loss = interactive_loss(
            decode,
            make_rows(),
            targets,
            image_size=SIDE,
            num_rounds=2,
            detach_fed_back_masks=detach,
            generator=seeded(),
        ).loss
        loss.backward()
        return weight.grad.item()

    assert gradient(True) != pytest.approx(gradient(False))


def test_padding_alone_costs_nothing():
    rows = PromptRows.from_inputs(2, prompt_mask=torch.zeros(2, 3, dtype=torch.bool), prompts_required=False)
    decoder = Recorder(1)
    result = interactive_loss(decoder, rows, torch.zeros(1, 16, 16), image_size=SIDE, num_rounds=4)
    result.loss.backward()
    assert result.loss == 0 and decoder.masks.grad.abs().max() == 0


def test_targets_must_fit():
    with pytest.raises(ValueError, match=r"shape \(2, h, w\)"):
        interactive_loss(Recorder(2), make_rows(objects=2), torch.zeros(3, 8, 8), image_size=SIDE)
    with pytest.raises(ValueError, match="box_noise must be one of"):
        interactive_loss(Recorder(1), make_rows(), torch.zeros(1, 8, 8), image_size=SIDE, box_noise="gaussian")


def test_pixels_are_drawn_uniformly():
    mask = discs((3, 4, 3), side=9)
    draws = 20_000
    pixels = sample_pixels(mask.expand(draws, -1, -1), seeded())
    counts = torch.zeros(9, 9).index_put((pixels[:, 1], pixels[:, 0]), torch.ones(draws), accumulate=True)
    assert counts[~mask[0]].sum() == 0
    expected = draws / mask.sum()
    chi_square = ((counts[mask[0]] - expected) ** 2 / expected).sum()
    degrees = mask.sum() - 1
    assert abs(chi_square - degrees) < 4 * (2 * degrees) ** 0.5


def test_single_pixels_are_always_found():
    masks = torch.zeros(6, 5, 7, dtype=torch.bool)
    places = [(0, 0), (6, 0), (0, 4), (6, 4), (3, 2), (5, 1)]
    for row, (x, y) in enumerate(places):
        masks[row, y, x] = True
    for seed in range(5):
        assert sample_pixels(masks, seeded(seed)).tolist() == [list(place) for place in places]


def test_points_without_an_error_region():
    target = discs((4, 4, 2))
    points, labels = next_points(target, target.clone(), 16, seeded())
    x, y = points[0].long()
    assert labels.tolist() == [0] and not target[0, y, x]
    full = torch.ones(1, 16, 16, dtype=torch.bool)
    points, labels = next_points(full, full, 16, seeded())
    assert labels.tolist() == [1] and ((points >= 0) & (points <= 15)).all()
    # false positives and false negatives together: both kinds of labels appear in proportion to their areas
    predicted = torch.zeros(1, 16, 16, dtype=torch.bool)
    predicted[:, 12:] = True
    many = 4000
    _, labels = next_points(target.expand(many, -1, -1), predicted.expand(many, -1, -1), 16, seeded())
    share = target.sum() / (target.sum() + predicted.sum())
    assert labels.float().mean().item() == pytest.approx(share.item(), abs=0.03)


def test_first_prompts_are_points_and_boxes_half_and_half():
    many = 2000
    targets = discs((9, 6, 4)).expand(many, -1, -1)
    rows = first_prompts(make_rows(objects=many), targets, SIDE, "none", seeded())
    assert rows.has_box.float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert torch.equal(rows.point_labels[:, 0], torch.where(rows.has_box, -2, 1))
    assert one_prompt(rows).all()
    assert rows.boxes.unique(dim=0).tolist() == [[5 * 4, 2 * 4, 14 * 4, 11 * 4]]
    x, y = ((rows.points[:, 0] + 0.5) / 4 - 0.5).round().long().unbind(1)
    assert targets[0][y, x].all()
    empty = first_prompts(make_rows(objects=3), torch.zeros(3, 16, 16, dtype=torch.bool), SIDE, "normal", seeded())
    assert not empty.has_box.any() and (empty.point_labels == 0).all()


def test_points_are_pixel_centres_of_the_grid():
    pixels = torch.tensor([[0, 0], [3, 7]])
    assert pixel_centres(pixels, (16, 16), (16, 16)).tolist() == [[0, 0], [3, 7]]
    assert pixel_centres(pixels, (16, 8), (64, 64)).tolist() == [[3.5, 1.5], [27.5, 29.5]]
    mask = torch.zeros(2, 10, 20, dtype=torch.bool)
    mask[0, 2:5, 7:8] = True
    assert target_boxes(mask, (10, 20)).tolist() == [[7, 2, 8, 5], [0, 0, 0, 0]]
    assert target_boxes(mask, (5, 40)).tolist() == [[14, 1, 16, 2.5], [0, 0, 0, 0]]


@pytest.mark.parametrize("noise", ["normal", "uniform"])
def test_box_noise_has_the_right_size_and_bounds(noise):
    many = 4000
    boxes = torch.tensor([[300.0, 400.0, 400.0, 450.0]]).repeat(many, 1)
    moved = add_box_noise(boxes, noise, 1024, generator=seeded()) - boxes
    sides = torch.tensor([100.0, 50.0, 100.0, 50.0])
    if noise == "normal":
        assert moved.abs().max() <= 20
        spread = 0.1 * sides
        torch.testing.assert_close(moved[:, 1].std(), spread[1], rtol=0.05, atol=0)
    else:
        assert (moved.abs() <= 0.1 * sides + 1e-3).all()
        torch.testing.assert_close(moved.std(0), 0.2 * sides / 12**0.5, rtol=0.05, atol=0)
    assert moved.mean(0).abs().max() < 1
    assert len({tuple(row) for row in moved.sign().long().tolist()}) == 16  # four independent draws
    large = torch.tensor([[10.0, 10.0, 1000.0, 1010.0]]).repeat(many, 1)
    moved = add_box_noise(large, noise, 1024, torch.tensor([1005.0, 1020.0, 1005.0, 1020.0]), seeded())
    assert moved.min() >= 0 and moved[:, 2].max() == 1005 and moved[:, 3].max() <= 1020
    assert ((moved - large).abs() <= 20).all()
    assert torch.equal(add_box_noise(large, "none", 64), large)
    # the same boxes in a frame a quarter as large: a quarter of the noise
    small = add_box_noise(boxes / 4, noise, 256, generator=seeded())
    torch.testing.assert_close(4 * small, add_box_noise(boxes, noise, 1024, generator=seeded()), rtol=0, atol=1e-2)


def test_the_same_generator_gives_the_same_rounds():
    targets = discs((4, 4, 3), (10, 9, 4))

    def points(seed):
        decoder = Recorder(2)
        interactive_loss(decoder, make_rows(objects=2), targets, image_size=SIDE, num_rounds=6, generator=seeded(seed))
        return decoder.seen[-1].points

    assert torch.equal(points(1), points(1)) and not torch.equal(points(1), points(2))
