# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""ZIM as a pair of ONNX files, run by onnxruntime: the official release, or what `export_zim_onnx` wrote.

`ZimOnnxForMatting` takes and gives what `ZimForMatting` does, so processor and pipeline work with either.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.hub import cached_file

from ...optional import import_optional
from ...prompts import PADDING_LABEL
from ..sam.mask_decoder import RowMasks
from ..sam.prompt_encoder import NOT_A_POINT_LABEL
from ..sam.prompt_rows import PromptRows
from .attention_maps import prompt_attention_maps
from .configuration_zim import ZimConfig
from .modeling_zim import ZimMattingOutput

ENCODER_FILE, DECODER_FILE, CONFIG_FILE = "encoder.onnx", "decoder.onnx", "config.json"
EMBEDDINGS, FEATURE_PREFIX = "image_embeddings", "feat_"
PROMPT_INPUTS = ("attn_mask", "point_coords", "point_labels")

_CORNER_LABELS = (2, 3)
_PADDING_POINT = -0.5  # both coordinates of the official padding token
_OFFICIAL_IMAGE_SIZE = 1024  # where a graph does not fix it
# Bytes of the decoder's largest map for the prompts of one call, and its channels in the official network
_BUDGET, _CHANNELS = 2**29, 128
_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_DTYPES = {"tensor(float16)": torch.float16, "tensor(double)": torch.float64, "tensor(int64)": torch.int64}


