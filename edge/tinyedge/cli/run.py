"""`tinyedge run`: streams a model's text to stdout, what it chose and how fast it was to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyedge.cli.output import (
    MAX_TOKENS,
    format_bytes,
    format_seconds,
    late_progress,
    print_json,
    status,
    write_text,
)
from tinyedge.cli.signals import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from tinyedge.backends import LoadPlan, Request
    from tinyedge.engine import Engine, Sampling, Speed
    from tinyedge.model_facts import ModelFacts

_EXAMPLES = """\b
Examples:
  tinyedge run demo -p "Once upon a time"
  tinyedge run model.gguf -f prompt.txt -n 200 --temp 0 > answer.txt
  echo "The sea was" | tinyedge run ./checkpoint --json
"""

_SHOWN_STOPS = {
    "end": "the model ended the text",
    "length": "stopped at -n",
    "context": "the context is full; --ctx raises it",
    "interrupted": "interrupted",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What `generate` should do, apart from how the model is loaded."""

    prompt: str
    sampling: Sampling
    max_tokens: int | None
    json: bool = False
    verbose: bool = False
    echo: bool = False  # begin the text with the prompt


def run(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF file, a checkpoint folder or file, or `demo`.")],
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="The text to continue.")] = None,
    file: Annotated[str | None, typer.Option("-f", "--file", help="Read the prompt from a file; - is stdin.")] = None,
    tokens: Annotated[int, typer.Option("-n", "--tokens", min=-1, help="Most tokens to generate; -1 for no limit.")] = 256,
    temp: Annotated[float, typer.Option(help="Temperature; 0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Draw from the K likeliest tokens; 0 for all.")] = 40,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that add up to P.")] = 0.95,
    min_p: Annotated[float, typer.Option(help="Drop tokens less likely than P times the likeliest.")] = 0.05,
    repeat_penalty: Annotated[float, typer.Option(help="Above 1 discourages repetition.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Same seed, same text.", show_default="random, and reported")] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=512, help="CPU threads.", show_default="performance cores")] = None,
    ctx: Annotated[
        int | None, typer.Option(min=2, max=MAX_TOKENS, help="Context in tokens.", show_default="the model's, if it fits")
    ] = None,
    backend: Annotated[str, typer.Option(metavar="[auto|cpu|cuda|metal]", help="Where to run.")] = "auto",
    gpu_layers: Annotated[int | None, typer.Option(min=0, help="Layers on the GPU.", show_default="all that fit")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of streamed text.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show llama.cpp's own log.")] = False,
) -> None:
    """Generate text with a model: on the best backend, text to stdout, the report to stderr."""
    from tinyedge.backends import Request
    from tinyedge.cli.models import resolve_model

    text = _read_prompt(prompt, file)
    sampling = sampling_of(temp=temp, top_k=top_k, top_p=top_p, min_p=min_p, repeat_penalty=repeat_penalty, seed=seed)
    request = Request(backend=backend, gpu_layers=gpu_layers, context=ctx, threads=threads)
    path = resolve_model(model)
    wanted = Generation(prompt=text, sampling=sampling, max_tokens=None if tokens < 0 else tokens, json=json, verbose=verbose)
    generate(path, request, wanted)


run.__doc__ = f"{run.__doc__}\n\n{_EXAMPLES}"


def generate(path: Path, request: Request, wanted: Generation) -> None:
    """Runs the GGUF file at `path` and prints text and report. Raises SystemExit(130) after Ctrl-C."""
    from tinyedge.backends import choose, this_machine
    from tinyedge.cli.models import checked_facts
    from tinyedge.engine import Engine

    facts = checked_facts(path)
    plan = choose(facts, request, this_machine())
    status(plan.reason)
    if facts.chat_template:
        status("this model has a chat template, which `run` does not apply: the prompt is continued as it stands")
    with load_progress(facts.weight_bytes, quiet=wanted.json or wanted.verbose) as progress:
        engine = Engine.open(path, plan, verbose=wanted.verbose, progress=progress)
    with engine:
        text, speed = _stream(engine, wanted)
    if wanted.json:
        print_json(_report_object(path, facts, plan, wanted.sampling.seed, text, speed))
    else:
        for line in report_lines(plan, wanted.sampling.seed, speed):
            status(line)
    if speed.stop_reason == "interrupted":
        sys.exit(EXIT_INTERRUPTED)  # not typer.Exit, after which main() would say "interrupted" once more


@contextmanager
def load_progress(weight_bytes: int, *, quiet: bool = False) -> Iterator[Callable[[float], None] | None]:
    """A bar of loaded weights on a terminal, once a second has passed: a warm file is loaded before."""
    with late_progress("loading", "bytes", quiet=quiet) as bar:
        yield bar and (lambda share: bar(int(share * weight_bytes), weight_bytes))


