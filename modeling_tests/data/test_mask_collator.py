# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest
import torch

from hf_segcap.data.augmentation import LargeScaleJitter
from hf_segcap.data.mask_collator import MaskCollator
from hf_segcap.masks import encode_rle
from hf_segcap.model_frame import masks_to_frame
from modeling_tests.tiny import IMAGE_SIZE, random_image, tiny_processor

WIDTH, HEIGHT = 60, 44  # images become 64 x 47 in a frame of 64 x 64


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def rectangle(x0, y0, x1, y1):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def row(*masks, image_id=0):
    return {
        "image": random_image(image_id),
        "image_id": image_id,
        "regions": [{"box": [0, 0, 5, 5], "mask": None if mask is None else encode_rle(mask)} for mask in masks],
    }


def rectangles(count, seed=0):
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 30, (count, 2))
    return [rectangle(x, y, x + 10, y + 12) for x, y in corners]


class Embedder:
    """Remembers what it is asked, leaves masks out that have fewer than 50 pixels."""

    width = 3

    def __init__(self):
        self.seen = []

    def embed_images(self, images, masks, rng=None):
        self.seen.append((images, masks, rng))
        for stack in masks:
            areas = torch.as_tensor(stack).flatten(1).sum(1)
            yield areas[:, None].float().expand(-1, 3), areas >= 50


def test_labels_are_the_masks_in_the_padded_frame(processor):
    masks = [rectangle(0, 0, 30, 22), rectangle(30, 22, 60, 44)]
    batch = MaskCollator(processor, train=False)([row(*masks), row(masks[0], image_id=1)])
    assert set(batch) == {"pixel_values", "labels", "prompt_mask"}
    assert batch["pixel_values"].shape == (2, 3, 64, 64)
    assert batch["labels"].shape == (2, 2, 64, 64) and batch["labels"].dtype == torch.uint8
    assert batch["prompt_mask"].tolist() == [[True, True], [True, False]]
    left, right = (batch["labels"][0, i].bool() for i in range(2))
    assert left[:23, :32].all() and left.sum() in (23 * 32, 24 * 32)
    assert right[24:47, 32:].all() and not right[47:].any()
    assert batch["labels"][1, 1].sum() == 0
    assert torch.equal(batch["labels"][1, 0], batch["labels"][0, 0])


def test_each_mask_is_asked_for_several_times(processor):
    masks = rectangles(3)
    batch = MaskCollator(processor, max_masks=2, prompts_per_mask=3, prompt_kinds={"point": 1.0})([row(*masks)])
    labels, points = batch["labels"][0], batch["input_points"][0, :, 0].long()
    assert labels.shape[0] == 6 and batch["prompt_mask"].all()
    distinct, counts = labels.flatten(1).unique(dim=0, return_counts=True)
    assert len(distinct) == 2 and counts.tolist() == [3, 3]
    assert all(label[y, x] for label, (x, y) in zip(labels, points))
    assert len(points.unique(dim=0)) > 2  # each time with a point of its own
    once = MaskCollator(processor, train=False, prompts_per_mask=3)([row(*masks)])
    assert once["labels"].shape[1] == 3  # an evaluation asks once


def test_smaller_labels_keep_small_objects(processor):
    masks = [rectangle(0, 0, 60, 22), rectangle(31, 17, 32, 18)]
    labels = MaskCollator(processor, train=False, label_size=8)([row(*masks)])["labels"][0]
    assert labels.shape == (2, 8, 8)
    assert labels[0, :3].all() and not labels[0, 3:].any()
    assert labels[1].sum() == 1 and labels[1, 2, 4] == 1


def test_shares_of_cells_by_hand():
    mask = np.zeros((4, 6), dtype=bool)
    mask[1:3, 2:6] = True
    # the image covers 8 x 12 of a frame of 12 pixels, in 3 cells of 4 pixels
    share = masks_to_frame(mask, (8, 12), 12, 3)
    np.testing.assert_allclose(share, [[0, 0.5, 0.5], [0, 0.5, 0.5], [0, 0, 0]], atol=1e-6)
    rng = np.random.default_rng(0)
    random = rng.random((37, 53)) > 0.5
    fine = np.kron(random, np.ones((16, 16)))  # 592 x 848 of a frame of 848, cut into 16 cells of 53
    padded = np.zeros((848, 848))
    padded[:592] = fine
    expected = padded.reshape(16, 53, 16, 53).mean((1, 3))
    np.testing.assert_allclose(masks_to_frame(random, (592, 848), 848, 16), expected, atol=1e-5)


