# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest
import torch

from hf_segcap.data.alpha import encode_alpha
from hf_segcap.data.augmentation import LargeScaleJitter
from hf_segcap.data.matte_collator import MatteCollator, jitter_box, matte_to_frame, sample_points
from hf_segcap.masks import encode_rle
from hf_segcap.models.sam.prompt_rows import PromptRows
from hf_segcap.prompts import PADDING_LABEL
from modeling_tests.tiny import IMAGE_SIZE, random_image, tiny_processor

WIDTH, HEIGHT = 60, 44  # images become 64 x 47 in a frame of 64 x 64


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def soft(x0, y0, x1, y1, value=1.0):
    alpha = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    alpha[y0:y1, x0:x1] = value
    return alpha


def row(*alphas, image_id=0, stored=encode_alpha):
    regions = [{"box": [0, 0, 5, 5], "alpha": None if alpha is None else stored(alpha)} for alpha in alphas]
    return {"image": random_image(image_id), "image_id": image_id, "regions": regions}


def many(count, seed=0):
    corners = np.random.default_rng(seed).integers(0, 30, (count, 2))
    return [soft(x, y, x + 10, y + 12) for x, y in corners]


def test_labels_are_the_mattes_in_the_padded_frame(processor):
    alphas = [soft(0, 0, 30, 22, 0.4), soft(30, 22, 60, 44)]
    batch = MatteCollator(processor, train=False)([row(*alphas), row(alphas[0], image_id=1)])
    assert set(batch) == {
        *("pixel_values", "labels", "prompt_mask", "input_boxes", "input_points", "point_labels", "has_box")
    }
    labels = batch["labels"]
    assert batch["pixel_values"].shape == (2, 3, 64, 64)
    assert labels.shape == (2, 2, 64, 64) and labels.dtype == torch.float32
    assert batch["prompt_mask"].tolist() == [[True, True], [True, False]]
    torch.testing.assert_close(labels[0, 0, :22, :30], torch.full((22, 30), 0.4), atol=0.002, rtol=0)
    assert (labels[0, 1, 25:47, 34:] == 1).all() and (labels[0, 0, 25:47] == 0).all()
    assert (labels[0, :, 47:] == -1).all() and (labels[0, :, :47] >= 0).all()  # padding does not count
    assert (labels[1, 1] == -1).all() and torch.equal(labels[1, 0], labels[0, 0])
    arrays = MatteCollator(processor, train=False)([row(*alphas, stored=lambda alpha: alpha)])["labels"]
    torch.testing.assert_close(arrays[0], labels[0], atol=0.002, rtol=0)


def test_smaller_labels_are_means():
    alpha = np.random.default_rng(0).random((24, 32), dtype=np.float32)
    labels = matte_to_frame(alpha, (24, 32), 32, 8)
    np.testing.assert_allclose(labels[:6], alpha.reshape(6, 4, 8, 4).mean((1, 3)), atol=1e-5)
    assert (labels[6:] == -1).all()
    odd = matte_to_frame(np.ones((26, 32), dtype=np.float32), (26, 32), 32, 8)
    np.testing.assert_allclose(odd[:6], 1, atol=1e-5)
    assert (odd[6:] == -1).all()  # half of these cells is padding
    assert (matte_to_frame(np.ones((2, 64), dtype=np.float32), (1, 32), 32, 8)[0] >= 0).all()


def test_masks_stand_in_for_missing_mattes(processor):
    data = row(None, soft(30, 22, 60, 44, 0.5))
    data["regions"][0]["mask"] = encode_rle(soft(0, 0, 30, 22))
    data["regions"].append({"box": [0, 0, 4, 4], "mask": None})
    labels = MatteCollator(processor, train=False)([data])["labels"]
    assert labels.shape[1] == 2 and labels[0, 0].max() == 1 and 0.49 < labels[0, 1].max() < 0.51


