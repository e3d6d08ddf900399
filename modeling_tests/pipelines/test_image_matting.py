# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""`pipeline("image-matting")`: a tiny model whose mattes depend on the prompt, and the official generator's records."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers.pipelines.base
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import pipeline

from hf_segcap import ImageMattingPipeline, ZimForMatting, ZimProcessor
from hf_segcap.data.alpha import decode_alpha
from hf_segcap.masks import decode_rle
from hf_segcap.models.sam.prompt_processing import sam_image_processor
from hf_segcap.records import to_matte_records
from modeling_tests.hub_server import HubServer
from modeling_tests.tiny import IMAGE_SIZE, random_image, tiny_sam_promptable, tiny_zim, tiny_zim_processor

GOLDEN = Path(__file__).parents[1] / "fixtures" / "zim"
OFFICIAL: dict[str, Any] = json.loads((GOLDEN / "amg.json").read_text())
IMAGE = random_image(0)
BOX, OTHER_BOX, POINT = [4, 5, 40, 30], [1, 2, 20, 22], [30, 20]
ALL = {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}


@cache
def matter() -> ImageMattingPipeline:
    return pipeline("image-matting", model=tiny_zim(spread=0.2), processor=tiny_zim_processor(), device="cpu")


def alphas(results: list[dict[str, Any]]) -> np.ndarray:
    return np.stack([np.asarray(result["alpha"]) for result in results]).astype(int)


def same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    """Equal up to the last digit of alpha, which the order of sums may change."""
    return len(one) == len(other) and all(
        abs(a["score"] - b["score"]) < 1e-4 and np.abs(alphas([a]) - alphas([b])).max() <= 1
        for a, b in zip(one, other)
    )


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_results_describe_their_matte() -> None:
    results = matter()(IMAGE, boxes=[BOX, OTHER_BOX])
    assert len(results) == 2 and not same(results[:1], results[1:])
    for result in results:
        assert set(result) == {"alpha", "score", "box"} and isinstance(result["score"], float)
        assert result["alpha"].mode == "L" and result["alpha"].size == IMAGE.size
        ys, xs = np.nonzero(np.asarray(result["alpha"]) > 127)
        assert list(result["box"].values()) == [xs.min(), ys.min(), xs.max(), ys.max()]


def test_mattes_are_those_of_model_and_processor() -> None:
    pipe = matter()
    inputs = pipe.processor(images=IMAGE, input_boxes=[BOX])
    sizes = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
    with torch.no_grad():
        output = pipe.model(**inputs)
    (expected,) = pipe.processor.post_process_alphas(output.alphas, *sizes, dtype="uint8")
    (first,), (best,) = pipe(IMAGE, boxes=BOX), pipe(IMAGE, boxes=BOX, multimask_output=True)
    assert np.abs(alphas([first])[0] - expected[0, 0].int().numpy()).max() <= 1
    index = int(output.iou_scores.argmax())
    assert index != 0 and best["score"] == max(best["scores"]) == pytest.approx(
        float(output.iou_scores.max()), abs=1e-4
    )
    assert len(best["alphas"]) == 4
    for matte, other in zip(best["alphas"], expected[0]):
        assert np.abs(np.asarray(matte).astype(int) - other.int().numpy()).max() <= 1
    assert np.array_equal(np.asarray(best["alpha"]), np.asarray(best["alphas"][index]))


def test_objects_with_different_prompts_in_one_call() -> None:
    pipe = matter()
    mixed = pipe(IMAGE, boxes=[BOX, None, BOX], points=[[], [POINT, [5, 6]], [POINT]], point_labels=[[], [1, 0], [1]])
    alone = [
        *pipe(IMAGE, boxes=BOX),
        *pipe(IMAGE, points=[[POINT, [5, 6]]], point_labels=[[1, 0]]),
        *pipe(IMAGE, boxes=[BOX], points=[[POINT]]),
    ]
    assert same(mixed, alone)


