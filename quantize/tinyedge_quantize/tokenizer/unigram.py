"""The `t5` vocabulary of a SentencePiece unigram model, for any family.

llama.cpp's converter writes every decoder's tokenizer.model as `llama`, whose algorithm joins the best pair again and again;
a unigram model takes the best path through all pieces, so its ids would come out differently. llama.cpp has that algorithm too,
under the name of the family that needed it first (src/llama-vocab.cpp, llm_tokenizer_ugm; conversion/t5.py).
"""

from __future__ import annotations

from tinyedge_quantize.metadata import MetadataEntry, boolean, string, uint32

from .charsmap import check_charsmap
from .files import TokenizerFolder
from .sentencepiece_model import SentencePieceModel
from .special import special_entries
from .vocabulary import Vocabulary

_ADD_BOS, _ADD_EOS = "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"


def unigram_entries(folder: TokenizerFolder, model: SentencePieceModel, vocabulary: Vocabulary) -> dict[str, MetadataEntry]:
    """The entries that conversion/t5.py writes, and what llama.cpp assumes otherwise for T5.

    A character that no piece covers becomes the unknown token, also where the model has byte pieces: llama.cpp's algorithm
    does not use them.
    """
    entries = {"tokenizer.ggml.model": string("t5"), "tokenizer.ggml.pre": string("default")} | vocabulary.unigram_entries()
    entries["tokenizer.ggml.add_space_prefix"] = boolean(model.dummy_prefix)
    # llama.cpp begins a text with a space wherever it joins runs of them; without that prefix, the runs had better stay.
    joined = model.remove_extra_spaces and model.dummy_prefix
    entries["tokenizer.ggml.remove_extra_whitespaces"] = boolean(joined)
    if model.charsmap:
        check_charsmap(model.charsmap)
        entries["tokenizer.ggml.precompiled_charsmap"] = MetadataEntry("array", list(model.charsmap), "uint8")
    return entries | _special_tokens(model, special_entries(folder, len(vocabulary)))


def _special_tokens(model: SentencePieceModel, found: dict[str, MetadataEntry]) -> dict[str, MetadataEntry]:
    """`found` with the model's own ids where no file names one, and with a `llama` vocabulary's defaults for what is added."""
    ids = {"bos": model.bos_id, "eos": model.eos_id, "unknown": model.unknown_id}
    entries = dict(found)
    for kind, row in ids.items():
        if 0 <= row < len(model.pieces):
            entries.setdefault(f"tokenizer.ggml.{kind}_token_id", uint32(row))
    for key, kind, default in ((_ADD_BOS, "bos", True), (_ADD_EOS, "eos", False)):
        entries.setdefault(key, boolean(default))
        if f"tokenizer.ggml.{kind}_token_id" not in entries:
            # llama.cpp ends the process when it is to add a token that does not exist.
            entries[key] = boolean(False)
    return entries