def test_training_drops_mattes_nobody_can_learn_from(processor):
    whole, faint, good = soft(0, 0, 60, 44), soft(3, 3, 10, 10, 0.02), soft(10, 10, 30, 30)
    collator = MatteCollator(processor)
    batch = collator([row(whole, faint, None, soft(0, 0, 0, 0), good)])
    assert batch["prompt_mask"].tolist() == [[True]] and batch["labels"][0, 0, 20, 20] == 1
    assert collator([row(whole), row(good, image_id=1)])["pixel_values"].shape[0] == 1  # images without mattes go
    nothing = collator([row(whole), row(image_id=1)])
    assert nothing["prompt_mask"].tolist() == [[False]] and (nothing["labels"] == -1).all()
    assert nothing["input_points"].shape == (1, 1, 1, 2)
    kept = collator.for_evaluation()([row(whole), row(good, image_id=1)])
    assert kept["prompt_mask"].tolist() == [[False], [True]]


def test_sampling_is_random_and_repeatable(processor):
    rows = [row(*many(12))]
    collator = MatteCollator(processor, max_mattes=4)
    collator.set_epoch(0)
    first, again = collator(rows), collator(rows)
    assert first["labels"].shape[1] == 4
    assert all(torch.equal(first[name], again[name]) for name in first)
    collator.set_epoch(1)
    assert not torch.equal(collator(rows)["labels"], first["labels"])
    evaluation, same = collator.for_evaluation()(rows), collator.for_evaluation()(rows)
    assert evaluation["labels"].shape[1] == 12
    assert all(torch.equal(evaluation[name], same[name]) for name in evaluation)


def test_jitter_moves_image_and_mattes_together(processor):
    alpha = soft(20, 10, 44, 34)
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[alpha > 0] = [255, 0, 0]
    data = row(alpha)
    data["image"] = image
    collator = MatteCollator(processor, augmentation=LargeScaleJitter(IMAGE_SIZE, 0.5, 1.5))
    sums = set()
    for epoch in range(8):
        collator.set_epoch(epoch)
        batch = collator([data])
        if batch["prompt_mask"].any():
            red = batch["pixel_values"][0, 0]
            red = (red - red.min()) / (red.max() - red.min())
            inside = batch["labels"][0, 0] > 0.5
            assert red[inside].mean() > 0.9 and red[~inside].mean() < 0.55  # beside the image there is the mean colour
            sums.add(int(batch["labels"][0, 0].sum()))
    assert len(sums) > 4


def test_boxes_in_evaluation_are_tight(processor):
    alphas = [soft(5, 6, 25, 16), soft(40, 30, 50, 40, 0.3)]
    batch = MatteCollator(processor, train=False, prompt_kinds={"box": 1})([row(*alphas), row(alphas[1], image_id=1)])
    assert "has_box" not in batch and "input_points" not in batch
    expected = torch.tensor([[5, 6, 25, 16], [40, 30, 50, 40]]) * torch.tensor([64 / 60, 47 / 44] * 2)
    torch.testing.assert_close(batch["input_boxes"][0], expected)
    assert batch["input_boxes"][1, 1].tolist() == [0] * 4
    noisy = MatteCollator(processor, prompt_kinds={"box": 1})([row(alphas[0])])["input_boxes"][0, 0]
    assert not torch.equal(noisy, expected[0]) and (noisy - expected[0]).abs().max() <= 0.1 * 20 * 64 / 60 + 1e-4


def test_points_lie_where_they_should(processor):
    alpha = soft(5, 6, 25, 16)
    alpha[6:16, 5:9] = 0.4  # neither inside nor outside
    batch = MatteCollator(processor, max_mattes=None, prompt_kinds={"point": 1})([row(*[alpha] * 40)])
    assert "has_box" not in batch and "input_boxes" not in batch
    points, labels = batch["input_points"][0], batch["point_labels"][0]
    pixels = ((points + 0.5) * torch.tensor([60 / 64, 44 / 47])).floor().long()
    found = torch.from_numpy(alpha)[pixels[..., 1].clamp(0, 43), pixels[..., 0].clamp(0, 59)]
    assert (found[labels == 1] > 0.7).all() and (found[labels == 0] < 0.05).all()
    per_object = (labels == 1).sum(1), (labels == 0).sum(1)
    assert per_object[0].min() == 1 and per_object[0].max() == 8
    assert per_object[1].min() == 0 and per_object[1].max() == 4
    assert ((labels == 1) | (labels == 0) | (labels == PADDING_LABEL)).all()
    beside = pixels[labels == 0]
    assert beside[:, 0].min() >= 0 and beside[:, 0].max() < 30 and beside[:, 1].max() < 19  # box enlarged by half
    assert (pixels[labels == 1].float().std(0) > 2).all()


