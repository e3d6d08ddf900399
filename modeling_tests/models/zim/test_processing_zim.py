# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""ZIM's processor: inputs and mattes as the official predictor makes them, kinds of images, prompts and mattes, errors."""

import io
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from hf_segcap import ZimProcessor
from hf_segcap.models.zim.guided_filter import GuidedUpscaler
from modeling_tests.tiny import IMAGE_SIZE, random_image, tiny_sam_processor, tiny_zim, tiny_zim_processor

GOLDEN = Path(__file__).parents[2] / "fixtures" / "zim"
BOX, OTHER_BOX = [4, 5, 40, 30], [1, 2, 20, 22]


@cache
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "predictor_inputs.safetensors")


@cache
def picture(name: str) -> Image.Image:
    return Image.open(GOLDEN / f"{name}.png").convert("RGB")


@cache
def official_processor() -> ZimProcessor:
    return ZimProcessor(SamImageProcessorPil())


@pytest.fixture
def processor() -> ZimProcessor:
    return tiny_zim_processor()


# --- golden ------------------------------------------------------------------------------------------------------------


@pytest.mark.golden
@pytest.mark.parametrize(("index", "size"), [(0, [684, 1024]), (1, [1024, 731])])
def test_inputs_are_the_official_ones(index: int, size: list[int]) -> None:
    stored = {k.removeprefix(f"img{index}."): v for k, v in golden().items() if k.startswith(f"img{index}.")}
    inputs = official_processor()(
        images=picture(f"image{index}"),
        input_boxes=[stored["box"].tolist()],
        input_points=[stored["points"].tolist()],
        point_labels=[stored["labels"].tolist()],
    )
    assert inputs["reshaped_input_sizes"].tolist() == [size]
    pixels = inputs["pixel_values"]
    torch.testing.assert_close(pixels[..., ::16, ::16], stored["encoder_input_every16"], atol=1e-5, rtol=0)
    statistics = [f(pixels.double()).item() for f in (torch.min, torch.max, torch.mean, torch.std)]
    assert statistics == pytest.approx(stored["encoder_input.stats"][:4].tolist(), rel=1e-5)
    for name in ("box_transformed", "points_transformed"):
        ours = inputs["input_boxes"][0] if "box" in name else inputs["input_points"][0, 0]
        assert torch.equal(ours, stored[name].float())
    assert inputs["point_labels"][0, 0].tolist() == stored["labels"].tolist()
    corners = stored["box_single.dec_in.point_coords"]
    assert torch.equal(inputs["input_boxes"].unflatten(-1, (2, 2))[0], corners)


@pytest.mark.golden
def test_mattes_are_the_official_ones() -> None:
    logits = golden()["post.logits_16x16_nearest_to_512"].repeat_interleave(32, -1).repeat_interleave(32, -2)
    (mattes,) = official_processor().post_process_alphas(logits[:, None], [(61, 41)], [(1024, 684)])
    assert mattes.shape == (1, 2, 61, 41) and mattes.dtype == torch.float32
    torch.testing.assert_close(mattes, golden()["post.out_sigmoid"], atol=1e-5, rtol=0)
    torch.testing.assert_close(mattes.logit(), golden()["post.out"], atol=1e-3, rtol=0)


# --- mattes ------------------------------------------------------------------------------------------------------------


def logits_of(images: int = 2, prompts: int = 3) -> torch.Tensor:
    return 4 * torch.randn(images, prompts, 4, 32, 32, generator=torch.Generator().manual_seed(0))


SIZES, RESHAPED = [(44, 60), (128, 64)], [(47, 64), (64, 32)]


@pytest.mark.parametrize(("name", "dtype", "largest"), [("uint8", torch.uint8, 255), ("uint16", torch.uint16, 65535)])
def test_whole_numbers(processor: ZimProcessor, name: str, dtype: torch.dtype, largest: int) -> None:
    exact = processor.post_process_alphas(logits_of(), SIZES, RESHAPED)
    for given in (name, dtype):
        mattes = processor.post_process_alphas(logits_of(), SIZES, RESHAPED, dtype=given)
        for matte, expected, size in zip(mattes, exact, SIZES, strict=True):
            assert matte.dtype == dtype and matte.shape == (3, 4, *size)
            assert np.array_equal(matte.numpy(), np.rint(expected.numpy() * np.float32(largest)).astype(int))


def test_prompts_that_pad_are_left_out(processor: ZimProcessor) -> None:
    everything = processor.post_process_alphas(logits_of(), SIZES, RESHAPED)
    prompt_mask = torch.tensor([[True, False, True], [False, False, False]])
    first, second = processor.post_process_alphas(logits_of(), SIZES, RESHAPED, prompt_mask=prompt_mask)
    assert torch.equal(first, everything[0][[0, 2]]) and second.shape == (0, 4, 128, 64)


