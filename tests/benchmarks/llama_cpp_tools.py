"""llama.cpp's own programs, which tests compare with where they are: in the folder TINYEDGE_LLAMA_BIN, or on PATH."""

from __future__ import annotations

import os
import shutil

import pytest


def llama_cpp_tool(name: str) -> str:
    """The path of the program called `name`; the test is skipped where there is none."""
    found = shutil.which(name, path=os.environ.get("TINYEDGE_LLAMA_BIN"))
    if not found:
        pytest.skip(f"TINYEDGE_LLAMA_BIN does not name llama.cpp's tools, and {name} is not on PATH")
    return found