def test_training_drops_masks_nobody_can_learn_from(processor):
    whole, most = rectangle(0, 0, 60, 44), rectangle(0, 0, 58, 44)
    tiny, good = rectangle(3, 3, 5, 5), rectangle(10, 10, 30, 30)
    collator = MaskCollator(processor, min_area=5)
    batch = collator([row(whole, most, tiny, None, rectangle(0, 0, 0, 0), good)])
    assert batch["prompt_mask"].tolist() == [[True]]
    assert batch["labels"][0, 0, 20, 20] == 1 and batch["labels"][0, 0].sum() < 500
    assert collator([row(whole), row(good, image_id=1)])["pixel_values"].shape[0] == 1  # images without masks go
    nothing = collator([row(whole), row(image_id=1)])
    assert nothing["prompt_mask"].tolist() == [[False]] and nothing["labels"].sum() == 0
    kept = collator.for_evaluation()([row(whole), row(good, image_id=1)])
    assert kept["prompt_mask"].tolist() == [[False], [True]]
    assert MaskCollator(processor, max_area=1.0)([row(whole, most)])["prompt_mask"].sum() == 2


def test_sampling_is_random_and_repeatable(processor):
    rows = [row(*rectangles(12))]
    collator = MaskCollator(processor, max_masks=4, prompt_kinds={"point": 1, "box": 1})
    collator.set_epoch(0)
    first, again = collator(rows), collator(rows)
    assert first["labels"].shape[1] == 4
    assert all(torch.equal(first[name], again[name]) for name in first)
    collator.set_epoch(1)
    assert not torch.equal(collator(rows)["labels"], first["labels"])
    evaluation = collator.for_evaluation()(rows)
    assert evaluation["labels"].shape[1] == 12
    everything = MaskCollator(processor, max_masks=None, train=False)(rows)
    assert torch.equal(evaluation["labels"], everything["labels"])  # in their order


def test_jitter_moves_image_and_masks_together(processor):
    red = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    mask = rectangle(20, 10, 44, 34)
    red[mask] = [255, 0, 0]
    data = row(mask)
    data["image"] = red
    collator = MaskCollator(processor, augmentation=LargeScaleJitter(IMAGE_SIZE, 0.5, 1.5))
    sums = set()
    for epoch in range(8):
        collator.set_epoch(epoch)
        batch = collator([data])
        if not batch["prompt_mask"].any():
            continue
        label, pixels = batch["labels"][0, 0].bool(), batch["pixel_values"][0, 0]
        inside, outside = pixels[label].mean(), pixels[~label].mean()
        assert inside > outside + 2
        sums.add(int(label.sum()))
    assert len(sums) > 4


@pytest.mark.parametrize("kind", ["point", "box"])
def test_one_kind_of_prompt(processor, kind):
    masks = [rectangle(5, 6, 25, 16), rectangle(40, 30, 50, 40)]
    batch = MaskCollator(processor, train=False, prompt_kinds={kind: 1.0})([row(*masks), row(masks[1], image_id=1)])
    assert "has_box" not in batch and "has_text" not in batch
    if kind == "box":
        expected = torch.tensor([[5, 6, 25, 16], [40, 30, 50, 40]]) * torch.tensor([64 / 60, 47 / 44] * 2)
        torch.testing.assert_close(batch["input_boxes"][0], expected)
        assert batch["input_boxes"][1, 1].tolist() == [0] * 4 and "input_points" not in batch
        noisy = MaskCollator(processor, prompt_kinds={"box": 1.0})([row(*masks)])["input_boxes"]
        assert not torch.equal(noisy.sort(1).values[0], expected) and (noisy[..., 2] <= 64).all()
        return
    assert batch["input_points"].shape == (2, 2, 1, 2)
    assert batch["point_labels"].tolist() == [[[1], [1]], [[1], [-2]]]
    for i in range(2):
        x, y = (batch["input_points"][0, i, 0] + 0.5).tolist()
        assert masks[i][int(y * 44 / 47), int(x * 60 / 64)]