def test_groups_of_mattes_do_not_change_them(processor: ZimProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = processor.post_process_alphas(logits_of(), SIZES, RESHAPED, images=two_images())
    monkeypatch.setattr("hf_segcap.models.zim.processing_zim._PIXELS_AT_ONCE", 1)
    result = processor.post_process_alphas(logits_of(), SIZES, RESHAPED, images=two_images())
    assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


def test_upscaling_along_edges(processor: ZimProcessor) -> None:
    """A matte with the edge of its image at a quarter of its resolution: the edge comes back."""
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    truth = ((x - 128).square() + (y - 128).square() < 70**2).float()
    colours = truth[..., None] * torch.tensor([200, 40, 60]) + (1 - truth[..., None]) * torch.tensor([20, 120, 200])
    image = Image.fromarray(colours.byte().numpy())
    small = F.interpolate(truth[None, None], (32, 32), mode="area")
    arguments = (small.clamp(1e-3, 1 - 1e-3).logit()[None], [(256, 256)], [(64, 64)])
    plain, guided = (processor.post_process_alphas(*arguments, images=images)[0][0, 0] for images in (None, [image]))
    errors = [(matte - truth).abs().mean().item() for matte in (plain, guided)]
    assert errors[1] < 0.35 * errors[0]
    assert guided.min() >= 0 and guided.max() <= 1
    upscaler = GuidedUpscaler(image)
    for _ in range(2):  # what it remembers changes nothing
        again = processor.post_process_alphas(*arguments, images=[upscaler])[0][0, 0]
        assert torch.equal(again, guided)
    # an image of one colour has no edges to follow, and a small image needs none
    flat = processor.post_process_alphas(*arguments, images=[Image.new("RGB", (256, 256), "grey")])[0][0, 0]
    assert (flat - plain).abs().mean() < 0.01
    same = (logits_of(1), [(64, 64)], [(64, 64)])
    assert torch.equal(
        processor.post_process_alphas(*same, images=[random_image(0, (64, 64))])[0],
        processor.post_process_alphas(*same)[0],
    )


def test_guided_upscaling_reproduces_linear_mattes() -> None:
    image = torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(0))
    small = F.interpolate(image[None], (20, 28), mode="bilinear", antialias=True, align_corners=False)[0]
    colours = torch.tensor([0.5, 0.1, 0.2])
    result = GuidedUpscaler(image, epsilon=1e-8)((small * colours[:, None, None]).sum(0)[None] + 0.1)
    torch.testing.assert_close(result[0], (image * colours[:, None, None]).sum(0) + 0.1, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"original_sizes": [(44, 60)]}, "Got mattes of 2 image.s., but 1 original and 2 reshaped sizes"),
        ({"dtype": "float16"}, "dtype must be one of float32, uint8, uint16, got 'float16'"),
        ({"dtype": torch.int32}, "dtype must be one of float32, uint8, uint16, got torch.int32"),
        ({"images": []}, r"images have the \(height, width\) \[\], but"),
        ({"images": [GuidedUpscaler(random_image(0, (60, 44)))]}, r"images have the \(height, width\) \[\(44, 60\)\]"),
        (
            {"images": [random_image(0), random_image(1)]},
            r"images have the \(height, width\) \[\(44, 60\), \(44, 60\)\]",
        ),
    ],
)
def test_bad_mattes(processor: ZimProcessor, changes: dict, message: str) -> None:
    arguments = {"original_sizes": SIZES, "reshaped_input_sizes": RESHAPED, **changes}
    with pytest.raises(ValueError, match=message):
        processor.post_process_alphas(logits_of(), **arguments)


# --- prompts and images ------------------------------------------------------------------------------------------------


def two_images() -> list[Image.Image]:
    return [random_image(0, (60, 44)), random_image(1, (64, 128))]


