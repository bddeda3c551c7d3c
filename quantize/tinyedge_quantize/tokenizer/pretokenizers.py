"""llama.cpp's name for a byte-level BPE's pre-tokenizer, recognised from the definition in tokenizer.json.

llama.cpp's converter hashes what a downloaded tokenizer makes of a test text. The definition says the same without a table of
models: a name is right when its regular expressions in src/llama-vocab.cpp split text as the definition does. Where several
names split alike, the table has the one whose tokenizer is defined in just this way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinyedge.errors import TokenizerError
from tinyedge_quantize.strangers import show

from .files import as_dict, as_list

_SHOWN = 300
_REMEDY = "name llama.cpp's pre-tokenizer with --pre-tokenizer NAME, for example gpt-2, llama-bpe, qwen2 or smollm"

# The steps of a definition, written as short texts: `digit` and `digits` for Digits, `gpt2` for ByteLevel with its own
# regular expression, `punctuation` for Punctuation(Contiguous), and any other text for Split by that regular expression.
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPELLINGS = (
    ("\r", r"\r"),
    ("\n", r"\n"),
    ("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", _CONTRACTIONS),
    ("'(?i:[sdmt]|ll|ve|re)", _CONTRACTIONS),
    ("]?+", "]?"),
    ("]++", "]+"),
    (r"\p{L}++", r"\p{L}+"),
)
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_QWEN35 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SLASH_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}" + _SLASH_TAIL
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}" + _SLASH_TAIL
)
_SEED_CODER = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_BAILING = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_MINICPM5 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+" + _TAIL
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+".replace(r"\"", '"')
    + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_HAN_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_HAN_AND_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_CASED_LETTERS = (
    "A-Za-z"
    "\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134"
    "\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_CASED_LETTERS}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _HAN_AND_HANGUL,
)


@dataclass(frozen=True)
class _Rule:
    """A definition and the name it gets. `nfc_name` is for the same steps behind an NFC normalizer.

    llama.cpp does not normalize, with any name: text that is not NFC comes out differently from Hugging Face's.
    """

    steps: tuple[str, ...]
    name: str
    ignore_merges: bool = False
    nfc_name: str | None = None


_RULES = (
    _Rule(("gpt2",), "gpt-2", nfc_name="olmo"),  # phi-2 and granite-docling split as gpt-2; mpt, gpt-neox as olmo
    _Rule(("digit", "gpt2"), "smollm", nfc_name="command-r"),  # also starcoder, refact, granite, codeshell, exaone
    _Rule((_LLAMA3,), "llama-bpe", ignore_merges=True),
    _Rule((_LLAMA3,), "dbrx"),  # also smaug-bpe
    _Rule((_QWEN2,), "qwen2"),  # also stablelm2, megrez, hunyuan
    _Rule((_QWEN35,), "qwen35"),
    _Rule((_TEKKEN,), "tekken", ignore_merges=True),
    _Rule((_GPT4O,), "gpt-4o"),
    _Rule((_SEED_CODER,), "seed-coder"),
    _Rule((_BAILING,), "bailingmoe"),
    _Rule((r"\p{N}{1,3}", _MINICPM5), "minicpm5", ignore_merges=True),
    _Rule((*_DEEPSEEK_LLM, "digits"), "deepseek-llm"),
    _Rule((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_AND_HANGUL, "digit"), "deepseek-coder"),
    _Rule((r"\p{N}{1,3}", _HAN_AND_KANA, _DEEPSEEK3), "deepseek-v3"),
    _Rule(("punctuation", "gpt2", "digits", "[0-9][0-9][0-9]"), "falcon"),
)

# The names that llama.cpp accepts (src/llama-vocab.cpp, `tokenizer_pre ==`), but for four that are not byte-level.
_NAMES = """
    a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell cohere2moe command-r dbrx
    deepseek-coder deepseek-llm deepseek-r1-qwen deepseek-v3 default exaone exaone-moe exaone4 f2llmv2 falcon
    falcon-h1 falcon3 gigachat glm4 glm5 gpt-2 gpt-4o gpt3-finnish granite-docling granite-embed-multi-97m grok-2
    hunyuan hunyuan-dense hy_v4 jais jais-2 jina-de jina-es jina-v1-en jina-v2-code jina-v2-de jina-v2-es
    jina-v5-nano joyai-llm kanana2 kimi-k2 kormo laguna lfm2 llada-moe llama-bpe llama-v3 llama3 llama4 megrez
    mellum mellum2 midm-2.0 minerva-7b minicpm5 minimax-m2 modern-bert mpt olmo phi-2 pixtral poro-chat qwen2
    qwen35 refact roberta-bpe seed-coder smaug-bpe smollm solar-open spark2_5 stablelm2 starcoder superbpe talkie
    tekken tiny_aya trillion ufakzeka viking youtu
