# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The processor against the official one (recorded tensors), its text rules, checks, saving and post-processing."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from hf_segcap.models.sam_caption.processing_sam_caption import SamCaptionProcessor
from hf_segcap.prompts import PADDING_LABEL
from modeling_tests.tiny import END_ID, PAD_ID, random_image, tiny_image_processor, tiny_tokenizer
from modeling_tests.tiny import END_TOKEN as END

FIXTURES = Path(__file__).parents[2] / "fixtures" / "sca"
IMAGES = [str(FIXTURES / "images" / name) for name in ("img0.png", "img1.png")]
PHOTOS = ("astronaut", "coffee", "chelsea")


@pytest.fixture
def processor():
    return SamCaptionProcessor(tiny_image_processor(), tiny_tokenizer())


@pytest.fixture(scope="module")
def full_size_processor():
    image_processor = type(tiny_image_processor())()  # SAM's defaults: 1024 pixels
    return SamCaptionProcessor(image_processor, tiny_tokenizer())


@pytest.fixture(scope="module")
def expected():
    tensors = load_file(FIXTURES / "processor" / "expected.safetensors")
    return tensors, json.loads((FIXTURES / "processor" / "expected.json").read_text())


def official(model):
    folder = FIXTURES / model
    return (
        SamCaptionProcessor.from_pretrained(folder / "checkpoint"),
        load_file(folder / "inputs.safetensors"),
        json.loads((folder / "meta.json").read_text()),
    )


# --- against the official processor -----------------------------------------------------------------------------------


@pytest.mark.golden
@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_official_folder_gives_the_official_inputs(model):
    processor, golden, meta = official(model)
    assert processor.image_processor.size["longest_edge"] == processor.image_processor.pad_size["height"] == 64
    assert processor.image_processor.mask_size["longest_edge"] == 32
    assert processor.tokenizer.padding_side == "right"
    inputs = processor(
        images=IMAGES,
        text=meta["captions"],
        input_boxes=golden["metadata_input_boxes"],
        input_points=golden["original_points"],
        point_labels=golden["input_labels"],
        input_masks=list(golden["input_masks"]),
    )
    assert set(inputs) == {
        *("pixel_values", "original_sizes", "reshaped_input_sizes", "input_boxes", "input_points", "point_labels"),
        *("input_masks", "prompt_mask", "input_ids", "attention_mask", "labels"),
    }
    for name in ("pixel_values", "input_boxes", "input_points", "input_masks"):
        assert inputs[name].dtype == torch.float32
        torch.testing.assert_close(inputs[name], golden[name].float(), atol=1e-5, rtol=0)
    for name in ("original_sizes", "reshaped_input_sizes", "input_ids", "attention_mask"):
        assert inputs[name].dtype == torch.int64
        assert torch.equal(inputs[name], golden[name]), name
    assert torch.equal(inputs["labels"], golden["labels"][..., 1:])  # the official ones have a column of -100 in front
    assert torch.equal(inputs["point_labels"], golden["input_labels"])
    if model == "llama":
        assert (inputs["labels"][..., 0] == processor.tokenizer.bos_token_id).all()  # the begin token is a target