def test_lists_batches_generators_and_dict_items() -> None:
    pipe = matter()
    items = [
        {"image": IMAGE, "boxes": [BOX, OTHER_BOX]},
        {"image": random_image(1, (50, 64)), "points": [POINT]},
        {"image": IMAGE, "boxes": [OTHER_BOX]},
        {"image": random_image(2), **dict.fromkeys(("boxes", "points"))},  # everything
    ]
    alone = [pipe(item, **ALL) for item in items]
    assert [len(results) for results in alone[:3]] == [2, 1, 1] and len(alone[3]) > 1
    for several in (pipe(items, batch_size=3, **ALL), list(pipe((item for item in items), **ALL))):
        assert all(same(a, b) for a, b in zip(several, alone, strict=True))
    with pytest.raises(ValueError, match="Item 1 of the input.*outside"):
        pipe([items[0], {"image": IMAGE, "points": [[99, 2]]}])


def test_a_box_of_one_pixel_and_no_objects() -> None:
    (result,) = matter()(IMAGE, boxes=[[3, 3, 4, 4]])
    assert result["alpha"].size == IMAGE.size
    assert matter()(IMAGE, boxes=[]) == matter()(IMAGE, points=[]) == []
    (corner,) = matter()(IMAGE, points=[list(IMAGE.size)])  # the border belongs to the image
    assert corner["alpha"].size == IMAGE.size
    (tiny,) = matter()(Image.new("RGB", (1, 1)), boxes=[[0, 0, 1, 1]], foreground=True)
    assert tiny["alpha"].size == tiny["foreground"].size == (1, 1)


def test_kinds_of_images() -> None:
    grey = np.asarray(IMAGE.convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)  # 16 bits
    assert same(matter()(deep, boxes=BOX), matter()(Image.fromarray(grey), boxes=BOX))
    clear = IMAGE.convert("RGBA")
    clear.putalpha(Image.fromarray(np.where(grey > 128, 255, 0).astype(np.uint8)))
    white = Image.fromarray(np.where(grey[..., None] > 128, np.asarray(IMAGE), 255).astype(np.uint8))
    assert same(matter()(clear, boxes=BOX), matter()(white, boxes=BOX))
    assert not same(matter()(clear, boxes=BOX), matter()(IMAGE, boxes=BOX))


# --- forms of the result ----------------------------------------------------------------------------------------------


def test_sixteen_bits(tmp_path: Path) -> None:
    (coarse,), (fine,) = matter()(IMAGE, boxes=BOX), matter()(IMAGE, boxes=BOX, alpha_dtype="uint16", foreground=True)
    assert fine["alpha"].mode == "I;16" and fine["box"] == coarse["box"]
    fine["alpha"].save(tmp_path / "fine.png")
    stored = decode_alpha(tmp_path / "fine.png")
    assert np.abs(stored - np.asarray(coarse["alpha"]) / 255).max() < 0.003
    assert len(np.unique(stored)) > len(np.unique(np.asarray(coarse["alpha"])))
    assert np.array_equal(np.asarray(fine["foreground"].getchannel("A")), np.rint(stored * 255).astype(np.uint8))


def test_foreground_adds_a_cut_out() -> None:
    plain, cut = matter()(IMAGE, boxes=[BOX, OTHER_BOX]), matter()(IMAGE, boxes=[BOX, OTHER_BOX], foreground=True)
    assert same(plain, cut)
    for result in cut:
        picture = result["foreground"]
        assert picture.mode == "RGBA" and picture.size == IMAGE.size
        assert np.array_equal(np.asarray(picture)[..., 3], np.asarray(result["alpha"]))
        solid = np.asarray(result["alpha"]) == 255
        assert np.array_equal(np.asarray(picture)[solid, :3], np.asarray(IMAGE)[solid])
    everything = matter()(IMAGE, foreground=True, **ALL)
    assert everything and all(result["foreground"].size == IMAGE.size for result in everything)


