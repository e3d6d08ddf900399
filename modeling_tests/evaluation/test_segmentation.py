# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import builtins
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_segcap.evaluation import segmentation
from hf_segcap.evaluation.segmentation import evaluate_masks, evaluate_text, farthest_error_points, farthest_points
from hf_segcap.masks import encode_rle, upscale_masks
from hf_segcap.models.sam.mask_decoder import RowMasks
from hf_segcap.training.tiny_clip import colour_and_shape
from modeling_tests.tiny import IMAGE_SIZE, random_image, tiny_processor

pytest.importorskip("scipy")


def slow_farthest(region):
    """The set pixel whose nearest unset pixel (or place outside the image) is farthest away, first in reading order."""
    height, width = region.shape
    unset = [(y, x) for y in range(-1, height + 1) for x in range(-1, width + 1)]
    unset = np.array([(y, x) for y, x in unset if not (0 <= y < height and 0 <= x < width and region[y, x])])
    best, place = -1.0, None
    for y, x in zip(*np.nonzero(region)):
        distance = np.hypot(*(unset - [y, x]).T).min()
        if distance > best + 1e-9:
            best, place = distance, [int(x), int(y)]
    return place, best


def test_farthest_points_equal_a_search():
    rng = np.random.default_rng(0)
    coarse = rng.random((6, 5, 4)) > 0.4
    regions = torch.from_numpy(coarse.repeat(3, axis=1).repeat(3, axis=2))
    assert farthest_points(regions).tolist() == [slow_farthest(region.numpy())[0] for region in regions]
    whole = torch.ones(1, 5, 9, dtype=torch.bool)  # the border of the image is a boundary
    assert farthest_points(whole).tolist() == [[2, 2]]


def test_error_points_come_from_the_deeper_error():
    target, predicted = torch.zeros(2, 20, 20, dtype=torch.bool), torch.zeros(2, 20, 20, dtype=torch.bool)
    target[:, 2:9, 2:9] = True
    predicted[0, 2:9, 6:9] = True  # 4 columns are missing
    predicted[1] = target[1]
    predicted[1, 12:17, 10:15] = True
    points = farthest_error_points(target, predicted).tolist()
    assert points == [slow_farthest((target ^ predicted)[i].numpy())[0] for i in range(2)]
    assert not target[1, points[1][1], points[1][0]]
    assert farthest_error_points(target, target).tolist() == [[5, 5], [5, 5]]


class Oracle:
    """A model that knows the targets: token 3 is right after one prompt, token 0 improves with every click."""

    config = SimpleNamespace(vision_config=SimpleNamespace(image_size=IMAGE_SIZE))
    device = torch.device("cpu")

    def __init__(self, preferred=1):
        self.preferred, self.seen = preferred, []

    def eval(self):
        return self

    def get_image_embeddings(self, pixel_values):
        return pixel_values

    def decode_rows(self, image_embeddings, rows):
        self.seen.append(rows)
        side = 32
        grid = torch.arange(side).float()
        masks = torch.full((len(rows), 4, side, side), -5.0)
        masks[:, 3, 5:16, 5:16] = 5.0  # pixels 10 .. 31 of 64
        masks[:, 1, :, :] = 5.0
        if rows.points is not None:
            reach = 4 * rows.points.shape[1]
            masks[:, 0] = torch.where((grid[:, None] < reach) & (grid[None] < reach), 5.0, -5.0)
        scores = torch.zeros(len(rows), 4)
        scores[:, self.preferred] = 0.9
        scores[:, 0] = 1.0
        return RowMasks(masks, scores)


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture
def rows():
    mask = np.zeros((64, 64), dtype=bool)
    mask[10:32, 10:32] = True
    regions = [{"mask": encode_rle(mask)}, {"mask": None}, {"mask": encode_rle(np.zeros((64, 64), dtype=bool))}]
    return [{"image": random_image(0, (64, 64)), "regions": regions}, {"image": random_image(1), "regions": []}]


def test_the_mask_that_counts(processor, rows):
    found = evaluate_masks(Oracle(preferred=1), processor, rows, num_points=(1, 2), boxes=True)
    assert found["num_objects"] == 1
    assert found["miou@1"] == pytest.approx(22 * 22 / 64**2, rel=1e-4)  # the confident mask is everything
    assert found["oracle_miou@1"] == found["oracle_box_miou"] == 1  # token 3, never the better-scored token 0
    assert found["box_miou"] == found["miou@1"]
    better = evaluate_masks(Oracle(preferred=3), processor, rows, num_points=(1,), boxes=False)
    assert set(better) == {"num_objects", "miou@1", "oracle_miou@1"} and better["miou@1"] == 1
    # two clicks: token 0, here the 16 x 16 pixels at the top left, 6 x 6 of them in the target
    assert found["miou@2"] == pytest.approx(36 / (256 + 484 - 36), rel=1e-4)


