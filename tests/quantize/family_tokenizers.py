"""Small tokenizer folders, one for each model family: the definitions are the families' own, the vocabularies trained here.

Normalizers, pre-tokenizers, post-processors, decoders, the kinds of added tokens and the settings are those of the published
models' files; only the pieces are fewer. The sentencepiece and tokenizers libraries train them, each kind once per process.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tokenizer_folders import added, put, sequence, split

# What the families' own tokenizer.json files have as expressions.
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
QWEN2 = LLAMA3.replace("{1,3}", "")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
ONLY_BYTES = {**BYTE_LEVEL, "use_regex": False}
DECODER = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
AFTER_BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
NFC = {"type": "NFC"}

SAMPLE = (
    "The quick brown fox jumps over the lazy dog. I've been told he's there, 'RE you sure? We'Ve 3 33 333 3333 1234567 3.14\n"
    'def main(argv: list[str]) -> int:\n\tfor i in range(10):\n        print(f"{i:>3}")  # comment\n    return 0\n\n'
    '{"key": [1, 2, 3], "other": null}\r\n#include <stdio.h>\nint x = a[0] + b->c; // ok\n    if (x != 0) { y += 1; }\n'
    "\u041d\u0435\u0449\u043e \u043d\u0430 \u0431\u044a\u043b\u0433\u0430\u0440\u0441\u043a\u0438, \u03ba\u03b1\u03bb\u03b7"
    "\u03bc\u03ad\u03c1\u03b1 \u03ba\u03cc\u03c3\u03bc\u03b5. \u6211\u60f3\u5728apple\u5de5\u4f5c1314151\u5929\uff5e "
    "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3067\u3059\u3002 \ud55c\uad6d\uc5b4 \ubb38\uc7a5 \u0645\u0631\u062d\u0628\u0627 "
    "\u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd caf\u00e9 \u00fcber "
    "na\u00efve \u00df \u20ac \U0001f680 \U0001f999\U0001f999 ------======= ...... ''''''```````\"\"\"\"\n"
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One family's tokenizer. `tokenizer_json` makes the file's content, `model` the SentencePiece file's if it has one.

    `described` tells whether tokenizer_config.json repeats the added tokens, as transformers 4 wrote it.
    """

    settings: Mapping[str, Any]
    tokenizer_json: Callable[[], dict[str, Any]]
    model: Callable[[], bytes] | None = None
    files: Mapping[str, Any] = field(default_factory=dict)
    described: bool = True


def write_tokenizer(folder: Path, kind: str) -> int:
    """The vocabulary's size, after writing all of a family's tokenizer files into `folder`, which must exist."""
    chosen = KINDS[kind]
    described = tokenizer_json(kind)
    put(folder, "tokenizer.json", described)
    settings = dict(chosen.settings)
    if chosen.described:
        tokens = [dict(token) for token in described["added_tokens"]]
        settings["added_tokens_decoder"] = {str(token.pop("id")): token for token in tokens}
    put(folder, "tokenizer_config.json", settings)
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "additional_special_tokens")
    put(folder, "special_tokens_map.json", {name: chosen.settings[name] for name in names if chosen.settings.get(name)})
    if chosen.model is not None:
        put(folder, "tokenizer.model", chosen.model())
    for name, value in chosen.files.items():
        put(folder, name, value)
    return 1 + max([*described["model"]["vocab"].values(), *(token["id"] for token in described["added_tokens"])])


def tokenizer_json(kind: str) -> dict[str, Any]:
    """The content of a family's tokenizer.json."""
    return json.loads(_serialized(kind))  # type: ignore[no-any-return]


def special_token_ids(kind: str) -> dict[str, int]:
    """`bos_token_id`, `eos_token_id` and `pad_token_id` for the config.json, of the tokens that the settings name."""
    described = tokenizer_json(kind)
    ids = {**described["model"]["vocab"], **{token["content"]: token["id"] for token in described["added_tokens"]}}
    settings = KINDS[kind].settings
    return {
        f"{name}_token_id": ids[settings[f"{name}_token"]] for name in ("bos", "eos", "pad") if settings.get(f"{name}_token")
    }


@cache
def _serialized(kind: str) -> str:
    return json.dumps(KINDS[kind].tokenizer_json())


def training_text(lines: int = 400) -> list[str]:
    """Lines in several scripts, with code, digits and blanks; the same every time."""
    words = SAMPLE.split(" ")
    return [" ".join(words[(start * 7 + step * 3) % len(words)] for step in range(12)) for start in range(lines)] + [
        SAMPLE
    ] * 20