def test_guided_upscaling_follows_the_image() -> None:
    large = random_image(3, (3 * IMAGE_SIZE, 2 * IMAGE_SIZE))
    box = [20, 20, 150, 100]
    plain, guided = matter()(large, boxes=box), matter()(large, boxes=box, upscaling="guided")
    assert not same(plain, guided) and np.abs(alphas(plain) - alphas(guided)).mean() < 40
    assert same(matter()(IMAGE, boxes=BOX), matter()(IMAGE, boxes=BOX, upscaling="guided"))  # no larger than the model
    found = matter()(large, upscaling="guided", crop_n_layers=1, **ALL)
    assert len(found) > 1 and not same(found, matter()(large, crop_n_layers=1, **ALL))


class LargestFloat(TorchDispatchMode):
    """Remembers the most elements of a floating-point tensor that any operation gave."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("everything", [False, True])
def test_float_mattes_of_image_size_exist_one_at_a_time(everything: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_segcap.everything._UPSCALED_ON_CPU", 1)  # as for images of many megapixels
    large, pixels = random_image(3, (600, 400)), 600 * 400
    prompts: dict[str, Any] = dict(ALL, points_per_side=3) if everything else {"boxes": [BOX] * 12}
    with LargestFloat() as largest:
        results = matter()(large, foreground=True, **prompts)
    assert len(results) >= 12 or everything and len(results) >= 3
    # three colours of the image, in float, are what the image processor may hold
    assert pixels <= largest.elements <= 3 * pixels


@pytest.mark.parametrize(
    ("prompts", "options", "per_pixel", "remedy"),
    [
        ({"boxes": [BOX, OTHER_BOX]}, {}, 1, "Use fewer prompts per call or a smaller picture"),
        ({"boxes": [BOX, OTHER_BOX]}, {"foreground": True, "alpha_dtype": "uint16"}, 6, "Use foreground=False, fewer"),
        ({"boxes": [BOX, OTHER_BOX]}, {"multimask_output": True}, 4, "fewer prompts per call"),
        (ALL, {}, 1, "Use a higher pred_iou_thresh"),
        (ALL, {"foreground": True, "output_mode": "binary_mask"}, 6, "foreground=False, a higher pred_iou_thresh"),
    ],
)
def test_results_have_a_budget(
    prompts: dict[str, Any],
    options: dict[str, Any],
    per_pixel: int,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    count = len(matter()(IMAGE, **prompts))
    needed = count * per_pixel * IMAGE.width * IMAGE.height
    monkeypatch.setattr("hf_segcap.pipelines.image_matting.RESULT_BUDGET", needed)
    results = matter()(IMAGE, **prompts, **options)
    kinds = (np.ndarray, Image.Image)
    pictures = {id(value): value for result in results for value in result.values() if isinstance(value, kinds)}
    pictures |= {id(matte): matte for result in results for matte in result.get("alphas", [])}
    assert sum(np.asarray(picture).nbytes for picture in pictures.values()) == needed
    monkeypatch.setattr("hf_segcap.pipelines.image_matting.RESULT_BUDGET", needed - 1)
    message = rf"{count} objects in an image of 44 x 60 .* {needed:,} bytes, {per_pixel} per pixel .*{remedy}"
    if prompts == ALL:  # found after long work, of which the best is kept
        scores = [result["score"] for result in results]
        del scores[scores.index(min(scores))]
        assert [result["score"] for result in matter()(IMAGE, **prompts, **options)] == scores
        assert re.search(message, caplog.text) and f"The best {count - 1} are kept" in caplog.text
        return
    monkeypatch.setattr("hf_segcap.pipelines.image_matting._Finish.all", None)  # no matte is made first
    with pytest.raises(ValueError, match=message):
        matter()(IMAGE, **prompts, **options)


# --- everything -------------------------------------------------------------------------------------------------------


@cache
def official() -> ImageMattingPipeline:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install hf_segcap[onnx]")
    return pipeline("image-matting", model=str(GOLDEN / "onnx"), device="cpu")


@pytest.mark.golden
@pytest.mark.parametrize("name", OFFICIAL)
def test_everything_gives_the_official_records(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = OFFICIAL[name]
    expected, mattes = golden["records"], np.load(GOLDEN / "amg_logits.npz")[name].astype(int)
    pipe, found = official(), []
    propose = pipe.propose
    monkeypatch.setattr(pipe, "propose", lambda *a, **k: found.append(propose(*a, **k)) or found[0])
    encoded = []
    run = pipe.model.encoder.run
    monkeypatch.setattr(pipe.model, "encoder", _Counted(pipe.model.encoder, run, encoded))
    results = pipe(str(GOLDEN / golden["image"]), output_mode="binary_mask", **golden["params"])
    crops = {tuple(batch["crop_box"]) for batch in golden["trace"]["batches"]}
    assert len(encoded) == len(crops)  # embeddings and details of an image or a crop come from one pass
    records = to_matte_records(found[0], 1024)
    assert len(results) == len(records) == len(expected) == {"amg_grid": 16, "amg_crops": 34}[name]
    assert records[0].keys() == {*expected[0], "logit"}
    for record, result, reference, matte in zip(records, results, expected, mattes):
        assert record["crop_box"] == reference["crop_box"] and record["point_coords"] == reference["point_coords"]
        assert np.abs(np.subtract(record["bbox"], reference["bbox"])).max() <= 1
        assert abs(record["area"] - reference["area"]) <= 2
        assert record["predicted_iou"] == result["score"] == pytest.approx(reference["predicted_iou"], abs=1e-5)
        assert record["stability_score"] == pytest.approx(reference["stability_score"], abs=1e-3)
        assert (record["segmentation"] != decode_rle(reference["segmentation"])).sum() <= 2
        assert record["logit"].dtype == np.uint8 and np.abs(record["logit"] - matte).max() <= 1
        assert np.abs(np.asarray(result["alpha"]) - matte).max() <= 2  # rounded, officially truncated
        assert (result["segmentation"] == record["segmentation"]).all()


class _Counted:
    """An onnxruntime session that counts its runs."""

    def __init__(self, session: Any, run: Any, calls: list[int]) -> None:
        self.session, self._run, self.calls = session, run, calls

    def run(self, *args: Any) -> Any:
        self.calls.append(1)
        return self._run(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


def test_settings_of_the_model_and_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = matter()
    everything = pipe(IMAGE, **ALL)
    scores = [result["score"] for result in everything]
    assert scores == sorted(scores, reverse=True) and {"segmentation", "stability_score", "crop_box"} <= set(
        everything[0]
    )
    assert decode_rle(everything[0]["segmentation"]).sum() == everything[0]["area"]
    monkeypatch.setattr(pipe.model.config, "everything", ALL)
    assert same(pipe(IMAGE), everything)
    middle = (scores[0] + scores[1]) / 2
    assert [result["score"] for result in pipe(IMAGE, pred_iou_thresh=middle)] == scores[:1]


# --- where the model comes from ----------------------------------------------------------------------------------------


def test_save_and_load(tmp_path: Path) -> None:
    expected = matter()(IMAGE, boxes=BOX)
    matter().save_pretrained(tmp_path)
    loaded = pipeline("image-matting", model=str(tmp_path), device="cpu")
    assert same(loaded(IMAGE, boxes=BOX), expected)
    without_processor = pipeline("image-matting", model=loaded.model, device="cpu")
    assert without_processor.processor.image_processor.size == loaded.processor.image_processor.size
    assert same(without_processor(IMAGE, boxes=BOX), expected)
    for file in ("processor_config.json", "preprocessor_config.json"):
        if (tmp_path / file).exists():
            (tmp_path / file).write_text("{")
    with pytest.raises((ValueError, OSError), match="json|JSON"):  # no silent default
        pipeline("image-matting", model=str(tmp_path), device="cpu")


def test_a_new_model_gets_a_processor_of_its_sizes() -> None:
    pipe = pipeline("image-matting", model=tiny_zim(spread=0.2), device="cpu")
    expected = ZimProcessor(sam_image_processor(IMAGE_SIZE, 16)).image_processor
    assert pipe.processor.image_processor.to_dict() == expected.to_dict()


def test_a_model_whose_folder_is_gone(tmp_path: Path) -> None:
    tiny_zim().save_pretrained(tmp_path / "model")
    model = ZimForMatting.from_pretrained(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    frame = pipeline("image-matting", model=model).processor.image_processor.pad_size
    assert frame["height"] == model.config.vision_config.image_size


def test_a_model_with_an_adapter_around_it() -> None:
    peft = pytest.importorskip("peft", reason="needs peft")
    model = tiny_zim(spread=0.2)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=model.lora_target_modules))
    assert same(pipeline("image-matting", model=adapted, device="cpu")(IMAGE, boxes=BOX), matter()(IMAGE, boxes=BOX))


def test_a_damaged_checkpoint_is_not_called_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_zim().config.save_pretrained(tmp_path)  # and no weights
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="model.safetensors"):
        pipeline("image-matting", model=str(tmp_path), device="cpu")


def test_onnx_folders_without_a_configuration() -> None:
    (result,) = official()(GOLDEN / "image0.png", boxes=[[40, 30, 120, 100]])
    with Image.open(GOLDEN / "image0.png") as image:
        assert result["alpha"].size == image.size


def test_onnx_stays_on_the_processor_where_pytorch_has_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install hf_segcap[onnx]")
    monkeypatch.setattr(transformers.pipelines.base, "is_torch_cuda_available", lambda *args: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert pipeline("image-matting", model=str(GOLDEN / "onnx")).device == torch.device("cpu")
    with pytest.raises(ValueError, match="onnxruntime cannot compute on cuda"):  # asked for, so no silent change
        pipeline("image-matting", model=str(GOLDEN / "onnx"), device="cuda")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert official().model.follows_accelerator


def test_onnx_repositories_without_a_configuration(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install hf_segcap[onnx]")
    uploader = f"""
