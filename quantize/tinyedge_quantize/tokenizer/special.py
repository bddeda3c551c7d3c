"""The special tokens of a folder: which id begins and ends a text, and whether the tokenizer adds them by itself.

The rules are gguf's (gguf-py/gguf/vocab.py, SpecialVocab, as llama.cpp's converter uses it), quirks included, because a file
of ours should behave like a file of llama.cpp's. gguf's class itself is not used: the released versions differ from each
other here, and a file of the wrong shape ends in a KeyError or AttributeError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinyedge_quantize.metadata import MetadataEntry, boolean, uint32

from .chat_template import chat_template_entries
from .files import TokenizerFolder, as_bool, as_dict, as_list, as_text, as_token_id

# The kinds gguf looks for, and the key of each that GGUF can hold; it has none for `cls` and for adding `pad` or `mask`.
KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_ID_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}
_ADD_KEYS = {kind: f"tokenizer.ggml.add_{kind}_token" for kind in ("bos", "eos", "sep")}


def special_entries(
    folder: TokenizerFolder, vocab_size: int, kinds: Sequence[str] = KINDS, fixed: dict[str, int] | None = None
) -> dict[str, MetadataEntry]:
    """Ids, add flags, chat template and normalizer flags, in the converter's order.

    An id at or beyond `vocab_size` is left out: llama.cpp would ignore it. `fixed` gives ids for kinds that no file names.
    """
    scan = _Scan(folder, kinds)
    ids = scan.ids(vocab_size)
    for kind, token_id in (fixed or {}).items():
        ids.setdefault(kind, token_id)
    entries = {_ID_KEYS[kind]: uint32(token_id) for kind, token_id in ids.items() if kind in _ID_KEYS}
    entries |= {_ADD_KEYS[kind]: boolean(added) for kind, added in scan.adds.items() if kind in _ADD_KEYS}
    return entries | chat_template_entries(folder) | _normalizer_entries(folder)


class _Scan:
    """What the files say: `adds` (kind to flag) and `names` (kind to the token's entry), filled on construction."""

    def __init__(self, folder: TokenizerFolder, kinds: Sequence[str]) -> None:
        self.folder = folder
        self.kinds = list(kinds)
        self.adds: dict[str, bool] = {}
        self.has_config = bool(folder.tokenizer_config)
        self.names: dict[str, Any] = {}
        for key, value in (folder.tokenizer_config or {}).items():
            if key.endswith("_token"):
                self.names[key.removesuffix("_token")] = value
        if folder.tokenizer_json:
            self._borrow("bos", "cls")
            self._borrow("eos", "sep")
            self._read_post_processor(folder.tokenizer_json.get("post_processor"))

    def ids(self, vocab_size: int) -> dict[str, int]:
        """The id of each kind: by the token's name among the added tokens first, then from config.json."""
        found: dict[str, int] = {}
        added = self._added_token_ids() if self.has_config else {}
        for kind in self.kinds if self.has_config else ():
            flag = self.names.get(f"add_{kind}")
            if flag is not None:
                self.adds.setdefault(kind, as_bool(flag, f"add_{kind}_token in tokenizer_config.json"))
            text = self._text(kind)
            if text is not None and text in added and added[text] < vocab_size:
                found.setdefault(kind, added[text])
        for kind in self.kinds:
            token_id = self._id_in_config(kind)
            if token_id is not None and token_id < vocab_size:
                found.setdefault(kind, token_id)
        return found

    def _borrow(self, kind: str, other: str) -> None:
        if self.has_config and not self.names.get(kind) and self.names.get(other):
            self.names[kind] = self.names[other]

    def _text(self, kind: str) -> str | None:
        entry = self.names.get(kind)
        if entry is None or isinstance(entry, list | bool):
            return None
        what = f"{kind}_token in tokenizer_config.json"
        if isinstance(entry, dict):
            entry = entry.get("content")
            return entry if isinstance(entry, str) else None
        return as_text(entry, what)

    def _added_token_ids(self) -> dict[str, int]:
        listed = (self.folder.tokenizer_json or {}).get("added_tokens")
        ids: dict[str, int] = {}
        for item in as_list([] if listed is None else listed, "added_tokens in tokenizer.json"):
            token = as_dict(item, "an added token in tokenizer.json")
            text = as_text(token.get("content"), "the content of an added token in tokenizer.json")
            ids.setdefault(text, as_token_id(token.get("id"), f"the id of added token {text[:30]!a}"))
        return ids

    def _id_in_config(self, kind: str) -> int | None:
        key = f"{kind}_token_id"
        value = self.folder.config.get(key)
        text_config = self.folder.config.get("text_config")
        if value is None and isinstance(text_config, dict):
            value = text_config.get(key)
        # Llama 3 lists several end tokens; GGUF holds one, and llama.cpp finds the others by their texts.
        if value is None or isinstance(value, list):
            return None
        if isinstance(value, int) and not isinstance(value, bool) and value == -1:
            return None
        return as_token_id(value, f"{key} in config.json")

    def _read_post_processor(self, post_processor: Any) -> None:
        if not post_processor:
            return
        top = as_dict(post_processor, "post_processor in tokenizer.json")
        for item in as_list(top.get("processors", [top]), "processors in tokenizer.json"):
            processor = as_dict(item, "a post-processor in tokenizer.json")
            kind = processor.get("type")
            if kind == "ByteLevel":
                self.adds.setdefault("bos", False)
                self.adds.setdefault("eos", False)
            elif kind == "RobertaProcessing":
                self._read_roberta(processor)
            elif kind == "TemplateProcessing":
                self._read_template(processor)

    def _read_roberta(self, processor: dict[str, Any]) -> None:
        self.adds |= {"bos": True, "eos": True, "sep": True}
        for kind, source in (("cls", "bos"), ("sep", "eos")):
            pair = as_list(processor.get(kind, [self.names.get(source)]), f"{kind} of RobertaProcessing")
            if not self.names.get(kind) and pair:
                self.names[kind] = pair[0]

    def _read_template(self, processor: dict[str, Any]) -> None:
        """Reads a simple template such as `<s> $A </s>`; gguf calls its own reading crude, and it is."""
        single = _template_items(processor, "single")
        pair = _template_items(processor, "pair")
        first = last = None
        if len(single) > 1:
            if first := _special_id(single[0]):
                self._take_first(first)
            if last := _special_id(single[-1]):
                self._take_last(last)
        if pair:
            self._read_pair(pair, first, last)

    def _take_first(self, first: str) -> None:
        if not self.has_config:
            self.names["bos"] = first
        elif first not in (self.names.get("bos"), self.names.get("cls")):
            for kind in ("bos", "cls"):
                if not self.names.get(kind):
                    self.names[kind] = first
        self.adds["bos"] = first in (self.names.get("bos"), self.names.get("cls"))

    def _take_last(self, last: str) -> None:
        if self.has_config and last != self.names.get("eos"):
            # A template that ends with another token than eos ends a turn; the old eos keeps a place of its own.
            spare = next((kind for kind in ("eot", "eom") if kind not in self.kinds), None)
            if spare is not None:
                self.kinds.append(spare)
                self.names[spare] = self.names.get("eos")
        self.names["eos"] = last
        self.adds["eos"] = True

    def _read_pair(self, pair: list[dict[str, Any]], first: str | None, last: str | None) -> None:
        start = 1 if first and _special_id(pair[0]) == first else 0
        stop = -1 if last and _special_id(pair[-1]) == last else None
        middle = pair[start:stop]
        if not middle or _sequence_id(middle[0]) != "A" or _sequence_id(middle[-1]) != "B":
            return
        between = middle[1:-1]
        if not between:
            return
        separators = (self.names.get("sep"), self.names.get("eos"))
        entry = _special_id(between[0])
        add = bool(entry) and entry in separators and not last
        if len(between) == 2:
            entry = _special_id(between[1])
            add = add or (bool(entry) and entry in separators)
        self.adds["sep"] = add
        if add and self.has_config and not self.names.get("sep"):
            self.names["sep"] = self.names.get("eos")


def _template_items(processor: dict[str, Any], key: str) -> list[dict[str, Any]]:
    items = as_list(processor.get(key) or [], f"{key} of TemplateProcessing")
    return [as_dict(item, f"an item of {key} of TemplateProcessing") for item in items]


def _special_id(item: dict[str, Any]) -> str | None:
    special = item.get("SpecialToken")
    if special is None:
        return None
    return as_text(as_dict(special, "SpecialToken of TemplateProcessing").get("id"), "the id of a SpecialToken")


def _sequence_id(item: dict[str, Any]) -> Any:
    sequence = item.get("Sequence")
    return None if sequence is None else as_dict(sequence, "Sequence of TemplateProcessing").get("id")


def _normalizer_entries(folder: TokenizerFolder) -> dict[str, MetadataEntry]:
    """The flags gguf writes for lower-casing and accent-stripping normalizers."""
    flags: dict[str, bool] = {}
    pending = [(folder.tokenizer_json or {}).get("normalizer")]
    while pending:
        normalizer = pending.pop()
        if not normalizer:
            continue
        fields = as_dict(normalizer, "a normalizer in tokenizer.json")
        kind = fields.get("type")
        if kind == "Lowercase":
            flags["lowercase"] = True
        elif kind == "StripAccents":
            flags["strip_accents"] = True
        elif kind == "BertNormalizer":
            for name in ("lowercase", "strip_accents"):
                if fields.get(name) is not None:
                    flags[name] = as_bool(fields[name], f"{name} of BertNormalizer")
        elif kind == "Sequence":
            pending += reversed(as_list(fields.get("normalizers") or [], "normalizers in tokenizer.json"))
    return {
        f"tokenizer.ggml.normalizer.{name}": boolean(flags[name]) for name in ("lowercase", "strip_accents") if name in flags
    }
