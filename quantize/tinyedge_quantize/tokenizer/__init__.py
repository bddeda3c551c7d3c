"""A checkpoint's tokenizer as GGUF metadata: what llama.cpp's converter writes, without transformers, torch or network.

`vocabularies` says for each family which files are read: a SentencePiece `tokenizer.model`, a `tokenizer.json` with the same
kind of pieces (Llama 2's fast tokenizer), or byte-level BPE (Llama 3, SmolLM, Qwen, GPT-2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tinyedge.errors import TokenizerError
from tinyedge_quantize.metadata import MetadataEntry

from .files import TokenizerFolder
from .pretokenizers import KNOWN_PRE_TOKENIZERS, check_pre_tokenizer
from .remarks import remarks
from .vocabularies import VOCABULARIES, Request

__all__ = ["KNOWN_PRE_TOKENIZERS", "VOCABULARIES", "Tokenizer", "open_tokenizer", "read_tokenizer"]

# The largest vocabularies in use have 262144 entries (Gemma 3).
MAX_ROWS = 2**19
_NO_NAMES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer as GGUF has it: the `tokenizer.*` entries of the header, in the order llama.cpp's converter writes them.

    `warnings` are sentences about texts that get other ids than in transformers.
    """

    entries: dict[str, MetadataEntry]
    warnings: tuple[str, ...]


def read_tokenizer(
    folder: Path,
    vocab_size: int,
    config: Mapping[str, Any],
    pre_tokenizer: str | None = None,
    vocabulary: str = "llama",
    pre_names: Mapping[str, str] = _NO_NAMES,
) -> dict[str, MetadataEntry]:
    """The entries of `open_tokenizer`."""
    return open_tokenizer(folder, vocab_size, config, pre_tokenizer, vocabulary, pre_names).entries


def open_tokenizer(
    folder: Path,
    vocab_size: int,
    config: Mapping[str, Any],
    pre_tokenizer: str | None = None,
    vocabulary: str = "llama",
    pre_names: Mapping[str, str] = _NO_NAMES,
    name: str = "",
) -> Tokenizer:
    """The tokenizer in a checkpoint's folder.

    `vocab_size` is the number of embedding rows, `config` the content of config.json (empty when the checkpoint has none).
    `pre_tokenizer` names llama.cpp's pre-tokenizer for a byte-level BPE whose own definition is not recognised. `vocabulary`
    is the family's name in VOCABULARIES, `pre_names` the family's own names for recognised pre-tokenizers, each splitting as
    the one it stands for. `name` is the model's general.name, by which llama.cpp treats some tokenizers in another way. Raises
    TokenizerError for every kind of missing, damaged or contradictory file.
    """
    if pre_tokenizer is not None:
        check_pre_tokenizer(pre_tokenizer)
    if vocab_size > MAX_ROWS:
        raise TokenizerError(
            f"the embedding has {vocab_size} rows, twice as many as any vocabulary", "check vocab_size in config.json"
        )
    files = TokenizerFolder(folder, config)
    entries = VOCABULARIES[vocabulary].read(Request(files, vocab_size, pre_tokenizer, pre_names))
    return Tokenizer(entries, tuple(remarks(files, entries, name)))
