"""The threads that training and evaluation share: each takes whole windows and runs single-threaded operators."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


POOL = ThreadPoolExecutor(cores())
