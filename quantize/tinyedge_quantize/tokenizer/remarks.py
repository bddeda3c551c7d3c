"""What becomes of a text otherwise than in transformers, in sentences for the person who converts the model.

Only what llama.cpp has no setting for and the file can therefore not say, and what llama.cpp's converter decides otherwise.
How transformers 4.57 and 5.23 behave was found by running them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tinyedge_quantize.metadata import MetadataEntry
from tinyedge_quantize.strangers import show

from .added_tokens import token_descriptions
from .files import TokenizerFolder, as_dict
from .pretokenizers import ADDING_BOS
from .spaces import prepend_scheme

_Entries = Mapping[str, MetadataEntry]
# Nothing stands beside them in a text that people write.
_ASIDE = ("unk_token", "pad_token", "mask_token", "cls_token", "sep_token")
# With such a word in general.name llama.cpp removes the space behind special tokens (src/llama-vocab.cpp).
_STRIPPING_NAMES = ("phi-3", "phi3")
_KEEPING_PRE_TOKENIZER = ("olmo2", "olmo3", "phi3")
# By model: whether llama.cpp adds bos and eos, and which ids they have, when the file does not say (src/llama-vocab.cpp).
_DEFAULTS = {"llama": (True, False, 1, 2), "gpt2": (False, False, 11, 11), "t5": (False, True, None, 1)}


def remarks(folder: TokenizerFolder, entries: _Entries, name: str) -> list[str]:
    """The sentences for a folder whose metadata is `entries`, of a model called `name` in general.name."""
    return [
        *_added_around(folder, entries),
        *_prefix_space(folder, entries),
        *_metaspace(folder, entries),
        *_flags_of_added_tokens(folder, name),
    ]


def _added_around(folder: TokenizerFolder, entries: _Entries) -> Iterator[str]:
    """Where llama.cpp begins or ends a text with other tokens than tokenizer.json, which transformers 5 follows."""
    if folder.tokenizer_json is None:
        return
    wanted = _around_in_post_processor(folder.tokenizer_json.get("post_processor"))
    if wanted is None:
        return
    for side, kind, there in zip(("begin", "end"), ("bos", "eos"), wanted, strict=True):
        ours = _added_by_llama_cpp(entries, kind)
        if ours == there:
            continue
        if len(there) > 1:
            remedy = "; llama.cpp adds one token at most, so put the others into the prompt"
        elif ours and there:
            remedy = f"; name the other one as {kind}_token in tokenizer_config.json if the model was trained with it"
        else:
            remedy = f"; set add_{kind}_token to false in tokenizer_config.json if the model was trained so" if ours else ""
        yield f"prompts {side} with {_texts(entries, ours)}, in tokenizer.json with {_texts(entries, there)}{remedy}"


def _around_in_post_processor(post_processor: Any) -> tuple[list[int], list[int]] | None:
    """The ids before and after a single text; None when the description cannot be read."""
    before: list[int] = []
    after: list[int] = []
    try:
        for step in (post_processor or {}).get("processors", [post_processor or {}]):
            if step.get("type") == "RobertaProcessing":
                before, after = [_id(step["cls"][1]), *before], [*after, _id(step["sep"][1])]
            if step.get("type") != "TemplateProcessing":
                continue
            items = step["single"]
            at = next(place for place, item in enumerate(items) if "Sequence" in item)
            before = [*_ids(step, items[:at]), *before]
            after = [*after, *_ids(step, items[at + 1 :])]
    except (AttributeError, KeyError, IndexError, TypeError, StopIteration):
        return None
    return before, after


def _ids(step: dict[str, Any], items: Iterable[dict[str, Any]]) -> list[int]:
    return [_id(row) for item in items for row in step["special_tokens"][item["SpecialToken"]["id"]]["ids"]]


def _id(row: Any) -> int:
    if type(row) is not int:
        raise TypeError
    return row


def _added_by_llama_cpp(entries: _Entries, kind: str) -> list[int]:
    model = entries["tokenizer.ggml.model"].value
    defaults = _DEFAULTS[model]
    adds, token_id = (defaults[0], defaults[2]) if kind == "bos" else (defaults[1], defaults[3])
    if kind == "bos" and model == "gpt2":
        adds = entries["tokenizer.ggml.pre"].value in ADDING_BOS
    flag, row = entries.get(f"tokenizer.ggml.add_{kind}_token"), entries.get(f"tokenizer.ggml.{kind}_token_id")
    adds = adds if flag is None else bool(flag.value)
    found = token_id if row is None else int(row.value)
    return [found] if adds and found is not None else []


def _texts(entries: _Entries, rows: list[int]) -> str:
    tokens = entries["tokenizer.ggml.tokens"].value
    shown = [show(tokens[row].decode("utf-8", "replace")) if 0 <= row < len(tokens) else show(row) for row in rows]
    return " and ".join(shown) or "no special token"


def _prefix_space(folder: TokenizerFolder, entries: _Entries) -> Iterator[str]:
    settings = folder.tokenizer_config or {}
    if settings.get("add_prefix_space") is not True or entries["tokenizer.ggml.model"].value != "gpt2":
        return
    pre_tokenizer = (folder.tokenizer_json or {}).get("pre_tokenizer") or {"type": "ByteLevel"}
    # transformers 4 sets it in a ByteLevel that is not a step of a sequence; transformers 5 makes a new one with it in
    # GPT-2's and Qwen2's classes, but for the families whose named class it does not believe.
    alone = as_dict(pre_tokenizer, "pre_tokenizer in tokenizer.json").get("type") == "ByteLevel"
    renewed = str(settings.get("tokenizer_class")).startswith(("GPT2", "Qwen2"))
    if alone or (renewed and folder.config.get("model_type") not in _KEEPING_PRE_TOKENIZER):
        yield (
            "transformers puts a space in front of every prompt (add_prefix_space in tokenizer_config.json), "
            "llama.cpp does not; begin prompts with one"
        )


def _metaspace(folder: TokenizerFolder, entries: _Entries) -> Iterator[str]:
    if folder.tokenizer_json is None or entries["tokenizer.ggml.model"].value != "llama":
        return
    flag = entries.get("tokenizer.ggml.add_space_prefix")
    if flag is not None and flag.value is False:
        return
    scheme = prepend_scheme(folder.tokenizer_json)
    if scheme is not None:
        where = " or follows a special token" if scheme == "first" else ""
        yield f"text that begins with a space{where} gets one space more than in transformers"


def _flags_of_added_tokens(folder: TokenizerFolder, name: str) -> Iterator[str]:
    strips = any(word in name.lower() for word in _STRIPPING_NAMES)
    aside = {"", *map(_content, map((folder.tokenizer_config or {}).get, _ASIDE))}
    flags = {
        token["content"]: [flag for flag in ("lstrip", "rstrip", "single_word") if token.get(flag) is True]
        for _, token in token_descriptions(folder)
        if token["content"] not in aside
    }
    stripping = [text for text, found in flags.items() if "lstrip" in found or ("rstrip" in found and not strips)]
    whole = [text for text, found in flags.items() if "single_word" in found]
    if stripping:
        yield f"white space beside {_some(stripping)} stays in a text, where transformers removes it (lstrip, rstrip)"
    if whole:
        yield f"{_some(whole)} will be found inside words too, where transformers finds whole words (single_word)"


def _content(named: Any) -> str:
    """The text of a token that is named in tokenizer_config.json, if it is one."""
    content = named.get("content") if isinstance(named, dict) else named
    return content if isinstance(content, str) else ""


def _some(texts: list[str]) -> str:
    more = f" and {len(texts) - 1} more added tokens" if len(texts) > 2 else f" and {show(texts[1])}" if len(texts) > 1 else ""
    return f"{show(texts[0])}{more}"
