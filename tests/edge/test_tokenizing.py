"""Long texts of one character: llama.cpp's regex split calls itself for each of them, and must have the stack for it."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tiny_gguf import tiny_parts, write

from tinyedge.errors import PromptError
from tinyedge.native.tokenizing import with_room

# Splits a text of runs, with BOS left out, and checks that the pieces are the text again.
PROGRAM = """
import sys
from tinyedge.native.model import Model
with Model(sys.argv[1]) as model:
    for character in ("a", "!", " ", "火", "\\n"):
        text = character * (200_000 // len(character.encode()))
        tokens = model.tokenize(text, add_special=False)
        assert b"".join(map(model.piece, tokens)) == text.encode(), character
print("whole")
"""


def byte_letters() -> list[bytes]:
    """The character that stands for each byte in a byte-level vocabulary, as UTF-8 (GPT-2's `bytes_to_unicode`)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)).encode() for byte in range(256)]


def byte_level_model(path: Path, pre: str) -> Path:
    parts = tiny_parts()
    texts = [*byte_letters(), *[b"filler%d" % index for index in range(56)]]
    parts.set("tokenizer.ggml.model", "str", b"gpt2")
    parts.set("tokenizer.ggml.pre", "str", pre.encode())
    parts.set("tokenizer.ggml.tokens", "arr[str]", texts)
    parts.set("tokenizer.ggml.token_type", "arr[i32]", [1] * len(texts))
    parts.set("tokenizer.ggml.merges", "arr[str]", [b"a b"])
    parts.set("tokenizer.ggml.add_bos_token", "bool", False)
    return write(path, parts)


@pytest.mark.parametrize("pre", ["default", "llama-bpe", "qwen2", "tekken", "deepseek-llm", "gpt-2"])
def test_a_long_run_of_one_character_is_tokenized(pre: str, tmp_path: Path) -> None:
    path = byte_level_model(tmp_path / "byte-level.gguf", pre)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr


def test_other_threads_keep_their_usual_stack() -> None:
    usual = threading.stack_size()
    assert with_room(lambda: threading.stack_size() - usual, 10_000_000) >= 10_000_000
    assert threading.stack_size() == usual


def test_a_text_for_which_there_is_no_memory_is_refused() -> None:
    usual = threading.stack_size()
    with pytest.raises(PromptError, match="no memory to split a text of"):
        with_room(lambda: 0, 1 << 50)
    assert threading.stack_size() == usual
