"""The `gpt2` vocabulary of byte-level BPE tokenizers: Llama 3, SmolLM, Qwen, GPT-2."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tinyedge.errors import TokenizerError
from tinyedge_quantize.metadata import MetadataEntry, boolean, string, strings
from tinyedge_quantize.strangers import show

from .added_tokens import AddedToken, check_pieces, read_added_tokens
from .files import MAX_JSON_BYTES, TokenizerFolder, as_dict, as_list, as_text, read_json, read_text, wrong
from .large_json import Merges
from .pretokenizers import ADDING_BOS, family_name, pre_tokenizer_of_class, recognise_pre_tokenizer
from .special import special_entries
from .vocabulary import TokenType, Vocabulary, looks_special, refuse_more_than

_NOT_READ = "convert it with a tool that knows this kind of tokenizer"
_UNIGRAM_REMEDY = "put the tokenizer.model of this checkpoint beside it, which is read instead"
_GPT2_SPECIALS = {"eos_token": "<|endoftext|>"}
# Parts of a BPE model that change what text becomes, and that llama.cpp does not have.
_UNSUPPORTED_OPTIONS = ("continuing_subword_prefix", "end_of_word_suffix", "dropout")


def read_byte_level_bpe(
    folder: TokenizerFolder, vocab_size: int, pre_tokenizer: str | None, pre_names: Mapping[str, str]
) -> dict[str, MetadataEntry]:
    """The entries that conversion/base.py's `_set_vocab_gpt2` writes, the pre-tokenizer as given or recognised.

    `pre_names` are the family's own names for recognised pre-tokenizers.
    """
    if folder.tokenizer_json is None:
        pieces = check_pieces(read_json(folder.path / "vocab.json"), vocab_size, "vocab.json")
        recognised = pre_tokenizer_of_class((folder.tokenizer_config or {}).get("tokenizer_class")) if not pre_tokenizer else ""
        defaults, merges = _GPT2_SPECIALS if "<|endoftext|>" in pieces else {}, None
    else:
        model = _check_model(folder.tokenizer_json)
        pieces = check_pieces(model.get("vocab"), vocab_size, "tokenizer.json")
        recognised = recognise_pre_tokenizer(folder.tokenizer_json, pieces) if not pre_tokenizer else ""
        defaults, merges = {}, model.get("merges")
    pre = pre_tokenizer or family_name(recognised, pre_names)
    joined = _merges(merges, pieces) or _merges_txt(folder, pieces)
    if not joined:
        raise TokenizerError("the tokenizer has no merges, without which llama.cpp cannot load a byte-level BPE")
    vocabulary = _vocabulary(pieces, read_added_tokens(folder, pieces, defaults), vocab_size)
    head = {"tokenizer.ggml.model": string("gpt2"), "tokenizer.ggml.pre": string(pre)}
    head |= vocabulary.gpt2_entries() | {"tokenizer.ggml.merges": strings(joined)}
    special = special_entries(folder, vocab_size)
    return head | special | _without_extra_tokens(special, pre, described=folder.tokenizer_json is not None)


def _without_extra_tokens(special: dict[str, MetadataEntry], pre: str, described: bool) -> dict[str, MetadataEntry]:
    """Flags that keep llama.cpp from adding a token that the tokenizer does not add.

    For want of a named token it would take number 11 (src/llama-vocab.cpp); and with some pre-tokenizers it begins a text
    with bos by itself, which a tokenizer.json (`described`) does only by a post-processor.
    """
    corrected: dict[str, MetadataEntry] = {}
    for kind, by_default in (("bos", pre in ADDING_BOS), ("eos", False)):
        flag = special.get(f"tokenizer.ggml.add_{kind}_token")
        adds = by_default if flag is None else flag.value
        if adds and (f"tokenizer.ggml.{kind}_token_id" not in special or (flag is None and described)):
            corrected[f"tokenizer.ggml.add_{kind}_token"] = boolean(False)
    return corrected


def _check_model(tokenizer_json: dict[str, Any]) -> dict[str, Any]:
    model = as_dict(tokenizer_json.get("model"), "model in tokenizer.json")
    kind = model.get("type")
    if kind != "BPE":
        remedy = _UNIGRAM_REMEDY if kind == "Unigram" else _NOT_READ
        raise TokenizerError(f"tokenizer.json holds a model of type {show(kind)}, where BPE is needed", remedy)
    check_options(model)
    decoder = tokenizer_json.get("decoder")
    decoder_kind = as_dict(decoder, "decoder in tokenizer.json").get("type") if decoder is not None else None
    if decoder_kind not in (None, "ByteLevel"):
        raise TokenizerError(f"tokenizer.json has a BPE model with decoder {show(decoder_kind)}", _NOT_READ)
    return model


def check_options(model: dict[str, Any]) -> None:
    """Raises TokenizerError for a BPE model with an option that llama.cpp does not have."""
    for option in _UNSUPPORTED_OPTIONS:
        if model.get(option):
            raise TokenizerError(f"tokenizer.json sets {option}, which llama.cpp does not have", _NOT_READ)


def _vocabulary(pieces: dict[str, int], added: list[AddedToken], vocab_size: int) -> Vocabulary:
    vocabulary = Vocabulary(vocab_size)
    for text, row in pieces.items():
        vocabulary.put(row, text, 0.0, TokenType.NORMAL)
    for token in added:
        refuse_more_than(vocab_size, token.token_id + 1, "the tokenizer")
        # As it is written, for so it is found in a text. The converter writes what a ByteLevel decoder makes of it, which is
        # another text when letters such as é and ą are in it (conversion/base.py, get_vocab_base).
        text = token.text
        if token.special or looks_special(text):
            vocabulary.put(token.token_id, text, 0.0, TokenType.CONTROL)
        else:
            vocabulary.put(token.token_id, text.replace("\u2581", " "), 0.0, TokenType.USER_DEFINED)
    return vocabulary


def read_merges(merges: Any, pieces: dict[str, int]) -> Iterator[tuple[str, str]]:
    """The pairs in either of the forms that tokenizer.json has had; TokenizerError for a pair that is not in `pieces`."""
    items = merges if isinstance(merges, Merges) else as_list([] if merges is None else merges, "merges in tokenizer.json")
    for place, merge in enumerate(items):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise wrong(merge, "a pair of tokens", f"merge {place} in tokenizer.json")
        left, right = parts
        if left not in pieces or right not in pieces or left + right not in pieces:
            raise TokenizerError(f"merge {place} joins {show(left)} and {show(right)}, not all of them in the vocabulary")
        yield left, right


def ranked_merges(merges: Any, pieces: dict[str, int]) -> Iterator[tuple[str, str]]:
    """The pairs of `read_merges`, each once: where it stands last, for that rank counts in the tokenizers library.

    llama.cpp would go by the first.
    """
    hashes = np.frombuffer(array("q", map(hash, read_merges(merges, pieces))), np.int64)
    values, counts = np.unique(hashes, return_counts=True)
    suspects = set(values[counts > 1].tolist())
    if not suspects:
        yield from read_merges(merges, pieces)
        return
    last = {pair: place for place, pair in enumerate(read_merges(merges, pieces)) if hash(pair) in suspects}
    for place, pair in enumerate(read_merges(merges, pieces)):
        if last.get(pair, place) == place:
            yield pair


def _merges(merges: Any, pieces: dict[str, int]) -> list[str]:
    """The merges as `left right`; a space inside a token, which would read as the separator, is its byte-level letter."""
    return [f"{left.replace(' ', 'Ġ')} {right.replace(' ', 'Ġ')}" for left, right in ranked_merges(merges, pieces)]


def _merges_txt(folder: TokenizerFolder, pieces: dict[str, int]) -> list[str]:
    path = folder.path / "merges.txt"
    if not path.is_file():
        return []
    lines = read_text(path, MAX_JSON_BYTES).split("\n")
    if lines[0].startswith("#"):
        del lines[0]
    return _merges([as_text(line.strip(), "merges.txt") for line in lines if line.strip()], pieces)
