"""A checkpoint's tokenizer as GGUF metadata: what llama.cpp's converter writes, without transformers, torch or network.

The reading order is that of conversion/llama.py: a SentencePiece `tokenizer.model`, else a `tokenizer.json` with the same kind
of pieces (Llama 2's fast tokenizer), else byte-level BPE (Llama 3, SmolLM, Qwen, GPT-2).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyedge.errors import TokenizerError
from tinyedge_quantize.metadata import MetadataEntry, boolean, string

from .byte_level_bpe import read_byte_level_bpe
from .fast_llama import is_fast_llama, read_fast_llama
from .files import TokenizerFolder, as_bool
from .llama_sentencepiece import read_sentencepiece
from .pretokenizers import KNOWN_PRE_TOKENIZERS, check_pre_tokenizer
from .special import special_entries

__all__ = ["KNOWN_PRE_TOKENIZERS", "read_tokenizer"]

# The largest vocabularies in use have 262144 entries (Gemma 3).
MAX_ROWS = 2**19
_ADD_BOS = "tokenizer.ggml.add_bos_token"
_CODE_LLAMA_ROWS = 32016
_CODE_LLAMA_KINDS = ("prefix", "suffix", "middle", "eot")
_CODE_LLAMA_END_OF_TURN = 32010
_GRANITE_ROWS = 49152


def read_tokenizer(
    folder: Path, vocab_size: int, config: Mapping[str, Any], pre_tokenizer: str | None = None
) -> dict[str, MetadataEntry]:
    """The `tokenizer.*` entries of a GGUF header, in the order llama.cpp's converter writes them.

    `vocab_size` is the number of embedding rows, `config` the content of config.json (empty when the checkpoint has none).
    `pre_tokenizer` names llama.cpp's pre-tokenizer for a byte-level BPE whose own definition is not recognised. Raises
    TokenizerError for every kind of missing, damaged or contradictory file.
    """
    if pre_tokenizer is not None:
        check_pre_tokenizer(pre_tokenizer)
    if vocab_size > MAX_ROWS:
        raise TokenizerError(
            f"the embedding has {vocab_size} rows, twice as many as any vocabulary", "check vocab_size in config.json"
        )
    files = TokenizerFolder(folder, config)
    entries: dict[str, MetadataEntry] = {}
    prefix = (files.tokenizer_config or {}).get("add_prefix_space")
    if prefix is not None:
        prefix = as_bool(prefix, "add_prefix_space in tokenizer_config.json")
        entries["tokenizer.ggml.add_space_prefix"] = boolean(prefix)
    entries |= _vocabulary_entries(files, vocab_size, pre_tokenizer)
    if config.get("vocab_size") == _CODE_LLAMA_ROWS:
        # gguf has no key for CodeLlama's prefix, suffix and middle tokens: llama.cpp finds them by their texts.
        entries |= special_entries(files, vocab_size, _CODE_LLAMA_KINDS, {"eot": _CODE_LLAMA_END_OF_TURN})
    if config.get("vocab_size") == _GRANITE_ROWS:
        entries[_ADD_BOS] = boolean(False)
    return entries


def _vocabulary_entries(files: TokenizerFolder, vocab_size: int, pre_tokenizer: str | None) -> dict[str, MetadataEntry]:
    if (files.path / "tokenizer.model").is_file():
        vocabulary = read_sentencepiece(files, vocab_size)
        if vocabulary is not None:
            return _llama_entries(files, vocab_size, vocabulary.llama_entries())
    if files.tokenizer_json is not None and is_fast_llama(files.tokenizer_json):
        return _llama_entries(files, vocab_size, read_fast_llama(files, vocab_size).llama_entries())
    if files.tokenizer_json is not None or (files.path / "vocab.json").is_file():
        return read_byte_level_bpe(files, vocab_size, pre_tokenizer)
    raise _no_tokenizer(files)


def _llama_entries(files: TokenizerFolder, vocab_size: int, arrays: dict[str, MetadataEntry]) -> dict[str, MetadataEntry]:
    head = {"tokenizer.ggml.model": string("llama"), "tokenizer.ggml.pre": string("default")}
    return head | arrays | special_entries(files, vocab_size)


def _no_tokenizer(files: TokenizerFolder) -> TokenizerError:
    problem = f"no tokenizer in {files.path}: looked for tokenizer.model, tokenizer.json, and vocab.json with merges.txt"
    if (files.path / "tekken.json").is_file():
        return TokenizerError(
            f"{problem}; tekken.json is there, but without tokenizer.json it is not enough",
            "take tokenizer.json from the Hugging Face version of this model",
        )
    return TokenizerError(problem)
