"""The options that a file says it was made with, where a comparison with its source was not told of them.

They are named and never applied: a stranger's file could excuse any difference with them.
"""

from __future__ import annotations

import shlex
from itertools import pairwise

from tinyedge.gguf_file import GGUFFile
from tinyedge_quantize.convert import Wishes

_RECIPE = "tinyedge.recipe"
_MAX_CHARACTERS = 16384
_SHOWN_CHARACTERS = 400


def options_remedy(gguf: GGUFFile, wishes: Wishes) -> str | None:
    """Which of the recorded options that change what is in a file `wishes` lacks, as advice; None when it lacks none."""
    given = {
        "--lora": bool(wishes.adapters),
        "--prune-layers": bool(wishes.controls.prune_layers),
        "--override-kv": bool(wishes.controls.overrides),
        "--config": wishes.config_name is not None,
        "--pre-tokenizer": wishes.pre_tokenizer is not None,
    }
    missing = [(option, value) for option, value in pairwise(_words(gguf)) if not given.get(option, True)]
    if not missing:
        return None
    options = " ".join(f"{option} {shlex.quote(value)}" for option, value in missing)
    if len(options) > _SHOWN_CHARACTERS:
        options = " ".join(dict.fromkeys(option for option, _ in missing))
    same = "option" if len(missing) == 1 else "options"
    return f"the file records that it was made with {options}: give the same {same} to verify"


def _words(gguf: GGUFFile) -> list[str]:
    """The type and the options as they were typed; nothing where that cannot be read or shown."""
    recipe = gguf.metadata.get(_RECIPE)
    if not isinstance(recipe, str) or len(recipe) > _MAX_CHARACTERS or not recipe.isprintable():
        return []
    try:
        return shlex.split(recipe)
    except ValueError:  # a quotation without an end
        return []