@pytest.mark.golden
@pytest.mark.parametrize("photo", PHOTOS)
def test_photographs_equal_the_official_processor(photo, full_size_processor, expected):
    from skimage import data

    tensors, meta = expected
    case = meta["cases"][photo]
    inputs = full_size_processor(
        images=getattr(data, photo)(),
        input_boxes=[case["boxes"]],
    )
    pixels = inputs["pixel_values"]
    assert list(pixels.shape) == case["pixel_values_shape"]
    assert inputs["original_sizes"].tolist() == [case["original_size_hw"]]
    assert inputs["reshaped_input_sizes"].tolist() == [case["reshaped_size_hw"]]
    height, width = case["reshaped_size_hw"]
    pixels = pixels[0]
    views = {
        "grid32": pixels[:, ::32, ::32],
        "corner_top_left": pixels[:, :12, :12],
        "row_mid": pixels[:, height // 2, ::8],
        "valid_bottom_right": pixels[:, height - 8 : height + 4, width - 8 : width + 4],
    }
    for name, view in views.items():
        torch.testing.assert_close(view, tensors[f"{photo}/{name}"], atol=1e-5, rtol=0, msg=name)
    valid = pixels[:, :height, :width].double()
    for name, value in (("mean", valid.mean((1, 2))), ("std", valid.std((1, 2), correction=0))):
        torch.testing.assert_close(value, tensors[f"{photo}/valid_{name}"], atol=1e-5, rtol=0)
    assert not pixels[:, height:].any() and not pixels[:, :, width:].any()
    torch.testing.assert_close(inputs["input_boxes"].double(), tensors[f"{photo}/input_boxes"], atol=1e-4, rtol=0)
    points = full_size_processor(
        original_sizes=inputs["original_sizes"], input_points=[case["points"]], point_labels=[case["point_labels"]]
    )
    torch.testing.assert_close(points["input_points"].double(), tensors[f"{photo}/input_points"], atol=1e-4, rtol=0)
    assert torch.equal(points["point_labels"], tensors[f"{photo}/input_labels"])


@pytest.mark.golden
def test_sizes_and_prompts_without_an_image(full_size_processor, expected):
    tensors, meta = expected
    rules = meta["resize_rule"]
    sizes = full_size_processor(original_sizes=[rule[:2] for rule in rules], input_boxes=[[] for _ in rules])
    assert sizes["reshaped_input_sizes"].tolist() == [rule[2:] for rule in rules]
    for size in ((333, 500), [[333, 500]], np.array([333, 500]), torch.tensor([[333, 500]])):
        inputs = full_size_processor(original_sizes=size, input_points=[[10, 20], [30.5, 7.25]])
        torch.testing.assert_close(
            inputs["input_points"].double(), tensors["prompts_only/input_points"], atol=1e-5, rtol=0
        )
        assert "pixel_values" not in inputs


@pytest.mark.golden
def test_mask_post_processing(full_size_processor, expected):
    tensors, meta = expected
    case = meta["cases"][meta["postprocess_image"]]
    arguments = (tensors["postprocess/low_res_masks"], [case["original_size_hw"]], [case["reshaped_size_hw"]])
    (logits,) = full_size_processor.post_process_masks(*arguments, binarize=False)
    torch.testing.assert_close(logits[..., ::7, ::7], tensors["postprocess/logits_subsampled"], atol=1e-5, rtol=0)
    (masks,) = full_size_processor.post_process_masks(*arguments)
    assert masks.dtype == torch.bool
    assert torch.equal(masks.sum((-2, -1)), tensors["postprocess/area"])
    (shifted,) = full_size_processor.post_process_masks(*arguments, mask_threshold=1.0)
    assert torch.equal(shifted, logits > 1.0)


@pytest.mark.golden
def test_captions_of_the_official_sequences():
    processor, _, meta = official("gpt2")
    sequences = load_file(FIXTURES / "gpt2" / "outputs.safetensors")["generate/box/beams1/sequences"][..., 1:]
    expected = [[caption.strip() for caption in image] for image in meta["decoded"]["beams1"]]
    assert processor.post_process_captions(sequences) == [[[caption] for caption in image] for image in expected]
    assert processor.post_process_captions(sequences[:, :, 0]) == expected


# --- loading and saving -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_save_and_reload(model, tmp_path):
    processor, golden, meta = official(model)
    processor.max_caption_length = 12
    processor.save_pretrained(tmp_path)
    reloaded = SamCaptionProcessor.from_pretrained(tmp_path)
    assert reloaded.to_dict() == processor.to_dict()
    assert reloaded.max_caption_length == 12 and SamCaptionProcessor.max_caption_length == 19
    assert reloaded.tokenizer.padding_side == "right"
    assert type(reloaded.image_processor) is type(processor.image_processor)
    inputs = reloaded(images=IMAGES, text=meta["captions"], max_caption_length=19)
    assert torch.equal(inputs["input_ids"], golden["input_ids"])
    torch.testing.assert_close(inputs["pixel_values"], golden["pixel_values"], atol=1e-5, rtol=0)


def test_overrides_reach_the_image_processor_of_official_folders():
    processor = SamCaptionProcessor.from_pretrained(
        FIXTURES / "gpt2" / "checkpoint", size={"longest_edge": 32}, pad_size={"height": 48, "width": 48}
    )
    inputs = processor(images=IMAGES[0])
    assert inputs["pixel_values"].shape == (1, 3, 48, 48)
    assert inputs["reshaped_input_sizes"].tolist() == [[32, 32]]


def test_folder_of_another_model(tmp_path):
    source = FIXTURES / "gpt2" / "checkpoint"
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        shutil.copy(source / name, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="vision_config.*gpt2"):
        SamCaptionProcessor.from_pretrained(tmp_path)


# --- text -------------------------------------------------------------------------------------------------------------


def test_captions_are_padded_over_all_regions(processor):
    inputs = processor(text=[["a cat", "the red cup on the left"], [], ["dog"]])
    assert inputs["input_ids"].shape == inputs["labels"].shape == inputs["attention_mask"].shape == (3, 2, 7)
    assert inputs["prompt_mask"].tolist() == [[True, True], [False, False], [True, False]]
    assert inputs["attention_mask"].sum(-1).tolist() == [[3, 7], [0, 0], [2, 0]]
    assert inputs["input_ids"][0, 0].tolist()[2:] == [END_ID] + [PAD_ID] * 4
    assert inputs["labels"][0, 0].tolist()[2:] == [END_ID] + [-100] * 4
    assert (inputs["labels"][1] == -100).all()
    assert processor.post_process_captions(inputs["labels"], inputs["prompt_mask"]) == [
        ["a cat", "the red cup on the left"],
        [],
        ["dog"],
    ]


def test_pad_token_equal_to_the_end_token():
    processor = SamCaptionProcessor(tiny_image_processor(), tiny_tokenizer(pad_token=False))
    assert processor.tokenizer.pad_token == END
    inputs = processor(text=[["a cat", "dog"]])
    assert inputs["input_ids"][0, 1].tolist()[1:] == [END_ID, END_ID]
    assert inputs["labels"][0, 1].tolist()[1:] == [END_ID, -100]  # the true end token is a target, the padding is not


@pytest.mark.parametrize("add_bos", [False, True])
def test_truncation_counts_begin_and_end_token(add_bos):
    processor = SamCaptionProcessor(tiny_image_processor(), tiny_tokenizer(add_bos=add_bos))
    caption = " ".join(["red"] * 40)
    ids = processor(text=[[caption]])["input_ids"][0, 0].tolist()
    assert len(ids) == 19 and ids[-1] == END_ID
    assert (ids[0] == END_ID) == add_bos
    assert END_ID not in ids[1:-1]
    assert processor(text=[[caption]], max_caption_length=5)["input_ids"].shape[-1] == 5
    assert processor(text=[[""]])["labels"][0, 0].tolist() == ([END_ID, END_ID] if add_bos else [END_ID])
    with pytest.raises(ValueError, match="max_caption_length"):
        processor(text=[[caption]], max_caption_length=1)


def test_tokenizer_that_closes_texts_itself():
    from tokenizers import processors

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, END_ID)]
    )
    processor = SamCaptionProcessor(
        tiny_image_processor(),
        PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token=END, pad_token=END),
    )
    ids = processor(text=[["a cat", " ".join(["red"] * 40)]])["input_ids"][0]
    assert ids.shape == (2, 19)
    assert ids[0].tolist().index(END_ID) == 2 and ids[1].tolist().index(END_ID) == 18


