# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""SAM's processor: mixed prompts, texts, padding, errors, saving. (Golden values: test_golden_sam.py.)"""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from hf_segcap import SamPromptableProcessor
from hf_segcap.prompts import PADDING_LABEL
from modeling_tests.tiny import (
    END_ID,
    IMAGE_SIZE,
    LOW_RES_MASK_SIZE,
    PAD_ID,
    random_image,
    tiny_sam_processor,
    tiny_sam_promptable,
)

WIDE, TALL = (60, 44), (32, 64)  # (width, height)
WIDE_SCALE = 64 / 60
BOX, OTHER_BOX = [4, 5, 40, 30], [1, 2, 20, 22]


@pytest.fixture
def processor() -> SamPromptableProcessor:
    return tiny_sam_processor()


@pytest.fixture
def text_processor() -> SamPromptableProcessor:
    return tiny_sam_processor(text=True)


def two_images() -> list:
    return [random_image(0, WIDE), random_image(1, TALL)]


def bool_mask(size: tuple[int, int], x: int, y: int) -> np.ndarray:
    mask = np.zeros(size[::-1], dtype=bool)
    mask[y : y + 9, x : x + 12] = True
    return mask


# --- images ------------------------------------------------------------------------------------------------------------


def test_images_alone(processor: SamPromptableProcessor) -> None:
    inputs = processor(images=two_images())
    assert set(inputs) == {"pixel_values", "original_sizes", "reshaped_input_sizes"}
    assert inputs["pixel_values"].shape == (2, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert inputs["original_sizes"].tolist() == [[44, 60], [64, 32]]
    assert inputs["reshaped_input_sizes"].tolist() == [[47, 64], [64, 32]]  # 44 * 64 / 60 = 46.9
    assert not inputs["pixel_values"][0, :, 47:].any() and not inputs["pixel_values"][1, :, :, 32:].any()


def test_stored_embeddings_need_only_the_sizes(processor: SamPromptableProcessor) -> None:
    prompts = {"input_boxes": [[BOX], [OTHER_BOX]]}
    with_pixels = processor(images=two_images(), **prompts)
    without = processor(original_sizes=[(44, 60), (64, 32)], **prompts)
    assert "pixel_values" not in without
    assert all(torch.equal(without[name], with_pixels[name]) for name in without)


# --- prompts -----------------------------------------------------------------------------------------------------------


def test_mixed_prompts(processor: SamPromptableProcessor) -> None:
    """Image 0: points with a mask, a box, a box with points. Image 1: a single point."""
    mask = bool_mask(WIDE, 10, 12)
    inputs = processor(
        images=two_images(),
        input_points=[[[[30, 22], [3, 4]], [], [[6, 6]]], [[[16, 32]]]],
        point_labels=[[[1, 0], [], [0]], [[1]]],
        input_boxes=[[None, BOX, OTHER_BOX], [None]],
        input_masks=[[mask, None, None], [None]],
    )
    assert inputs["prompt_mask"].tolist() == [[True, True, True], [True, False, False]]
    assert inputs["has_box"].tolist() == [[False, True, True], [False, False, False]]
    assert inputs["has_mask"].tolist() == [[True, False, False], [False, False, False]]
    absent = PADDING_LABEL
    assert inputs["point_labels"].tolist() == [
        [[1, 0], [absent, absent], [0, absent]],
        [[1, absent], [absent, absent], [absent, absent]],
    ]
    assert inputs["input_points"].shape == (2, 3, 2, 2) and inputs["input_boxes"].shape == (2, 3, 4)
    # x by 64 / 60, y by the rounded height: 47 / 44
    torch.testing.assert_close(inputs["input_points"][0, 0, 0], torch.tensor([30 * 64 / 60, 22 * 47 / 44]))
    torch.testing.assert_close(
        inputs["input_boxes"][0, 1], torch.tensor([4 * 64 / 60, 5 * 47 / 44, 40 * 64 / 60, 30 * 47 / 44])
    )
    assert inputs["input_points"][1, 0, 0].tolist() == [16, 32]
    assert not inputs["input_boxes"][0, 0].any() and not inputs["input_boxes"][1].any()
    logits = inputs["input_masks"]
    assert logits.shape == (2, 3, LOW_RES_MASK_SIZE, LOW_RES_MASK_SIZE) and logits.dtype == torch.float32
    assert logits[0, 0].amax().item() == pytest.approx(10) and logits[0, 0].amin().item() == pytest.approx(-10)
    inside = logits[0, 0] > 0
    row, column = (
        inside.nonzero().float().mean(0) + 0.5
    ).tolist()  # centre, in low-resolution pixels of twice the size
    assert abs(column * 2 / WIDE_SCALE - 16) < 1 and abs(row * 2 / WIDE_SCALE - 16.5) < 1


def test_flags_only_where_something_lacks(processor: SamPromptableProcessor) -> None:
    full = processor(images=two_images(), input_boxes=[[BOX, OTHER_BOX], [OTHER_BOX]])
    assert set(full) == {"pixel_values", "original_sizes", "reshaped_input_sizes", "input_boxes", "prompt_mask"}
    single = processor(images=random_image(), input_boxes=[BOX, None], input_points=[[[], [[5, 5]]]])
    assert single["has_box"].tolist() == [[True, False]]


def test_mask_logits_are_taken_as_they_are(processor: SamPromptableProcessor) -> None:
    logits = np.random.default_rng(0).normal(size=(LOW_RES_MASK_SIZE, LOW_RES_MASK_SIZE)).astype(np.float32)
    inputs = processor(images=random_image(), input_boxes=[BOX, OTHER_BOX], input_masks=[[logits, None]])
    np.testing.assert_array_equal(inputs["input_masks"][0, 0].numpy(), logits)
    assert inputs["has_mask"].tolist() == [[True, False]]
    shared = processor(images=random_image(), input_boxes=[BOX, OTHER_BOX], input_masks=[logits])
    assert shared["input_masks"].shape == (1, 1, LOW_RES_MASK_SIZE, LOW_RES_MASK_SIZE) and "has_mask" not in shared


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({}, None),
        ({"input_boxes": [[4, 5, 3, 30]]}, "image 0, prompt 0: got the empty or inverted box"),
        ({"input_boxes": [BOX, [100, 5, 130, 30]]}, "image 0, prompt 1: the box .* completely outside"),
        ({"input_points": [[70, 5]]}, "image 0, prompt 0: point 0 at .* lies outside"),
        ({"input_points": [[7, 5]], "point_labels": [3]}, "has the label 3.0, expected 1"),
        ({"point_labels": [1]}, "`point_labels` were given without `points`"),
        ({"input_boxes": [BOX], "input_points": [[1, 2], [3, 4]]}, "image 0: got 1 boxes but 2 point prompts"),
        ({"input_masks": np.ones((5, 5), dtype=bool)}, r"got a mask of \(5, 5\), expected the \(height, width\)"),
        ({"input_masks": np.ones((44, 60), dtype=np.float32)}, "float masks are low-resolution logits"),
    ],
)
def test_unusable_prompts(processor: SamPromptableProcessor, prompts: dict, message: str | None) -> None:
    if message is None:
        with pytest.raises(ValueError, match="Nothing to process"):
            processor(**prompts)
        return
    with pytest.raises(ValueError, match=message):
        processor(images=random_image(0, WIDE), **prompts)


