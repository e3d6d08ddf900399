# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Batches for the label converter: fine and coarse objects, cuts, the frame, training and evaluation rules."""

import numpy as np
import pytest
import torch

from hf_segcap.data.augmentation import LargeScaleJitter
from hf_segcap.data.label_collator import LabelCollator
from hf_segcap.data.matte_degradations import training_pair
from hf_segcap.masks import encode_rle
from modeling_tests.tiny import IMAGE_SIZE, random_image, tiny_label_converter_processor

PROCESSOR = tiny_label_converter_processor()


def soft_disc(size=(64, 64), centre=(30, 28), radius=18, softness=4):
    ys, xs = np.indices(size)
    distance = np.hypot(ys - centre[0], xs - centre[1])
    return np.clip((radius - distance) / softness + 0.5, 0, 1).astype(np.float32)


def row(regions, size=(64, 64), image_id=0):
    return {"image": random_image(image_id, size[::-1]), "image_id": image_id, "regions": regions}


def fine(**kwargs):
    return {"box": [0, 0, 9, 9], "mask": None, "alpha": soft_disc(**kwargs)}


def coarse(**kwargs):
    return {"box": [0, 0, 9, 9], "mask": encode_rle(soft_disc(**kwargs) > 0.5)}


def test_fine_objects_get_degraded_masks_and_coarse_ones_their_own():
    collator = LabelCollator(PROCESSOR, sga_probability=0)
    matte, changed = soft_disc(), 0
    for _ in range(6):
        without = {**coarse(), "alpha": None, "coarse": None}  # as tables with these columns have it
        batch = collator([row([fine()]), row([without], image_id=1), row([{**fine(), "coarse": True}], image_id=2)])
        masks, labels = batch["coarse_masks"][:, 0].numpy(), batch["labels"][:, 0].numpy()
        assert set(np.unique(masks)) == {0, 1} and masks.dtype == np.float32
        np.testing.assert_allclose(labels[0], matte, atol=1e-6)
        changed += int((masks[0] != (matte > 0.5)).any())
        for i in (1, 2):  # coarse, by having no matte or by saying so
            assert np.array_equal(masks[i], matte > 0.5) and np.array_equal(labels[i], masks[i])
    assert changed >= 4


def test_the_cut_is_in_mask_and_matte_and_only_in_training():
    collator = LabelCollator(PROCESSOR, sga_probability=1)
    batch = collator([row([coarse()], image_id=i) for i in range(4)])
    whole = soft_disc() > 0.5
    for mask, label in zip(batch["coarse_masks"][:, 0].numpy(), batch["labels"][:, 0].numpy()):
        assert np.array_equal(mask, label) and 0.1 * whole.sum() <= mask.sum() < whole.sum()
    evaluation = collator.for_evaluation()([row([coarse()])])
    assert np.array_equal(evaluation["coarse_masks"][0, 0].numpy(), whole)
    assert evaluation["pixel_values"].shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_degradation_happens_at_the_size_of_the_model():
    """What the model sees is what `training_pair` makes of the matte in the model frame."""
    collator = LabelCollator(PROCESSOR, train=False)
    large = {"box": [0, 0, 9, 9], "alpha": soft_disc((128, 96), (60, 50), 36, 8)}
    rows = [row([large], (128, 96))]
    batch = collator(rows)
    height, width = 64, 48
    inside = batch["labels"][0, 0, :height, :width].numpy()
    expected, _ = training_pair(inside, collator.generator(rows), sga_probability=0)
    assert np.array_equal(batch["coarse_masks"][0, 0, :height, :width].numpy(), expected)
    assert (batch["labels"][0, 0, :, width:] == -1).all() and not batch["coarse_masks"][0, 0, :, width:].any()


def test_training_draws_masks_and_evaluation_takes_all_in_order():
    regions = [
        fine(centre=(20, 20), radius=8),
        coarse(centre=(40, 40), radius=10),
        {"box": [1, 1, 2, 2], "mask": None},
    ]
    collator = LabelCollator(PROCESSOR, max_masks=1)
    seen = {float(collator([row(regions)])["labels"][0, 0, 40, 40]) for _ in range(12)}
    assert seen == {0.0, 1.0}
    batch = LabelCollator(PROCESSOR, train=False)([row(regions), row([coarse()], image_id=1)])
    assert batch["prompt_mask"].tolist() == [[True, True], [True, False]]
    assert batch["labels"][0, 1, 40, 40] == 1 and (batch["labels"][1, 1] == -1).all()
    again = LabelCollator(PROCESSOR, train=False)([row(regions), row([coarse()], image_id=1)])
    assert all(torch.equal(again[name], batch[name]) for name in batch)


def test_images_without_objects():
    empty = row([{"box": [1, 1, 2, 2], "mask": encode_rle(np.zeros((64, 64), dtype=bool))}], image_id=1)
    batch = LabelCollator(PROCESSOR)([empty, row([coarse()])])
    assert batch["pixel_values"].shape[0] == 1 and batch["prompt_mask"].all()
    batch = LabelCollator(PROCESSOR)([empty, empty])
    assert batch["pixel_values"].shape[0] == 1 and not batch["prompt_mask"].any()
    small = coarse(centre=(30, 30), radius=2)
    assert not LabelCollator(PROCESSOR, min_area=100)([row([small])])["prompt_mask"].any()
    assert not LabelCollator(PROCESSOR, max_area=0.1)([row([coarse()])])["prompt_mask"].any()


def test_the_jitter_moves_image_and_matte_together():
    collator = LabelCollator(
        PROCESSOR, augmentation=LargeScaleJitter(IMAGE_SIZE, 0.5, 0.5, flip_probability=0), sga_probability=0
    )
    batch = collator([row([coarse()])])
    ys, xs = batch["coarse_masks"][0, 0].nonzero().T
    assert 13 < ys.float().mean() < 17 and 12 < xs.float().mean() < 16


def test_wrong_use():
    for options in ({"max_masks": 0}, {"min_area": 0}, {"max_area": 0.0}, {"sga_probability": 1.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            LabelCollator(PROCESSOR, **options)
    with pytest.raises(ValueError, match="empty list"):
        LabelCollator(PROCESSOR)([])
    wrong = {"box": [0, 0, 9, 9], "alpha": soft_disc((20, 20))}
    with pytest.raises(ValueError, match=r"image_id=7.*region 0"):
        LabelCollator(PROCESSOR)([row([wrong], image_id=7)])