class ZimOnnxForMatting(nn.Module):
    """Mattes of what points and boxes name, by onnxruntime; arguments and results are those of [`ZimForMatting`].

    There is nothing to train: it has no parameters, and takes no `labels`.

    Args:
        encoder, decoder: the two ONNX files.
        config: says how attention maps are made and how prompts are combined; sizes are read from the graphs.
        providers: onnxruntime's execution providers; default: the CPU.
        session_options: onnxruntime's options for both sessions, for example the number of threads.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: a file that is no ONNX file, or has other inputs and outputs than ZIM.
    """

    main_input_name = "pixel_values"
    hub_task = "image-matting"
    base_model_prefix = "model"
    dtype = torch.float32

    def __init__(
        self,
        encoder: str | os.PathLike,
        decoder: str | os.PathLike,
        config: ZimConfig | None = None,
        providers: Sequence[Any] | None = None,
        session_options: Any = None,
    ):
        super().__init__()
        self._files = (Path(encoder), Path(decoder))
        self._options = session_options
        self._start(list(providers or [_CPU]))
        self.feature_names = self._check_graphs()
        self.config = self._config(config)
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        variant: str | None = None,
        subfolder: str | None = None,
        providers: Sequence[Any] | None = None,
        session_options: Any = None,
        config: ZimConfig | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        **config_kwargs: Any,
    ) -> ZimOnnxForMatting:
        """Finds `encoder.onnx` and `decoder.onnx` in a folder or a Hub repository, and in the folders in it.

        Args:
            pretrained_model_name_or_path: folder, or the name of a Hub repository such as `naver-iv/zim-anything-vitb`, whose
                two files are downloaded once.
            variant: of several folders, the one whose name contains this, for example `"vit_l"`.
            subfolder: of several folders, this one.
            config: instead of the `config.json` beside the files. Official folders have none: ZIM's defaults.
            providers, session_options: see the class.
            revision, token, cache_dir, local_files_only: as for other checkpoints.
            config_kwargs: fields of `ZimConfig` to change.

        Raises:
            ImportError: onnxruntime is not installed.
            OSError: no such folder or repository, or no pair of files in it.
            TypeError: an option that is no field of `ZimConfig`.
            ValueError: several pairs, and none of `variant` and `subfolder` names one; or as the class.
        """
        unknown = sorted(set(config_kwargs) - {field.name for field in fields(ZimConfig)})
        if unknown:
            raise TypeError(
                f"{cls.__name__}.from_pretrained has no {', '.join(unknown)}, and ZimConfig no such field."
            )
        source = str(pretrained_model_name_or_path)
        hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        local = Path(source).is_dir()
        available = graph_pairs(source, **hub)  # type: ignore[arg-type]
        chosen = _choose(source, available, variant, subfolder)
        import_optional("onnxruntime", "onnx", cls.__name__)  # once there is something to run
        if local:
            paths = {name: Path(source, chosen, name) for name in available[chosen]}
        else:
            paths = {name: Path(cached_file(source, name, subfolder=chosen, **hub)) for name in available[chosen]}
        if config is None:
            values = ZimConfig.get_config_dict(paths[CONFIG_FILE].parent)[0] if CONFIG_FILE in paths else {}
            config = ZimConfig.from_dict({**values, **config_kwargs})
        elif config_kwargs:
            raise ValueError(f"Give a config or its fields, not both: got {sorted(config_kwargs)} besides config.")
        config.name_or_path = source
        return cls(paths[ENCODER_FILE], paths[DECODER_FILE], config, providers, session_options)

    # --- sessions ------------------------------------------------------------------------------------------------------

    def _start(self, providers: list[Any]) -> None:
        runtime = import_optional("onnxruntime", "onnx", type(self).__name__)
        sessions = []
        for path in self._files:
            if not path.is_file():
                raise ValueError(f"{path} is no file.")
            try:
                sessions.append(runtime.InferenceSession(str(path), self._options, providers=providers))
            except Exception as error:  # onnxruntime has a class of its own for each kind of failure
                raise ValueError(f"onnxruntime cannot run {path}: {' '.join(str(error).split())}") from error
        self.encoder, self.decoder = sessions
        self.providers = providers

    def _check_graphs(self) -> tuple[str, ...]:
        """The decoder's names of the image details, finest first."""
        taken = [item.name for item in self.decoder.get_inputs()]
        features = tuple(sorted(name for name in taken if name.startswith(FEATURE_PREFIX)))
        # a graph without masked attention has no use for the maps
        required = {*features, EMBEDDINGS, *PROMPT_INPUTS[1:]}
        if not required <= set(taken) <= required | set(PROMPT_INPUTS):
            raise ValueError(
                f"{self._files[1]} is no decoder of ZIM: its inputs are {taken}, expected "
                f"{[f'{FEATURE_PREFIX}D0', f'{FEATURE_PREFIX}D1', '...', EMBEDDINGS, *PROMPT_INPUTS]}."
            )
        counts = (len(self.encoder.get_inputs()), len(self.encoder.get_outputs()), len(self.decoder.get_outputs()))
        if counts[0] != 1 or counts[1] != 1 + len(features) or counts[2] < 2:
            raise ValueError(
                f"{self._files[0]} and {self._files[1]} are no pair: expected an encoder with one input and "
                f"{1 + len(features)} outputs (embeddings and {len(features)} details) and a decoder with two outputs, got "
                f"{counts[0]} input(s), {counts[1]} output(s) and {counts[2]} output(s)."
            )
        return features

    def _config(self, config: ZimConfig | None) -> ZimConfig:
        """The configuration with the sizes of the graphs."""
        config = ZimConfig() if config is None else copy.deepcopy(config)
        side = self.encoder.get_inputs()[0].shape[-1]
        side = side if isinstance(side, int) else _OFFICIAL_IMAGE_SIZE
        shapes = {item.name: item.shape for item in self.decoder.get_inputs()}
        grid = shapes.get("attn_mask", shapes[EMBEDDINGS])[-1]
        patch = side // grid if isinstance(grid, int) else config.vision_config.patch_size
        for part in (config.vision_config, config.prompt_encoder_config):
            part.image_size, part.patch_size = side, patch
        config.prompt_encoder_config.image_embedding_size = side // patch
        return config

    @property
    def files(self) -> list[Path]:
        """What it runs: both graphs, and where their large weights lie beside them."""
        beside = [path.with_name(_data_file(path.name)) for path in self._files]
        return [path for path in (*self._files, *beside) if path.is_file()]

    @property
    def device(self) -> torch.device:
        """Where results are: the CPU, whatever onnxruntime computes on."""
        return torch.device("cpu")

    def to(self, *args: Any, **kwargs: Any) -> ZimOnnxForMatting:
        """`"cpu"` or `"cuda"`: where onnxruntime computes. Results are on the CPU, and float32, in any case.

        Raises:
            ValueError: onnxruntime cannot compute there.
        """
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        if device is None:
            return self
        provider = {"cpu": _CPU, "cuda": _CUDA}.get(device.type)
        runtime = import_optional("onnxruntime", "onnx", type(self).__name__)
        if provider is None or provider not in runtime.get_available_providers():
            raise ValueError(
                f"onnxruntime cannot compute on {device}: it has {runtime.get_available_providers()}. For CUDA, install "
                "onnxruntime-gpu in place of onnxruntime; in a pipeline, device='cpu' stays on the processor."
            )
        wanted: list[Any] = [_CPU] if provider == _CPU else [(_CUDA, {"device_id": device.index or 0}), _CPU]
        if wanted != self.providers:
            self._start(wanted)
        return self

    @property
    def follows_accelerator(self) -> bool:
        """Whether a pipeline that was given no device may choose one: PyTorch and onnxruntime both know CUDA, and nobody chose
        other providers than the default."""
        runtime = import_optional("onnxruntime", "onnx", type(self).__name__)
        return self.providers == [_CPU] and _CUDA in runtime.get_available_providers() and torch.cuda.is_available()

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Copies both graphs, with their files of weights if they have some, and writes the configuration beside them:
        what `from_pretrained` reads. Other arguments, as of other models' weights, have no meaning here.

        Raises:
            ValueError: with `push_to_hub`.
        """
        if kwargs.get("push_to_hub"):
            raise ValueError("ONNX files are not pushed from here: save them, then use huggingface_hub.upload_folder.")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        names = dict(zip(self._files, (ENCODER_FILE, DECODER_FILE)))
        for source in self.files:
            target = folder / names.get(source, source.name)
            if source.resolve() != target.resolve():
                shutil.copyfile(source, target)
        self.config.save_pretrained(folder)

    def can_generate(self) -> bool:
        """False: it makes no text."""
        return False

    # --- images --------------------------------------------------------------------------------------------------------

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(B, 3, S, S) normalised pixels -> embeddings and details, as `get_image_embeddings` and `get_detail_features` give
        them, of one pass: the expensive one, once per image."""
        side = self.config.vision_config.image_size
        if pixel_values.ndim != 4 or pixel_values.shape[-2:] != (side, side):
            raise ValueError(
                f"pixel_values must have shape (B, 3, {side}, {side}), as the processor makes them, got "
                f"{tuple(pixel_values.shape)}."
            )
        name = self.encoder.get_inputs()[0].name
        outputs = [_run(self.encoder, self._files[0], {name: image}) for image in pixel_values.split(1)]
        embeddings, *details = (torch.cat(items) for items in zip(*outputs))
        return embeddings, tuple(details)

    def get_image_embeddings(self, pixel_values: Tensor, **kwargs: Any) -> Tensor:
        """(B, 3, S, S) normalised pixels -> (B, C, g, g)."""
        return self.encode_image(pixel_values)[0]

    def get_detail_features(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, S, S) normalised pixels -> (B, c_i, S / 2, S / 2), (B, c_i, S / 4, S / 4), ..."""
        return self.encode_image(pixel_values)[1]

    # --- prompts -------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def decode_rows(
        self,
        image_embeddings: Tensor,
        detail_features: Sequence[Tensor],
        rows: PromptRows,
        selected: slice = slice(None),
        prompts_per_batch: int | None = None,
    ) -> RowMasks:
        """Mattes of each row of prompts: (R, M, l, l) logits and (R, M) scores; arguments as in `ZimForMatting`.

        The graph takes prompts of one image with equally many tokens at a time.
        """
        config = self.config
        maps = prompt_attention_maps(
            rows,
            image_embeddings.shape[-1],
            config.vision_config.patch_size,
            config.point_sigma,
            config.joint_prompts,
            config.official_box_slicing,
        )
        coords, labels = official_tokens(rows, config.joint_prompts)
        counts = (labels != PADDING_LABEL).sum(1)
        if not counts.all():
            raise ValueError(f"Row {int(counts.argmin())} of the prompts has neither a point nor a box.")
        at_once = prompts_per_batch or max(1, _BUDGET // (4 * _CHANNELS * (config.vision_config.image_size // 2) ** 2))
        found: list[RowMasks] = []
        order: list[Tensor] = []
        for image in rows.image_index.unique().tolist():
            shared = {EMBEDDINGS: image_embeddings[image : image + 1]}
            shared |= {name: item[image : image + 1] for name, item in zip(self.feature_names, detail_features)}
            for index in _equal_parts(rows.image_index == image, counts, at_once):
                present = labels[index] != PADDING_LABEL
                prompts = {
                    "attn_mask": maps[index],
                    "point_coords": coords[index][present].unflatten(0, (len(index), -1)),
                    "point_labels": labels[index][present].unflatten(0, (len(index), -1)),
                }
                masks, scores = self.run_decoder(shared | prompts)
                found.append(RowMasks(masks[:, selected], scores[:, selected]))
                order.append(index)
        back = torch.cat(order).argsort()
        return RowMasks(*(torch.cat(field)[back] for field in zip(*found)))

    def run_decoder(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The decoder graph as it is: its inputs by name, those of one image -> logits (P, 4, l, l), scores (P, 4)."""
        masks, scores = _run(self.decoder, self._files[1], inputs)[:2]
        return masks, scores

    def forward(
        self,
        pixel_values: Tensor | None = None,
        image_embeddings: Tensor | None = None,
        detail_features: Sequence[Tensor] | None = None,
        input_points: Tensor | None = None,
        point_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
        has_box: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        multimask_output: bool = True,
        prompts_per_batch: int | None = None,
        return_dict: bool | None = None,
    ) -> ZimMattingOutput | tuple[Any, ...]:
        """As [`ZimForMatting.forward`], without `labels`; `point_labels` are 1, 0, -1 or -2.

        Raises:
            ValueError: for missing or contradicting inputs, and other labels.
        """
        if (pixel_values is None) == (image_embeddings is None):
            raise ValueError("Give exactly one of pixel_values and image_embeddings.")
        if (image_embeddings is None) != (detail_features is None):
            raise ValueError(
                "Give pixel_values, or image_embeddings with detail_features: both results of encode_image(pixel_values)."
            )
        if prompts_per_batch is not None and prompts_per_batch < 1:
            raise ValueError(f"prompts_per_batch must be at least 1, got {prompts_per_batch}.")
        if pixel_values is not None:
            image_embeddings, detail_features = self.encode_image(pixel_values)
        assert image_embeddings is not None and detail_features is not None
        if len(detail_features) != len(self.feature_names):
            raise ValueError(f"Expected {len(self.feature_names)} detail_features, got {len(detail_features)}.")
        rows = PromptRows.from_inputs(
            len(image_embeddings),
            input_points=input_points,
            point_labels=point_labels,
            input_boxes=input_boxes,
            has_box=has_box,
            prompt_mask=prompt_mask,
        )
        selected = slice(None) if multimask_output else slice(1)
        decoded = self.decode_rows(image_embeddings, detail_features, _on_cpu(rows), selected, prompts_per_batch)
        output = ZimMattingOutput(
            alphas=rows.scatter(decoded.pred_masks.to(rows.valid.device)),
            iou_scores=rows.scatter(decoded.iou_scores.to(rows.valid.device)),
            image_embeddings=image_embeddings,
            detail_features=tuple(detail_features),
        )
        return output.to_tuple() if return_dict is False else output