"""
KNOWN_PRE_TOKENIZERS = frozenset(_NAMES.split())

# With these names llama.cpp begins every text with the bos token unless the file says otherwise.
ADDING_BOS = frozenset(
    [
        "chameleon",
        "falcon-h1",
        "falcon3",
        "jina-v5-nano",
        "lfm2",
        "llama-bpe",
        "llama-v3",
        "llama3",
        "midm-2.0",
        "pixtral",
        "tekken",
    ]
)

# Names whose regular expressions and treatment of merges are the same in src/llama-vocab.cpp (llm_tokenizer_bpe and the
# chain of `tokenizer_pre ==`): a family may be called by any name of the group its tokenizer is recognised as.
_ALIKE = (
    frozenset(["gpt-2", "phi-2", "olmo", "mpt", "jais", "trillion", "granite-docling", "mellum", "gigachat", "exaone4"]),
    frozenset(["smollm", "command-r", "starcoder", "refact", "codeshell", "exaone", "minerva-7b"]),
    frozenset(["qwen2", "stablelm2", "megrez", "hunyuan", "deepseek-r1-qwen", "grok-2"]),
    frozenset(["dbrx", "smaug-bpe"]),
    frozenset(["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "lfm2", "midm-2.0", "pixtral"]),
    frozenset(["gpt-4o", "llama4", "kanana2", "talkie"]),
)

# Slow tokenizers keep the definition in their code; these two are known.
_CLASSES = {"GPT2Tokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}


def check_pre_tokenizer(name: str) -> None:
    """Raises TokenizerError for a name that llama.cpp does not know."""
    if name not in KNOWN_PRE_TOKENIZERS:
        known = " ".join(sorted(KNOWN_PRE_TOKENIZERS))
        raise TokenizerError(f"llama.cpp has no pre-tokenizer {show(name)}", f"choose one of: {known}")


def pre_tokenizer_of_class(tokenizer_class: Any) -> str:
    """The name for a vocab.json without tokenizer.json, from its tokenizer class; GPT-2's when none is named."""
    name = str(tokenizer_class or "GPT2Tokenizer").removesuffix("Fast")
    if name not in _CLASSES:
        raise TokenizerError(f"vocab.json belongs to a {show(tokenizer_class)} whose pre-tokenizer is not known", _REMEDY)
    return _CLASSES[name]


def family_name(recognised: str, names: Mapping[str, str]) -> str:
    """The family's own name for a recognised pre-tokenizer, which must split text in the same way."""
    name = names.get(recognised, recognised)
    assert name == recognised or any({name, recognised} <= group for group in _ALIKE), f"{name} does not split as {recognised}"
    return name


def recognise_pre_tokenizer(tokenizer_json: dict[str, Any], pieces: dict[str, int]) -> str:
    """llama.cpp's name for the definition in tokenizer.json; TokenizerError when none splits text in the same way."""
    steps = tuple(_steps(tokenizer_json.get("pre_tokenizer")))
    nfc = _is_nfc(tokenizer_json.get("normalizer"))
    ignore_merges = as_dict(tokenizer_json.get("model"), "model in tokenizer.json").get("ignore_merges") is True
    if steps == (*_DEEPSEEK_LLM, "digit") and not _has_numbers(pieces):
        # DeepSeek's own file: single digits or runs of them are the same where no token has two digits.
        steps = (*_DEEPSEEK_LLM, "digits")
    for rule in _RULES:
        if rule.steps == steps and rule.ignore_merges == ignore_merges:
            return rule.nfc_name if nfc and rule.nfc_name else rule.name
    merges = ", ignoring merges" if ignore_merges else ""
    raise TokenizerError(
        f"the pre-tokenizer in tokenizer.json is not one that llama.cpp has ({_shown(steps)}{merges})", _REMEDY
    )


