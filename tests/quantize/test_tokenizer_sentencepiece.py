"""SentencePiece vocabularies: literal rows, the added tokens, and equality with the sentencepiece library."""

from __future__ import annotations

import base64
import os
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizer_folders import (
    BYTE_PIECES,
    LETTER_PIECES,
    PIECES,
    SPECIAL_PIECES,
    field,
    piece_message,
    put,
    sentencepiece_model,
    varint,
)
from tokenizer_folders import added as added_token

from tinyedge.errors import TokenizerError
from tinyedge_quantize.tokenizer import read_tokenizer
from tinyedge_quantize.tokenizer.sentencepiece_model import Piece, PieceType, parse_pieces

ROWS = len(PIECES)


def read(folder: Path, rows: int = ROWS, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """The entries' plain values."""
    return {key: entry.value for key, entry in read_tokenizer(folder, rows, config or {}).items()}


def test_pieces_keep_text_score_and_type(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer.model", sentencepiece_model())
    entries = read_tokenizer(tmp_path, ROWS, {})
    assert list(entries) == [
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.scores",
        "tokenizer.ggml.token_type",
    ]
    assert (entries["tokenizer.ggml.model"].value, entries["tokenizer.ggml.pre"].value) == ("llama", "default")
    assert entries["tokenizer.ggml.tokens"].item_type == "string"
    assert entries["tokenizer.ggml.tokens"].value[:4] == [b"<unk>", b"<s>", b"</s>", b"<0x00>"]
    assert entries["tokenizer.ggml.tokens"].value[-1] == b"\xe2\x96\x81ab"
    assert entries["tokenizer.ggml.scores"].value[-4:] == [-1.0, -2.0, -3.0, -0.5]
    assert entries["tokenizer.ggml.token_type"].value[:4] == [2, 3, 3, 6]


def test_user_defined_pieces_become_normal_as_in_the_converter(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer.model", sentencepiece_model([*PIECES, ("<ud>", 0.0, 4), ("<old>", 0.0, 5)]))
    assert read(tmp_path, ROWS + 2)["tokenizer.ggml.token_type"][-2:] == [1, 5]


def test_rows_without_a_piece_are_unused_fillers(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer.model", sentencepiece_model())
    entries = read(tmp_path, ROWS + 2)
    assert entries["tokenizer.ggml.tokens"][-2:] == [b"[PAD%d]" % ROWS, b"[PAD%d]" % (ROWS + 1)]
    assert entries["tokenizer.ggml.scores"][-2:] == [-10000.0, -10000.0]
    assert entries["tokenizer.ggml.token_type"][-2:] == [5, 5]


def test_more_pieces_than_rows_are_refused_with_both_numbers(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer.model", sentencepiece_model())
    with pytest.raises(TokenizerError, match=rf"{ROWS} tokens but the embedding has 32 rows"):
        read(tmp_path, 32)


def test_added_tokens_follow_the_pieces(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer.model", sentencepiece_model())
    put(tmp_path, "added_tokens.json", {"<old>": ROWS, "<beyond>": ROWS + 9})
    described = {
        "0": {"content": "<unk>", "special": True},
        str(ROWS + 1): {"content": "<|im_end|>", "special": False},
        str(ROWS + 2): {"content": "\u2581<tool>", "special": False},
        str(ROWS + 8): {"content": "<beyond>", "special": True},
    }
    put(tmp_path, "tokenizer_config.json", {"added_tokens_decoder": described})
    entries = read(tmp_path, ROWS + 3)
    assert entries["tokenizer.ggml.tokens"][-3:] == [b"<old>", b"<|im_end|>", b" <tool>"]
    assert entries["tokenizer.ggml.token_type"][-3:] == [4, 3, 4]
    assert entries["tokenizer.ggml.scores"][-3:] == [-1000.0] * 3
    assert entries["tokenizer.ggml.token_type"][0] == 3 and entries["tokenizer.ggml.scores"][0] == -1000.0


def test_two_rows_of_one_text_are_refused(tmp_path: Path) -> None:
    """llama.cpp aborts the process on such a file."""
    put(tmp_path, "tokenizer.model", sentencepiece_model())
    put(tmp_path, "added_tokens.json", {"a": ROWS})
    with pytest.raises(TokenizerError, match="cannot tell apart"):
        read(tmp_path, ROWS + 1)


def test_a_vocabulary_without_byte_pieces_is_refused(tmp_path: Path) -> None:
    """llama.cpp ends the process at the first character that no piece covers."""
    put(tmp_path, "tokenizer.model", sentencepiece_model(SPECIAL_PIECES + LETTER_PIECES))
    with pytest.raises(TokenizerError, match="lacks 254 of the 256 byte pieces"):
        read(tmp_path, 32)


def test_code_llama_and_granite_rows_are_special_cases(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer.model", sentencepiece_model())
    assert read(tmp_path, 32016, {"vocab_size": 32016})["tokenizer.ggml.eot_token_id"] == 32010
    assert read(tmp_path, 49152, {"vocab_size": 49152})["tokenizer.ggml.add_bos_token"] is False


def test_a_tiktoken_file_names_the_remedy_and_gives_way_to_tokenizer_json(tmp_path: Path) -> None:
    ranks = b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))
    put(tmp_path, "tokenizer.model", ranks)
    with pytest.raises(TokenizerError, match=r"tiktoken .*put the tokenizer\.json"):
        read(tmp_path)


def test_a_folder_without_a_tokenizer_names_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.model, tokenizer\.json, and vocab\.json"):
        read(tmp_path)
    put(tmp_path, "tekken.json", {})
    with pytest.raises(TokenizerError, match=r"tekken\.json is there"):
        read(tmp_path)


def test_unusual_but_valid_protobuf_is_read() -> None:
    """Fields in another order, repeated, unknown, or in a group, as any protobuf reader takes them."""
    message = (
        field(3, 0, varint(9))  # an unknown type: the default stays
        + field(1, 2, b"old")
        + field(200, 3, b"")
        + field(5, 0, varint(7))
        + field(200, 4, b"")
        + field(1, 2, b"new")
    )
    long_text = "x" * 300
    data = field(1, 2, message) + field(1, 2, piece_message("<unk>", 0.0, 2)) + field(1, 2, piece_message(long_text, 1.5, 5))
    assert parse_pieces(field(9, 1, bytes(8)) + data) == [
        Piece(b"new", 0.0, PieceType.NORMAL),
        Piece(b"<unk>", 0.0, PieceType.UNKNOWN),
        Piece(long_text.encode(), 1.5, PieceType.UNUSED),
    ]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "no pieces"),
        (b"\n", "ends inside a number"),
        (b"\n\x05abc", "runs past the end"),
        (b"\xff" * 11, "more than ten bytes"),
        (b"\x0f", "wire type 7"),
        (b"\x00\x00", "field number of 0"),
        (b"\x0b" * 40, "nested too deeply"),
        (b"\x0b\x14", "closed as group"),
        (sentencepiece_model([("a", 0.0, 1)]), "0 unknown pieces"),
        (sentencepiece_model([*SPECIAL_PIECES, ("a", 0.0, 1), ("a", 0.0, 1)]), "repeats the text 'a'"),
        (sentencepiece_model([("", 0.0, 2)]), "piece 0 has no text"),
        (sentencepiece_model([("<unk>", float("nan"), 2)]), "score nan"),
        (field(1, 2, field(1, 2, b"\xff\xfe")), "not UTF-8"),
    ],
)
def test_a_damaged_model_is_one_sentence(data: bytes, problem: str) -> None:
    with pytest.raises(TokenizerError, match=problem):
        parse_pieces(data)


def test_fast_llama_file_alone_gives_a_llama_vocabulary(tmp_path: Path) -> None:
    pieces = [text for text, _, _ in PIECES]
    steps = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}]
    put(
        tmp_path,
        "tokenizer.json",
        {
            "added_tokens": [added_token(0, "<unk>", True), added_token(ROWS, "<|x|>", True), added_token(ROWS + 1, "<y>")],
            "normalizer": {**steps[0], "pattern": {"String": " "}, "content": "\u2581"},
            "decoder": {"type": "Sequence", "decoders": steps},
            "model": {"type": "BPE", "byte_fallback": True, "vocab": {text: row for row, text in enumerate(pieces)}},
        },
    )
    put(tmp_path, "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "pad_token": "<|x|>"})
    entries = read(tmp_path, ROWS + 3)
    assert entries["tokenizer.ggml.model"] == "llama"
    assert entries["tokenizer.ggml.tokens"][-3:] == [b"<|x|>", b"<y>", b"[PAD%d]" % (ROWS + 2)]
    assert entries["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 6]
    assert entries["tokenizer.ggml.token_type"][-4:] == [1, 3, 4, 5]
    assert set(entries["tokenizer.ggml.scores"]) == {-1000.0, -10000.0}
    assert entries["tokenizer.ggml.padding_token_id"] == ROWS


def library_pieces(data: bytes) -> list[Piece] | None:
    """The sentencepiece library's reading, or None when it or its binding refuses the file."""
    sentencepiece = pytest.importorskip("sentencepiece")
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(data)
    except (RuntimeError, UnicodeDecodeError):
        return None
    kinds = [
        (processor.IsUnknown, PieceType.UNKNOWN),
        (processor.IsControl, PieceType.CONTROL),
        (processor.IsUnused, PieceType.UNUSED),
        (processor.IsByte, PieceType.BYTE),
    ]
    pieces = []
    for row in range(processor.vocab_size()):
        kind = next((int(kind) for test, kind in kinds if test(row)), int(PieceType.NORMAL))
        try:
            pieces.append(Piece(processor.IdToPiece(row).encode(), processor.GetScore(row), kind))
        except UnicodeDecodeError:
            return None
    return pieces


def our_pieces(data: bytes) -> list[Piece] | None:
    """Our reading with user-defined pieces as the library's tests see them, or None for a TokenizerError."""
    try:
        pieces = parse_pieces(data)
    except TokenizerError:
        return None
    return [piece._replace(type=1) if piece.type == PieceType.USER_DEFINED else piece for piece in pieces]


def mutated(data: bytes, random_source: random.Random) -> bytes:
    """One to four bytes changed, dropped, doubled or cut off."""
    changed = bytearray(data)
    for _ in range(random_source.randint(1, 4)):
        at = random_source.randrange(len(changed))
        how = random_source.randrange(12)
        if how < 6:
            changed[at] ^= 1 << random_source.randrange(8)
        elif how < 8:
            changed[at] = random_source.randrange(256)
        elif how < 9:
            del changed[at : at + random_source.randint(1, 4)]
        elif how < 11:
            changed[at:at] = changed[max(0, at - random_source.randint(1, 40)) : at]
        elif at:
            del changed[at:]
    return bytes(changed)


def test_small_models_read_as_the_library_reads_them_even_when_damaged() -> None:
    data = sentencepiece_model([*PIECES, ("<ud>", 0.0, 4), ("caf\u00e9" * 40, -7.25, 1)])
    assert our_pieces(data) == library_pieces(data) is not None
    random_source = random.Random(20)
    for _ in range(300):
        damaged = mutated(data, random_source)
        theirs = library_pieces(damaged)
        assert theirs is None or our_pieces(damaged) == theirs


def llama_tokenizer() -> Path:
    shared = os.environ.get("TINYEDGE_SHARED")
    path = Path(shared or "", "tokenizers", "llama2", "tokenizer.model")
    if not shared or not path.is_file():
        pytest.skip("TINYEDGE_SHARED names no folder with the Llama tokenizer")
    return path


@pytest.mark.corpus
def test_llama_tokenizer_equals_the_library_piece_by_piece() -> None:
    data = llama_tokenizer().read_bytes()
    pieces = our_pieces(data)
    assert pieces is not None and len(pieces) == 32000
    assert pieces == library_pieces(data)


@pytest.mark.corpus
def test_damaged_llama_tokenizers_read_as_the_library_reads_them() -> None:
    data = llama_tokenizer().read_bytes()
    random_source = random.Random(7)
    agreed = 0
    for _ in range(40):
        damaged = mutated(data, random_source)
        theirs = library_pieces(damaged)
        if theirs is not None:
            assert our_pieces(damaged) == theirs
            agreed += 1
    assert agreed >= 5


def test_byte_pieces_must_read_as_bytes(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer.model", sentencepiece_model([*SPECIAL_PIECES, *BYTE_PIECES, ("<0xZZ>", 0.0, 6)]))
    with pytest.raises(TokenizerError, match="byte piece but reads"):
        read(tmp_path)
