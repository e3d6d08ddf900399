# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""A small CLIP for the generated world, whose text half names objects by colour, texture and shape.

It gives the bundled segmenter its text prompts: image embeddings of mask crops while that model is trained, text embeddings
of phrases when it is used. `python -m hf_segcap.training.tiny_clip --output DIR` trains and saves it in some minutes on one
core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, normalizers
from tokenizers.processors import TemplateProcessing
from tqdm.auto import tqdm
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from ..data.composites import CompositeRegions
from ..data.describe import COLOURS, PLACES, SHAPES, SIZES, TEXTURES, TONES, RegionWords
from ..data.mask_crops import MaskCropEmbedder, encode_crops
from ..data.photographs import PhotographRegions
from ..data.sources import MixedRows
from ..data.synthetic import SyntheticRegions
from ..masks import decode_rle
from .muon import MuonAdamW, muon_parameter_groups
from .tokenizer import END_TOKEN, train_tokenizer

MIN_AREA = 40  # pixels; the generated scenes show nothing smaller
MAX_LOGIT_SCALE = 100.0
SHAPE_NOUNS = {
    "round": ("disc", "circle", "disk"),
    "square": ("square",),
    "triangular": ("triangle",),
    "star-shaped": ("star",),
    "ring-shaped": ("ring",),
}
SYNONYMS = {
    "grey": ("grey", "gray"),
    "purple": ("purple", "violet"),
    "dotted": ("dotted", "spotted"),
    "checkered": ("checkered", "checked"),
}
PATTERN_NOUNS = {"striped": "stripes", "dotted": "dots", "checkered": "checks"}
GENERIC_NOUNS = ("thing", "object", "region", "shape", "area", "one")
_UNKNOWN_NOUN = "whatsit"  # not in the vocabulary: the model meets unknown words in training


@dataclass
class CropData:
    """Crops of N objects with their words.

    Attributes:
        pixels: (N, 3, S, S) uint8.
        inside: (N, n) bool, see `MaskCrops`.
        words: the N objects' words.
    """

    pixels: torch.Tensor
    inside: torch.Tensor
    words: list[RegionWords]


def tiny_clip_config(vocab_size: int, eos_token_id: int, pad_token_id: int, max_length: int) -> CLIPConfig:
    """48 x 48 pixels in patches of 8, embeddings of 64 numbers, about 0.5 million parameters."""
    return CLIPConfig(
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": max_length,
            "projection_dim": 64,
            "hidden_act": "gelu",
            "bos_token_id": None,
            "eos_token_id": eos_token_id,
            "pad_token_id": pad_token_id,
        },
        vision_config={
            "hidden_size": 96,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 48,
            "patch_size": 8,
            "projection_dim": 64,
            "hidden_act": "gelu",
        },
        projection_dim=64,
    )


def phrase_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the grammar of [`make_phrase`]; every text ends with the end token, which CLIP pools at."""
    words = [*COLOURS, *TONES, *SIZES, *TEXTURES, *SHAPES, *PATTERN_NOUNS.values(), *GENERIC_NOUNS, "something"]
    words += [word for group in (SHAPE_NOUNS, SYNONYMS) for names in group.values() for word in names]
    words += ["a", "an", "the", "at", "in", "with", "and", *" ".join(PLACES).split()]
    tokenizer = train_tokenizer(words)
    backend = tokenizer.backend_tokenizer
    punctuation = normalizers.Replace(Regex(r"""[.,;:!?"'()]"""), " ")
    backend.normalizer = normalizers.Sequence([punctuation, normalizers.Lowercase()])
    backend.post_processor = TemplateProcessing(
        single=f"$A {END_TOKEN}", special_tokens=[(END_TOKEN, tokenizer.eos_token_id)]
    )
    return tokenizer