def test_mixed_prompts(processor: ZimProcessor) -> None:
    inputs = processor(
        images=two_images(),
        input_boxes=[[None, BOX, OTHER_BOX], [None]],
        input_points=[[[[30, 22], [3, 4]], [], [[6, 6]]], [[[16, 32]]]],
        point_labels=[[[1, 0], [], [0]], [[1]]],
    )
    assert inputs["prompt_mask"].tolist() == [[True] * 3, [True, False, False]]
    assert inputs["has_box"].tolist() == [[False, True, True], [False] * 3]
    assert inputs["point_labels"][0].tolist() == [[1, 0], [-2, -2], [0, -2]]
    torch.testing.assert_close(inputs["input_boxes"][0, 1], torch.tensor(BOX) * torch.tensor([64 / 60, 47 / 44] * 2))
    with torch.no_grad():
        output = tiny_zim()(**{k: v for k, v in inputs.items() if not k.endswith("sizes")})
    assert output.alphas.shape == (2, 3, 4, 32, 32)
    without_pixels = processor(
        original_sizes=[(44, 60), (128, 64)], input_boxes=[[BOX], [OTHER_BOX]], return_tensors="np"
    )
    assert "pixel_values" not in without_pixels and isinstance(without_pixels["input_boxes"], np.ndarray)


@pytest.mark.parametrize("prompts", [{"input_boxes": [[BOX], []]}, {"input_points": [[], []]}])
def test_images_without_prompts_have_no_mattes(processor: ZimProcessor, prompts: dict) -> None:
    inputs = processor(images=two_images(), **prompts)
    with torch.no_grad():
        output = tiny_zim()(**{k: v for k, v in inputs.items() if not k.endswith("sizes")})
    mattes = processor.post_process_alphas(
        output.alphas, inputs["original_sizes"], inputs["reshaped_input_sizes"], prompt_mask=inputs["prompt_mask"]
    )
    assert [len(matte) for matte in mattes] == inputs["prompt_mask"].sum(1).tolist()


def test_a_box_of_one_pixel(processor: ZimProcessor) -> None:
    inputs = processor(images=two_images()[0], input_boxes=[[10, 10, 11, 11], [59, 43, 60, 44]])
    with torch.no_grad():
        output = tiny_zim(spread=0.2)(**{k: v for k, v in inputs.items() if not k.endswith("sizes")})
    (mattes,) = processor.post_process_alphas(
        output.alphas, inputs["original_sizes"], inputs["reshaped_input_sizes"], dtype="uint8"
    )
    assert output.alphas.isfinite().all() and mattes.shape == (2, 4, 44, 60)


def test_kinds_of_images(processor: ZimProcessor) -> None:
    colour = np.asarray(random_image(0))
    grey16 = io.BytesIO()
    Image.fromarray(colour[..., 0].astype(np.uint16) * 257).save(grey16, "PNG")
    rgba = np.dstack([colour, np.full(colour.shape[:2], 255, np.uint8)])
    expected = {"colour": colour, "grey": np.repeat(colour[..., :1], 3, -1)}
    for kind, image in (("grey", grey16.getvalue()), ("grey", colour[..., 0]), ("colour", Image.fromarray(rgba))):
        pixels = processor(images=image)["pixel_values"]
        torch.testing.assert_close(pixels, processor(images=expected[kind])["pixel_values"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Nothing to process: pass `images`, or prompts"),
        ({"input_boxes": [BOX]}, "Prompts are scaled with their image"),
        ({"images": random_image(0), "original_sizes": [(44, 60)]}, "`images` or `original_sizes`, not both"),
        (
            {"images": random_image(0), "input_boxes": [[BOX, None]]},
            "image 0, prompt 1: got no prompt, neither a box nor a point",
        ),
        ({"images": random_image(0), "input_points": [[[[3, 4]], []]]}, "image 0, prompt 1: got no prompt"),
        (
            {"images": two_images(), "input_boxes": [[BOX], [None]]},
            "image 1, prompt 0: got no prompt, neither a box nor a point",
        ),
        (
            {"images": random_image(0), "input_boxes": [[5, 5, 5, 9]]},
            "image 0, prompt 0: got the empty or inverted box",
        ),
        ({"images": random_image(0), "input_points": [[70, 4]]}, "image 0, prompt 0: point 0 .* lies outside"),
    ],
)
def test_bad_prompts(processor: ZimProcessor, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


def test_save_and_load(processor: ZimProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path / "zim")
    tiny_zim().save_pretrained(tmp_path / "zim")
    tiny_sam_processor().save_pretrained(tmp_path / "sam")
    expected = processor(images=two_images(), input_boxes=[[BOX], [OTHER_BOX]])
    for loaded in (
        ZimProcessor.from_pretrained(tmp_path / "zim"),
        AutoProcessor.from_pretrained(tmp_path / "zim"),
        ZimProcessor.from_pretrained(tmp_path / "sam"),
    ):
        assert type(loaded) is ZimProcessor and loaded.image_processor.size["longest_edge"] == IMAGE_SIZE
        inputs = loaded(images=two_images(), input_boxes=[[BOX], [OTHER_BOX]])
        assert inputs.keys() == expected.keys() and all(torch.equal(inputs[name], expected[name]) for name in inputs)
