# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hf_segcap.data.augmentation import LargeScaleJitter
from hf_segcap.data.collator import RegionCollator
from hf_segcap.masks import encode_rle
from modeling_tests.tiny import IMAGE_SIZE, LOW_RES_MASK_SIZE, random_image, tiny_processor

WORDS = ["red", "green", "blue", "yellow", "white", "black", "grey", "brown"]


HALF_SIZE = encode_rle(np.ones((22, 30), dtype=bool))


def region(box, *phrases, **extra):
    return {"box": list(box), "phrases": list(phrases) or ["a cat"], "mask": None, "category": None, **extra}


def row(image_id=0, regions=(), size=(60, 44), **extra):
    return {"image": random_image(image_id, size), "image_id": image_id, "regions": list(regions), **extra}


def many(count):
    """`count` regions of one word each, told apart by the left side of their box."""
    return [region((i, 2, i + 20, 30), WORDS[i]) for i in range(count)]


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def captions(processor, batch):
    return processor.post_process_captions(batch["labels"], batch["prompt_mask"])


def test_shapes_and_padding_of_a_ragged_batch(processor):
    batch = RegionCollator(processor, train=False)([row(0, many(3)), row(1, many(1))])
    assert batch["pixel_values"].shape == (2, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert batch["prompt_mask"].tolist() == [[True] * 3, [True, False, False]]
    assert batch["input_boxes"].shape == (2, 3, 4) and batch["input_boxes"].dtype == torch.float32
    assert batch["labels"].shape == batch["input_ids"].shape == batch["attention_mask"].shape == (2, 3, 2)
    assert (batch["labels"][1, 1:] == -100).all() and (batch["labels"][0] != -100).all()
    assert batch["task"].tolist() == [1, 1]
    assert captions(processor, batch) == [["red", "green", "blue"], ["red"]]
    assert set(batch) == {
        *("pixel_values", "input_boxes", "prompt_mask", "input_ids", "attention_mask", "labels", "task")
    }


def test_boxes_are_scaled_to_the_model_frame(processor):
    batch = RegionCollator(processor, train=False)([row(regions=[region((15, 11, 45, 33))], size=(60, 44))])
    ratio = torch.tensor([64 / 60, 47 / 44] * 2)  # 44 * 64 / 60 = 46.9 -> 47
    torch.testing.assert_close(batch["input_boxes"][0, 0], torch.tensor([15.0, 11.0, 45.0, 33.0]) * ratio)


def test_training_clips_and_drops_degenerate_boxes(processor):
    regions = [
        region((-10, -5, 30, 100), "red"),  # clipped to the image of 60 x 44
        region((60, 10, 80, 20), "green"),  # nothing left of it
        region((5, 5, 5, 20), "blue"),  # no width
        region((20, 30, 10, 40), "white"),  # inverted
    ]
    batch = RegionCollator(processor)([row(regions=regions)])
    assert captions(processor, batch) == [["red"]]
    torch.testing.assert_close(batch["input_boxes"][0, 0], torch.tensor([0.0, 0.0, 30 * 64 / 60, 47.0]))


def test_evaluation_keeps_everything_in_order_with_the_first_phrase(processor):
    regions = [region((1, 1, 1, 9), "red", "green"), *many(7)]
    batch = RegionCollator(processor, max_regions=2, train=False)([row(regions=regions)])
    assert captions(processor, batch) == [["red", *WORDS[:7]]]
    assert batch["input_boxes"][0, 1:, 0].tolist() == sorted(batch["input_boxes"][0, 1:, 0].tolist())


def test_training_cuts_in_random_order_and_keeps_boxes_with_their_captions(processor):
    collator = RegionCollator(processor, max_regions=3)
    seen = set()
    for epoch in range(6):
        collator.set_epoch(epoch)
        batch = collator([row(regions=many(8))])
        words = captions(processor, batch)[0]
        assert len(words) == 3
        lefts = (batch["input_boxes"][0, :, 0] * 60 / 64).round().int().tolist()
        assert [WORDS[left] for left in lefts] == words
        seen.add(tuple(words))
    assert len(seen) == 6


def test_every_phrase_is_drawn(processor):
    collator = RegionCollator(processor)
    drawn = {
        captions(processor, collator([row(regions=[region((1, 1, 9, 9), "red", "green")])]))[0][0] for _ in range(20)
    }
    assert drawn == {"red", "green"}


def test_images_without_usable_regions_are_left_out_of_training_only(processor):
    rows = [row(0, []), row(1, many(2)), row(2, [region((70, 1, 90, 9))])]
    train = RegionCollator(processor)(rows)
    assert train["pixel_values"].shape[0] == 1 and train["prompt_mask"].tolist() == [[True, True]]
    evaluation = RegionCollator(processor, train=False)(rows)
    assert evaluation["pixel_values"].shape[0] == 3
    assert evaluation["prompt_mask"].sum(1).tolist() == [0, 2, 1]


@pytest.mark.parametrize("train", [True, False])
def test_a_batch_without_any_region_has_nothing_to_predict(processor, train):
    batch = RegionCollator(processor, train=train, with_masks=True)([row(0, []), row(1, [])])
    assert not batch["prompt_mask"].any()
    assert (batch["labels"] == -100).all()
    assert batch["target_masks"].isnan().all()
    assert batch["pixel_values"].shape[0] == (1 if train else 2)


def test_draws_depend_on_seed_epoch_and_content_only(processor):
    rows = [row(0, many(8)), row(1, many(6))]

    def draw(seed, epoch, rows=rows):
        collator = RegionCollator(processor, max_regions=4, augmentation=LargeScaleJitter(IMAGE_SIZE), seed=seed)
        collator([row(5, many(3))])  # what was collated before must not matter
        collator.set_epoch(epoch)
        return collator(rows)

    first = draw(0, 1)
    again = draw(0, 1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pixel_values"], draw(0, 2)["pixel_values"])
    assert not torch.equal(first["pixel_values"], draw(1, 1)["pixel_values"])


def test_rows_without_ids_and_boxes_have_draws_of_their_own(processor, tmp_path):
    def seed(image):
        collator = RegionCollator(processor)
        collator.set_epoch(0)
        return collator.generator([{"image": image, "regions": [{}]}]).random()

    images = [random_image(number, (44, 60)) for number in range(3)]
    assert (
        len({seed(image) for image in images}) == len({seed(name) for name in ("a.png", tmp_path / "b.png")}) + 1 == 3
    )
    assert seed(images[0]) == seed(images[0].copy())


def test_without_epochs_the_draws_still_vary(processor):
    collator = RegionCollator(processor, max_regions=4)
    ids = {tuple(collator([row(regions=many(8))])["input_ids"].flatten().tolist()) for _ in range(5)}
    assert len(ids) > 1


def test_workers_draw_the_same_and_follow_the_epoch(processor):
    rows = [row(i, many(8)) for i in range(4)]

    def epochs(workers):
        collator = RegionCollator(processor, max_regions=4)
        loader = DataLoader(
            rows, batch_size=2, collate_fn=collator, num_workers=workers, persistent_workers=workers > 0
        )
        result = []
        for epoch in range(2):
            collator.set_epoch(epoch)
            result.append(torch.cat([batch["input_boxes"] for batch in loader]))
        return result

    alone, together = epochs(0), epochs(2)
    assert torch.equal(alone[0], together[0]) and torch.equal(alone[1], together[1])
    assert not torch.equal(alone[0], alone[1])


def test_jitter_moves_boxes_into_the_square_frame(processor):
    # A box in the middle of the image and its colour: wherever the jitter puts them, they stay together.
    image = np.zeros((44, 60, 3), np.uint8)
    image[10:34, 15:45] = (255, 0, 0)
    data = {"image": image, "image_id": 0, "regions": [region((15, 10, 45, 34))]}
    collator = RegionCollator(processor, augmentation=LargeScaleJitter(IMAGE_SIZE, 0.6, 1.2))
    for epoch in range(5):
        collator.set_epoch(epoch)
        batch = collator([data])
        x0, y0, x1, y1 = batch["input_boxes"][0, 0].round().int().tolist()
        inside = batch["pixel_values"][0, 0, y0 + 2 : y1 - 2, x0 + 2 : x1 - 2]
        assert inside.min() > 2.2  # (1 - 0.485) / 0.229 = 2.25


def test_integer_boxes_are_truncated_by_the_jitter_and_float_boxes_are_not(processor):
    collator = RegionCollator(processor, augmentation=LargeScaleJitter(IMAGE_SIZE, 0.77, 0.77, flip_probability=0))
    scale = round(60 * 64 * 0.77 / 60) / 60
    whole = collator([row(regions=[region((7, 9, 40, 30))])])["input_boxes"][0, 0, 0]
    fraction = collator([row(regions=[region((7.5, 9, 40, 30))])])["input_boxes"][0, 0, 0]
    assert whole == int(7 * scale)
    torch.testing.assert_close(fraction, torch.tensor(7.5 * scale, dtype=torch.float32))


def test_target_masks_are_in_the_padded_frame(processor):
    mask = np.zeros((44, 60), np.uint8)
    mask[:22, :30] = 1
    regions = [region((0, 0, 30, 22), mask=encode_rle(mask)), region((5, 5, 9, 9))]
    targets = RegionCollator(processor, train=False, with_masks=True)([row(regions=regions)])["target_masks"]
    assert targets.shape == (1, 2, LOW_RES_MASK_SIZE, LOW_RES_MASK_SIZE)
    assert targets[0, 1].isnan().all()
    # the mask ends at 30 * 64 / 60 = 32 and 22 * 47 / 44 = 23.5 of 64 pixels, at 16 and 11.75 of 32 cells
    expected = torch.zeros(32, 32)
    expected[:12, :16] = 1
    assert torch.equal(targets[0, 0], expected)


def test_target_masks_follow_the_jitter(processor):
    mask = np.zeros((44, 60), np.uint8)
    mask[10:34, 15:45] = 1
    data = row(regions=[region((15, 10, 45, 34), mask=encode_rle(mask))])
    collator = RegionCollator(processor, augmentation=LargeScaleJitter(IMAGE_SIZE, 0.6, 1.2), with_masks=True)
    for epoch in range(5):
        collator.set_epoch(epoch)
        batch = collator([data])
        ys, xs = batch["target_masks"][0, 0].nonzero(as_tuple=True)
        found = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) * (IMAGE_SIZE / LOW_RES_MASK_SIZE)
        assert (found - batch["input_boxes"][0, 0]).abs().max() <= 3


def test_point_prompts_lie_in_the_mask_or_the_box(processor):
    mask = np.zeros((44, 60), np.uint8)
    mask[30:40, 50:58] = 1
    regions = [region((0, 0, 60, 44), "red", mask=encode_rle(mask)), region((2, 3, 12, 13), "green")]
    collator = RegionCollator(processor, prompt_kinds={"point": 1.0})
    assert captions(processor, collator([row(regions=regions)])) == [["red"]]  # trained on masks where there are some
    assert captions(processor, collator([row(regions=regions[1:])])) == [["green"]]
    batch = collator.for_evaluation()([row(regions=regions)])
    assert "input_boxes" not in batch and batch["point_labels"].tolist() == [[[1], [1]]]
    for word, (x, y) in zip(captions(processor, batch)[0], (batch["input_points"][0, :, 0] / (64 / 60)).tolist()):
        x0, y0, x1, y1 = (50, 30, 58, 40) if word == "red" else (2, 3, 12, 13)
        assert x0 - 0.1 <= x <= x1 and y0 - 0.1 <= y <= y1 + 0.2


def test_prompt_kinds_are_drawn_by_probability(processor):
    collator = RegionCollator(processor, prompt_kinds={"box": 3, "point": 1})
    boxes = sum("input_boxes" in collator([row(regions=many(1))]) for _ in range(60))
    assert 30 < boxes < 58


def test_tasks_become_indices(processor):
    rows = [row(0, many(1), task="recognition"), row(1, many(1), task=None)]
    assert RegionCollator(processor)(rows)["task"].tolist() == [0, 1]
    assert RegionCollator(processor, task="recognition")(rows[1:])["task"].tolist() == [0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_regions": 0}, "max_regions"),
        ({"task": "detect"}, "task must be one of"),
        ({"prompt_kinds": {"mask": 1.0}}, "prompt_kinds"),
        ({"prompt_kinds": {"box": 0.0}}, "prompt_kinds"),
        ({"prompt_kinds": {}}, "prompt_kinds"),
        ({"features": object(), "augmentation": LargeScaleJitter(64)}, "drop either"),
    ],
)
def test_bad_settings_are_refused(processor, kwargs, message):
    with pytest.raises(ValueError, match=message):
        RegionCollator(processor, **kwargs)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(7, [region((1, 2, 3))]), r"image_id=7\), region 0: expected a .box. of 4 finite"),
        (row(7, [{**region((1, 2, 3, 4)), "box": "left"}]), "region 0: expected a .box. of 4 finite .* got 'left'"),
        (row(7, [region((1, 2, float("nan"), 4))]), "region 0: expected a .box."),
        (row(7, [region((1, 2, 30, 40), "a"), {**region((1, 2, 30, 40)), "phrases": "red"}]), "region 1: phrases"),
        (row(7, [{**region((1, 2, 30, 40)), "phrases": []}]), "region 0: phrases"),
        (row(7, many(1), task="x"), "row 0 of the batch .image_id=7.: task"),
        (
            row(7, [region((1, 2, 30, 40), mask=HALF_SIZE)]),
            "region 0: a mask has 22 x 30 .* pixels, the image 44 x 60",
        ),
    ],
)
def test_bad_rows_name_the_place(processor, bad, message):
    with pytest.raises(ValueError, match=message):
        RegionCollator(processor, with_masks=True)([bad])


def test_an_empty_list_of_rows_is_refused(processor):
    with pytest.raises(ValueError, match="empty list"):
        RegionCollator(processor)([])
