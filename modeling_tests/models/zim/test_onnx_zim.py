# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""ZIM as ONNX files: what the official wrapper says around the official interface, and our export against our model."""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import pipeline
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from hf_segcap import SamForPromptableSegmentation, ZimConfig, ZimForMatting, ZimOnnxForMatting, ZimProcessor
from hf_segcap.conversion.convert_zim import convert_zim
from hf_segcap.models.zim.onnx_zim import graph_pairs
from hf_segcap.onnx_export import export_zim_onnx
from hf_segcap.onnx_export.zim import ZimPromptGraph, example_inputs
from modeling_tests.hub_server import HubServer
from modeling_tests.tiny import (
    IMAGE_SIZE,
    random_image,
    tiny_sam_promptable_config,
    tiny_zim,
    tiny_zim_config,
    tiny_zim_processor,
)

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install hf_segcap[onnx]")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install hf_segcap[onnx]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install hf_segcap[onnx]")

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "modeling_tests" / "fixtures" / "zim"
TOLERANCE = 1e-4


# --- golden: the official predictor around a small pair of graphs ------------------------------------------------------


@cache
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "predictor_inputs.safetensors") | load_file(
        GOLDEN / "onnx" / "predictor_outputs.safetensors"
    )


@cache
def official() -> tuple[ZimOnnxForMatting, ZimProcessor]:
    return ZimOnnxForMatting.from_pretrained(GOLDEN / "onnx"), ZimProcessor(SamImageProcessorPil())


@cache
def pixels(index: int) -> dict[str, Any]:
    """Of one image; the same tensor each time, so that the encoder runs once per image."""
    return dict(official()[1](images=Image.open(GOLDEN / f"image{index}.png").convert("RGB")))


def check(
    case: str, prompts: dict[str, Any], given: dict[str, torch.Tensor], multimask: bool, only_first: bool = True
):
    """Answers to `given` (in the model frame) are the official ones of this case."""
    model, processor = official()
    inputs = pixels(int(case[3]))
    output = model(pixel_values=inputs["pixel_values"], multimask_output=True, **prompts, **given)
    close(output.alphas[0, ..., ::32, ::32], golden()[f"{case}.dec_out.masks_every32"], TOLERANCE)
    close(output.iou_scores[0], golden()[f"{case}.dec_out.iou"], 1e-5)
    output = model(pixel_values=inputs["pixel_values"], multimask_output=multimask, **prompts, **given)
    (mattes,) = processor.post_process_alphas(output.alphas, inputs["original_sizes"], inputs["reshaped_input_sizes"])
    # the predictor answers for the first object alone, except from tensors
    close((mattes[0] if only_first else mattes)[..., ::6, ::6], golden()[f"{case}.mattes_every6"], 2e-5)


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("case", "kinds", "multimask"),
    [
        ("img0.box_single", ("box",), False),
        ("img0.box_multi", ("box",), True),
        ("img1.box_single", ("box",), False),
        ("img0.points_single", ("points",), False),
        ("img1.points_single", ("points",), False),
        ("img0.one_point_multi", ("point",), True),
        ("img0.points_and_box", ("box", "two points"), False),
    ],
)
def test_prompts_in_pixels_of_the_image(case: str, kinds: tuple[str, ...], multimask: bool) -> None:
    image = case[:4]
    count = {"points": None, "point": 1, "two points": 2}
    prompts: dict[str, Any] = {}
    for kind in kinds:
        if kind == "box":
            prompts["input_boxes"] = [golden()[f"{image}.box"].tolist()]
        else:
            prompts["input_points"] = [[golden()[f"{image}.points"][: count[kind]].tolist()]]
            prompts["point_labels"] = [[golden()[f"{image}.labels"][: count[kind]].tolist()]]
    sizes = pixels(int(image[3]))["original_sizes"]
    inputs = official()[1](original_sizes=sizes, **prompts)
    given = {name: inputs[name] for name in ("input_boxes", "input_points", "point_labels") if name in inputs}
    check(case, {}, given, multimask)