# -- byte-level BPE ------------------------------------------------------------------------------------------------------------


def _byte_level(
    pre_tokenizer: Mapping[str, Any],
    first: Iterable[str] = (),
    last: Iterable[str] = (),
    *,
    plain: Iterable[str] = (),
    normalizer: Any = None,
    post_processor: Any = AFTER_BYTES,
    ignore_merges: bool = False,
    size: int = 600,
) -> Callable[[], dict[str, Any]]:
    """A trained tokenizer.json: special tokens `first` at id 0 on, pieces, special tokens `last`, added tokens `plain`.

    `post_processor` may name special tokens, whose ids are filled in.
    """

    def make() -> dict[str, Any]:
        from tokenizers import Tokenizer, pre_tokenizers, trainers

        model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
        model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": ignore_merges}
        frame = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": normalizer}
        frame |= {"pre_tokenizer": pre_tokenizer, "post_processor": None, "decoder": DECODER}
        tokenizer = Tokenizer.from_str(json.dumps({**frame, "model": {**model, "vocab": {}, "merges": []}}))
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(first),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(training_text(), trainer)
        described: dict[str, Any] = json.loads(tokenizer.to_str())
        vocab = described["model"]["vocab"]
        tokens = [added(vocab[text], text, special=True) for text in first]
        tokens += [added(len(vocab) + row, text, special=True) for row, text in enumerate(last)]
        start = len(vocab) + len(tokens) - len(list(first))
        tokens += [added(start + row, text, normalized=True) for row, text in enumerate(plain)]
        described["added_tokens"] = tokens
        described["post_processor"] = _with_ids(post_processor, {token["content"]: token["id"] for token in tokens})
        return described

    return make