def _shown(steps: tuple[str, ...]) -> str:
    """The definition for people: expressions as they are written, whatever a terminal could take for a command escaped."""
    text = " > ".join(ascii(step[:_SHOWN])[1:-1].replace("\\\\", "\\") for step in steps[:_SHOWN]) or "nothing"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _has_numbers(pieces: dict[str, int]) -> bool:
    return any(len(text) > 1 and text.isascii() and text.isdigit() for text in pieces)


def _is_nfc(normalizer: Any) -> bool:
    """True for NFC, False for no normalizer; TokenizerError for any other, because llama.cpp applies none."""
    if normalizer is None:
        return False
    fields = as_dict(normalizer, "normalizer in tokenizer.json")
    parts = as_list(fields.get("normalizers"), "normalizers") if fields.get("type") == "Sequence" else [fields]
    kinds = [as_dict(part, "a normalizer in tokenizer.json").get("type") for part in parts]
    if any(kind != "NFC" for kind in kinds):
        shown = ", ".join(show(kind) for kind in kinds[:4])
        raise TokenizerError(f"tokenizer.json normalizes text ({shown}), which llama.cpp does not do", _REMEDY)
    return bool(kinds)


def _steps(pre_tokenizer: Any) -> list[str]:
    """The definition as a flat list of steps; the closing ByteLevel that only maps bytes is left out."""
    if pre_tokenizer is None:
        return []
    steps: list[str] = []
    pending: list[Any] = [pre_tokenizer]
    while pending:
        fields = as_dict(pending.pop(), "a pre-tokenizer in tokenizer.json")
        kind = fields.get("type")
        if kind == "Sequence":
            pending += reversed(as_list(fields.get("pretokenizers"), "pretokenizers in tokenizer.json"))
        elif kind == "ByteLevel" and fields.get("add_prefix_space") is False and fields.get("use_regex", True) is True:
            steps.append("gpt2")
        elif kind == "ByteLevel" and fields.get("add_prefix_space") is False and not pending and "gpt2" not in steps:
            break
        else:
            steps.append(_step(str(kind), fields))
    else:
        if "gpt2" not in steps:
            steps.append("without ByteLevel")
    return steps


def _step(kind: str, fields: dict[str, Any]) -> str:
    """One step as the table writes it, or a text that no rule has."""
    if kind == "Digits" and isinstance(fields.get("individual_digits"), bool):
        return "digit" if fields["individual_digits"] else "digits"
    if kind == "Punctuation" and fields.get("behavior") == "Contiguous":
        return "punctuation"
    pattern = fields.get("pattern")
    regex = pattern.get("Regex") if kind == "Split" and isinstance(pattern, dict) else None
    if isinstance(regex, str):
        regex = _canonical(regex)
        covers_all = regex.endswith(r"|\s+")
        how = (fields.get("behavior"), fields.get("invert"))
        # Matches kept apart from what lies between them; or only the matches kept, when nothing lies between.
        if how[0] == "Isolated" or (how == ("Removed", True) and covers_all):
            return regex
        return f"Split {how[0]} {regex}"
    return f"{kind} {show(fields)}"


def _canonical(regex: str) -> str:
    """The same expression in the table's spelling.

    Line ends become escapes, the English contractions those of Llama 3, and quantifiers that give nothing back plain ones:
    where the table has them, what follows could not match what they would give back.
    """
    for spelling, same in _SPELLINGS:
        regex = regex.replace(spelling, same)
    return regex