def official_tokens(rows: PromptRows, joint: bool = False) -> tuple[Tensor, Tensor]:
    """Prompts as the official decoder takes them: points with one padding token, or the corners of a box.

    Args:
        rows: R prompts, each with points, a box, or both.
        joint: points of a row with a box are prompts, too; else the box replaces them.

    Returns:
        Coordinates (R, t, 2), and labels (R, t): 1 inside, 0 outside, 2 and 3 the first and second corner, -1 the padding token
        (and points that the user labels so), `PADDING_LABEL` for what a row does not have.

    Raises:
        ValueError: a label that graphs do not know, or take for a corner of a box.
    """
    count = len(rows)
    boxed = torch.zeros(count, dtype=torch.bool)
    padded = torch.full((count,), rows.empty)  # the placeholder of a batch of padding needs a token, too
    coords, labels = [], []
    if rows.boxes is not None:
        boxed = torch.ones(count, dtype=torch.bool) if rows.has_box is None else rows.has_box.bool()
    if rows.points is not None and rows.point_labels is not None:
        other = set(rows.point_labels.unique().tolist()) - {1, 0, NOT_A_POINT_LABEL, PADDING_LABEL}
        if other:
            raise ValueError(
                f"point_labels of ONNX files are 1, 0, -1 (not a point) or -2 (absent), got {sorted(other)}."
            )
        padded |= ~boxed & (rows.point_labels != PADDING_LABEL).any(1)
        coords.append(rows.points.float())
        labels.append(rows.point_labels if joint else rows.point_labels.masked_fill(boxed[:, None], PADDING_LABEL))
    coords.append(torch.full((count, 1, 2), _PADDING_POINT))
    labels.append(torch.where(padded, NOT_A_POINT_LABEL, PADDING_LABEL)[:, None])
    if rows.boxes is not None:
        corners = torch.tensor(_CORNER_LABELS).expand(count, 2)
        coords.append(rows.boxes.float().unflatten(-1, (2, 2)))
        labels.append(torch.where(boxed[:, None], corners, PADDING_LABEL))
    return torch.cat(coords, 1), torch.cat(labels, 1)