def test_clicks_correct_the_mask_before(processor, rows):
    model = Oracle(preferred=1)
    evaluate_masks(model, processor, rows, num_points=(3,), boxes=False)
    first, second, third = model.seen
    assert first.masks is None and second.masks.shape == (1, 32, 32) and (second.masks == 5).all()
    assert first.points.tolist() == [[[20, 20]]] and first.point_labels.tolist() == [[1]]
    assert second.point_labels.tolist() == [[1, 0]]  # everything was predicted: outside is wrong
    assert third.point_labels.tolist() == [[1, 0, 1]]
    x, y = third.points[0, 2].tolist()
    assert 16 <= max(x, y) < 32 and min(x, y) >= 10
    model = Oracle()
    evaluate_masks(model, processor, rows, num_points=(3,), boxes=False, feed_back_masks=False)
    assert all(seen.masks is None for seen in model.seen)


def test_random_clicks_are_repeatable_and_need_no_scipy(processor, rows, monkeypatch):
    def without_scipy(name, *args, **kwargs):
        if name.startswith("scipy"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    real_import = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without_scipy)
    points = []
    for seed in (0, 0, 1):
        model = Oracle()
        evaluate_masks(model, processor, rows, num_points=(2,), boxes=False, sampling="random", seed=seed)
        points.append(model.seen[-1].points.tolist())
    assert points[0] == points[1] != points[2]
    with pytest.raises(ImportError, match="need scipy"):
        evaluate_masks(Oracle(), processor, rows)


def test_boxes_are_tight_or_moved_a_little(processor, rows):
    boxes = []
    for noise, seed in (("none", 0), ("uniform", 0), ("uniform", 0), ("uniform", 1)):
        model = Oracle()
        evaluate_masks(model, processor, rows, num_points=(), seed=seed, box_noise=noise)
        boxes.append(model.seen[-1].boxes)
    tight, moved, again, other = boxes
    assert tight.tolist() == [[10, 10, 32, 32]]
    assert 0 < (moved - tight).abs().max() <= 20 / 1024 * IMAGE_SIZE
    assert torch.equal(moved, again) and not torch.equal(moved, other)


def test_bad_settings_are_refused(processor, rows):
    with pytest.raises(ValueError, match="sampling must be one of"):
        evaluate_masks(Oracle(), processor, rows, sampling="middle")
    with pytest.raises(ValueError, match="num_points must be at least 1"):
        evaluate_masks(Oracle(), processor, rows, num_points=(0, 1))
    with pytest.raises(ValueError, match="box_noise must be one of"):
        evaluate_masks(Oracle(), processor, rows, box_noise="some")
    with pytest.raises(ValueError, match="nothing to measure"):
        evaluate_masks(Oracle(), processor, rows[1:])
    with pytest.raises(ValueError, match="image 0: a mask has 64 x 64 .* the image 60 x 44"):
        evaluate_masks(Oracle(), processor, [{**rows[0], "image": random_image(0, (44, 60))}])


def test_many_objects_are_measured_a_few_at_a_time(processor, rows, monkeypatch):
    rows = [{**rows[0], "regions": rows[0]["regions"][:1] * 5}]
    whole, seen = evaluate_masks(Oracle(preferred=1), processor, rows, num_points=(1, 2)), []

    def upscale(low_res, *sizes):
        seen.append(len(low_res))
        return upscale_masks(low_res, *sizes)

    monkeypatch.setattr(segmentation, "upscale_masks", upscale)
    monkeypatch.setattr(segmentation, "_PIXELS_AT_ONCE", 2 * 64 * 64)
    assert evaluate_masks(Oracle(preferred=1), processor, rows, num_points=(1, 2)) == whole
    assert max(seen) == 2


def scene(phrases, side=8):
    """A row whose i-th object covers the i-th column."""
    masks = np.eye(side, dtype=bool)[: len(phrases), None, :].repeat(side, axis=1)
    regions = [{"phrases": [phrase], "mask": encode_rle(mask)} for phrase, mask in zip(phrases, masks)]
    return {"image": np.zeros((side, side, 3), np.uint8), "regions": regions}


def test_text_is_asked_for_objects_with_a_name_of_their_own():
    red, blue = "a small red plain round region at the top", "a large blue plain square region at the left"
    rows = [scene([red, blue, blue]), scene([blue, "something else", red]), scene([blue, blue])]
    rows[1]["regions"][2]["mask"] = None
    rows[2]["regions"] += [{"mask": rows[2]["regions"][0]["mask"], **words} for words in ({"phrases": []}, {})]
    asked = []

    def segmenter(image, text):
        asked.append(text)
        mask = np.zeros((8, 8), bool)
        mask[:4, 0] = True  # half of the first object
        return [{"mask": mask} for _ in text]

    scores = evaluate_text(segmenter, rows)
    assert asked == [["the red plain disc"], ["the blue plain square"]]
    assert scores == {"num_objects": 2.0, "text_miou": 0.5, "text_found": 1.0}
    assert evaluate_text(segmenter, rows[:1], phrase=colour_and_shape, min_area=8)["num_objects"] == 1
    assert asked[-1] == ["the red disc"]
    with pytest.raises(ValueError, match="name of its own"):
        evaluate_text(segmenter, rows[2:])
    with pytest.raises(ValueError, match="name of its own"):
        evaluate_text(segmenter, rows, min_area=9)