def test_kinds_are_mixed_object_by_object(processor):
    batch = MatteCollator(processor, max_mattes=None)([row(*many(40)), row(*many(3, 1), image_id=1)])
    valid, box = batch["prompt_mask"], batch["has_box"]
    point = (batch["point_labels"] == 1).any(-1)
    assert torch.equal(point.int() + box.int(), valid.int()) and 10 < box.sum() < 33
    assert (batch["point_labels"][box] == PADDING_LABEL).all()
    assert (batch["input_boxes"][~box] == 0).all()
    prompts = {name: batch[name] for name in ("input_boxes", "input_points", "point_labels", "prompt_mask", "has_box")}
    rows = PromptRows.from_inputs(2, **prompts)
    assert len(rows) == 43 and rows.has_box.sum() == box.sum()


def test_boxes_move_uniformly_by_a_tenth():
    rng = np.random.default_rng(0)
    box = np.array([100, 50, 300, 150])
    moved = np.stack([jitter_box(box, (400, 400), rng) for _ in range(2000)]) - box
    assert (np.abs(moved) <= [20, 10, 20, 10]).all()
    np.testing.assert_allclose(moved.std(axis=0), np.array([20, 10, 20, 10]) / 3**0.5, rtol=0.05)
    np.testing.assert_allclose(moved.mean(axis=0), 0, atol=1)
    assert abs(np.corrcoef(moved.T)[0, 2]) < 0.1  # so the size changes too
    assert (jitter_box([0, 0, 50, 40], (40, 50), rng) >= 0).all()
    clipped = np.stack([jitter_box([0, 0, 50, 40], (40, 50), rng) for _ in range(50)])
    assert clipped[:, 2].max() <= 50 and clipped[:, 3].max() <= 40


def test_see_through_objects_have_points_too():
    pixels, labels = sample_points(soft(5, 6, 25, 16, 0.3), np.random.default_rng(0), negatives=(2, 2))
    assert (labels == 1).any() and (labels == 0).sum() == 2
    full = np.ones((10, 10), dtype=np.float32)
    assert (sample_points(full, np.random.default_rng(0), negatives=(2, 2))[1] == 1).all()
    with pytest.raises(ValueError, match="0 everywhere"):
        sample_points(full * 0, np.random.default_rng(0))
    assert pixels[labels == 1, 0].min() >= 5


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_mattes": 0}, "max_mattes"),
        ({"label_size": 0}, "label_size"),
        ({"max_area": 0}, "max_area"),
        ({"min_area": 0}, "min_area"),
        ({"box_jitter": 0.5}, "box_jitter"),
        ({"positives": (0, 3)}, "positives"),
        ({"negatives": (4, 3)}, "negatives"),
        ({"prompt_kinds": {"mask": 1}}, "prompt_kinds"),
    ],
)
def test_bad_settings_are_refused(processor, kwargs, message):
    with pytest.raises(ValueError, match=message):
        MatteCollator(processor, **kwargs)


def test_bad_rows_name_the_place(processor):
    collator = MatteCollator(processor)
    with pytest.raises(ValueError, match=r"row 1 of the batch \(image_id=7\), region 0: the matte has 10 x 20"):
        collator([row(), row(np.ones((10, 20), dtype=np.float32), image_id=7)])
    with pytest.raises(ValueError, match="region 0: expected .* from 0.0 to 255.0"):
        collator([row(soft(0, 0, 9, 9, 255.0), stored=lambda alpha: alpha)])
    with pytest.raises(ValueError, match="empty list"):
        collator([])
