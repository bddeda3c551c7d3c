"""How each model family's tokenizer is read: which files count, in which order, and what the family adds.

A family of llama.cpp's converter overrides `set_vocab` (conversion/*.py); this is the same as a table. Where the converter
gives up and llama.cpp could tokenize nevertheless, the next kind of file is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tinyedge.errors import TokenizerError
from tinyedge_quantize.metadata import MetadataEntry, boolean, string, uint32

from .agreement import check_agreement
from .byte_level_bpe import read_byte_level_bpe
from .fast_llama import is_fast_llama, read_fast_llama
from .files import TokenizerFolder, as_bool, as_dict
from .llama_sentencepiece import read_model, read_phi3_rows, read_rows
from .sentencepiece_model import ModelType, SentencePieceModel
from .spaces import begins_with_space
from .special import special_entries
from .unigram import unigram_entries
from .vocabulary import Vocabulary

Entries = dict[str, MetadataEntry]
_ADD_BOS = "tokenizer.ggml.add_bos_token"
_ADD_SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"


@dataclass(frozen=True)
class Request:
    """One tokenizer to read: its files, the number of embedding rows, and how its pre-tokenizer is to be named.

    `pre_tokenizer` is the name given by hand, `pre_names` the family's own names for recognised definitions.
    """

    files: TokenizerFolder
    rows: int
    pre_tokenizer: str | None = None
    pre_names: Mapping[str, str] = field(default_factory=dict)


# The entries of a vocabulary, or None when the folder does not hold the kind of file that this reader takes.
Reader = Callable[[Request], Entries | None]
# What a family writes besides, from the request and from what was read.
Addition = Callable[[Request, Entries], Entries]
RowReader = Callable[[TokenizerFolder, SentencePieceModel, int], Vocabulary]


@dataclass(frozen=True)
class VocabularyRules:
    """A family's readers, the first that finds its file wins, and its additions; `before` stands ahead of the vocabulary."""

    readers: tuple[Reader, ...]
    before: Addition | None = None
    after: tuple[Addition, ...] = ()

    def read(self, request: Request) -> Entries:
        """The entries in the converter's order; TokenizerError when no reader finds its file."""
        entries = self.before(request, {}) if self.before else {}
        for reader in self.readers:
            found = reader(request)
            if found is not None:
                entries |= found
                break
        else:
            raise _no_tokenizer(request.files)
        for addition in self.after:
            entries |= addition(request, entries)
        return entries


def _sentencepiece(request: Request) -> Entries | None:
    return _from_model(request, read_rows)


def _phi3_sentencepiece(request: Request) -> Entries | None:
    # Phi-4 and Phi-4-mini share Phi-3's class and have GPT-2's kind of tokenizer (conversion/phi.py).
    if (request.files.tokenizer_config or {}).get("tokenizer_class") == "GPT2Tokenizer":
        return None
    return _from_model(request, read_phi3_rows)


def _from_model(request: Request, rows: RowReader) -> Entries | None:
    model = read_model(request.files)
    if model is None:
        return None
    vocabulary = rows(request.files, model, request.rows)
    check_agreement(request.files, model, vocabulary)
    if model.model_type == ModelType.UNIGRAM:
        return unigram_entries(request.files, model, vocabulary)
    return _llama_entries(request, vocabulary) | _prefix_entry(model.dummy_prefix)


def _prefix_entry(begins_with_space: bool) -> Entries:
    # The converter says so for Gemma alone; llama.cpp would begin every text with a space.
    return {} if begins_with_space else {_ADD_SPACE_PREFIX: boolean(False)}


def _fast_llama(request: Request) -> Entries | None:
    described = request.files.tokenizer_json
    if described is None or not is_fast_llama(described):
        return None
    entries = _llama_entries(request, read_fast_llama(request.files, request.rows))
    model = as_dict(described.get("model"), "model in tokenizer.json")
    return entries | _prefix_entry(
        begins_with_space(described, as_dict(model.get("vocab"), "the vocabulary in tokenizer.json"))
    )


def _byte_level(request: Request) -> Entries | None:
    files = request.files
    if files.tokenizer_json is None and not (files.path / "vocab.json").is_file():
        return None
    if files.tokenizer_json is not None and (model := read_model(files)) is not None:
        check_agreement(files, model, read_rows(files, model, request.rows))
    return read_byte_level_bpe(files, request.rows, request.pre_tokenizer, request.pre_names)


def _byte_level_json(request: Request) -> Entries | None:
    return _byte_level(request) if request.files.tokenizer_json is not None else _no_tiktoken_qwen(request)