def test_contradicting_images_and_sizes(processor: SamPromptableProcessor) -> None:
    with pytest.raises(ValueError, match="Pass `images` or `original_sizes`, not both"):
        processor(images=random_image(), original_sizes=[(44, 60)])
    with pytest.raises(ValueError, match="Prompts are scaled with their image"):
        processor(input_boxes=[BOX])
    with pytest.raises(ValueError, match="`images` is empty"):
        processor(images=[])


# --- text --------------------------------------------------------------------------------------------------------------


def test_one_text_for_every_object(text_processor: SamPromptableProcessor) -> None:
    inputs = text_processor(images=two_images(), text="red disc", input_boxes=[[BOX, OTHER_BOX], [OTHER_BOX]])
    assert inputs["input_ids"].shape == (2, 2, 3)
    assert inputs["attention_mask"].tolist() == [[[1, 1, 1], [1, 1, 1]], [[1, 1, 1], [0, 0, 0]]]
    assert torch.equal(inputs["input_ids"][0, 0], inputs["input_ids"][1, 0])
    assert inputs["input_ids"][0, 0, -1] == END_ID and (inputs["input_ids"][1, 1] == PAD_ID).all()
    assert "has_text" not in inputs


def test_text_makes_the_objects(text_processor: SamPromptableProcessor) -> None:
    one = text_processor(images=random_image(), text="red disc")
    assert one["prompt_mask"].tolist() == [[True]] and one["input_ids"].shape == (1, 1, 3)
    plain = text_processor(images=random_image(), text=["red disc", "a small blue box"])
    assert plain["prompt_mask"].tolist() == [[True, True]] and plain["input_ids"].shape == (1, 2, 5)
    assert plain["attention_mask"].sum(-1).tolist() == [[3, 5]]
    ragged = text_processor(images=two_images(), text=[["red disc"], ["sky", "tree"]])
    assert ragged["prompt_mask"].tolist() == [[True, False], [True, True]]
    assert "has_text" not in ragged
    alone = text_processor(text=[["red disc"], ["sky", "tree"]])
    assert "pixel_values" not in alone and torch.equal(alone["input_ids"], ragged["input_ids"])


