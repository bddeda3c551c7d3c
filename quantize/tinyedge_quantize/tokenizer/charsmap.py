"""SentencePiece's compiled normalization table, checked before llama.cpp walks it.

The table is a length, a double array of 32-bit units, and the replacements, each ended by a NUL (sentencepiece's
normalizer.cc; Darts-clone). llama.cpp follows it unit by unit while it tokenizes, and an index out of range there is an
exception that ends the process (src/llama-vocab.cpp, normalize_prefix).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tinyedge.errors import TokenizerError

_Units = npt.NDArray[np.uint32]
_BLOCK = 256
_NODES_AT_ONCE = 4096


def check_charsmap(table: bytes) -> None:
    """Raises TokenizerError unless every index that any text can reach lies inside the table."""
    size = int.from_bytes(table[:4], "little")
    if len(table) < 5 or size % 4 or size + 4 >= len(table):
        raise _damaged("its length does not fit the file")
    units = np.frombuffer(table, np.dtype("<u4"), size // 4, 4)
    replacements = table[4 + size :]
    if not len(units) or replacements[-1]:
        raise _damaged("it ends inside a replacement")
    seen = np.zeros(len(units), bool)
    nodes = _bases(np.zeros(1, np.uint32), units[:1])
    while nodes.size:
        nodes = _children(units, nodes[:_NODES_AT_ONCE], seen, len(replacements), nodes[_NODES_AT_ONCE:])


def _children(units: _Units, nodes: _Units, seen: npt.NDArray[np.bool_], replacements: int, rest: _Units) -> _Units:
    """The nodes still to visit after `nodes`: `rest` and their children that were not seen."""
    if int(nodes.max() | (_BLOCK - 1)) >= len(units):
        raise _damaged("it points past its end")
    letters = np.arange(1, _BLOCK, dtype=np.uint32)
    places = nodes[:, None] ^ letters[None, :]
    labels = units[places] & np.uint32(1 << 31 | 0xFF)
    found = np.unique(places[labels == letters[None, :]])
    found = found[~seen[found]]
    seen[found] = True
    entries = units[found]
    below = _bases(found, entries)
    leaves = below[(entries >> 8 & 1) == 1]
    if leaves.size:
        if int(leaves.max()) >= len(units):
            raise _damaged("it points past its end")
        if int((units[leaves] & np.uint32(2**31 - 1)).max()) >= replacements:
            raise _damaged("it points past its replacements")
    return np.concatenate([rest, below])


def _bases(places: _Units, entries: _Units) -> _Units:
    """Where the children of the units at `places` begin; the packing is Darts-clone's."""
    offsets: _Units = (entries >> np.uint32(10)) << ((entries & np.uint32(1 << 9)) >> np.uint32(6))
    return places.astype(np.uint32) ^ offsets


def _damaged(problem: str) -> TokenizerError:
    return TokenizerError(
        f"the normalization table in tokenizer.model is damaged: {problem}",
        "copy or download tokenizer.model again and check its size",
    )