def make_phrase(words: RegionWords, rng: np.random.Generator) -> tuple[str, RegionWords]:
    """A phrase of some of an object's words, in one of many forms, and the words it is about.

    What a crop cannot show (size and place) is mentioned at times and claimed never, so that a model learns to pass it over.
    """

    def some(*choices: str) -> str:
        return choices[int(rng.integers(len(choices)))]

    def name(word: str) -> str:
        return some(*SYNONYMS.get(word, (word,)))

    uses = rng.random(3) < (0.8, 0.35, 0.6)
    if not uses.any() or not (uses[0] or uses[1] or words.shape):
        uses[0] = True
    colour = words.colour if uses[0] else ""
    tone = words.tone if uses[0] and rng.random() < 0.3 else ""
    texture = words.texture if uses[1] else ""
    shape = words.shape if uses[2] else ""
    about = RegionWords(size="", colour=colour, texture=texture, place="", tone=tone, shape=shape)

    adjectives, ending = [f"{tone} {name(colour)}".strip()] if colour else [], []
    if texture in PATTERN_NOUNS and rng.random() < 0.2:
        ending = ["with", PATTERN_NOUNS[texture]]
    elif texture:
        adjectives.insert(int(rng.integers(len(adjectives) + 1)), name(texture))
    noun = some(*GENERIC_NOUNS) if rng.random() < 0.95 else _UNKNOWN_NOUN
    if shape and rng.random() < 0.6:
        noun = some(*SHAPE_NOUNS[shape])
    elif shape:
        adjectives.append(shape)
    elif adjectives and rng.random() < 0.15:
        return " ".join(["something", " and ".join(adjectives), *ending]), about
    if adjectives and noun not in SHAPE_NOUNS.get(shape, ()) and not ending and rng.random() < 0.25:
        return " ".join(adjectives), about
    if rng.random() < 0.15:
        adjectives.insert(0, words.size)
    if rng.random() < 0.15:
        ending += [some("at", "in"), "the", words.place]
    article = some("", "a", "the")
    phrase = " ".join([*adjectives, noun, *ending])
    if article == "a" and phrase[0] in "aeiou":
        article = "an"
    return f"{article} {phrase}".strip(), about


def false_pairs(phrases: Sequence[RegionWords], objects: Sequence[RegionWords]) -> torch.Tensor:
    """Which phrases are false of which objects, (len(phrases), len(objects)) bool.

    An object without a shape word may have any shape: no phrase is false of it because of its shape.
    """
    wrong = np.zeros((len(phrases), len(objects)), dtype=bool)
    for attribute in ("colour", "tone", "texture", "shape"):
        asked = np.array([getattr(phrase, attribute) for phrase in phrases])[:, None]
        there = np.array([getattr(words, attribute) for words in objects])[None]
        wrong |= (asked != "") & (asked != there) & ((there != "") | (attribute != "shape"))
    return torch.from_numpy(wrong)


def build_crops(rows: Any, embedder: MaskCropEmbedder, seed: int = 0, draws: int = 2) -> CropData:
    """Training crops of all regions of a data set of rows that have a mask and words of the grammar.

    Args:
        rows: a data set in the row format of `hf_segcap.data.sources`.
        embedder: makes the crops, by its training rules.
        seed: of the draws.
        draws: crops per object.

    Raises:
        ValueError: no row has such a region.
    """
    rng = np.random.default_rng(seed)
    pixels, inside, words = [], [], []
    for index in range(len(rows)):
        row = rows[index]
        described = [(RegionWords.parse(r["phrases"][0]), r["mask"]) for r in row["regions"] if r["mask"] is not None]
        found = [(w, np.asarray(decode_rle(mask), dtype=bool)) for w, mask in described if w is not None]
        if not found:
            continue
        masks = np.stack([mask for _, mask in found])
        for _ in range(draws):
            crops = embedder.crop(np.asarray(row["image"]), masks, rng)
            kept = crops.kept.nonzero().flatten()
            pixels.append(_to_bytes(crops.pixel_values[kept], embedder))
            inside.append(crops.inside[kept])
            words += [found[i][0] for i in kept.tolist()]
    if not words:
        raise ValueError("no region of the data has a mask and a caption to learn from")
    return CropData(torch.cat(pixels), torch.cat(inside), words)


