"""What `tinyedge --version` names: tinyedge, the libraries below it, and the backends compiled into them."""

from __future__ import annotations

import platform

from tinyedge import __version__
from tinyedge.native.library import compiled_backends, versions


def version_lines() -> list[str]:
    """One line each for tinyedge, llama-cpp-python, ggml and the backends. Raises NativeError without the library."""
    libraries = versions()
    return [
        f"tinyedge {__version__} (Python {platform.python_version()}, {platform.system()} {platform.machine()})",
        f"llama-cpp-python {libraries.llama_cpp_python}",
        f"ggml {libraries.ggml}",
        f"backends: {', '.join(compiled_backends())}",
    ]
