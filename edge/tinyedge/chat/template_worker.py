"""Renders a chat template in a process of its own, which a hostile template can end but not leave.

A template is a program that a stranger wrote. jinja2's sandbox keeps it from files and from Python's internals, not from
loops without end or from strings of gigabytes: those are cut off by the limits of the process. This file is started as a
script by `template_process` and knows nothing of the rest of tinyedge. Requests and replies are JSON, one to a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

MAX_CHARACTERS = 16 << 20  # of a rendering; a context of a million tokens has some four million
_MAX_PROBLEM = 500  # characters


def main() -> None:
    """Answers requests until the other side closes the pipe."""
    sys.path[:] = json.loads(sys.argv[1])
    requests, replies = os.fdopen(0, "r", encoding="ascii"), os.fdopen(os.dup(1), "w", encoding="ascii")
    opening = json.loads(requests.readline() or "null")
    if opening is None:
        return
    _limit_process(opening["address_space_bytes"])
    import jinja2.sandbox  # noqa: F401  (now, while the caller loads a model, rather than at the first request)

    render: Callable[..., str] | None = None
    for line in requests:
        _limit_time(opening["seconds"])
        try:
            if render is None:
                render = compiled(opening["source"], opening["variables"], datetime.fromisoformat(opening["now"]))
            reply = {"text": _checked(render(**json.loads(line)))}
        except Exception as error:  # whatever the template does wrong is its own doing
            reply = {"problem": _problem(error)[:_MAX_PROBLEM]}
        print(json.dumps(reply), file=replies, flush=True)


def compiled(source: str, variables: dict[str, str], now: datetime) -> Callable[..., str]:
    """The function that renders `source`, with the environment that transformers gives a chat template.

    See `_compile_jinja_template` in transformers/utils/chat_template_utils.py. `strftime_now` always tells `now`, so that a
    conversation past midnight keeps its beginning.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_tag(), "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": now.strftime,
        "namespace": _namespace(),
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
    }
    template = environment.from_string(source)

    def render(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return template.render(
            messages=messages, add_generation_prompt=add_generation_prompt, tools=None, documents=None, **variables
        )

    return render


def _generation_tag() -> Any:
    """The extension for `{% generation %}`, which marks an assistant's text for training and changes nothing here."""
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as an instance attribute)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation


def _namespace() -> Any:
    """jinja2's `namespace` without attributes that could be Python's internal ones."""
    from jinja2.exceptions import SecurityError
    from jinja2.utils import Namespace

    def check(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace cannot have the attribute {name!r}")

    class PlainNamespace(Namespace):
        def __init__(*args: Any, **kwargs: Any) -> None:
            self, *rest = args
            attributes = dict(*rest, **kwargs)
            for name in attributes:
                check(name)
            Namespace.__init__(self, attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            check(name)
            Namespace.__setitem__(self, name, value)

    return PlainNamespace


def _raise_exception(message: object) -> None:
    raise TemplateRaisedError(str(message))


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class TemplateRaisedError(Exception):
    """The template called `raise_exception`."""


def _checked(text: str) -> str:
    if len(text) > MAX_CHARACTERS:
        raise TemplateRaisedError(f"more than {MAX_CHARACTERS >> 20} million characters come out")
    return text


def _problem(error: Exception) -> str:
    """What went wrong, in words that follow `the chat template of the model `."""
    import jinja2

    if isinstance(error, TemplateRaisedError):
        return f"says: {error}"
    if isinstance(error, MemoryError):
        return "takes too much memory"
    if isinstance(error, RecursionError):
        return "calls itself without end"
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"cannot be parsed (line {error.lineno}: {error.message})"
    return f"fails ({type(error).__name__}: {error})"


def _limit_process(address_space_bytes: int) -> None:
    """No more memory than this, no files written, no core dump. macOS knows the first limit and does not heed it."""
    for what, most in (("RLIMIT_AS", address_space_bytes), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(getattr(resource, what), (most, most))


def _limit_time(seconds: int) -> None:
    """The system ends the process when it has computed for `seconds` more."""
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


if __name__ == "__main__":
    main()