@pytest.mark.golden
@pytest.mark.parametrize(("case", "multimask"), [("boxes_torch_multi", True), ("boxes_torch_single", False)])
def test_boxes_of_the_model_frame(case: str, multimask: bool) -> None:
    check(f"img1.{case}", {}, {"input_boxes": golden()["img1.boxes_torch_in"][None]}, multimask, only_first=False)


@pytest.mark.golden
def test_corners_are_not_sorted() -> None:
    corners = golden()["img0.predict_three_boxes.dec_in.point_coords"]
    check("img0.predict_three_boxes", {}, {"input_boxes": corners.flatten(1)[None]}, False)


@pytest.mark.golden
def test_points_of_the_model_frame_with_the_label_of_no_point() -> None:
    given = {
        "input_points": golden()["img1.coords_torch_in"][None],
        "point_labels": golden()["img1.labels_torch_in"][None],
    }
    assert (given["point_labels"] == -1).any()
    check("img1.points_torch_single", {}, given, False, only_first=False)


@pytest.mark.golden
def test_embeddings_are_read_by_their_place() -> None:
    model, inputs = official()[0], pixels(0)
    embeddings = model.get_image_embeddings(inputs["pixel_values"])
    close(embeddings[..., ::4, ::4], golden()["img0.image_embeddings_every4"], 1e-5)
    shapes = [tuple(details.shape) for details in model.get_detail_features(inputs["pixel_values"])]
    assert shapes == [(1, 4, 512, 512), (1, 6, 256, 256), (1, 8, 128, 128)]


# --- our export --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> ZimForMatting:
    return tiny_zim(spread=0.2)


