# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""ONNX files of the tiny official model, run by onnxruntime, against what the official export wrapper says (and the model)."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_segcap import SamForPromptableSegmentation
from hf_segcap.onnx_export import PromptToMask, export_image_encoder_onnx, export_onnx

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install hf_segcap[onnx]")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install hf_segcap[onnx]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install hf_segcap[onnx]")

GOLDEN = Path(__file__).parent / "fixtures" / "sam"
CASES = ("point", "box", "two_points", "box_point", "point_mask", "two_points_mask")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model() -> SamForPromptableSegmentation:
    return SamForPromptableSegmentation.from_pretrained(GOLDEN / "tiny").eval()


@pytest.fixture(scope="module")
def stored() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "onnx_wrapper.safetensors")


@pytest.fixture(scope="module")
def inputs(stored: dict[str, torch.Tensor]) -> dict[str, dict[str, np.ndarray]]:
    embedding = load_file(GOLDEN / "encoder.safetensors")["image_embedding"]
    mask = load_file(GOLDEN / "predictor.safetensors")["feedback/mask_input"][None]
    result = {}
    for case in CASES:
        given = {k.rpartition("/")[2]: v for k, v in stored.items() if k.startswith(f"{case}/in/")}
        given |= {"image_embeddings": embedding, "mask_input": mask * given["has_mask_input"]}
        result[case] = {name: value.numpy() for name, value in given.items()}
    return result