def _stream(engine: Engine, wanted: Generation) -> tuple[str, Speed]:
    """The whole text and its speed; prints the text as it comes unless JSON is wanted."""
    parts: list[str] = []
    speed: Speed | None = None
    write = (lambda _text: None) if wanted.json else _text_writer()
    if wanted.echo:
        write(wanted.prompt)
    try:
        # A bar would wipe out the prompt that was echoed to the same line.
        with late_progress("reading the prompt", "tokens", quiet=wanted.json or wanted.echo) as bar:
            for chunk in engine.stream(wanted.prompt, wanted.sampling, wanted.max_tokens, bar):
                parts.append(chunk.text)
                write(chunk.text)
                speed = chunk.speed
    except KeyboardInterrupt:
        speed = None
    text = "".join(parts)
    if not wanted.json and _report_follows_text() and not text.endswith("\n"):
        write("\n")
    return text, speed or engine.speed("interrupted")


def _report_follows_text() -> bool:
    """Whether stdout and stderr end in one place, a terminal or one file: then the text's last line must end first."""
    if sys.stdout is None or sys.stderr is None:
        return False
    try:
        return sys.stdout.isatty() or os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except OSError:
        return False


def _text_writer() -> Callable[[str], None]:
    """A function that puts text on stdout at once.

    A terminal gets no control characters but line ends and tabs: a model's text must not be able to reprogram it.
    """
    controls = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
    dropped = controls if sys.stdout is not None and sys.stdout.isatty() else {}

    def write(text: str) -> None:
        write_text(text.translate(dropped) if dropped else text, now=True)

    return write


def report_lines(plan: LoadPlan, seed: int, speed: Speed) -> list[str]:
    """The report in plain words, two lines."""
    prompt = f"prompt {_tokens(speed.prompt_tokens)}{_rate(speed.prompt_tokens_per_s)}"
    first = "" if speed.ttft_s is None else f", first token after {format_seconds(speed.ttft_s)}"
    made = f"generated {_tokens(speed.generated_tokens)}{_rate(speed.generated_tokens_per_s)}"
    return [
        f"{prompt}{first}; {made}; {_SHOWN_STOPS[speed.stop_reason]}",
        f"loaded in {format_seconds(speed.load_s)}, peak memory {format_bytes(speed.peak_rss_bytes)}; {plan.backend}, "
        f"threads {plan.threads}, context {plan.context}, seed {seed}",
    ]


def _tokens(count: int) -> str:
    return f"{count} token" + ("s" if count != 1 else "")


def _rate(rate: float | None) -> str:
    return "" if rate is None else f" at {rate:.1f} tokens/s"


def _report_object(path: Path, facts: ModelFacts, plan: LoadPlan, seed: int, text: str, speed: Speed) -> dict[str, Any]:
    return {
        "text": text,
        "stop_reason": speed.stop_reason,
        "model": str(path),
        "type": facts.file_type,
        "backend": plan.backend,
        "device": plan.device.description,
        "threads": plan.threads,
        "context": plan.context,
        "load_s": speed.load_s,
        "prompt_tokens": speed.prompt_tokens,
        "prompt_tokens_per_s": speed.prompt_tokens_per_s,
        "ttft_s": speed.ttft_s,
        "generated_tokens": speed.generated_tokens,
        "generated_tokens_per_s": speed.generated_tokens_per_s,
        "peak_rss_bytes": speed.peak_rss_bytes,
        "model_bytes": facts.file_bytes,
        "seed": seed,
    }


def _read_prompt(prompt: str | None, file: str | None) -> str:
    """The prompt from -p, a file or standard input; the line end that closes a file is not part of it."""
    from tinyedge.errors import PromptError

    if prompt is not None and file is not None:
        raise typer.BadParameter("give -p or -f, not both")
    if prompt is not None:
        raw, origin = prompt.encode("utf-8", "surrogateescape"), "the prompt"
    elif file is not None and file != "-":
        origin = file
        try:
            raw = Path(file).read_bytes()
        except OSError as error:
            raise PromptError(f"{file} cannot be read ({error.strerror})", "check the name given with -f") from error
    elif sys.stdin is None or (file is None and sys.stdin.isatty()):
        raise typer.BadParameter("there is no prompt: give it with -p TEXT or -f FILE, or pipe it in")
    else:
        origin = "standard input"
        try:
            raw = sys.stdin.buffer.read()
        except OSError as error:
            raise PromptError(f"{origin} cannot be read ({error.strerror})", "give the prompt with -p or -f") from error
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(f"{origin} is not UTF-8 at byte {error.start}", "convert it to UTF-8") from error
    if prompt is not None:
        return text
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise PromptError(f"the prompt from {origin} is empty", 'give some text, or -p "" to start from nothing')
    return text


def sampling_of(*, temp: float, top_k: int, top_p: float, min_p: float, repeat_penalty: float, seed: int | None) -> Sampling:
    """The sampling that the options ask for, with a random seed where there is none. A value without meaning is wrong usage."""
    from tinyedge.engine import Sampling

    if seed is None:
        seed = int.from_bytes(os.urandom(4), "little") >> 1  # the secrets module would cost 10 ms to import
    try:
        return Sampling(temperature=temp, top_k=top_k, top_p=top_p, min_p=min_p, repeat_penalty=repeat_penalty, seed=seed)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