def test_a_share_of_the_boxes_is_tight(processor):
    masks = rectangles(60)

    def tight(share, **options):
        collator = MaskCollator(processor, max_masks=None, prompt_kinds={"box": 1.0}, tight_boxes=share, **options)
        boxes = collator([row(*masks)])["input_boxes"][0]
        exact = MaskCollator(processor, train=False, prompt_kinds={"box": 1.0})([row(*masks)])["input_boxes"][0]
        return float((boxes[:, None] == exact[None]).all(2).any(1).float().mean())

    assert tight(0.0) < 0.1 and 0.3 < tight(0.5) < 0.7 and tight(1.0) == 1.0
    assert tight(0.0, box_noise="none") == 1.0


def test_kinds_are_mixed_object_by_object(processor):
    rows = [row(*rectangles(40)), row(*rectangles(3, 1), image_id=1)]
    embedder = Embedder()
    batch = MaskCollator(
        processor, prompt_kinds={"point": 1, "box": 1, "text": 2}, text_embedder=embedder, max_masks=None
    )(rows)
    valid = batch["prompt_mask"]
    point, box, text = batch["point_labels"][..., 0] == 1, batch["has_box"], batch["has_text"]
    assert torch.equal(point.int() + box.int() + text.int(), valid.int())
    assert 10 < text.sum() < 32 and 4 < box.sum() < 20 and 4 < point.sum() < 20
    assert (batch["text_embeds"][text] == 120).all() and (batch["text_embeds"][~text] == 0).all()
    (images, stacks, rng), *_ = embedder.seen
    assert images[0].shape == (HEIGHT, WIDTH, 3) and len(stacks[0]) + len(stacks[1]) == text.sum() and rng is not None


def test_masks_that_clip_cannot_see_have_no_text_prompt(processor):
    small, large = rectangle(3, 3, 8, 8), rectangle(10, 10, 30, 30)
    embedder = Embedder()
    collator = MaskCollator(
        processor, train=False, prompt_kinds={"text": 1}, text_embedder=embedder, augmentation=LargeScaleJitter(64)
    )
    batch = collator([row(small, large), row(image_id=1)])
    assert batch["prompt_mask"].tolist() == [[True], [False]] and "has_text" not in batch
    assert batch["text_embeds"].tolist() == [[[400.0] * 3], [[0.0] * 3]]
    assert embedder.seen[0][2] is None  # evaluation: no draws
    assert batch["labels"][0, 0].sum() > 300


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_masks": 0}, "max_masks"),
        ({"label_size": 0}, "label_size"),
        ({"max_area": 0}, "max_area"),
        ({"min_area": 0}, "min_area"),
        ({"box_noise": "some"}, "box_noise"),
        ({"tight_boxes": 1.5}, "tight_boxes"),
        ({"prompt_kinds": {"mask": 1}}, "prompt_kinds"),
        ({"prompt_kinds": {"text": 1}}, "text_embedder"),
        ({"prompt_kinds": {"box": 1}, "text_embedder": Embedder()}, "text_embedder"),
        ({"text_embedder": Embedder()}, "prompt_kinds"),
    ],
)
def test_bad_settings_are_refused(processor, kwargs, message):
    with pytest.raises(ValueError, match=message):
        MaskCollator(processor, **kwargs)


def test_bad_rows_name_the_place(processor):
    with pytest.raises(ValueError, match=r"row 1 of the batch \(image_id=7\): a mask has 10 x 20"):
        MaskCollator(processor)([row(), row(np.ones((10, 20), dtype=bool), image_id=7)])
    damaged = row(np.ones((4, 4), dtype=bool), image_id=9)
    damaged["regions"][0]["mask"] = {"size": [4, 4], "counts": "abc"}
    with pytest.raises(ValueError, match=r"row 0 of the batch \(image_id=9\): a mask is no run-length code"):
        MaskCollator(processor)([damaged])
    with pytest.raises(ValueError, match="empty list"):
        MaskCollator(processor)([])