@pytest.fixture(scope="module")
def exported(model: SamForPromptableSegmentation, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Sessions by the official sets of options."""
    folder, sessions = tmp_path_factory.mktemp("onnx"), {}
    for name, options in {
        "all": {"quantize": folder / "quantized.onnx"},
        "single_metrics": {"return_single_mask": True, "return_extra_metrics": True},
    }.items():
        export_onnx(model, folder / f"{name}.onnx", **options)
        sessions[name] = onnxruntime.InferenceSession(folder / f"{name}.onnx")
    sessions["quantized"] = onnxruntime.InferenceSession(folder / "quantized.onnx")
    return {"folder": folder, **sessions}


def run(session, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def close(actual: np.ndarray, expected: torch.Tensor, atol: float = TOLERANCE) -> None:
    torch.testing.assert_close(torch.from_numpy(actual), expected, atol=atol, rtol=0)


def unpacked(stored: dict, name: str) -> np.ndarray:
    shape = stored[f"{name}/shape"].tolist()
    return np.unpackbits(stored[f"{name}/packed"].numpy())[: int(np.prod(shape))].reshape(shape).astype(bool)


@pytest.mark.golden
@pytest.mark.parametrize("case", CASES)
def test_all_masks(case: str, exported: dict, inputs: dict, stored: dict) -> None:
    out = run(exported["all"], inputs[case])
    assert list(out) == ["masks", "iou_predictions", "low_res_masks"] and out["masks"].shape == (1, 4, 200, 300)
    close(out["iou_predictions"], stored[f"{case}/all/iou_predictions"])
    if f"{case}/all/low_res_masks" in stored:
        close(out["low_res_masks"][..., ::2, ::2], stored[f"{case}/all/low_res_masks"])


@pytest.mark.golden
@pytest.mark.parametrize("case", CASES)
def test_single_mask_with_metrics(case: str, exported: dict, inputs: dict, stored: dict) -> None:
    everything, out = run(exported["all"], inputs[case]), run(exported["single_metrics"], inputs[case])
    assert list(out) == ["masks", "iou_predictions", "stability_scores", "areas", "low_res_masks"]
    close(out["iou_predictions"], stored[f"{case}/single/iou_predictions"])
    index = stored[f"{case}/single/low_res_is_index"].item()
    np.testing.assert_allclose(out["low_res_masks"], everything["low_res_masks"][:, [index]], atol=TOLERANCE)
    close(out["stability_scores"], stored[f"{case}/single_metrics/stability_scores"], 1e-3)  # counts pixels
    area = stored[f"{case}/single_metrics/areas"]
    assert out["areas"].shape == (1, 1) and abs(out["areas"].item() - area.item()) <= 2
    if f"{case}/single/masks" in stored:
        close(out["masks"][..., ::2, ::2], stored[f"{case}/single/masks"])
    else:
        assert ((out["masks"] > 0) != unpacked(stored, f"{case}/single/masks_gt0")).sum() <= 2


@pytest.mark.golden
@pytest.mark.parametrize("case", CASES)
def test_choice_by_stability(case: str, model: SamForPromptableSegmentation, inputs: dict, stored: dict) -> None:
    """In PyTorch: only the choice differs from the exported files above."""
    wrapper = PromptToMask(model, return_single_mask=True, use_stability_score=True)
    arguments = {name: torch.from_numpy(value) for name, value in inputs[case].items()}
    _, scores, low_res = wrapper(**arguments)
    torch.testing.assert_close(scores, stored[f"{case}/single_stability/iou_predictions"], atol=1e-3, rtol=0)
    index = stored[f"{case}/single_stability/low_res_is_index"].item()
    all_masks = PromptToMask(model)(**arguments)[2]
    torch.testing.assert_close(low_res, all_masks[:, [index]], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("size", [(200, 300), (61, 40), (256, 256), (3, 700)])
@pytest.mark.parametrize("num_points", [1, 2, 9])
def test_points_and_image_size_vary(
    num_points: int, size: tuple[int, int], exported: dict, inputs: dict, model
) -> None:
    rng = np.random.default_rng(0)
    given = {
        **inputs["point"],
        "point_coords": rng.uniform(0, 256, (1, num_points, 2)).astype(np.float32),
        "point_labels": rng.integers(-1, 2, (1, num_points)).astype(np.float32),
        "orig_im_size": np.array(size, dtype=np.float32),
    }
    out = run(exported["all"], given)
    assert out["masks"].shape == (1, 4, *size)
    expected = PromptToMask(model)(**{name: torch.from_numpy(value) for name, value in given.items()})
    for ours, theirs in zip(out.values(), expected, strict=True):
        close(ours, theirs)


def test_upscaling_is_that_of_the_processor(model: SamForPromptableSegmentation, inputs: dict) -> None:
    from hf_segcap.masks import upscale_masks

    for size in ((200, 300), (1501, 997), (40, 2000)):
        given = {name: torch.from_numpy(value) for name, value in inputs["box"].items()}
        masks, _, low_res = PromptToMask(model)(**{**given, "orig_im_size": torch.tensor(size).float()})
        scale = 256 / max(size)
        reshaped = [int(side * scale + 0.5) for side in size]
        torch.testing.assert_close(masks, upscale_masks(low_res, reshaped, size, 256), atol=1e-5, rtol=0)


def test_file_says_what_it_takes(exported: dict) -> None:
    file = onnx.load(exported["folder"] / "all.onnx")
    onnx.checker.check_model(file)
    assert [item.version for item in file.opset_import if item.domain == ""] == [17]
    shapes = {item.name: item.shape for item in exported["all"].get_inputs()}
    assert shapes == {
        "image_embeddings": [1, 32, 16, 16],
        "point_coords": [1, "num_points", 2],
        "point_labels": [1, "num_points"],
        "mask_input": [1, 1, 64, 64],
        "has_mask_input": [1],
        "orig_im_size": [2],
    }
    assert exported["all"].get_outputs()[0].shape == [1, 4, "height", "width"]


def test_quantized_file_is_smaller_and_close(exported: dict, inputs: dict) -> None:
    sizes = [(exported["folder"] / f"{name}.onnx").stat().st_size for name in ("quantized", "all")]
    assert sizes[0] < 0.7 * sizes[1]
    for case in CASES:
        ours, exact = (run(exported[name], inputs[case]) for name in ("quantized", "all"))
        agreement = ((ours["masks"] > 0) == (exact["masks"] > 0)).mean()
        assert agreement > 0.9 and (ours["masks"] != exact["masks"]).any()


def test_model_is_left_as_it_was_and_may_be_in_half_precision(
    model: SamForPromptableSegmentation, tmp_path: Path
) -> None:
    half = SamForPromptableSegmentation(model.config).to(torch.bfloat16).eval()
    attention = half.config._attn_implementation
    export_onnx(half, tmp_path / "half.onnx", gelu_approximate=True)
    assert half.dtype == torch.bfloat16 and half.mask_decoder.config._attn_implementation == attention == "sdpa"
    assert half.mask_decoder.activation.approximate == "none"
    operators = {node.op_type for node in onnx.load(tmp_path / "half.onnx").graph.node}
    assert "Tanh" in operators and "Erf" not in operators
    session = onnxruntime.InferenceSession(tmp_path / "half.onnx")
    assert {item.type for item in session.get_inputs()} == {"tensor(float)"}


def test_image_encoder(model: SamForPromptableSegmentation, tmp_path: Path) -> None:
    export_image_encoder_onnx(model, tmp_path / "encoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx")
    pixel_values = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    (embedding,) = session.run(["image_embeddings"], {"pixel_values": pixel_values.numpy()})
    with torch.no_grad():
        close(embedding, model.get_image_embeddings(pixel_values), 3e-5)


def test_refusals(model: SamForPromptableSegmentation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="expected a SamForPromptableSegmentation, got Linear"):
        export_onnx(torch.nn.Linear(1, 1), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="opset must be at least 17, got 16"):
        export_onnx(model, tmp_path / "x.onnx", opset=16)
    with pytest.raises(ValueError, match="opset must be at least 18, got 17"):
        export_image_encoder_onnx(model, tmp_path / "x.onnx", opset=17)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"needs onnxscript: pip install hf_segcap\[onnx\]"):
        export_onnx(model, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()