from huggingface_hub import HfApi
HfApi().create_repo("me/zim")
HfApi().upload_folder(repo_id="me/zim", folder_path={str(GOLDEN / "onnx")!r}, path_in_repo="zim_vit_l_1")
HfApi().create_repo("me/empty")
"""
    user = """
import hf_segcap
from transformers import pipeline
print(type(pipeline("image-matting", model="me/zim", device="cpu").model).__name__)
try:
    pipeline("image-matting", model="me/empty", device="cpu")
except ValueError as error:
    print("config.json" in str(error))
"""
    with HubServer() as hub:
        environment = {**os.environ, **hub.env, "HF_HOME": str(tmp_path)}
        for code in (uploader, user):
            run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
            assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["ZimOnnxForMatting", "True"]


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"points": [[1000, 10]]}, ValueError, "outside"),
        ({"boxes": [[10, 10, 5, 5]]}, ValueError, "inverted"),
        (
            {"boxes": [BOX, None], "points": [[POINT], []]},
            ValueError,
            "image 0, prompt 1: got no prompt, neither a box nor a point",
        ),
        ({"boxes": [BOX], "alpha_dtype": "float32"}, ValueError, "alpha_dtype"),
        ({"boxes": [BOX], "upscaling": "bicubic"}, ValueError, "upscaling"),
        ({"boxes": [BOX], "prompts_per_batch": 0}, ValueError, "prompts_per_batch"),
        ({"output_mode": "png"}, ValueError, "output_mode"),
        ({"points_per_side": 0}, ValueError, "points_per_side"),
        ({"masks": [np.ones((44, 60), bool)]}, TypeError, "masks"),
        ({"box": BOX}, TypeError, "did you mean `boxes`"),
    ],
)
def test_bad_arguments_say_what_is_wrong(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        matter()(IMAGE, **arguments)


def test_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got SamForPromptableSegmentation"):
        pipeline("image-matting", model=tiny_sam_promptable(), processor=tiny_zim_processor(), device="cpu")
    with pytest.raises(ValueError, match="Unrecognized model"):
        pipeline("image-matting", model=str(tmp_path))


def test_settings_of_the_pipeline_stay_when_a_call_has_others() -> None:
    loose = {"pred_iou_thresh": -1.0, "stability_score_thresh": -1.0, "box_nms_thresh": 1.0}
    pipe = pipeline("image-matting", model=matter().model, processor=matter().processor, **loose)
    assert same(pipe(IMAGE, points_per_side=2), matter()(IMAGE, points_per_side=2, **loose))