def test_left_padding_tokenizer_is_turned_right():
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    processor = SamCaptionProcessor(tiny_image_processor(), tokenizer)
    assert processor(text=["a cat", "dog"])["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_flat_text_is_tokenized_as_it_is(processor):
    inputs = processor(text=["a cat", "the red cup"], images=[random_image(0), random_image(1)])
    assert inputs["input_ids"].shape == (2, 3)
    assert END_ID not in inputs["input_ids"]
    assert "labels" not in inputs and "prompt_mask" not in inputs
    assert set(inputs) == set(processor.model_input_names)
    assert processor(text="a cat")["input_ids"].shape == (1, 2)


def test_flat_text_with_prompts_of_one_image_is_its_captions(processor):
    image = random_image(0)
    nested = processor(images=image, text=[["a cat", "dog"]], input_points=[[3, 4], [5, 6]])
    flat = processor(images=image, text=["a cat", "dog"], input_points=[[3, 4], [5, 6]])
    assert torch.equal(nested["labels"], flat["labels"])
    assert processor(images=image, text="dog", input_points=[3, 4])["labels"].shape == (1, 1, 2)
    with pytest.raises(ValueError, match="2 images"):
        processor(images=[image] * 2, text=["a cat", "dog"], input_points=[[[3, 4]]] * 2)


@pytest.mark.parametrize(
    "text, error, message",
    [
        ([["a cat"], ["dog"]], ValueError, "captions of 2 image"),
        ([["a cat", "dog"]], ValueError, "image 0: got 2 caption.*1 prompt"),
        ([[3]], TypeError, "image 0, prompt 0.*int"),
        ([["a"], "b"], TypeError, "one list"),
        ([None], TypeError, "one list"),
        (3, TypeError, "one list"),
    ],
)
def test_bad_text(processor, text, error, message):
    with pytest.raises(error, match=message):
        processor(images=random_image(0), input_points=[3, 4], text=text)


def test_no_end_token():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="end token"):
        SamCaptionProcessor(tiny_image_processor(), tokenizer)(text=[["a cat"]])


