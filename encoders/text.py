"""The text tower of an encoder: from words to vectors in the space of its image tower.

Such an encoder is made from a model of ``transformers`` with two towers (CLIP, SigLIP). The
tokenizer is one JSON file of the package ``tokenizers``; no pickle and no code come with it.

Shape legend: B batch, T tokens, D embedding dimension.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from encoders.backbones.transformers import load_pretrained, plain_config
from encoders.spec import pretrained_folder
from storage.errors import ConfigError, NotFoundError

# backbone: (configuration class, model class, output in the shared space, pad to full length)
_TOWERS = {
    "clip": ("CLIPTextConfig", "CLIPTextModelWithProjection", "text_embeds", False),
    "siglip": ("SiglipTextConfig", "SiglipTextModel", "pooler_output", True),
}
PLAIN_PROMPT = "{}"
"""The prompt that leaves words as they are."""
_PLACE = "{}"


class TextTower(nn.Module):
    """A text model with its tokenizer and prompt.

    Parameters
    ----------
    backbone
        Name of the image tower, ``clip`` or ``siglip``.
    model
        The text model of that architecture.
    tokenizer
        The file ``tokenizer.json``, with the rules of padding and truncation.
    prompt
        Words are put in place of ``{}``.

    Attributes
    ----------
    options
        Plain values that rebuild the tower: its configuration and prompt.
    tokenizer
        The bytes of ``tokenizer.json``.

    Raises
    ------
    ConfigError
        The prompt has no place for the words.
    """

    def __init__(self, backbone: str, model: Any, tokenizer: bytes, prompt: str) -> None:
        from tokenizers import Tokenizer

        super().__init__()
        if prompt.count(_PLACE) != 1:
            raise ConfigError(
                f"encoder: prompt is {prompt!r}; give a text with one {_PLACE}, the place of the "
                "words, such as 'a satellite image of {}'"
            )
        self.model, self.tokenizer, self._prompt = model, tokenizer, prompt
        self._output = _TOWERS[backbone][2]
        self.options = {"config": plain_config(model), "prompt": prompt}
        self._tokenize = Tokenizer.from_str(tokenizer.decode())

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Embed texts; the vectors (B, D) are not of unit length yet.

        Raises
        ------
        ConfigError
            A text is empty, or longer than the model reads.
        """
        for text in texts:
            if not text.strip():
                raise ConfigError("text: it is empty; give words, such as 'solar farm'")
        asked = [self._prompt.replace(_PLACE, text) for text in texts]
        tokens = self._tokenize.encode_batch(asked)
        for text, part in zip(texts, tokens, strict=True):
            if part.overflowing:
                raise ConfigError(
                    f"text: '{text[:40]}...' has more than the {len(part.ids)} tokens that the "
                    "encoder reads; give fewer words"
                )
        # No attention mask: CLIP looks at no token behind the end of the text, SigLIP was trained
        # with the padding.
        device = next(self.model.parameters()).device
        ids_BT = torch.tensor([part.ids for part in tokens], device=device)
        features: Tensor = self.model(input_ids=ids_BT)[self._output]
        return features


def build_text(backbone: str, options: Mapping[str, Any], tokenizer: bytes) -> TextTower:
    """Build the text tower that a bundle describes, with random weights.

    Parameters
    ----------
    backbone, tokenizer
        As for :class:`TextTower`.
    options
        Those of a :class:`TextTower`.

    Raises
    ------
    ConfigError
        The backbone has no text tower, or an option is missing or wrong.
    """
    import transformers

    if backbone not in _TOWERS:
        raise ConfigError(
            f"encoder: backbone {backbone} has no text tower; those of {', '.join(_TOWERS)} have"
        )
    config_class, model_class = (getattr(transformers, name) for name in _TOWERS[backbone][:2])
    try:
        model = model_class(config_class(**options["config"]))
        return TextTower(backbone, model, tokenizer, options["prompt"])
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"encoder: its text tower has a wrong option ({error})") from error


def pretrained_text(backbone: str, source: str, prompt: str = PLAIN_PROMPT) -> TextTower | None:
    """Load the text tower of a pretrained model of two towers; None where it has none.

    Parameters
    ----------
    backbone
        Name of the image tower.
    source
        Folder of a model of ``transformers``, or id on the model hub.
    prompt
        Words are put in place of ``{}``.

    Raises
    ------
    ConfigError
        The tokenizer is not one that `tokenizers` knows, or the prompt is wrong.
    NotFoundError
        The model has a text tower, but no tokenizer or no weights.
    """
    import transformers

    if backbone not in _TOWERS or not _has_text(source):
        return None
    _, model_class, _, whole = _TOWERS[backbone]
    model = load_pretrained(backbone, getattr(transformers, model_class), source)
    return TextTower(backbone, model, _tokenizer(source, model, whole), prompt)


def _has_text(source: str) -> bool:
    """Whether a model has a text tower beside its image tower."""
    from transformers import PretrainedConfig

    folder = pretrained_folder(source)
    return "text_config" in PretrainedConfig.get_config_dict(str(folder or source))[0]


def _tokenizer(source: str, model: Any, whole: bool) -> bytes:
    """Return the tokenizer of a model as JSON, cut and padded as the model was trained."""
    from transformers import AutoTokenizer

    folder = pretrained_folder(source)
    names = ("tokenizer.json", "vocab.json", "spiece.model")
    if folder is not None and not any(Path(folder, name).is_file() for name in names):
        raise NotFoundError(
            f"{folder} holds a text tower, but no tokenizer ({' or '.join(names)}); add its files"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder or source))
        parts = tokenizer.backend_tokenizer
    except (OSError, ImportError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"the tokenizer of {source} cannot be read as tokenizer.json ({reason}); save it with "
            "the package tokenizers"
        ) from error
    length = int(model.config.max_position_embeddings)
    parts.enable_truncation(length)
    padding = {"pad_id": tokenizer.pad_token_id or 0, "pad_token": tokenizer.pad_token or ""}
    parts.enable_padding(length=length if whole else None, **padding)
    return json.dumps(json.loads(parts.to_str()), sort_keys=True).encode()