def template(first: str | None) -> dict[str, Any]:
    """A post-processor that begins a text with one special token, or with none."""
    if first is None:
        texts = [{"Sequence": {"id": name, "type_id": row}} for row, name in enumerate("AB")]
        return {"type": "TemplateProcessing", "single": texts[:1], "pair": texts, "special_tokens": {}}
    items = [{"SpecialToken": {"id": first, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    second = [{"SpecialToken": {"id": first, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": items, "pair": items + second, "special_tokens": {first: {}}}


def _with_ids(post_processor: Any, ids: Mapping[str, int]) -> Any:
    """The post-processor with its special tokens' ids."""
    if post_processor is None:
        return None
    if post_processor["type"] == "Sequence":
        return {**post_processor, "processors": [_with_ids(part, ids) for part in post_processor["processors"]]}
    if post_processor["type"] != "TemplateProcessing":
        return post_processor
    tokens = {text: {"id": text, "ids": [ids[text]], "tokens": [text]} for text in post_processor["special_tokens"]}
    return {**post_processor, "special_tokens": tokens}


# -- SentencePiece -------------------------------------------------------------------------------------------------------------


@cache
def sentencepiece_file(**options: Any) -> bytes:
    """A model trained by the sentencepiece library with Llama's options, `options` changed."""
    import sentencepiece

    settings = {
        "model_type": "bpe",
        "vocab_size": 600,
        "character_coverage": 0.98,
        "byte_fallback": True,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "add_dummy_prefix": True,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        "num_threads": 1,
        "minloglevel": 2,
    }
    file = io.BytesIO()
    lines = iter(line for text in training_text() for line in text.split("\n"))
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=file, **settings | listed)
    return file.getvalue()


def _pieces(model: bytes) -> list[tuple[str, float, bool]]:
    """(text, score, whether the piece is found by merging) of every piece."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    rows = range(processor.vocab_size())
    aside = [processor.IsUnknown(row) or processor.IsControl(row) or processor.IsByte(row) for row in rows]
    return [(processor.IdToPiece(row), processor.GetScore(row), not aside[row]) for row in rows]


def _merges(pieces: Iterable[tuple[str, float, bool]]) -> list[list[str]]:
    """The merges of a SentencePiece BPE, best first, as transformers derives them for its tokenizer.json files."""
    scores = {text: (row, score) for row, (text, score, merged) in enumerate(pieces) if merged}
    merges = []
    for text, (_, score) in scores.items():
        pairs = [(text[:at], text[at:]) for at in range(1, len(text))]
        inside = [pair for pair in pairs if pair[0] in scores and pair[1] in scores]
        merges += [(score, pair) for pair in sorted(inside, key=lambda pair: (scores[pair[0]][0], scores[pair[1]][0]))]
    merges.sort(key=lambda item: (item[0], len(item[1][0]), len(item[1][1])), reverse=True)
    return [list(pair) for _, pair in merges]


def _from_sentencepiece(
    model: Callable[[], bytes],
    tokens: Mapping[str, bool],
    *,
    normalizer: Any,
    pre_tokenizer: Any,
    decoder: Iterable[Mapping[str, Any]],
    begins_with: str | None,
) -> Callable[[], dict[str, Any]]:
    """The tokenizer.json that goes with a SentencePiece BPE; `tokens` are the added ones, true for special."""

    def make() -> dict[str, Any]:
        pieces = _pieces(model())
        vocab = {text: row for row, (text, _, _) in enumerate(pieces)}
        rows = dict(vocab)
        for text in tokens:
            rows.setdefault(text, len(rows))
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": sorted(
                (added(rows[text], text, special) for text, special in tokens.items()), key=lambda t: t["id"]
            ),
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": _with_ids(template(begins_with), rows),
            "decoder": {"type": "Sequence", "decoders": list(decoder)},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": "<unk>",
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": vocab,
                "merges": _merges(pieces),
            },
        }

    return make


_SPACE_TO_BLOCK = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
_BLOCK_TO_SPACE = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
_FROM_BYTES = [_BLOCK_TO_SPACE, {"type": "ByteFallback"}, {"type": "Fuse"}]
_LLAMA_NORMALIZER = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, _SPACE_TO_BLOCK]}
_LLAMA_DECODER = [*_FROM_BYTES, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
_LLAMA_TOKENS = {"<unk>": True, "<s>": True, "</s>": True}


def _llama(
    tokens: Mapping[str, bool], model: Callable[[], bytes], begins_with: str | None = "<s>"
) -> Callable[[], dict[str, Any]]:
    return _from_sentencepiece(
        model,
        tokens,
        normalizer=_LLAMA_NORMALIZER,
        pre_tokenizer=None,
        decoder=_LLAMA_DECODER,
        begins_with=begins_with,
    )


def _gemma(tokens: Mapping[str, bool], model: Callable[[], bytes]) -> Callable[[], dict[str, Any]]:
    spaces = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    return _from_sentencepiece(
        model,
        tokens,
        normalizer=_SPACE_TO_BLOCK,
        pre_tokenizer=spaces,
        decoder=_FROM_BYTES,
        begins_with="<bos>",
    )


def _llama_model() -> bytes:
    return sentencepiece_file(pad_id=-1)


def _gemma_model() -> bytes:
    runs = ["\n" * count for count in range(1, 5)] + ["\u2581" * count for count in range(2, 6)]
    return sentencepiece_file(
        vocab_size=700,
        add_dummy_prefix=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        control_symbols=("<mask>", *_GEMMA_UNUSED, "<start_of_turn>", "<end_of_turn>"),
        user_defined_symbols=(*runs, "<table>", "</table>"),
    )


_GEMMA_UNUSED = [f"<unused{row}>" for row in range(100)]
_GEMMA_TOKENS = {"<pad>": True, "<eos>": True, "<bos>": True, "<unk>": True, "<mask>": False}
_GEMMA_TOKENS |= dict.fromkeys(_GEMMA_UNUSED, False) | {"<start_of_turn>": True, "<end_of_turn>": True}
_GEMMA_TOKENS |= {"\n" * count: False for count in range(1, 5)} | {"\u2581" * count: False for count in range(2, 6)}
_GEMMA_TOKENS |= {"<table>": False, "</table>": False}
_GEMMA3_TOKENS = _GEMMA_TOKENS | {"<image_soft_token>": True}


# -- the families --------------------------------------------------------------------------------------------------------------

_GRANITE_TOKENS = ["<|end_of_text|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<reponame>"]
_SMOLLM_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>"]
_QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|fim_prefix|>", "<|fim_pad|>"]
_LLAMA3_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|start_header_id|>"]
_LLAMA3_TOKENS += ["<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
_PHI2_BLANKS = [" " * count for count in range(31, 1, -1)] + ["\t" * count for count in range(9, 1, -1)]
_NEOX_BLANKS = [" " * count for count in range(24, 1, -1)]
_CL100K_TOKENS = ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|im_start|>", "<|im_end|>", "<|endofprompt|>"]
_PHI3_TOKENS = {"<|endoftext|>": True, "<|assistant|>": True, "<|placeholder1|>": True, "<|system|>": True, "<|end|>": True}
_PHI3_TOKENS = {"<unk>": True, "<s>": True, "</s>": False, **_PHI3_TOKENS, "<|user|>": True}

_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_GEMMA_CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\n' + message['content']"
    " + '<end_of_turn>\n' }}{% endfor %}"
)


def _settings(tokenizer_class: str, **changes: Any) -> dict[str, Any]:
    return {"model_max_length": 2048, "clean_up_tokenization_spaces": False, "tokenizer_class": tokenizer_class, **changes}


def _one_token(tokenizer_class: str, text: str, **changes: Any) -> dict[str, Any]:
    """Settings in which one token begins and ends a text and stands for what is unknown."""
    return _settings(tokenizer_class, bos_token=text, eos_token=text, unk_token=text, **changes)


def _gemma_settings(**changes: Any) -> dict[str, Any]:
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return _settings("GemmaTokenizer", add_bos_token=True, add_eos_token=False, **names, chat_template=_GEMMA_CHAT, **changes)


_LLAMA_SETTINGS = _settings(
    "LlamaTokenizer",
    add_bos_token=True,
    add_eos_token=False,
    bos_token="<s>",
    eos_token="</s>",
    unk_token="<unk>",
    legacy=False,
)
_TWO_STEPS = {"type": "Sequence", "processors": [AFTER_BYTES, template("<|begin_of_text|>")]}

KINDS: Mapping[str, Kind] = {
    # Llama 2, TinyLlama, Mistral 7B
    "llama-spm": Kind(
        settings=_LLAMA_SETTINGS,
        tokenizer_json=_llama(_LLAMA_TOKENS, _llama_model),
        model=_llama_model,
    ),
    # the same as transformers 5 saves it, without tokenizer.model
    "llama-fast": Kind(settings=_LLAMA_SETTINGS, tokenizer_json=_llama(_LLAMA_TOKENS, _llama_model), described=False),
    "gemma-spm": Kind(
        settings=_gemma_settings(),
        tokenizer_json=_gemma(_GEMMA_TOKENS, _gemma_model),
        model=_gemma_model,
    ),
    "gemma-fast": Kind(settings=_gemma_settings(), tokenizer_json=_gemma(_GEMMA_TOKENS, _gemma_model), described=False),
    "gemma3-spm": Kind(
        settings=_gemma_settings(spaces_between_special_tokens=False),
        tokenizer_json=_gemma(_GEMMA3_TOKENS, _gemma_model),
        model=_gemma_model,
        files={"added_tokens.json": {"<image_soft_token>": 700}},
    ),
    # Phi-3, Phi-3.5
    "phi3-spm": Kind(
        settings=_LLAMA_SETTINGS | {"add_bos_token": False, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        tokenizer_json=_llama(_PHI3_TOKENS, _llama_model, begins_with=None),
        model=_llama_model,
        files={"added_tokens.json": {text: 597 + row for row, text in enumerate(_PHI3_TOKENS) if row > 2}},
    ),
    "gpt2": Kind(
        settings=_one_token("GPT2Tokenizer", "<|endoftext|>"),
        tokenizer_json=_byte_level(BYTE_LEVEL, (), ["<|endoftext|>"]),
    ),
    "phi2": Kind(
        settings=_one_token("CodeGenTokenizer", "<|endoftext|>"),
        tokenizer_json=_byte_level(BYTE_LEVEL, (), ["<|endoftext|>"], plain=_PHI2_BLANKS),
    ),
    # Pythia and MPT share GPT-NeoX-20B's tokenizer
    "gptneox": Kind(
        settings=_one_token("GPTNeoXTokenizer", "<|endoftext|>"),
        tokenizer_json=_byte_level(BYTE_LEVEL, ["<|endoftext|>", "<|padding|>"], plain=_NEOX_BLANKS, normalizer=NFC),
    ),
    "mpt": Kind(
        settings=_one_token("GPTNeoXTokenizer", "<|endoftext|>", pad_token="<|padding|>"),
        tokenizer_json=_byte_level(BYTE_LEVEL, ["<|endoftext|>", "<|padding|>"], plain=_NEOX_BLANKS, normalizer=NFC),
    ),
    "llama3": Kind(
        settings=_settings(
            "PreTrainedTokenizerFast",
            bos_token="<|begin_of_text|>",
            eos_token="<|eot_id|>",
            chat_template="{{ bos_token }}{% for message in messages %}{{ message['content'] }}<|eot_id|>{% endfor %}",
        ),
        tokenizer_json=_byte_level(
            sequence(split(LLAMA3), ONLY_BYTES), (), _LLAMA3_TOKENS, post_processor=_TWO_STEPS, ignore_merges=True
        ),
    ),
    "smollm3": Kind(
        settings=_settings(
            "PreTrainedTokenizerFast", bos_token=None, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=_CHATML
        ),
        tokenizer_json=_byte_level(
            sequence(split(LLAMA3), ONLY_BYTES),
            (),
            ["<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>"],
            plain=["<think>", "</think>"],
            post_processor=None,
            ignore_merges=True,
        ),
    ),
    # Qwen2, Qwen2.5, Qwen3
    "qwen2": Kind(
        settings=_settings(
            "Qwen2Tokenizer",
            add_bos_token=False,
            add_prefix_space=False,
            bos_token=None,
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
            unk_token=None,
            chat_template=_CHATML,
        ),
        tokenizer_json=_byte_level(sequence(split(QWEN2), ONLY_BYTES), (), _QWEN_TOKENS, plain=["<tool_call>"], normalizer=NFC),
    ),
    "stablelm2": Kind(
        settings=_one_token("GPT2Tokenizer", "<|endoftext|>", add_prefix_space=False, pad_token="<|endoftext|>"),
        tokenizer_json=_byte_level(
            sequence({**split(QWEN2), "behavior": "Removed", "invert": True}, ONLY_BYTES),
            (),
            ["<|endoftext|>", *_CL100K_TOKENS],
            normalizer=NFC,
        ),
    ),
    # SmolLM, SmolLM2
    "smollm": Kind(
        settings=_one_token(
            "GPT2Tokenizer",
            "<|endoftext|>",
            add_prefix_space=False,
            additional_special_tokens=["<|im_start|>", "<|im_end|>"],
            pad_token="<|im_end|>",
        ),
        tokenizer_json=_byte_level(sequence(DIGITS, BYTE_LEVEL), _SMOLLM_TOKENS, post_processor=None),
    ),
    # Granite 3, on StarCoder's tokenizer
    "granite": Kind(
        settings=_one_token(
            "GPT2Tokenizer", "<|end_of_text|>", add_bos_token=False, add_prefix_space=False, pad_token="<|end_of_text|>"
        ),
        tokenizer_json=_byte_level(
            sequence(DIGITS, BYTE_LEVEL),
            _GRANITE_TOKENS,
            ["<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"],
            post_processor=None,
        ),
    ),
    # OLMo 2, on the tokenizer of GPT-4
    "olmo2": Kind(
        settings=_settings(
            "GPT2Tokenizer",
            add_prefix_space=False,
            bos_token="<|endoftext|>",
            eos_token="<|endoftext|>",
            unk_token="<|endoftext|>",
            pad_token="<|pad|>",
        ),
        tokenizer_json=_byte_level(
            sequence({**split(LLAMA3), "behavior": "Removed", "invert": True}, ONLY_BYTES),
            (),
            ["<|endoftext|>", *_CL100K_TOKENS, "<|pad|>"],
            post_processor=None,
        ),
    ),
    "phi4-mini": Kind(
        settings=_one_token(
            "GPT2Tokenizer",
            "<|endoftext|>",
            add_bos_token=False,
            add_eos_token=False,
            add_prefix_space=False,
            pad_token="<|endoftext|>",
            chat_template="{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}",
        ),
        tokenizer_json=_byte_level(
            sequence({**split(GPT4O), "behavior": "Removed", "invert": True}, ONLY_BYTES),
            (),
            ["<|endoftext|>", "<|endofprompt|>", "<|assistant|>", "<|end|>", "<|user|>", "<|system|>"],
            plain=["<|tool|>", "<|/tool|>"],
        ),
    ),
    # Mistral Nemo
    "tekken": Kind(
        settings=_settings(
            "PreTrainedTokenizerFast",
            add_bos_token=True,
            add_eos_token=False,
            add_prefix_space=False,
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
        ),
        tokenizer_json=_byte_level(
            sequence(split(TEKKEN), ONLY_BYTES),
            ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"],
            post_processor=template("<s>"),
            ignore_merges=True,
        ),
    ),
}