def _no_tiktoken_qwen(request: Request) -> Entries | None:
    ranks = sorted(path.name for path in request.files.path.glob("*.tiktoken"))
    if not ranks:
        return None
    raise TokenizerError(
        f"{ranks[0]} is a tiktoken rank list read by code that comes with the checkpoint, which is not run here",
        "put the tokenizer.json of a newer version of this model into the folder",
    )


def _llama_entries(request: Request, vocabulary: Vocabulary) -> Entries:
    head = {"tokenizer.ggml.model": string("llama"), "tokenizer.ggml.pre": string("default")}
    return head | vocabulary.llama_entries() | special_entries(request.files, request.rows)


def _space_prefix_as_configured(request: Request, _entries: Entries) -> Entries:
    prefix = (request.files.tokenizer_config or {}).get("add_prefix_space")
    if prefix is None:
        return {}
    return {_ADD_SPACE_PREFIX: boolean(as_bool(prefix, "add_prefix_space in tokenizer_config.json"))}


def _no_space_prefix(_request: Request, entries: Entries) -> Entries:
    if entries["tokenizer.ggml.model"].value != "llama":
        return {}
    entries.pop(_ADD_SPACE_PREFIX, None)  # the converter has it last
    return {_ADD_SPACE_PREFIX: boolean(False)}


def _code_llama(request: Request, _entries: Entries) -> Entries:
    # gguf has no key for CodeLlama's prefix, suffix and middle tokens: llama.cpp finds them by their texts.
    if request.files.config.get("vocab_size") != 32016:
        return {}
    return special_entries(request.files, request.rows, ("prefix", "suffix", "middle", "eot"), {"eot": 32010})


def _small_granite(request: Request, _entries: Entries) -> Entries:
    return {_ADD_BOS: boolean(False)} if request.files.config.get("vocab_size") == 49152 else {}


def _code_gemma(request: Request, _entries: Entries) -> Entries:
    # The ids are CodeGemma's; the converter writes the end of a turn for all of Gemma 1 (conversion/gemma.py).
    kinds = ("prefix", "suffix", "middle", "fsep", "eot")
    found = special_entries(request.files, request.rows, kinds, {"eot": 107})
    return {key: entry for key, entry in found.items() if "chat_template" not in key}


def _sea_lion(_request: Request, entries: Entries) -> Entries:
    # SEA-LION is an MPT with a SentencePiece model (conversion/mpt.py).
    if entries["tokenizer.ggml.model"].value != "llama":
        return {}
    ids = {"padding": 3, "eos": 1, "unknown": 0}
    return {_ADD_BOS: boolean(False)} | {f"tokenizer.ggml.{kind}_token_id": uint32(row) for kind, row in ids.items()}


def _no_tokenizer(files: TokenizerFolder) -> TokenizerError:
    problem = f"no tokenizer in {files.path}: looked for tokenizer.model, tokenizer.json, and vocab.json with merges.txt"
    if (files.path / "tekken.json").is_file():
        return TokenizerError(
            f"{problem}; tekken.json is there, but without tokenizer.json it is not enough",
            "take tokenizer.json from the Hugging Face version of this model",
        )
    return TokenizerError(problem)


_SENTENCEPIECE_FIRST = (_sentencepiece, _fast_llama, _byte_level)
_BYTE_LEVEL_FIRST = (_byte_level, _sentencepiece)

# By the name that an architecture's row carries.
VOCABULARIES: Mapping[str, VocabularyRules] = {
    # Llama, Mistral, SmolLM, SmolLM2, SmolLM3, Granite (conversion/llama.py)
    "llama": VocabularyRules(_SENTENCEPIECE_FIRST, _space_prefix_as_configured, (_code_llama, _small_granite)),
    # GPT-2, GPT-NeoX, OLMo 2, Phi-2: what the converter does unless a family says otherwise (conversion/base.py)
    "gpt2": VocabularyRules(_BYTE_LEVEL_FIRST),
    # Qwen2, Qwen2.5, Qwen3
    "qwen": VocabularyRules((_sentencepiece, _byte_level_json, _byte_level)),
    "stablelm": VocabularyRules((_byte_level_json, _byte_level)),
    "mpt": VocabularyRules(_BYTE_LEVEL_FIRST, None, (_sea_lion,)),
    "phi3": VocabularyRules((_phi3_sentencepiece, _fast_llama, _byte_level)),
    "gemma": VocabularyRules(_SENTENCEPIECE_FIRST, None, (_code_gemma, _no_space_prefix)),
    # Gemma 2 and Gemma 3
    "gemma2": VocabularyRules(_SENTENCEPIECE_FIRST, None, (_no_space_prefix,)),
    "gemma3": VocabularyRules(_SENTENCEPIECE_FIRST, None, (_no_space_prefix,)),
}