# --- images and prompts -----------------------------------------------------------------------------------------------


def test_batch_equals_one_at_a_time(processor):
    images = [random_image(i, size) for i, size in enumerate([(60, 44), (30, 80), (64, 64)])]
    boxes = [[[3, 4, 30, 40], [0, 0, 60, 44]], [], [[10, 10, 20, 64]]]
    points = [[[[3, 4], [5, 6]], [[7, 8]]], [], [[[9, 9]]]]
    batch = processor(images=images, input_boxes=boxes, input_points=points)
    assert batch["prompt_mask"].sum(-1).tolist() == [2, 0, 1]
    assert batch["point_labels"][2].tolist() == [[1, PADDING_LABEL], [PADDING_LABEL, PADDING_LABEL]]
    for i, image in enumerate(images):
        alone = processor(images=image, input_boxes=[boxes[i]], input_points=[points[i]])
        count, length = len(boxes[i]), alone["input_points"].shape[2]
        assert torch.equal(alone["pixel_values"][0], batch["pixel_values"][i])
        assert torch.equal(alone["input_boxes"][0], batch["input_boxes"][i, :count])
        if count:
            assert torch.equal(alone["input_points"][0], batch["input_points"][i, :count, :length])
        sized = processor(original_sizes=alone["original_sizes"], input_boxes=[boxes[i]], input_points=[points[i]])
        assert torch.equal(sized["input_boxes"], alone["input_boxes"])
        assert torch.equal(sized["reshaped_input_sizes"], alone["reshaped_input_sizes"])


def test_binary_mask_prompt_lands_where_the_image_does(processor):
    image = Image.new("RGB", (40, 20))
    mask = np.zeros((20, 40), bool)
    mask[5:10, 20:40] = True
    masks = processor(images=image, input_masks=mask)["input_masks"]
    assert masks.shape == (1, 1, 32, 32) and masks.dtype == torch.float32
    expected = torch.full((32, 32), -10.0)
    expected[4:8, 16:] = 10.0  # 20 x 40 pixels are 16 x 32 cells, below them lies the padding
    torch.testing.assert_close(masks[0, 0], expected)


def test_exif_16_bit_and_grey_images(processor, tmp_path):
    picture = random_image(0, (60, 44))
    exif = Image.Exif()
    exif[0x0112] = 8  # the file is stored a quarter turn away from upright
    picture.save(tmp_path / "turned.png", exif=exif)
    upright = processor(images=picture.rotate(90, expand=True))
    turned = processor(images=tmp_path / "turned.png")
    assert turned["original_sizes"].tolist() == [[60, 44]]
    assert torch.equal(turned["pixel_values"], upright["pixel_values"])
    grey = np.asarray(picture.convert("L"))
    eight = processor(images=Image.fromarray(grey))["pixel_values"]
    sixteen = processor(images=Image.fromarray(grey.astype(np.uint16) * 257))["pixel_values"]
    assert torch.equal(eight, sixteen)


