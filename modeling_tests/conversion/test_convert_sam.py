# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""`convert_sam` on the tiny official checkpoint, on wrapped, prefixed and damaged ones, and on what is none."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_segcap import SamForPromptableSegmentation, SamPromptableProcessor
from hf_segcap.conversion import convert_sam as script
from hf_segcap.conversion.convert_sam import config_from_shapes, convert_sam, official_state_dict, rename_keys, variant

from ..hub_server import HubServer

FIXTURES = Path(__file__).parents[1] / "fixtures" / "sam"
OFFICIAL = FIXTURES / "sam_tiny.pth"


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    return dict(torch.load(OFFICIAL, weights_only=True))


def official_shapes(width: int, depth: int, heads: int, global_blocks: list[int]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of a released checkpoint, as its publication lists them."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, outputs: int, inputs: int, *kernel: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, *kernel)
        shapes[f"{name}.bias"] = (outputs,)

    def norm(name: str, size: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (size,)

    shapes["image_encoder.pos_embed"] = (1, 64, 64, width)
    linear("image_encoder.patch_embed.proj", width, 3, 16, 16)
    for i in range(depth):
        block, table = f"image_encoder.blocks.{i}", 127 if i in global_blocks else 27
        norm(f"{block}.norm1", width)
        norm(f"{block}.norm2", width)
        linear(f"{block}.attn.qkv", 3 * width, width)
        linear(f"{block}.attn.proj", width, width)
        shapes[f"{block}.attn.rel_pos_h"] = shapes[f"{block}.attn.rel_pos_w"] = (table, width // heads)
        linear(f"{block}.mlp.lin1", 4 * width, width)
        linear(f"{block}.mlp.lin2", width, 4 * width)
    shapes["image_encoder.neck.0.weight"] = (256, width, 1, 1)
    shapes["image_encoder.neck.2.weight"] = (256, 256, 3, 3)
    for i in (1, 3):
        norm(f"image_encoder.neck.{i}", 256)

    shapes["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = (2, 128)
    for name in (*(f"point_embeddings.{i}" for i in range(4)), "not_a_point_embed", "no_mask_embed"):
        shapes[f"prompt_encoder.{name}.weight"] = (1, 256)
    linear("prompt_encoder.mask_downscaling.0", 4, 1, 2, 2)
    norm("prompt_encoder.mask_downscaling.1", 4)
    linear("prompt_encoder.mask_downscaling.3", 16, 4, 2, 2)
    norm("prompt_encoder.mask_downscaling.4", 16)
    linear("prompt_encoder.mask_downscaling.6", 256, 16, 1, 1)

    def attention(name: str, inner: int) -> None:
        for part in ("q_proj", "k_proj", "v_proj"):
            linear(f"{name}.{part}", inner, 256)
        linear(f"{name}.out_proj", 256, inner)

    mixer = "mask_decoder.transformer"
    for i in range(2):
        attention(f"{mixer}.layers.{i}.self_attn", 256)
        attention(f"{mixer}.layers.{i}.cross_attn_token_to_image", 128)
        attention(f"{mixer}.layers.{i}.cross_attn_image_to_token", 128)
        for j in range(1, 5):
            norm(f"{mixer}.layers.{i}.norm{j}", 256)
        linear(f"{mixer}.layers.{i}.mlp.lin1", 2048, 256)
        linear(f"{mixer}.layers.{i}.mlp.lin2", 256, 2048)
    attention(f"{mixer}.final_attn_token_to_image", 128)
    norm(f"{mixer}.norm_final_attn", 256)
    shapes["mask_decoder.iou_token.weight"], shapes["mask_decoder.mask_tokens.weight"] = (1, 256), (4, 256)
    shapes["mask_decoder.output_upscaling.0.weight"], shapes["mask_decoder.output_upscaling.0.bias"] = (
        (256, 64, 2, 2),
        (64,),
    )
    norm("mask_decoder.output_upscaling.1", 64)
    shapes["mask_decoder.output_upscaling.3.weight"], shapes["mask_decoder.output_upscaling.3.bias"] = (
        (64, 32, 2, 2),
        (32,),
    )
    for head, outputs in (*((f"output_hypernetworks_mlps.{i}", 32) for i in range(4)), ("iou_prediction_head", 4)):
        for j in range(3):
            linear(f"mask_decoder.{head}.layers.{j}", outputs if j == 2 else 256, 256)
    return shapes


# --- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "width", "depth", "heads", "global_blocks", "tensors", "elements", "encoder_parameters"),
    [
        ("ViT-B", 768, 12, 12, [2, 5, 8, 11], 314, 93_735_728, 89_670_912),
        ("ViT-L", 1024, 24, 16, [5, 11, 17, 23], 482, 312_343_088, 308_278_272),
        ("ViT-H", 1280, 32, 16, [7, 15, 23, 31], 594, 641_090_864, 637_026_048),
    ],
)
def test_released_sizes_are_read_from_shapes(
    name: str,
    width: int,
    depth: int,
    heads: int,
    global_blocks: list[int],
    tensors: int,
    elements: int,
    encoder_parameters: int,
) -> None:
    shapes = official_shapes(width, depth, heads, global_blocks)
    assert len(shapes) == tensors and sum(torch.Size(shape).numel() for shape in shapes.values()) == elements

    config = config_from_shapes(shapes)

    assert variant(config) == name
    vision = config.vision_config
    assert (vision.image_size, vision.patch_size, vision.window_size, vision.mlp_dim) == (1024, 16, 14, 4 * width)
    assert (vision.num_attention_heads, vision.global_attn_indexes) == (heads, global_blocks)
    assert config.mask_decoder_config.layer_norm_eps == 1e-5 and config.mask_decoder_config.num_attention_heads == 8
    with torch.device("meta"):
        model = SamForPromptableSegmentation(config)
    names = rename_keys(shapes)
    expected = {names[key]: shape for key, shape in shapes.items()}
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == expected

    def count(part: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in part.parameters())

    assert count(model.vision_encoder) == encoder_parameters
    assert count(model.prompt_encoder) == 6_220 and count(model.mask_decoder) == 4_058_340


def test_small_and_unusual_sizes_are_read_from_shapes(official: dict[str, torch.Tensor]) -> None:
    shapes = {key: tuple(tensor.shape) for key, tensor in official.items()}
    vision = config_from_shapes(shapes).vision_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (32, 4, 2)
    assert (vision.image_size, vision.patch_size, vision.window_size) == (256, 16, 7)
    assert vision.global_attn_indexes == [1, 3]

    # the data-engine model of the paper has a third decoder layer, and a head may be deeper
    third = {k.replace("layers.1.", "layers.2."): s for k, s in shapes.items() if "transformer.layers.1." in k}
    deep = "mask_decoder.iou_prediction_head.layers."
    deeper = {f"{deep}3.weight": shapes[f"{deep}2.weight"], f"{deep}3.bias": shapes[f"{deep}2.bias"]}
    config = config_from_shapes(shapes | third | deeper, decoder_heads=4).mask_decoder_config
    assert (config.num_hidden_layers, config.num_attention_heads, config.iou_head_depth) == (3, 4, 4)
    names = rename_keys({**shapes, **deeper})
    assert names[f"{deep}2.weight"] == "mask_decoder.iou_prediction_head.layers.1.weight"
    assert names[f"{deep}3.weight"] == "mask_decoder.iou_prediction_head.proj_out.weight"


def test_without_windows_or_without_global_blocks(official: dict[str, torch.Tensor]) -> None:
    shapes = {key: tuple(tensor.shape) for key, tensor in official.items()}
    for length, expected in ((31, ([0, 1, 2, 3], 16)), (13, ([], 7))):
        same = {k: (length, s[1]) if "rel_pos" in k else s for k, s in shapes.items()}
        vision = config_from_shapes(same).vision_config
        assert (vision.global_attn_indexes, vision.window_size) == expected
    with pytest.raises(ValueError, match="of one window size"):
        config_from_shapes({**shapes, "image_encoder.blocks.0.attn.rel_pos_h": (11, 16)})


# --- conversion --------------------------------------------------------------------------------------------------------


def test_converted_folder_is_complete(tmp_path: Path, official: dict[str, torch.Tensor]) -> None:
    output = tmp_path / "out"
    conversion = convert_sam(OFFICIAL, output)

    assert conversion.num_read == conversion.num_written == len(official) == 202
    assert {path.name for path in output.iterdir()} >= {"config.json", "model.safetensors", "README.md"}
    # the same names and numbers as transformers' class
    written, known = load_file(output / "model.safetensors"), load_file(FIXTURES / "tiny" / "model.safetensors")
    assert written.keys() == known.keys() and all(torch.equal(written[key], known[key]) for key in known)
    model = SamForPromptableSegmentation.from_pretrained(output)
    reference = SamForPromptableSegmentation.from_pretrained(FIXTURES / "tiny")
    for part in ("vision_config", "prompt_encoder_config", "mask_decoder_config"):
        ours, theirs = (getattr(m.config, part).to_dict() for m in (model, reference))
        assert {k: v for k, v in ours.items() if k != "mlp_ratio"} == {
            k: v for k, v in theirs.items() if k != "mlp_ratio"
        }
    processor = SamPromptableProcessor.from_pretrained(output)
    assert processor.tokenizer is None and processor.low_res_mask_size == 64
    assert processor.image_processor.size["longest_edge"] == 256


WRAPPINGS = {
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}, "epoch": 3},
    "state_dict": lambda state: {"state_dict": state},
    "state_dict in checkpoint": lambda state: {"checkpoint": {"state_dict": state}},
    "module.": lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
    "sam.": lambda state: {f"sam.{key}": tensor for key, tensor in state.items()},
    "model.": lambda state: {f"model.{key}": tensor for key, tensor in state.items()},
    "wrapped module.sam.": lambda state: {"model": {f"module.sam.{key}": tensor for key, tensor in state.items()}},
    "a name of their own": lambda state: {"model_ema": state, "epoch": 3},
    "constants": lambda state: {**state, "pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)},
    "foreign head": lambda state: {**{f"sam.{k}": t for k, t in state.items()}, "classifier.weight": torch.ones(2)},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrapped_and_prefixed_state_dicts(wrapping: str, official: dict[str, torch.Tensor]) -> None:
    state, ignored = official_state_dict(WRAPPINGS[wrapping](official))
    assert state.keys() == official.keys() and all(state[key] is official[key] for key in official)
    expected = {
        "model": ["optimizer", "epoch"],
        "foreign head": ["classifier.weight"],
        "a name of their own": ["epoch"],
    }
    assert [key for key in ignored if not key.startswith("pixel_")] == expected.get(wrapping, [])


def test_wrapped_file_in_half_precision(tmp_path: Path, official: dict[str, torch.Tensor]) -> None:
    file = tmp_path / "finetuned.pt"
    torch.save(WRAPPINGS["model"]({f"module.{key}": tensor.half() for key, tensor in official.items()}), file)

    kept = convert_sam(file, tmp_path / "kept")
    assert kept.dtype == torch.float16 and kept.max_rounding == 0
    assert "2: optimizer, epoch" in kept.table()
    assert SamForPromptableSegmentation.from_pretrained(tmp_path / "kept").dtype == torch.float16
    rounded = convert_sam(OFFICIAL, tmp_path / "rounded", torch.bfloat16)
    assert 0 < rounded.max_rounding < 0.1 and "bfloat16, largest rounding" in rounded.table()


def test_double_precision_becomes_single(tmp_path: Path, official: dict[str, torch.Tensor]) -> None:
    torch.save({key: tensor.double() for key, tensor in official.items()}, tmp_path / "sam.pth")
    assert convert_sam(tmp_path / "sam.pth", tmp_path / "out").max_rounding == 0
    assert SamForPromptableSegmentation.from_pretrained(tmp_path / "out").dtype == torch.float32


def test_safetensors_file(tmp_path: Path, official: dict[str, torch.Tensor]) -> None:
    save_file(official, tmp_path / "sam.safetensors")
    conversion = convert_sam(tmp_path / "sam.safetensors", tmp_path / "out")
    assert conversion.files == ["sam.safetensors"] and conversion.num_read == 202


# --- refusals ----------------------------------------------------------------------------------------------------------


RELATIVES = {
    "HQ-SAM": ("mask_decoder.hf_token.weight", None),
    "MobileSAM": ("image_encoder.layers.1.blocks.0.attn.qkv.weight", "image_encoder."),
    "SAM 2": ("image_encoder.trunk.pos_embed", ""),
    "EfficientSAM": ("mask_decoder.final_output_upscaling_layers.0.0.weight", "mask_decoder."),
    "RepViT-SAM or EdgeSAM": ("image_encoder.features.0.0.weight", "image_encoder."),
    "adapters": ("image_encoder.blocks.0.attn.qkv.linear_a_q.weight", None),
    "needs no conversion": ("vision_encoder.pos_embed", "image_encoder."),
}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("relative", RELATIVES)
def test_relatives_are_refused_by_name(
    relative: str, prefix: str, tmp_path: Path, official: dict[str, torch.Tensor]
) -> None:
    key, without = RELATIVES[relative]
    state = {k: t for k, t in official.items() if without is None or not k.startswith(without)}
    torch.save({prefix + k: t for k, t in {**state, key: torch.ones(1)}.items()}, tmp_path / "other.pth")

    with pytest.raises(ValueError, match=f"other.pth cannot be converted: .*{relative}"):
        convert_sam(tmp_path / "other.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: t for k, t in s.items() if "mask_decoder" not in k}, "this is no SAM checkpoint"),
        (
            lambda s: {k: t for k, t in s.items() if k != "image_encoder.pos_embed"},
            "'image_encoder.pos_embed' is missing",
        ),
        (lambda s: {k: t for k, t in s.items() if "blocks.2." not in k}, re.escape("it holds [0, 1, 3]")),
        (
            lambda s: {k: t for k, t in s.items() if "blocks.2.mlp" not in k},
            "4 weights are missing: vision_encoder.layers.2",
        ),
        (
            lambda s: {**s, "mask_decoder.new.weight": torch.ones(1)},
            "1 weights have no place in SAM: mask_decoder.new",
        ),
        (
            lambda s: {**s, "mask_decoder.iou_token.weight": torch.ones(2, 32)},
            r"has the shape \(2, 32\), .* be \(1, 32\)",
        ),
        (lambda s: {**s, "image_encoder.pos_embed": torch.ones(1, 16, 15, 32)}, "16 x 15, but SAM works on squares"),
        (lambda s: {**s, "image_encoder.pos_embed": torch.ones(1, 257, 32)}, "expected 4 axes"),
        (lambda s: {"weight": torch.ones(1)}, "this is no SAM checkpoint"),
        (lambda s: {"epoch": 3}, "holds no tensors"),
        (lambda s: {"student": s, "teacher": s}, re.escape("several SAM checkpoints, ['student', 'teacher']")),
        (lambda s: [1, 2], "holds a list, expected a dictionary of tensors"),
        (lambda s: dict(enumerate(s.values())), "whose keys are no names"),
        (lambda s: {k: t.to(torch.int8) for k, t in s.items()}, "the weights are torch.int8: expected floating point"),
    ],
)
def test_incomplete_and_foreign_files_are_refused(
    change, message: str, tmp_path: Path, official: dict[str, torch.Tensor]
) -> None:
    torch.save(change(official), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=message):
        convert_sam(tmp_path / "other.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "sam.pth"
    for content in (OFFICIAL.read_bytes()[:300_000], OFFICIAL.read_bytes()[:20_000], b"<html>not found</html>", b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="sam.pth cannot be read: it is damaged or incomplete") as caught:
            convert_sam(file, tmp_path / "out")
        assert "weights_only" not in str(caught.value)  # torch advises to turn it off
    (tmp_path / "sam.safetensors").write_bytes(b"12345678{")
    with pytest.raises(ValueError, match="sam.safetensors cannot be read: it is damaged or incomplete"):
        convert_sam(tmp_path / "sam.safetensors", tmp_path / "out")


def test_numbers_that_are_none_and_heads_that_cannot_be(tmp_path: Path, official: dict[str, torch.Tensor]) -> None:
    name = "mask_decoder.iou_token.weight"
    torch.save({**official, name: official[name] * torch.nan}, tmp_path / "sam.pth")
    with pytest.raises(ValueError, match="iou_token.weight' holds NaN or infinity"):
        convert_sam(tmp_path / "sam.pth", tmp_path / "out")
    for heads in (0, -1):
        with pytest.raises(ValueError, match=f"cannot have {heads} heads"):
            convert_sam(OFFICIAL, tmp_path / "other", decoder_heads=heads)


def test_pickled_objects_are_refused(tmp_path: Path, official: dict[str, torch.Tensor]) -> None:
    torch.save({"model": official, "arguments": Path("x")}, tmp_path / "sam.pth")
    with pytest.raises(ValueError, match="besides tensors it holds Python objects, which could run code"):
        convert_sam(tmp_path / "sam.pth", tmp_path / "out")


def test_places_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no file; give an official SAM checkpoint"):
        convert_sam(tmp_path / "nowhere.pth", tmp_path / "out")
    (tmp_path / "something").touch()
    with pytest.raises(ValueError, match="is not empty"):
        convert_sam(OFFICIAL, tmp_path)
    with pytest.raises(ValueError, match="cannot have 5 heads"):
        convert_sam(OFFICIAL, tmp_path / "out", decoder_heads=5)


def test_a_change_after_writing_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = SamForPromptableSegmentation.save_pretrained

    def save_something_else(model: SamForPromptableSegmentation, *args: object, **kwargs: object) -> None:
        state = model.state_dict()
        changed = dict(state, **{"mask_decoder.iou_token.weight": state["mask_decoder.iou_token.weight"] + 1e-3})
        save(model, *args, state_dict=changed, **kwargs)

    monkeypatch.setattr(SamForPromptableSegmentation, "save_pretrained", save_something_else)
    with pytest.raises(ValueError, match="'mask_decoder.iou_token.weight' differs from the official one"):
        convert_sam(OFFICIAL, tmp_path / "out")


# --- command line ------------------------------------------------------------------------------------------------------


def test_script_prints_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--checkpoint", str(OFFICIAL), "--output", str(tmp_path / "out"), "--dtype", "float16"]
    assert script.main(arguments) == 0

    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["weights"].endswith("202 tensors, float32, in sam_tiny.pth")
    assert lines["read"].endswith("(SAM of its own size)")
    assert "every tensor equal" in lines["verified"]
    assert script.main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: the output folder")


def test_pushed_checkpoint_is_loaded_by_its_name(tmp_path: Path) -> None:
    arguments = ["--checkpoint", OFFICIAL, "--output", tmp_path / "out", "--push-to-hub", "me/sam"]
    user = """
from hf_segcap import SamForPromptableSegmentation, SamPromptableProcessor

model, processor = SamForPromptableSegmentation.from_pretrained("me/sam"), SamPromptableProcessor.from_pretrained("me/sam")
print(model.num_parameters(), processor.low_res_mask_size)
"""
    with HubServer() as hub:
        environment = {**os.environ, **hub.env, "HF_HOME": str(tmp_path / "cache")}
        for command in ([script.__file__, *arguments], ["-c", user]):
            run = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
            assert run.returncode == 0, run.stderr
    assert run.stdout.split()[1] == "64"