@pytest.fixture(scope="module")
def folder(model: ZimForMatting, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zim")
    export_zim_onnx(model, folder)
    return folder


@pytest.fixture
def exported(folder: Path) -> ZimOnnxForMatting:
    return ZimOnnxForMatting.from_pretrained(folder)


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    """Two images with different numbers of objects, that have boxes, points or both; boxes beyond the image, too."""
    processed = tiny_zim_processor()(
        images=[random_image(0), random_image(1, (30, 64))],
        input_boxes=[[[4, 5, 40, 30], None, [20, 2, 59, 43], None], [[1, 2, 20, 22], None]],
        input_points=[[[], [[10, 10], [30, 20], [5, 40]], [[30, 30]], [[50, 12]]], [[], [[3, 60]]]],
        point_labels=[[[], [1, 0, 1], [1], [0]], [[], [1]]],
    )
    names = ("pixel_values", "input_boxes", "has_box", "input_points", "point_labels", "prompt_mask")
    return {name: processed[name] for name in names}


def same(ours: Any, theirs: Any) -> None:
    for name in ("alphas", "iou_scores", "image_embeddings"):
        close(ours[name], theirs[name].detach(), TOLERANCE)


def test_a_given_configuration_is_left_alone(folder: Path) -> None:
    config = ZimConfig()
    found = ZimOnnxForMatting(folder / "encoder.onnx", folder / "decoder.onnx", config=config).config
    assert config.vision_config.image_size == 1024 != found.vision_config.image_size


def test_file_says_what_it_takes(folder: Path, exported: ZimOnnxForMatting) -> None:
    for name in ("encoder.onnx", "decoder.onnx"):
        onnx.checker.check_model(str(folder / name))
    shapes = {item.name: (item.type, item.shape) for item in exported.decoder.get_inputs()}
    assert list(shapes) == [
        "feat_D0", "feat_D1", "feat_D2", "image_embeddings", "attn_mask", "point_coords", "point_labels"
    ]  # fmt: skip
    assert {kind for kind, _ in shapes.values()} == {"tensor(float)"}
    assert shapes["feat_D1"][1] == [1, 8, 16, 16] and shapes["image_embeddings"][1] == [1, 32, 4, 4]
    assert shapes["attn_mask"][1] == ["num_prompts", 4, 4]
    assert shapes["point_coords"][1] == ["num_prompts", "num_points", 2]
    assert [item.name for item in exported.encoder.get_inputs()] == ["image"]
    assert [item.name for item in exported.encoder.get_outputs()] == [
        "image_embeddings",
        "feat_D0",
        "feat_D1",
        "feat_D2",
    ]
    assert exported.decoder.get_outputs()[0].shape == ["num_prompts", 4, 32, 32]


@pytest.mark.parametrize("prompts_per_batch", [None, 1, 2])
def test_ragged_prompts_of_several_images(
    prompts_per_batch: int | None, model: ZimForMatting, exported: ZimOnnxForMatting, inputs: dict[str, torch.Tensor]
) -> None:
    ours = exported(**inputs, prompts_per_batch=prompts_per_batch)
    with torch.no_grad():
        theirs = model(**inputs)
    same(ours, theirs)
    assert ours.alphas.shape == (2, 4, 4, 32, 32) and theirs.alphas.abs().max() > 0.1
    assert ours.alphas[1, 2:].abs().max() == 0  # padding
    for mine, other in zip(ours.detail_features, theirs.detail_features, strict=True):
        close(mine, other, TOLERANCE)
    single = exported(**inputs, multimask_output=False)
    assert torch.equal(single.alphas, ours.alphas[:, :, :1]) and single.iou_scores.shape == (2, 4, 1)


def test_many_prompts_go_through_in_parts(
    model: ZimForMatting, exported: ZimOnnxForMatting, inputs: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    points = torch.rand(2, 23, 1, 2, generator=torch.Generator().manual_seed(0)) * IMAGE_SIZE
    sizes, run = [], exported.run_decoder
    monkeypatch.setattr(exported, "run_decoder", lambda given: sizes.append(len(given["attn_mask"])) or run(given))
    ours = exported(pixel_values=inputs["pixel_values"], input_points=points, prompts_per_batch=10)
    assert sizes == [10, 10, 3, 10, 10, 3]
    with torch.no_grad():
        same(ours, model(pixel_values=inputs["pixel_values"], input_points=points))


def test_image_is_encoded_once(exported: ZimOnnxForMatting, inputs: dict[str, torch.Tensor]) -> None:
    pixel_values, runs = inputs["pixel_values"], []
    encoder = exported.encoder

    class Counted:
        def __getattr__(self, name: str) -> Any:
            if name == "run":
                runs.append(1)
            return getattr(encoder, name)

    exported.encoder = Counted()
    embeddings, details = exported.encode_image(pixel_values)
    assert len(runs) == 2  # one per image
    prompts = {name: value for name, value in inputs.items() if name != "pixel_values"}
    reused = exported(image_embeddings=embeddings, detail_features=details, **prompts)
    assert len(runs) == 2 and torch.equal(reused.alphas, exported(pixel_values=pixel_values, **prompts).alphas)
    assert torch.equal(exported.get_image_embeddings(pixel_values), embeddings)
    assert all(map(torch.equal, exported.get_detail_features(pixel_values), details))


def test_export_is_converted_back(model: ZimForMatting, folder: Path, tmp_path: Path) -> None:
    """Here and not with the converter's other tests, as this exporter takes long.

    It stores equal norms once, under the name of the first: such names do not mislead.
    """
    convert_zim(folder / "encoder.onnx", tmp_path / "out")
    written, wanted = ZimForMatting.from_pretrained(tmp_path / "out").state_dict(), model.state_dict()
    changed = ("detail_encoder.", "mask_decoder.fusion_blocks.")  # batch norms became part of these convolutions
    kept = [name for name in wanted if not name.startswith(changed)]
    assert len(kept) > 150 and all(torch.equal(written[name], wanted[name]) for name in kept)


@pytest.mark.parametrize("joint", [False, True])
def test_points_and_box_mean_what_the_configuration_says(
    joint: bool, model: ZimForMatting, folder: Path, inputs: dict[str, torch.Tensor]
) -> None:
    exported = ZimOnnxForMatting.from_pretrained(folder, joint_prompts=joint)
    other = ZimForMatting(tiny_zim_config(joint_prompts=joint)).eval()
    other.load_state_dict(model.state_dict())
    given = {"input_boxes": inputs["input_boxes"], "input_points": inputs["input_points"].abs() + 3}
    with torch.no_grad():
        same(
            exported(pixel_values=inputs["pixel_values"], **given), other(pixel_values=inputs["pixel_values"], **given)
        )
    assert exported.config.point_sigma == 1.5  # of the saved configuration, which the graphs do not tell
    assert (exported.config.vision_config.image_size, exported.config.vision_config.patch_size) == (64, 16)


def test_batch_of_padding_alone(exported: ZimOnnxForMatting, inputs: dict[str, torch.Tensor]) -> None:
    given = inputs | {"prompt_mask": torch.zeros_like(inputs["prompt_mask"])}
    output = exported(**given)
    assert output.alphas.shape == (2, 4, 4, 32, 32) and output.alphas.abs().max() == 0


def test_export_leaves_the_model_alone_and_takes_other_forms_of_it(model: ZimForMatting) -> None:
    """The module that is exported, for the other kinds of pixel decoders and maps."""
    attention = model.config._attn_implementation
    assert attention == "sdpa" == model.mask_decoder.config._attn_implementation
    forms = (
        {"pixel_decoder": "sam"},
        {"fusion_mode": "add", "detail_norm": "layer"},
        {
            "masked_attention": ["token_to_image", "image_to_token"],
            "mask_final_attention": True,
            "detail_norm": "none",
        },
        {"masked_attention": []},
    )
    boxes = torch.tensor([[[4.0, 5, 40, 30], [20, 2, 59, 43]]])
    for form in forms:
        other = tiny_zim(spread=0.2, **form)
        given = example_inputs(other)
        details, embeddings = (
            other.get_detail_features(given["encoder"]["image"]),
            given["decoder"]["image_embeddings"],
        )
        with torch.no_grad():
            expected = other(image_embeddings=embeddings, detail_features=details, input_boxes=boxes)
            maps = torch.zeros(2, 4, 4)
            maps[0, :2, :3] = maps[1, :3, 1:] = 1
            labels = torch.tensor([[2.0, 3], [2, 3]])
            masks, scores = ZimPromptGraph(other)(*details, embeddings, maps, boxes[0].reshape(2, 2, 2), labels)
        close(masks, expected.alphas[0], 1e-5)
        close(scores, expected.iou_scores[0], 1e-5)


def test_export_of_a_patch_size_that_is_no_power_of_two() -> None:
    other = tiny_zim(spread=0.2, vision_config={"image_size": 48, "patch_size": 12})
    given = example_inputs(other)
    details, embeddings = other.get_detail_features(given["encoder"]["image"]), given["decoder"]["image_embeddings"]
    box, labels = torch.tensor([[[0.0, 0, 47, 47]]]), torch.tensor([[2.0, 3]])
    with torch.no_grad():
        expected = other(image_embeddings=embeddings, detail_features=details, input_boxes=box)
        masks, _ = ZimPromptGraph(other)(*details, embeddings, torch.ones(1, 4, 4), box[0].reshape(1, 2, 2), labels)
    close(masks, expected.alphas[0], 1e-5)


# --- where the files are -----------------------------------------------------------------------------------------------


def test_folders_like_the_official_ones(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "zim_vit_l_2092")
    found = ZimOnnxForMatting.from_pretrained(tmp_path)
    assert found.config.point_sigma == 1.5 and found.config.name_or_path == str(tmp_path)
    for file in ("encoder.onnx", "decoder.onnx"):
        (tmp_path / "zim_vit_b_2043").mkdir(exist_ok=True)
        shutil.copy(folder / file, tmp_path / "zim_vit_b_2043")
    message = r"several pairs of .* in \['zim_vit_b_2043', 'zim_vit_l_2092'\]: choose one with subfolder="
    with pytest.raises(ValueError, match=message):
        ZimOnnxForMatting.from_pretrained(tmp_path)
    for choice in ({"variant": "vit_l"}, {"subfolder": "zim_vit_l_2092/"}):
        assert ZimOnnxForMatting.from_pretrained(tmp_path, **choice).config.point_sigma == 1.5
    with pytest.raises(TypeError, match="has no varient"):
        ZimOnnxForMatting.from_pretrained(tmp_path, varient="vit_b")
    official = ZimOnnxForMatting.from_pretrained(tmp_path, variant="vit_b")
    assert official.config.point_sigma == ZimConfig().point_sigma and official.config.vision_config.image_size == 64
    with pytest.raises(ValueError, match="but not in subfolder='zim_vit_h'"):
        ZimOnnxForMatting.from_pretrained(tmp_path, subfolder="zim_vit_h")


def test_places_and_files_that_will_not_do(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="has no folder with encoder.onnx and decoder.onnx"):
        ZimOnnxForMatting.from_pretrained(tmp_path)
    assert graph_pairs(str(folder)) == {"": ["config.json", "decoder.onnx", "encoder.onnx"]}
    with pytest.raises(OSError, match="neither a folder nor a Hub repository"):
        graph_pairs("no such/repository/at all")  # without options
    with pytest.raises(OSError, match="neither a folder nor a Hub repository"):
        ZimOnnxForMatting.from_pretrained("somebody/something", local_files_only=True)
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match="onnxruntime cannot run .*broken.onnx"):
        ZimOnnxForMatting(folder / "encoder.onnx", tmp_path / "broken.onnx")
    with pytest.raises(ValueError, match=r"is no decoder of ZIM: its inputs are \['image'\]"):
        ZimOnnxForMatting(folder / "encoder.onnx", folder / "encoder.onnx")
    with pytest.raises(ValueError, match="are no pair: .* got 7 input"):
        ZimOnnxForMatting(folder / "decoder.onnx", folder / "decoder.onnx")
    with pytest.raises(ValueError, match="Give a config or its fields, not both"):
        ZimOnnxForMatting.from_pretrained(folder, config=ZimConfig(), point_sigma=3)


def test_inputs_that_will_not_do(exported: ZimOnnxForMatting, inputs: dict[str, torch.Tensor]) -> None:
    boxes, pixel_values = inputs["input_boxes"], inputs["pixel_values"]
    with pytest.raises(ValueError, match="exactly one of pixel_values and image_embeddings"):
        exported(input_boxes=boxes)
    with pytest.raises(ValueError, match="image_embeddings with detail_features: both results"):
        exported(image_embeddings=torch.zeros(2, 32, 4, 4), input_boxes=boxes)
    with pytest.raises(ValueError, match=r"must have shape \(B, 3, 64, 64\).* got \(2, 3, 32, 32\)"):
        exported(pixel_values=pixel_values[..., ::2, ::2], input_boxes=boxes)
    small = tuple(torch.zeros(2, 4, 8, 8) for _ in range(3))
    with pytest.raises(ValueError, match=r"decoder.onnx cannot take .*'feat_D0': \(1, 4, 8, 8\)"):
        exported(image_embeddings=torch.zeros(2, 32, 4, 4), detail_features=small, input_boxes=boxes)
    with pytest.raises(ValueError, match="No prompt"):
        exported(pixel_values=pixel_values)
    with pytest.raises(ValueError, match="prompts_per_batch must be at least 1"):
        exported(pixel_values=pixel_values, input_boxes=boxes, prompts_per_batch=0)
    with pytest.raises(ValueError, match="Row 0 of the prompts has neither a point nor a box"):
        exported(pixel_values=pixel_values, input_boxes=boxes, has_box=torch.zeros(boxes.shape[:2], dtype=torch.bool))
    for label in (-10, 2):  # PyTorch: a token of zeros, and a bare position
        with pytest.raises(ValueError, match=rf"point_labels of ONNX files are 1, 0, .* got \[{label}\]"):
            exported(
                pixel_values=pixel_values,
                input_points=torch.ones(2, 1, 2, 2),
                point_labels=torch.tensor([[[1, label]]] * 2),
            )


def halve(source: Path, target: Path) -> None:
    """A graph that takes and gives float16 and computes as before."""
    graph = (loaded := onnx.load(source)).graph
    for items, first in ((graph.input, "FLOAT"), (graph.output, "FLOAT16")):
        for item in items:
            for node in graph.node:
                for names in (node.input, node.output):
                    names[:] = [f"{name}_single" if name == item.name else name for name in names]
            ends = [item.name, f"{item.name}_single"]
            ends = ends if first == "FLOAT" else ends[::-1]
            cast = onnx.helper.make_node("Cast", ends[:1], ends[1:], to=getattr(onnx.TensorProto, first))
            graph.node.insert(0 if first == "FLOAT" else len(graph.node), cast)
            item.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    del graph.value_info[:]
    onnx.save(loaded, target)


def test_graphs_in_half_precision(
    exported: ZimOnnxForMatting, inputs: dict[str, torch.Tensor], folder: Path, tmp_path: Path
) -> None:
    for name in ("encoder.onnx", "decoder.onnx"):
        halve(folder / name, tmp_path / name)
    shutil.copy(folder / "config.json", tmp_path)
    output = ZimOnnxForMatting.from_pretrained(tmp_path)(**inputs)
    assert output.alphas.dtype == output.iou_scores.dtype == torch.float32
    assert (output.alphas - exported(**inputs).alphas).abs().mean() < 0.02


def test_saved_files_are_loaded_again(
    exported: ZimOnnxForMatting, inputs: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    matter = pipeline("image-matting", model=exported, processor=tiny_zim_processor())
    for _ in range(2):  # the second time over itself
        matter.save_pretrained(tmp_path / "saved")
    saved = pipeline("image-matting", model=str(tmp_path / "saved"))
    assert isinstance(saved.model, ZimOnnxForMatting)
    torch.testing.assert_close(saved.model(**inputs).alphas, exported(**inputs).alphas)


def test_devices(exported: ZimOnnxForMatting) -> None:
    assert exported.to("cpu") is exported and exported.device == torch.device("cpu")
    assert exported.to(dtype=torch.float16).dtype == torch.float32  # the graphs have their own
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(ValueError, match="onnxruntime cannot compute on cuda:1: .* install onnxruntime-gpu"):
            exported.to("cuda:1")


def test_missing_packages_are_named(
    model: ZimForMatting, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"ZimOnnxForMatting needs onnxruntime: pip install hf_segcap\[onnx\]"):
        ZimOnnxForMatting.from_pretrained(folder)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"ONNX export needs onnxscript: pip install hf_segcap\[onnx\]"):
        export_zim_onnx(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_export_refusals(model: ZimForMatting, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected a ZimModel, got SamForPromptableSegmentation"):
        export_zim_onnx(SamForPromptableSegmentation(tiny_sam_promptable_config()), tmp_path / "x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="opset must be at least 18, got 17"):
        export_zim_onnx(model, tmp_path / "x", opset=17)


def test_repository_of_the_hub(folder: Path, tmp_path: Path) -> None:
    user = f"""
import json
from huggingface_hub import HfApi
from hf_segcap import ZimOnnxForMatting
HfApi().create_repo("me/zim")
HfApi().upload_folder(repo_id="me/zim", folder_path={str(folder)!r}, path_in_repo="zim_vit_b_1")
model = ZimOnnxForMatting.from_pretrained("me/zim")
again = ZimOnnxForMatting.from_pretrained("me/zim", local_files_only=True)

def offline(*args, **kwargs):
    raise ConnectionError("no network")

HfApi.list_repo_files = offline
cached = ZimOnnxForMatting.from_pretrained("me/zim")
print(json.dumps([model.config.point_sigma, again.config.point_sigma, list(cached.feature_names)]))
"""
    with HubServer() as hub:
        environment = {**os.environ, **hub.env, "HF_HOME": str(tmp_path / "cache")}
        run = subprocess.run([sys.executable, "-c", user], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == [1.5, 1.5, ["feat_D0", "feat_D1", "feat_D2"]]