def test_numpy_output(processor):
    inputs = processor(images=random_image(0), input_points=[3, 4], text=["dog"], return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in inputs.values())
    assert inputs["pixel_values"].dtype == np.float32 and inputs["prompt_mask"].dtype == bool


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({}, "Nothing to process"),
        ({"images": []}, "empty"),
        ({"text": []}, "empty"),
        ({"input_boxes": [1, 2, 3, 4]}, "original_sizes"),
        ({"images": random_image(0), "original_sizes": (44, 60)}, "not both"),
        ({"images": [random_image(0), Image.new("RGB", (0, 4))]}, "image 1"),
        ({"images": [random_image(0), b"broken"]}, "image 1"),
        ({"images": [random_image(0), Image.new("RGB", (1, 1000))]}, "image 1.*elongated"),
        ({"images": random_image(0), "input_boxes": [90, 90, 99, 99]}, "image 0, prompt 0"),
        ({"images": random_image(0), "point_labels": [1]}, "point_labels"),
        ({"images": np.zeros((8, 8, 3)), "do_rescale": False}, "image 0.*do_rescale"),
        ({"images": random_image(0), "size": {"height": 8, "width": 8}}, "longest_edge"),
        ({"original_sizes": (0, 5), "input_points": [1, 1]}, "image 0"),
    ],
)
def test_bad_calls(processor, kwargs, message):
    with pytest.raises(ValueError, match=message):
        processor(**kwargs)


JUNK = st.recursive(
    st.one_of(st.none(), st.integers(-3, 50), st.floats(), st.text(max_size=3), st.booleans(), st.binary(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=2), inner, max_size=2)),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(st.just(random_image(0)), st.just([random_image(0), random_image(1)]), JUNK),
    st.one_of(st.none(), st.just([["a cat"]]), JUNK),
    *[st.one_of(st.none(), JUNK)] * 5,
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_junk_raises_value_or_type_errors_only(images, text, boxes, points, labels, masks, sizes):
    processor = SamCaptionProcessor(tiny_image_processor(), tiny_tokenizer())
    try:
        inputs = processor(images, text, boxes, points, labels, masks, sizes)
    except (ValueError, TypeError) as error:
        assert str(error)
        return
    assert all(isinstance(value, torch.Tensor) for value in inputs.values())
    assert all(math.isfinite(value.float().sum()) for value in inputs.values())


# --- post-processing --------------------------------------------------------------------------------------------------


def test_post_processing_leaves_padded_prompts_out(processor):
    inputs = processor(
        images=[random_image(0, (60, 44)), random_image(1, (30, 64))], input_points=[[[[3, 4]], [[5, 6]]], [[[7, 8]]]]
    )
    low_res = torch.randn(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
    masks = processor.post_process_masks(low_res, *sizes, prompt_mask=inputs["prompt_mask"])
    assert [tuple(mask.shape) for mask in masks] == [(2, 3, 44, 60), (1, 3, 64, 30)]
    everything = processor.post_process_masks(list(low_res), *sizes)
    assert everything[1].shape == (2, 3, 64, 30)
    assert torch.equal(everything[1][:1], masks[1])
    with pytest.raises(ValueError, match="1 image"):
        processor.post_process_masks(low_res[:1], *sizes)

    ids = processor(text=[["a cat", "dog"], ["red cup", "tree"]])["input_ids"]
    assert processor.post_process_captions(ids, inputs["prompt_mask"]) == [["a cat", "dog"], ["red cup"]]
    both = torch.stack([ids, ids.flip(1)], dim=2)
    assert processor.post_process_captions(both, inputs["prompt_mask"]) == [
        [["a cat", "dog"], ["dog", "a cat"]],
        [["red cup", "tree"]],
    ]
    assert processor.post_process_captions(ids[:, :0]) == [[], []]
    with pytest.raises(ValueError, match="sequences"):
        processor.post_process_captions(ids[0])