def _equal_parts(wanted: Tensor, counts: Tensor, at_once: int) -> Iterator[Tensor]:
    """Indices of the wanted rows, in parts of at most `at_once` rows with equal counts."""
    for count in counts[wanted].unique().tolist():
        yield from (wanted & (counts == count)).nonzero()[:, 0].split(at_once)


def _on_cpu(rows: PromptRows) -> PromptRows:
    names = ("valid", "image_index", "boxes", "points", "point_labels", "has_box")
    values = {name: getattr(rows, name) for name in names}
    return replace(rows, **{name: value.cpu() for name, value in values.items() if value is not None})


def _run(session: Any, file: Path, inputs: dict[str, Tensor]) -> list[Tensor]:
    """The outputs of a graph, in float32; inputs that it has no use for are left out, the others get the type it wants."""
    arrays = {
        item.name: inputs[item.name].detach().cpu().to(_DTYPES.get(item.type, torch.float32)).contiguous().numpy()
        for item in session.get_inputs()
        if item.name in inputs
    }
    try:
        outputs = session.run(None, arrays)
    except Exception as error:  # onnxruntime has a class of its own for each kind of failure
        shapes = {name: array.shape for name, array in arrays.items()}
        raise ValueError(f"{file} cannot take {shapes}: {' '.join(str(error).split())}") from error
    return [torch.from_numpy(output).float() for output in outputs]


