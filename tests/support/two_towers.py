"""Tiny models of two towers, image and text, as people download them: random weights, no hub."""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MERGES = ("s o", "so l", "sol a", "sola r</w>", "f a", "fa r", "far m</w>")
START, END = "<|startoftext|>", "<|endoftext|>"
IMAGE_PX = 32
TOKENS = 16
"""Most tokens of a text."""
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_VISION = {**_TOWER, "image_size": IMAGE_PX, "patch_size": 8}
_TEXT = {**_TOWER, "max_position_embeddings": TOKENS}
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]
"""Of the model's training images, of pixels from 0 to 1."""


def write_clip(folder: Path) -> Path:
    """Write a CLIP model with the files of its tokenizer, vocabulary and merges."""
    folder.mkdir(parents=True)
    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    pieces += [merge.replace(" ", "") for merge in MERGES] + [START, END]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    _write(folder / "tokenizer_config.json", tokenizer_class="CLIPTokenizer")
    ends = {"bos_token_id": vocabulary[START], "eos_token_id": vocabulary[END]}
    config = transformers.CLIPConfig(
        text_config={**_TEXT, **ends, "vocab_size": len(vocabulary), "projection_dim": 24},
        vision_config={**_VISION, "projection_dim": 24},
        projection_dim=24,
    )
    return _save(transformers.CLIPModel, config, folder)


def write_siglip(folder: Path) -> Path:
    """Write a SigLIP model with a tokenizer.json."""
    folder.mkdir(parents=True)
    words = ["<pad>", "<eos>", "<unk>", "solar", "farm", "in", "desert"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    named = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(
        folder
    )
    config = transformers.SiglipConfig(
        text_config={**_TEXT, "vocab_size": len(words), "projection_size": 32},
        vision_config=_VISION,
    )
    return _save(transformers.SiglipModel, config, folder)


def _save(model_class: type, config: object, folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model_class(config).save_pretrained(folder)
    _write(folder / "preprocessor_config.json", image_mean=MEAN, image_std=STD)
    return folder


def _write(path: Path, **content: object) -> None:
    path.write_text(json.dumps(content))
