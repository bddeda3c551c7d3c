"""Runs what needs torch for the family tests, all families in one process because importing transformers takes seconds.

python reference_converter.py LLAMA_CPP_SOURCE FOLDER FAMILY...

For each family FOLDER/FAMILY gets `checkpoint/` (made by transformers), `reference.npz` (tokens and transformers'
log-probabilities) and, unless it is beyond the converter, `reference.gguf` (its F32 GGUF from llama.cpp's own
convert_hf_to_gguf.py), or `error.txt` instead of what failed.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np


def main(source: str, target: str, names: list[str]) -> None:
    # The converter goes with the gguf package of its own release.
    sys.path[1:1] = [str(Path(source) / "gguf-py"), source]
    import convert_hf_to_gguf  # type: ignore[import-not-found]
    import torch
    from families import BEYOND_THE_CONVERTER, FAMILIES
    from family_checkpoint import FamilyCase, write_checkpoint

    def make(case: FamilyCase, folder: Path) -> None:
        checkpoint = folder / "checkpoint"
        checkpoint.mkdir(parents=True)
        tokens, log_probabilities = write_checkpoint(case, checkpoint)
        np.savez(folder / "reference.npz", tokens=tokens, log_probabilities=log_probabilities)
        if case.name in BEYOND_THE_CONVERTER:
            return
        _name_pre_tokenizer(case.pre)
        _give_back_the_norms()
        sys.argv = ["convert_hf_to_gguf.py", str(checkpoint), "--outtype", "f32", "--outfile", str(folder / "reference.gguf")]
        convert_hf_to_gguf.main()

    torch.set_num_threads(2)
    for name in names:
        folder = Path(target) / name
        try:
            make((FAMILIES | BEYOND_THE_CONVERTER)[name], folder)
        except (Exception, SystemExit):
            (folder / "error.txt").write_text(traceback.format_exc())


def _name_pre_tokenizer(pre: str | None) -> None:
    """Makes the converter answer `pre`: it knows tokenizers by a hash of what they make of a text, and ours are tiny."""
    from conversion.base import TextModel  # type: ignore[import-not-found]

    def named(_self: Any, _tokenizer: Any) -> str:
        assert pre is not None, "the family needs the name of a pre-tokenizer"
        return pre

    TextModel.get_vocab_base_pre = named


def _give_back_the_norms() -> None:
    """Repairs the converter for StableLM 2 12B: it stacks the norms of the heads in a generator whose value nobody takes."""
    from conversion.stablelm import StableLMModel  # type: ignore[import-not-found]

    given = StableLMModel.modify_tensors
    if given.__name__ == "repaired":
        return

    def repaired(self: Any, data: Any, name: str, layer: int | None) -> Any:
        yield from (yield from given(self, data, name, layer)) or ()

    StableLMModel.modify_tensors = repaired


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