def _data_file(graph: str) -> str:
    """The exporters' name for the large weights of a graph."""
    return f"{graph}.data"


def _pairs(files: Sequence[str]) -> dict[str, list[str]]:
    """{folder: names of the files to take} of every folder with both graphs; "" is the top."""
    folders: dict[str, set[str]] = {}
    for file in files:
        folder, _, name = file.rpartition("/")
        folders.setdefault(folder, set()).add(name)
    wanted = {ENCODER_FILE, DECODER_FILE}
    extras = {CONFIG_FILE, _data_file(ENCODER_FILE), _data_file(DECODER_FILE)}
    return {folder: sorted(names & (wanted | extras)) for folder, names in folders.items() if wanted <= names}


def graph_pairs(
    source: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool | None = False,
) -> dict[str, list[str]]:
    """Folders with encoder.onnx and decoder.onnx in a folder or Hub repository, or one level below, and their files.

    Args:
        source: the folder or repository.
        revision, token, cache_dir, local_files_only: of a repository, as for other checkpoints.

    Raises:
        OSError: it is neither a folder nor a repository that can be read now.
    """
    if Path(source).is_dir():
        return _local_pairs(Path(source))
    hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    return _hub_pairs(source, **hub)


def _local_pairs(folder: Path) -> dict[str, list[str]]:
    files = (*folder.glob("*"), *folder.glob("*/*"))
    return _pairs([file.relative_to(folder).as_posix() for file in files])


def _hub_pairs(repository: str, **hub: Any) -> dict[str, list[str]]:
    """As `_local_pairs` of a Hub repository, or of what was downloaded of it if the Hub cannot be asked."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    problem: Exception | None = None
    if not hub["local_files_only"]:
        try:
            return _pairs(HfApi(token=hub["token"]).list_repo_files(repository, revision=hub["revision"]))
        except (HFValidationError, HTTPError, OSError) as error:
            problem = error
    try:
        return _local_pairs(Path(snapshot_download(repository, **{**hub, "local_files_only": True})))
    except (HFValidationError, HTTPError, OSError) as error:
        problem = problem or error
        raise OSError(
            f"{repository!r} is neither a folder nor a Hub repository that can be read now: "
            f"{' '.join(str(problem).split())[:300]}"
        ) from problem


def _choose(source: str, pairs: dict[str, list[str]], variant: str | None, subfolder: str | None) -> str:
    fitting = [
        folder
        for folder in sorted(pairs)
        if (subfolder is None or folder == subfolder.strip("/")) and (variant is None or variant in folder)
    ]
    if len(fitting) == 1:
        return fitting[0]
    named = [folder or "(top)" for folder in sorted(pairs)]
    if not pairs:
        raise OSError(f"{source} has no folder with {ENCODER_FILE} and {DECODER_FILE}.")
    if not fitting:
        wanted = f"variant={variant!r}" if subfolder is None else f"subfolder={subfolder!r}"
        raise ValueError(f"{source} has {ENCODER_FILE} and {DECODER_FILE} in {named}, but not in {wanted}.")
    raise ValueError(
        f"{source} has several pairs of {ENCODER_FILE} and {DECODER_FILE}, in {named}: choose one with subfolder= (in a "
        "pipeline: model_kwargs={'subfolder': ...})."
    )


__all__ = ["ZimOnnxForMatting", "official_tokens"]
