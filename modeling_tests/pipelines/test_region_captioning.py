# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""`pipeline("region-captioning")` as people call it."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import pipeline

import hf_segcap  # noqa: F401 (registers the task)
from modeling_tests.tiny import random_image, tiny_processor, tiny_sam_caption

FIXTURES = Path(__file__).parents[1] / "fixtures" / "sca"
LOOSE = {"points_per_side": 3, "pred_iou_thresh": -100.0, "stability_score_thresh": 0.0, "box_nms_thresh": 0.99}
BOXES = [[2, 3, 30, 25], [10, 10, 50, 40]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_sam_caption().save_pretrained(path)
    tiny_processor().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def pipe(folder):
    return pipeline("region-captioning", model=folder, device="cpu", max_new_tokens=5)


def same(a, b) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert x.keys() == y.keys() and x["caption"] == y["caption"]
        assert x["score"] == pytest.approx(y["score"], abs=1e-4)
        assert x["box"] == pytest.approx(y["box"], abs=1e-3)
        if "mask" in x:
            assert np.array_equal(x["mask"], y["mask"])


@pytest.mark.golden
@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("beams", [1, 3])
def test_official_checkpoint_gives_the_recorded_captions(beams, batch_size):
    meta = json.loads((FIXTURES / "gpt2/meta.json").read_text())
    from safetensors.torch import load_file

    boxes = load_file(FIXTURES / "gpt2/inputs.safetensors")["metadata_input_boxes"]
    pipe = pipeline("region-captioning", model=str(FIXTURES / "gpt2/checkpoint"), device="cpu")
    for index, task in enumerate(meta["task_type"]):
        item = {"image": FIXTURES / f"images/img{index}.png", "boxes": boxes[index]}
        results = pipe([item, item], task=task, num_beams=beams, batch_size=batch_size)
        for result in results:
            assert [r["caption"] for r in result] == [t.strip() for t in meta["decoded"][f"beams{beams}"][index]]


class TestResults:
    def test_boxes(self, pipe):
        image = random_image(0)
        results = pipe(image, boxes=BOXES)
        assert [r["box"] for r in results] == [
            {"xmin": 2, "ymin": 3, "xmax": 30, "ymax": 25},
            {"xmin": 10, "ymin": 10, "xmax": 50, "ymax": 40},
        ]
        for result in results:
            assert result.keys() == {"caption", "score", "box", "mask"} and isinstance(result["caption"], str)
            assert result["mask"].shape == (image.height, image.width) and result["mask"].dtype == bool
        assert "mask" not in pipe(image, boxes=BOXES, return_masks=False)[0]

    def test_the_mask_is_the_one_with_the_best_score(self, pipe):
        image = random_image(0)
        inputs = pipe.processor(images=image, input_boxes=[BOXES], return_tensors="pt")
        sizes = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
        with torch.no_grad():
            outputs = pipe.model(**inputs)
        masks = pipe.processor.post_process_masks(outputs.pred_masks, *sizes)[0]
        for index, result in enumerate(pipe(image, boxes=BOXES)):
            best = int(outputs.iou_scores[0, index].argmax())
            assert result["score"] == pytest.approx(outputs.iou_scores[0, index, best].item(), abs=1e-5)
            assert np.array_equal(result["mask"], masks[index, best].numpy())

    def test_points_get_the_box_of_their_mask(self, pipe):
        for result in pipe(random_image(0), points=[[10, 12], [30, 30]]):
            ys, xs = np.nonzero(result["mask"])
            if len(xs):
                assert list(result["box"].values()) == [xs.min(), ys.min(), xs.max(), ys.max()]

    def test_several_points_and_labels(self, pipe):
        image = random_image(0)
        two = pipe(image, points=[[[10, 12], [40, 30]], [[5, 5]]][:1], point_labels=[[1, 0]])
        other = pipe(image, points=[[[10, 12], [40, 30]]], point_labels=[[1, 1]])
        assert len(two) == 1 and not np.array_equal(two[0]["mask"], other[0]["mask"])

    def test_masks(self, pipe):
        image = random_image(0)
        mask = np.zeros((image.height, image.width), dtype=bool)
        mask[10:30, 10:40] = True
        alone = pipe(image, masks=[mask])
        with_box = pipe(image, boxes=BOXES, masks=[mask])
        assert len(alone) == 1 and len(with_box) == 2

    def test_several_captions_per_region(self, pipe):
        results = pipe(random_image(0), boxes=BOXES, num_beams=3, num_return_sequences=2)
        for result in results:
            assert len(result["captions"]) == 2 and result["caption"] == result["captions"][0]

    def test_generation_arguments_pass_through(self, pipe):
        image = random_image(0)
        lengths = [len(r["caption"].split()) for r in pipe(image, boxes=BOXES, max_new_tokens=2, min_new_tokens=2)]
        assert max(lengths) <= 2
        same(pipe(image, boxes=BOXES, prompts_per_batch=1), pipe(image, boxes=BOXES))
        with pytest.raises(TypeError, match="num_beams"):
            pipe(image, boxes=BOXES, num_beam=2)


class TestEverything:
    def test_only_survivors_are_captioned_and_the_image_is_encoded_once(self, pipe, monkeypatch):
        encoded, prompts = [], []
        encode, generate = pipe.model.get_image_embeddings, pipe.model.generate
        monkeypatch.setattr(pipe.model, "get_image_embeddings", lambda x: encoded.append(len(x)) or encode(x))
        monkeypatch.setattr(
            pipe.model, "generate", lambda **kw: prompts.append(kw["input_points"].shape[1]) or generate(**kw)
        )
        results = pipe(random_image(0), **LOOSE)
        assert encoded == [1] and len(prompts) == 1
        assert 0 < prompts[0] <= len(results) and prompts[0] == len({tuple(r["point"].values()) for r in results})
        scores = [r["score"] for r in results]
        assert scores == sorted(scores, reverse=True)

    def test_caption_is_that_of_the_point(self, pipe):
        image = random_image(0)
        for result in pipe(image, **LOOSE):
            assert pipe(image, points=list(result["point"].values()))[0]["caption"] == result["caption"]

    def test_nothing_found(self, pipe):
        assert pipe(random_image(0), points_per_side=2, pred_iou_thresh=1e6) == []

    def test_thresholds_of_the_model(self, pipe, monkeypatch):
        monkeypatch.setattr(pipe.model.config, "everything", LOOSE)
        assert pipe(random_image(0))
        assert pipe(random_image(0), pred_iou_thresh=1e6) == []

    @pytest.mark.parametrize("setting", [{"points_per_side": 0}, {"pred_iou_thresh": float("nan")}])
    def test_bad_settings(self, pipe, setting):
        with pytest.raises(ValueError, match=next(iter(setting))):
            pipe(random_image(0), **setting)


class TestManyImages:
    items = [
        {"image": random_image(0), "boxes": BOXES},
        {"image": random_image(1, (50, 64)), "boxes": BOXES[:1]},
        {"image": random_image(2), "points": [[5, 6], [20, 20], [30, 8]]},
        {"image": random_image(3), "boxes": []},
        {"image": random_image(4, (30, 30)), "points": [[[5, 6], [20, 20]]], "point_labels": [[1, 0]]},
    ]

    @pytest.mark.parametrize("batch_size", [2, 5])
    def test_batched_equals_one_at_a_time(self, pipe, batch_size):
        for got, item in zip(pipe(self.items, batch_size=batch_size), self.items, strict=True):
            same(got, pipe(item))

    def test_everything_in_a_batch(self, pipe):
        images = [random_image(0), random_image(1, (50, 64))]
        for got, image in zip(pipe(images, batch_size=2, **LOOSE), images, strict=True):
            same(got, pipe(image, **LOOSE))

    def test_generator_and_dataset(self, pipe):
        wanted = [pipe(item) for item in self.items[:2]]
        for source in ((item for item in self.items[:2]), _Dataset(self.items[:2])):
            for got, expected in zip(pipe(source), wanted, strict=True):
                same(got, expected)

    def test_hugging_face_dataset(self, pipe):
        from datasets import Dataset
        from datasets import Image as ImageFeature

        items = self.items[:2]
        data = Dataset.from_dict({"image": [i["image"] for i in items], "boxes": [i["boxes"] for i in items]})
        data = data.cast_column("image", ImageFeature())
        for got, item in zip(pipe(data, batch_size=2), items, strict=True):
            same(got, pipe(item))

    def test_errors_name_the_item(self, pipe):
        with pytest.raises(ValueError, match=r"Item 1 .*image 0, prompt 0"):
            pipe([self.items[0], {"image": random_image(0), "boxes": [[5, 5, 1, 1]]}])
        with pytest.raises(ValueError, match="'image'"):
            pipe([{"picture": random_image(0)}])

    def test_progress_bar_on_long_lists(self, pipe, capsys):
        images = [random_image(i, (16, 16)) for i in range(9)]
        pipe(images, boxes=[1, 1, 9, 9])
        assert "9/9" in capsys.readouterr().err
        pipe(images, boxes=[1, 1, 9, 9], progress=False)
        pipe(images[:3], boxes=[1, 1, 9, 9])
        assert "/9" not in capsys.readouterr().err


class _Dataset(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class TestImages:
    def test_every_kind_of_image(self, pipe, tmp_path):
        image = random_image(0)
        path = tmp_path / "image.png"
        image.save(path)
        wanted = pipe(image, boxes=BOXES)
        array = np.asarray(image)
        for kind in (
            str(path),
            path,
            path.read_bytes(),
            io.BytesIO(path.read_bytes()),
            array,
            torch.tensor(array),
        ):
            same(pipe(kind, boxes=BOXES), wanted)

    @pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
    def test_modes(self, pipe, mode):
        image = random_image(0).convert("L" if mode == "I;16" else mode)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
        assert len(pipe(image, boxes=BOXES)) == 2

    @pytest.mark.parametrize("bad", [b"no picture", np.zeros((0, 4, 3), np.uint8), "/no/such/file.png"])
    def test_bad_images(self, pipe, bad):
        with pytest.raises((ValueError, OSError)):
            pipe(bad, boxes=BOXES)


class TestModel:
    def test_bfloat16(self, folder):
        half = pipeline("region-captioning", model=folder, device="cpu", dtype=torch.bfloat16, max_new_tokens=4)
        assert half.model.dtype == torch.bfloat16
        assert len(half(random_image(0), boxes=BOXES)) == 2
        assert isinstance(half(random_image(0), **LOOSE), list)

    def test_save_and_load_without_remote_code(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        assert not list(tmp_path.glob("*.py"))
        again = pipeline("region-captioning", model=str(tmp_path), device="cpu", max_new_tokens=5)
        same(again(random_image(0), boxes=BOXES), pipe(random_image(0), boxes=BOXES))

    def test_without_a_model_the_bundled_one_is_used(self):
        captioner = pipeline("region-captioning", device="cpu")
        assert "assets" in captioner.model.config._name_or_path


numbers = st.one_of(
    st.floats(-100, 200), st.integers(-5, 70), st.sampled_from([float("nan"), float("inf"), None, "a", True])
)
nested = st.recursive(numbers, lambda inner: st.lists(inner, max_size=4), max_leaves=16)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    prompts=st.fixed_dictionaries(
        {}, optional={"boxes": nested, "points": nested, "point_labels": nested, "masks": nested}
    )
)
def test_only_value_and_type_errors_escape(pipe, prompts):
    try:
        results = pipe(random_image(0), **prompts, max_new_tokens=1, points_per_side=1)
    except (ValueError, TypeError):
        return
    assert isinstance(results, list)