def contrastive_loss(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, false: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """CLIP's loss in which a phrase is told only from crops it is false of, and a crop only from phrases false of it.

    Args:
        image_embeds: (B, E) of length 1.
        text_embeds: (K * B, E) of length 1; row i belongs to crop i modulo B.
        false: (K * B, B) bool.
        scale: multiplier of the cosines.
    """
    logits = scale * text_embeds @ image_embeds.T
    rows = torch.arange(len(logits))
    own = rows % len(image_embeds)
    right = logits[rows, own]
    wrong = logits.masked_fill(~false, float("-inf"))
    of_phrase = torch.logaddexp(right, wrong.logsumexp(dim=1)) - right
    of_crop = torch.logaddexp(right, wrong.logsumexp(dim=0)[own]) - right
    return (of_phrase.mean() + of_crop.mean()) / 2


def default_rows(scenes: int, seed: int) -> MixedRows:
    """Generated scenes, composites and segments of photographs: 3 to 1 to 1 (the latter need scikit-image)."""
    others = max(1, scenes // 3)
    return MixedRows(
        [
            SyntheticRegions(scenes, seed=seed),
            CompositeRegions(others, seed=seed, scene_share=0.0, texture_share=1.0),
            PhotographRegions(others, seed=seed, boxes=0, segments=6),
        ],
        [scenes, others, others],
        seed=seed,
    )


def train_tiny_clip(
    steps: int = 1000,
    seed: int = 0,
    rows: Any = None,
    batch_size: int = 192,
    learning_rate: float = 2e-3,
    muon_learning_rate: float = 5e-3,
    phrases_per_crop: int = 2,
    align_steps: int = 250,
    progress: bool = True,
) -> tuple[CLIPModel, PreTrainedTokenizerFast]:
    """Trains a small CLIP on crops of generated objects and phrases of their true words, then [`align_texts`].

    Crops are turned and mirrored, which changes no word. The masked attention of `encode_crops` is always on.

    Args:
        steps: optimiser steps with the contrastive loss.
        seed: of the weights, the data and all draws.
        rows: data to learn from; default `default_rows(1800, seed)`.
        batch_size, phrases_per_crop: of the training.
        learning_rate, muon_learning_rate: see [`muon_parameter_groups`]; 5 % warm-up, cosine decay.
        align_steps: of [`align_texts`].
        progress: shows a bar.

    Returns:
        The model in evaluation mode and its tokenizer.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 1])
    tokenizer = phrase_tokenizer()
    config = tiny_clip_config(
        len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.model_max_length
    )
    model = CLIPModel(config)
    embedder = MaskCropEmbedder(model, min_area=MIN_AREA)
    data = build_crops(default_rows(1800, seed) if rows is None else rows, embedder, seed)
    groups = muon_parameter_groups(model, muon_learning_rate, learning_rate, weight_decay=0.05)
    optimizer = MuonAdamW(groups, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warmup_cosine(steps))
    model.train()
    bar = tqdm(range(steps), desc="tiny CLIP", disable=not progress, mininterval=5)
    for _ in bar:
        chosen, words = _draw(data, batch_size, rng)
        pairs = [make_phrase(w, rng) for _ in range(phrases_per_crop) for w in words]
        false = false_pairs([about for _, about in pairs], words)
        pixels, inside = _turn(data.pixels[chosen], data.inside[chosen], rng)
        images = encode_crops(model, normalised(pixels, embedder), inside)
        texts = _encode_unique([text for text, _ in pairs], model, tokenizer)
        loss = contrastive_loss(images, texts, false, model.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()
    align_texts(model, tokenizer, data, embedder, align_steps, seed, progress=progress)
    return model, tokenizer


def align_texts(
    model: CLIPModel,
    tokenizer: PreTrainedTokenizerFast,
    data: CropData,
    embedder: MaskCropEmbedder,
    steps: int = 250,
    seed: int = 0,
    batch_size: int = 512,
    learning_rate: float = 2e-3,
    progress: bool = True,
) -> None:
    """Brings the embeddings of phrases to where those of their crops are; the image half stays as it is.

    The contrastive loss leaves texts and images apart in the common space (the modality gap, Liang et al. 2022). Retrieval
    does not mind, but a segmenter that has seen the embeddings of crops only does. Here the text half learns the largest cosine
    with the crops that a phrase is true of, whose middle it moves to.

    Args:
        model, tokenizer: of the contrastive training; the model is changed.
        data: crops and words.
        embedder: that made them.
        steps, batch_size, learning_rate: of AdamW; 5 % warm-up, cosine decay. 0 steps: nothing changes.
        seed: of all draws.
        progress: shows a bar.
    """
    if steps == 0:
        return
    rng = np.random.default_rng([seed, 2])
    with torch.no_grad():
        parts = zip(data.pixels.split(batch_size), data.inside.split(batch_size))
        images = torch.cat([encode_crops(model, normalised(pixels, embedder), inside) for pixels, inside in parts])
    texts = [*model.text_model.parameters(), *model.text_projection.parameters()]
    optimizer = torch.optim.AdamW(texts, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warmup_cosine(steps))
    for _ in tqdm(range(steps), desc="aligning texts", disable=not progress, mininterval=5):
        chosen, words = _draw(data, batch_size, rng)
        found = _encode_unique([make_phrase(w, rng)[0] for w in words], model, tokenizer)
        loss = 1 - (found * images[chosen]).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def encode_phrases(texts: Sequence[str], model: CLIPModel, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """CLIP's text embeddings (len(texts), E) of length 1."""
    tokens = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt", return_token_type_ids=False)
    return F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)


@torch.no_grad()
def retrieval_accuracy(
    model: CLIPModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: Any,
    form: Callable[[RegionWords], str] | None = None,
) -> tuple[int, int]:
    """How often a phrase finds its object among all objects of a generated scene, by the largest cosine.

    Args:
        model, tokenizer: of [`train_tiny_clip`].
        rows: scenes to ask about, such as `SyntheticRegions` with a seed that was not trained on.
        form: turns the words of an object into a phrase; default "the red star". Phrases that several objects of a
            scene share are not asked.

    Returns:
        Right answers and questions.
    """
    form = form or colour_and_shape
    embedder = MaskCropEmbedder(model, min_area=MIN_AREA)
    right = asked = 0
    for index in range(len(rows)):
        row = rows[index]
        masks = np.stack([decode_rle(region["mask"]) for region in row["regions"]])
        images, _ = embedder(np.asarray(row["image"]), masks)
        words = [RegionWords.parse(region["phrases"][0]) for region in row["regions"]]
        phrases = ["" if w is None else form(w) for w in words]
        unique = [i for i, phrase in enumerate(phrases) if phrase and phrases.count(phrase) == 1]
        if len(phrases) > 1 and unique:
            texts = encode_phrases([phrases[i] for i in unique], model, tokenizer)
            best = (texts @ images.T).argmax(dim=1).tolist()
            right += sum(found == i for found, i in zip(best, unique))
            asked += len(unique)
    return right, asked


def colour_and_shape(words: RegionWords) -> str:
    """ "the red star", or "" for an object without a shape word."""
    return f"the {words.colour} {SHAPE_NOUNS[words.shape][0]}" if words.shape else ""


def full_name(words: RegionWords) -> str:
    """ "the dark red striped star", or "" for an object without a shape word."""
    if not words.shape:
        return ""
    return " ".join(filter(None, ("the", words.tone, words.colour, words.texture, SHAPE_NOUNS[words.shape][0])))


def _warmup_cosine(steps: int) -> Callable[[int], float]:
    warmup = max(1, steps // 20)
    return lambda step: min((step + 1) / warmup, 0.5 * (1 + np.cos(np.pi * min(step / steps, 1))))


def _encode_unique(texts: Sequence[str], model: CLIPModel, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    unique, place = np.unique(np.array(texts), return_inverse=True)
    return encode_phrases(unique.tolist(), model, tokenizer)[torch.from_numpy(place.reshape(-1))]


def _turn(pixels: torch.Tensor, inside: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One of the eight turns and reflections of a square, the same for all crops and their patch masks."""
    quarters, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    grid = int(inside.shape[1] ** 0.5)
    found = []
    for value in (pixels, inside.unflatten(1, (grid, grid))):
        value = value.rot90(quarters, (-2, -1))
        found.append(value.flip(-1) if mirrored else value)
    return found[0], found[1].flatten(1)


def _draw(data: CropData, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, list[RegionWords]]:
    """Indices of crops, each at most once, and their words."""
    chosen = rng.choice(len(data.words), min(count, len(data.words)), replace=False)
    return torch.from_numpy(chosen), [data.words[i] for i in chosen.tolist()]


def normalised(pixels: torch.Tensor, embedder: MaskCropEmbedder) -> torch.Tensor:
    """Crops (N, 3, S, S) uint8 as CLIP takes them."""
    mean, std = (torch.from_numpy(v)[:, None, None] for v in (embedder.mean * 255, embedder.std * 255))
    return (pixels.float() - mean) / std


def _to_bytes(pixel_values: torch.Tensor, embedder: MaskCropEmbedder) -> torch.Tensor:
    mean, std = (torch.from_numpy(v)[:, None, None] for v in (embedder.mean, embedder.std))
    return ((pixel_values * std + mean) * 255).round().to(torch.uint8)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a small CLIP on generated scenes and save it.")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model and its tokenizer")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    model, tokenizer = train_tiny_clip(options.steps, options.seed)
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    right, asked = retrieval_accuracy(model, tokenizer, SyntheticRegions(100, seed=options.seed + 10_000))
    print(f"Saved to {options.output}. Phrases of colour and shape find their object: {right} of {asked}.")


if __name__ == "__main__":
    main()
