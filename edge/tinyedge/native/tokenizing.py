"""Calls llama_tokenize where it cannot overflow the stack.

The byte-level tokenizers split a text by std::regex, which in libstdc++ calls itself once or more for each character of
a match: 26 kB of one letter end the process on the usual 8 MiB. So a long text is tokenized in a thread of its own,
whose stack grows with the text. The system commits only those pages of a stack that are touched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from tinyedge.errors import PromptError
from tinyedge.native.interrupt import Interruptible

_SHORT_BYTES = 1024
# At most 420 were seen, in 35 pre-tokenizers and with runs of letters, digits, spaces and others (x86-64, GCC 12).
_STACK_PER_BYTE = 1024
_MIB = 1 << 20


def with_room(tokenize: Callable[[], int], text_bytes: int) -> int:
    """What `tokenize` returns, run where the stack is large enough for a text of `text_bytes`.

    Raises PromptError when the system has no room for such a stack. Ctrl-C is heeded when `tokenize` is done.
    """
    if text_bytes <= _SHORT_BYTES:
        return tokenize()
    results: list[int] = []
    usual = threading.stack_size((16 + text_bytes * _STACK_PER_BYTE // _MIB) * _MIB)
    try:
        worker = threading.Thread(target=lambda: results.append(tokenize()))
        with Interruptible():
            worker.start()
            worker.join()
    except RuntimeError as error:  # what threading raises when the system refuses
        raise PromptError(f"there is no memory to split a text of {text_bytes} bytes into tokens") from error
    finally:
        threading.stack_size(usual)
    return results[0]
