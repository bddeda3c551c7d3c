"""The texts of the command line's options as `Controls`: llama-quantize's forms, read strictly.

Source: llama.cpp, tools/quantize/quantize.cpp (`parse_tensor_type`, `parse_tensor_type_file`, `parse_layer_prune`),
common/common.cpp (`string_parse_kv_override`). What those take for zero, or cut short, is refused here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinyedge.errors import CheckpointError
from tinyedge.ggml_types import BY_NAME, NOT_WEIGHTS
from tinyedge_quantize.controls.metadata import read_description
from tinyedge_quantize.controls.nearest import did_you_mean, nearest_type
from tinyedge_quantize.controls.values import ControlError, Controls, TensorType
from tinyedge_quantize.metadata import MetadataEntry, boolean, float32, string, uint32
from tinyedge_quantize.strangers import read_limited, show

if TYPE_CHECKING:
    from tinyedge_quantize.imatrix.importance import Imatrix

_MAX_BYTES = 8 * 1024 * 1024
_MAX_LAYERS = 4096
_MAX_KEY_BYTES = 127

# The types ggml_quantize_chunk writes.
TENSOR_TYPES = tuple(name for name in BY_NAME if name not in NOT_WEIGHTS)

# Where C++'s ECMAScript and Python's regular expressions part: what may follow a backslash is the same in both, a set is one
# token, and the named groups are refused.
_TOKEN = re.compile(
    r"""\\(?:[^A-Za-z0-9]|[bdswfnrtv1-9])
      | \((?:\?[:!])? (?!\?)
      | \[(?:\^(?!\])|(?![\^\]])) (?:\\(?:[^A-Za-z0-9]|[dsw]) | (?!&&|--|\|\||~~)[^\[\]\\])+ \]
      | (?:[*+?] | \{[0-9]+(?:,[0-9]*)?\}) \?? (?![*+?{])
      | [^\\(\[*+?{}\]]""",
    re.VERBOSE,
)
_COMMENT = re.compile(r"(?<!\S)#[^\r\n]*", re.ASCII)
_UPPER_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\([BDSW])")


def make_controls(
    *,
    tensor_types: Sequence[str] = (),
    tensor_type_files: Sequence[Path] = (),
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    pure: bool = False,
    leave_output: bool = False,
    prune_layers: str | None = None,
    overrides: Sequence[str] = (),
    metadata_file: Path | None = None,
    imatrix: Imatrix | None = None,
    allow_requantize: bool = False,
) -> Controls:
    """The controls that the options' texts ask for; the files' tensor types come after those of the command line.

    Raises ControlError, a usage error, naming the option whose text cannot be read.
    """
    from_files = [tensor_type for path in tensor_type_files for tensor_type in read_tensor_types(path)]
    return Controls(
        tensor_types=(*map(parse_tensor_type, tensor_types), *from_files),
        output_tensor_type=parse_type(output_tensor_type, "--output-tensor-type") if output_tensor_type else None,
        token_embedding_type=parse_type(token_embedding_type, "--token-embedding-type") if token_embedding_type else None,
        pure=pure,
        leave_output=leave_output,
        prune_layers=parse_layers(prune_layers) if prune_layers else (),
        overrides=parse_overrides(overrides),
        metadata=read_description(metadata_file) if metadata_file else {},
        imatrix=imatrix,
        allow_requantize=allow_requantize,
    )


def parse_tensor_type(text: str, option: str = "--tensor-type") -> TensorType:
    """`REGEX=TYPE`: the expression ends at the first equals sign and is put in lower case, as llama-quantize does."""
    pattern, equals, ggml_type = text.partition("=")
    if not (pattern and equals and ggml_type):
        raise ControlError(f"{option} {show(text)} is not of the form REGEX=TYPE", "write for example attn_v=Q6_K")
    return TensorType(_checked_pattern(pattern, option), parse_type(ggml_type, option))


def read_tensor_types(path: Path) -> tuple[TensorType, ...]:
    """The tensor types in a file of `REGEX=TYPE` separated by white space, a word that begins with # ending its line."""
    option = "--tensor-type-file"
    try:
        data = read_limited(path, _MAX_BYTES)
    except OSError as error:
        raise ControlError(f"{option} {path} cannot be read ({error.strerror})", "check the path") from error
    if data is None:
        raise ControlError(f"{option} {path} is longer than {_MAX_BYTES} bytes", "give a list of REGEX=TYPE")
    text = _COMMENT.sub("", data.decode("utf-8", "replace"))
    return tuple(parse_tensor_type(item, option) for item in re.split(r"[ \t\n\v\f\r]+", text) if item)


def parse_type(text: str, option: str) -> str:
    """The ggml type of that name, in any case, when tensors can be quantized to it."""
    name = text.upper()
    if name not in TENSOR_TYPES:
        reason = "is not one tensors of a file can be quantized to" if name in BY_NAME else "is not a tensor type"
        near = nearest_type(name, TENSOR_TYPES)
        remedy = did_you_mean(near) if near else "`tinyedge quantize --types` lists them under `mostly`"
        raise ControlError(f"{option}: {show(text)} {reason}", remedy)
    return name


def parse_layers(text: str) -> tuple[int, ...]:
    """`3,7,9-11` as layer numbers in ascending order, each once."""
    layers: set[int] = set()
    for item in text.split(","):
        ends = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", item.strip(), re.ASCII)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (0, -1)
        if not first <= last < _MAX_LAYERS:
            raise ControlError(f"--prune-layers: {show(item)} is not a layer number or a range", "write for example 3,7,9-11")
        layers.update(range(first, last + 1))
    return tuple(sorted(layers))


def parse_overrides(texts: Iterable[str]) -> dict[str, MetadataEntry]:
    """Metadata by key from texts of the form `KEY=TYPE:VALUE`, a later one taking an earlier one's place.

    TYPE is int (written as UINT32 without its sign, as llama-quantize does), float, bool or str.
    """
    entries: dict[str, MetadataEntry] = {}
    for text in texts:
        key, entry = parse_override(text)
        entries.pop(key, None)
        entries[key] = entry
    return entries


def parse_override(text: str) -> tuple[str, MetadataEntry]:
    """One `KEY=TYPE:VALUE`."""
    key, equals, typed = text.partition("=")
    kind, colon, value = typed.partition(":")
    if not (key and equals and colon) or kind not in ("int", "float", "bool", "str"):
        raise ControlError(
            f"--override-kv {show(text)} is not of the form KEY=TYPE:VALUE with TYPE int, float, bool or str",
            "write for example llama.context_length=int:4096",
        )
    try:
        length = len(key.encode())
    except UnicodeEncodeError:
        raise ControlError(f"--override-kv: the key {show(key)} is not UTF-8", "correct the key") from None
    if length > _MAX_KEY_BYTES:
        raise ControlError(f"--override-kv: the key {show(key)} is longer than {_MAX_KEY_BYTES} bytes", "shorten the key")
    try:
        return key, _override_value(kind, value)
    except (CheckpointError, ValueError, OverflowError):
        raise ControlError(f"--override-kv: {show(value)} is not a value of type {kind}", "check the value") from None


def _override_value(kind: str, value: str) -> MetadataEntry:
    if kind == "int":
        if not re.fullmatch(r"[+-]?[0-9]{1,20}", value, re.ASCII):
            raise ValueError
        return uint32(abs(int(value)))
    if kind == "float":
        return float32(float(value))
    if kind == "bool":
        return boolean({"true": True, "false": False}.get(value))
    return string(value)


def _checked_pattern(pattern: str, option: str) -> str:
    """The pattern in lower case, when C++'s std::regex and Python's re agree on what it means."""
    upper = _UPPER_ESCAPE.search(pattern)
    if upper:
        raise ControlError(
            f"{option}: \\{upper[1]} in {show(pattern)} would mean \\{upper[1].lower()}: expressions are put in lower case",
            "write a set such as [^0-9]",
        )
    lowered = pattern.lower()
    position = 0
    while position < len(lowered):
        token = _TOKEN.match(lowered, position)
        if token is None or not token[0].isascii():
            shown = show(lowered[position : position + 4])
            raise ControlError(
                f"{option}: {shown} in {show(pattern)} is no regular expression that llama-quantize reads in the same way",
                "use the plain forms: . [ ] ( ) | * + ? { } ^ $ and \\ before one of them",
            )
        position = token.end()
    try:
        re.compile(lowered, re.ASCII)
    except (re.error, OverflowError, RecursionError) as error:
        raise ControlError(f"{option}: {show(pattern)} is not a regular expression ({error})", "correct it") from None
    return lowered
