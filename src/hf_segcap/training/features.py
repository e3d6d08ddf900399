# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Frozen features: the image encoder never changes, so every image goes through it once, before the training.

A cache is a folder of safetensors shards. A feature's name is the SHA-256 of the image's pixels and of the encoder that
made it, so several encoders may share a folder and nothing stale is ever read. Shards are written under a temporary name
and renamed: a killed run leaves at most an unfinished file, which the next one ignores. `index.json` is a summary that is
rebuilt from the shards.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers.utils import logging

from ..files import atomic_path
from ..images import load_image
from ..resume import fingerprint

logger = logging.get_logger(__name__)

_SHARD_BYTES = 256 * 2**20
_INDEX = "index.json"
# Age at which an unfinished file is taken for the remains of a killed run.
_STALE_SECONDS = 3600


def encoder_fingerprint(model: Any, processor: Any) -> str:
    """Of everything that decides an image's features: the image encoder and the settings of the image processor."""
    return fingerprint(model.vision_encoder, processor.image_processor)


class FeatureCache:
    """Stored `image_embeddings` of images, looked up by content.

    Args:
        directory: the cache's folder.
        fingerprint: of the encoder, see [`encoder_fingerprint`].
        skip_damaged: leave damaged shards out, with a warning that names them.

    Raises:
        ValueError: a shard is damaged and not to be skipped (the message names the file and the remedy).

    Example:
        >>> cache = FeatureCache.build(model, processor, rows, "features")
        >>> collator = RegionCollator(processor, features=cache)
    """

    def __init__(self, directory: str | Path, fingerprint: str, *, skip_damaged: bool = False) -> None:
        self.directory = Path(directory)
        self.fingerprint = fingerprint
        self._shard_of: dict[str, str] = {}
        self._open: dict[str, Any] = {}
        for path in sorted(self.directory.glob("*.safetensors")):
            try:
                self._shard_of.update(dict.fromkeys(_shard_keys(path), path.name))
            except FileNotFoundError:
                continue  # a damaged one that another process has just deleted
            except (SafetensorError, OSError) as error:
                if not skip_damaged:
                    raise ValueError(
                        f"the feature shard {path} is damaged ({error}): build the cache again, which deletes it and "
                        "encodes its images anew"
                    ) from error
                _warn_of_damage(path, error)

    def __len__(self) -> int:
        return len(self._shard_of)

    def __contains__(self, key: str) -> bool:
        return key in self._shard_of

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # open files stay in their process

    def key(self, image: Any) -> str:
        """The name of an image's feature: any kind of image [`~hf_segcap.images.load_image`] takes."""
        pixels = np.asarray(load_image(image))
        digest = hashlib.sha256(f"{self.fingerprint}{pixels.shape}".encode())
        digest.update(np.ascontiguousarray(pixels).data)
        return digest.hexdigest()

    def get(self, image: Any) -> torch.Tensor:
        """(C, g, g) float16 features of an image, or of a key made by [`FeatureCache.key`].

        Raises:
            KeyError: the image was never encoded, or by another encoder.
        """
        key = image if isinstance(image, str) and image in self._shard_of else self.key(image)
        if key not in self._shard_of:
            raise KeyError(
                f"no feature of this image by this encoder is in {self.directory}: build the cache with all images of "
                "the data, and without augmentation"
            )
        name = self._shard_of[key]
        if name not in self._open:
            self._open[name] = safe_open(self.directory / name, framework="pt")
        return self._open[name].get_tensor(key)

    @classmethod
    def open(cls, model: Any, processor: Any, directory: str | Path) -> FeatureCache:
        """The features in a folder that belong to this model and processor."""
        return cls(directory, encoder_fingerprint(model, processor))

    @classmethod
    def build(
        cls,
        model: Any,
        processor: Any,
        rows: Sequence[Any],
        directory: str | Path,
        *,
        batch_size: int = 1,
        shard_bytes: int = _SHARD_BYTES,
        process_index: int = 0,
        num_processes: int = 1,
        progress: bool = True,
    ) -> FeatureCache:
        """Encodes every image of `rows` that the folder does not hold yet.

        The size is announced before the work starts. Damaged shards are left out by every process, deleted by process 0,
        and their images encoded again.

        Args:
            model: has `get_image_embeddings(pixel_values) -> (B, C, g, g)` and `vision_encoder`; used in eval mode, on its
                device and in its dtype.
            processor: makes `pixel_values` of images.
            rows: data set of rows with an `image`.
            directory: the cache's folder, made if it is missing.
            batch_size: images per forward pass.
            shard_bytes: size at which a shard is written; at most this much work is lost by a crash.
            process_index, num_processes: encode every n-th image only; afterwards open the folder again.
            progress: show a progress bar.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        if process_index == 0:
            _delete_damaged(directory)
        cache = cls(directory, encoder_fingerprint(model, processor), skip_damaged=True)
        writer = _ShardWriter(directory, shard_bytes)

        mine = range(process_index, len(rows), num_processes)
        shape, dtype = _feature_shape(model), torch.float16
        size = int(np.prod(shape)) * dtype.itemsize
        # Said by default, hence a warning.
        logger.warning(
            f"frozen features: {len(rows)} images x {size:,} bytes = {len(rows) * size / 1e9:.2f} GB at most in "
            f"{directory} ({len(cache)} features are there already)"
        )
        waiting: dict[str, np.ndarray] = {}
        was_training = model.training
        model.eval()
        try:
            for index in tqdm(mine, desc="Encoding images", disable=not progress):
                image = np.asarray(load_image(rows[index]["image"], name=f"row {index}"))
                key = cache.key(image)
                if key not in cache and key not in waiting and key not in writer:
                    waiting[key] = image
                if waiting and (len(waiting) == batch_size or index == mine[-1]):
                    features = _encode(model, processor, list(waiting.values())).to(dtype)
                    for name, feature in zip(waiting, features):
                        writer.add(name, feature)
                    waiting = {}
            writer.flush()
        finally:
            model.train(was_training)
        cache = cls(directory, cache.fingerprint, skip_damaged=True)
        if process_index == 0:
            cache._write_index()
        return cache

    def _write_index(self) -> None:
        shards: dict[str, list[str]] = {}
        for key, name in self._shard_of.items():
            shards.setdefault(name, []).append(key)
        with atomic_path(self.directory / _INDEX) as temporary:
            temporary.write_text(json.dumps({"format": 1, "features": len(self), "shards": shards}))


class _ShardWriter:
    """Collects features and writes them in shards of about `shard_bytes`."""

    def __init__(self, directory: Path, shard_bytes: int) -> None:
        self.directory = directory
        self.shard_bytes = shard_bytes
        self._written: set[str] = set()
        self._tensors: dict[str, torch.Tensor] = {}
        self._size = 0  # bytes of `_tensors`

    def __contains__(self, key: str) -> bool:
        return key in self._written or key in self._tensors

    def add(self, key: str, feature: torch.Tensor) -> None:
        self._tensors[key] = feature.cpu().contiguous()
        self._size += feature.numel() * feature.element_size()
        if self._size >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        if not self._tensors:
            return
        # A new name every time: nobody writes a file that another process may be reading, or deleting as damaged.
        path = self.directory / f"features-{uuid.uuid4().hex}.safetensors"
        with atomic_path(path) as temporary:
            save_file(self._tensors, temporary)
        self._written.update(self._tensors)
        self._tensors, self._size = {}, 0


def _shard_keys(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as shard:  # checks the header and the length of the file
        return list(shard.keys())


def _warn_of_damage(path: Path, error: Exception) -> None:
    logger.warning_once(f"the feature shard {path} is damaged ({error}): its images are encoded again")


def _delete_damaged(directory: Path) -> None:
    for path in directory.glob("*.safetensors"):
        try:
            _shard_keys(path)
        except FileNotFoundError:
            continue
        except (SafetensorError, OSError) as error:
            _warn_of_damage(path, error)
            path.unlink(missing_ok=True)
    for path in directory.glob(".*.tmp"):
        with suppress(FileNotFoundError):  # another process has finished writing it
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()


def _feature_shape(model: Any) -> tuple[int, int, int]:
    config = model.config.vision_config
    grid = config.image_size // config.patch_size
    return config.output_channels, grid, grid


@torch.no_grad()
def _encode(model: Any, processor: Any, images: list[np.ndarray]) -> torch.Tensor:
    pixel_values = processor(images=images, return_tensors="pt")["pixel_values"]
    parameter = next(model.vision_encoder.parameters())
    return model.get_image_embeddings(pixel_values.to(parameter.device, parameter.dtype))