def test_objects_without_text(text_processor: SamPromptableProcessor) -> None:
    inputs = text_processor(
        images=two_images(), text=[["red disc", None], [None]], input_boxes=[[BOX, OTHER_BOX], [OTHER_BOX]]
    )
    assert inputs["has_text"].tolist() == [[True, False], [False, False]]
    assert inputs["prompt_mask"].tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (["red", "blue"], "`text` is a flat list, but there are 2 images"),
        ([["red"]], r"image 0: got 1 text\(s\) for 2 object\(s\)"),
        ([["red", "blue"]], r"`text` has texts of 1 image\(s\), but there are 2 image\(s\)"),
        ([["red", " "], ["blue"]], "image 0: a text prompt is empty"),
        ([["red", 3], ["blue"]], r"image 0: expected a list with one str \(or None\) per object"),
        (7, "`text` must be a str"),
    ],
)
def test_unusable_texts(text_processor: SamPromptableProcessor, text, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        text_processor(images=two_images(), text=text, input_boxes=[[BOX, OTHER_BOX], [OTHER_BOX]])


def test_released_checkpoints_know_no_text(processor: SamPromptableProcessor) -> None:
    with pytest.raises(ValueError, match="this processor has none: the released SAM checkpoints know no text prompts"):
        processor(images=random_image(), text="red disc")


# --- together with the model, and saved --------------------------------------------------------------------------------


def test_model_takes_what_the_processor_gives(text_processor: SamPromptableProcessor) -> None:
    model = tiny_sam_promptable(text=True)
    inputs = text_processor(
        images=two_images(),
        text=[[None, "red disc"], ["sky"]],
        input_boxes=[[BOX, None], [None]],
        input_points=[[[], [[5, 5]]], [[]]],
    )
    sizes = {name: inputs.pop(name) for name in ("original_sizes", "reshaped_input_sizes")}
    with torch.no_grad():
        output = model(**inputs)
    masks = text_processor.post_process_masks(output.pred_masks, **sizes, prompt_mask=inputs["prompt_mask"])
    assert [tuple(mask.shape) for mask in masks] == [(2, 1, 44, 60), (1, 1, 64, 32)]
    assert masks[0].dtype == torch.bool
    with pytest.raises(ValueError, match=r"Got masks of 2 image\(s\), but 1 original"):
        text_processor.post_process_masks(output.pred_masks, [(44, 60)], [(47, 64)])


@pytest.mark.parametrize("text", [False, True])
def test_saved_and_loaded(text: bool, tmp_path: Path) -> None:
    processor = tiny_sam_processor(text=text)
    processor.save_pretrained(tmp_path)
    tiny_sam_promptable(text=text).save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer_config.json").exists() == text
    arguments = {"images": random_image(), "input_boxes": [BOX], **({"text": "red disc"} if text else {})}
    expected = processor(**arguments)
    for loader in (SamPromptableProcessor, AutoProcessor):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is SamPromptableProcessor and (loaded.tokenizer is not None) == text
        inputs = loaded(**arguments)
        assert set(inputs) == set(expected)
        assert all(torch.equal(inputs[name], expected[name]) for name in expected)
    names = ["pixel_values", "original_sizes", "reshaped_input_sizes"]
    assert loaded.model_input_names == (names + ["prompt_mask", "input_ids", "attention_mask"] if text else names)
    assert "SamPromptableProcessor" in repr(loaded)


def test_checkpoint_without_a_processor(tmp_path: Path) -> None:
    """The image processor follows from the configuration of the model."""
    tiny_sam_promptable().save_pretrained(tmp_path)
    loaded = SamPromptableProcessor.from_pretrained(tmp_path)
    assert loaded.low_res_mask_size == LOW_RES_MASK_SIZE and loaded.image_processor.size["longest_edge"] == IMAGE_SIZE


def test_numpy_output(processor: SamPromptableProcessor) -> None:
    inputs = processor(images=random_image(), input_boxes=[BOX], return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in inputs.values())
