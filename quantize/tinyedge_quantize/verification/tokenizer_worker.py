"""Tokenizes texts in a process of its own: python -I -S tokenizer_worker.py SYS_PATH LIBRARY PATH.

The files come from strangers, and llama.cpp, sentencepiece and tokenizers are native code: what makes one of them abort ends
this process and not the caller. Modules are looked for in the folders of SYS_PATH, a JSON list, and not in the current one,
where a stranger's may lie. Texts come as a JSON list on stdin; the last line on stdout is a JSON list of what became of each,
null when the library is not installed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

LLAMA_CPP, TOKENIZERS, SENTENCEPIECE = "llama.cpp", "tokenizers", "sentencepiece"

# What became of one text: `plain` are its ids when nothing in it counts as special, `special` when special tokens count that
# are spelled in it, `decoded` the hexadecimal bytes that the plain ids stand for. Whichever the library can give.
Result = dict[str, Any]


def _llama_cpp(path: str) -> Callable[[str], Result]:
    from tinyedge.native.vocabulary import Vocabulary

    vocabulary = Vocabulary(path)

    def tokenize(text: str) -> Result:
        plain = vocabulary.tokenize(text, add_special=False, parse_special=False)
        special = vocabulary.tokenize(text, add_special=False, parse_special=True)
        return {"plain": plain, "special": special, "decoded": b"".join(map(vocabulary.piece, plain)).hex()}

    return tokenize


def _tokenizers(path: str) -> Callable[[str], Result]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: {"special": tokenizer.encode(text, add_special_tokens=False).ids}


def _sentencepiece(path: str) -> Callable[[str], Result]:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=path)
    return lambda text: {"plain": processor.encode(text, out_type=int), "pieces": processor.get_piece_size()}


_LIBRARIES = {LLAMA_CPP: _llama_cpp, TOKENIZERS: _tokenizers, SENTENCEPIECE: _sentencepiece}


def _main(sys_path: str, library: str, path: str) -> int:
    sys.path[:] = json.loads(sys_path)
    texts = json.load(sys.stdin)
    try:
        tokenize = _LIBRARIES[library](path)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        results = None
    else:
        results = [tokenize(text) for text in texts]
    sys.stdout.write(f"\n{json.dumps(results)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:4]))
