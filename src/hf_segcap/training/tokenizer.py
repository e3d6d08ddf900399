# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""A tokenizer learnt from the captions, for models that are trained from scratch."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

KINDS = ("word", "bpe")
END_TOKEN, PAD_TOKEN, UNKNOWN_TOKEN = "<|endoftext|>", "<|pad|>", "<|unk|>"


def train_tokenizer(texts: Iterable[str], kind: str = "word", vocab_size: int = 1000) -> PreTrainedTokenizerFast:
    """Learns a tokenizer whose ids 0, 1, 2 are end, padding and unknown.

    Args:
        texts: captions.
        kind: "word" (lower-cased words separated by spaces) or "bpe" (byte level, keeps case and punctuation).
        vocab_size: upper bound, special tokens included.

    Raises:
        ValueError: unknown kind.
    """
    special = [END_TOKEN, PAD_TOKEN, UNKNOWN_TOKEN]
    trainer: trainers.Trainer
    if kind == "word":
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN_TOKEN))
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    elif kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    else:
        raise ValueError(f"unknown kind of tokenizer {kind!r}, expected one of {KINDS}")
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_TOKEN,
        eos_token=END_TOKEN,
        pad_token=PAD_TOKEN,
        unk_token=UNKNOWN_TOKEN,
        padding_side="right",
        model_max_length=20,
    )
