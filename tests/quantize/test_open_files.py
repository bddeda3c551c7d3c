"""A checkpoint of more files than may be open at once says what to allow, not that a file is at fault."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from packed_checkpoints import write_safetensors

from tinyedge.errors import CheckpointError
from tinyedge_quantize.tensors import WeightFile

resource = pytest.importorskip("resource")


@pytest.fixture
def few_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path("/dev/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, highest + 32), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_files")
def test_the_limit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"x": ("F32", np.ones(4, np.float32))})
    expected = pytest.raises(CheckpointError, match=r"Too many open files\); allow more open files .*ulimit -n")
    with ExitStack() as opened, expected:
        for _ in range(1000):
            opened.callback(WeightFile(path).close)
