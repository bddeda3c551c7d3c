"""`tinyedge run`: streams a model's text to stdout, what it chose and how fast it was to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinyedge.cli.load_options import LoadOptions
from tinyedge.cli.option_groups import with_option_groups
from tinyedge.cli.output import late_progress, print_json, status
from tinyedge.cli.sampling_options import SamplingOptions
from tinyedge.cli.signals import EXIT_INTERRUPTED
from tinyedge.cli.text import text_writer

if TYPE_CHECKING:
    from tinyedge.backends import Request
    from tinyedge.engine import Engine
    from tinyedge.generation import Speed, TokenLikelihood
    from tinyedge.machine.energy import EnergyMeter
    from tinyedge.sampling import Sampling
    from tinyedge.speculation import Drafter

_EXAMPLES = """\b
Examples:
  tinyedge run demo -p "Once upon a time"
  tinyedge run model.gguf -f prompt.txt -n 200 --temp 0 > answer.txt
  echo "The sea was" | tinyedge run ./checkpoint --json
  tinyedge run model.gguf -f notes.txt --lookup --lora style.gguf:0.8
  tinyedge run model.gguf -p "A person:" --json-schema person.json
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What `generate` should do, apart from how the model is loaded. `lora` are adapter files with their scales."""

    prompt: str
    sampling: Callable[[Path], Sampling]
    max_tokens: int | None
    stops: tuple[str, ...] = ()
    logprobs: int = 0
    lora: tuple[tuple[Path, float], ...] = ()
    draft: Path | None = None
    lookup: bool = False
    truncate: bool = False
    energy: bool = False
    json: bool = False
    verbose: bool = False
    echo: bool = False  # begin the text with the prompt


@with_option_groups
def run(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF file, a checkpoint, a pulled name, or `demo`.")],
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="The text to continue.")] = None,
    file: Annotated[
        str | None, typer.Option("-f", "--file", metavar="FILE", help="Read the prompt from a file; - is stdin.")
    ] = None,
    tokens: Annotated[int, typer.Option("-n", "--tokens", min=-1, help="Most tokens to generate; -1 for no limit.")] = 256,
    interactive: Annotated[bool, typer.Option("-i", "--interactive", help="Hold a conversation, as `tinyedge chat`.")] = False,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut the beginning of a prompt that is too long.")] = False,
    draft: Annotated[
        str | None,
        typer.Option("--draft", metavar="MODEL", help="A smaller model that guesses ahead; at --temp 0 the same text, sooner."),
    ] = None,
    lookup: Annotated[
        bool, typer.Option("--lookup", help="Guess ahead from the text so far; at --temp 0 the same text, sooner.")
    ] = False,
    lora: Annotated[
        list[str] | None, typer.Option("--lora", metavar="FILE[:SCALE]", help="Apply a LoRA adapter (GGUF); several.")
    ] = None,
    energy: Annotated[bool, typer.Option("--energy", help="Measure joules per token, where the machine tells.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of streamed text.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show llama.cpp's own log.")] = False,
    *,
    sampling: SamplingOptions,
    load: LoadOptions,
) -> None:
    """Generate text with a model: on the best backend, text to stdout, the report to stderr."""
    from tinyedge.cli.models import resolve_model
    from tinyedge.cli.sampling_options import sampling_of

    if interactive:
        if any((prompt, file, truncate, draft, lookup, energy)):
            raise typer.BadParameter(
                "-i holds a conversation, which takes no prompt, --truncate, --draft, --lookup or --energy"
            )
        from tinyedge.cli.chat import converse

        converse(model, sampling=sampling, load=load, lora=lora, tokens=tokens, json=json, verbose=verbose)
        return
    if draft is not None and lookup:
        raise typer.BadParameter("give --draft or --lookup, not both")
    sampling_of(sampling)  # wrong usage is said before a checkpoint is quantized
    wanted = Generation(
        prompt=_read_prompt(prompt, file),
        sampling=lambda path: _sampling_for(path, sampling),
        max_tokens=None if tokens < 0 else tokens,
        stops=sampling.stops,
        logprobs=sampling.logprobs,
        lora=adapters_of(lora),
        draft=None if draft is None else resolve_model(draft, quiet=json),
        lookup=lookup,
        truncate=truncate,
        energy=energy,
        json=json,
        verbose=verbose,
    )
    generate(resolve_model(model), load.request(), wanted)


run.__doc__ = f"{run.__doc__}\n\n{_EXAMPLES}"


def adapters_of(values: list[str] | None) -> tuple[tuple[Path, float], ...]:
    """The adapter files in `FILE` or `FILE:SCALE`, the scale 1 by default; one that is not there is wrong usage."""
    found = []
    for value in values or ():
        name, colon, tail = value.rpartition(":")
        path, scale = Path(value), 1.0
        if colon and not path.exists():
            with suppress(ValueError):
                path, scale = Path(name), float(tail)
        if not path.is_file():
            raise typer.BadParameter(f"there is no adapter file {value}; give FILE or FILE:SCALE", param_hint="--lora")
        if not abs(scale) <= 1000:
            raise typer.BadParameter(f"the scale of {name} must be within 1000 of zero", param_hint="--lora")
        found.append((path, scale))
    return tuple(found)


def _sampling_for(path: Path, options: SamplingOptions) -> Sampling:
    """The sampling that the options ask for, over the defaults in the model's file."""
    from tinyedge.cli.sampling_options import sampling_of
    from tinyedge.gguf_split import read_model
    from tinyedge.model_facts import describe_model

    gguf = read_model(path)
    return sampling_of(options, gguf.metadata, describe_model(gguf).vocabulary)


def generate(path: Path, request: Request, wanted: Generation) -> None:
    """Runs the GGUF file at `path` and prints text and report. Raises SystemExit(130) after Ctrl-C."""
    from tinyedge.backends import this_machine
    from tinyedge.cli.generation_report import Report, likelihood_lines, report_object
    from tinyedge.cli.load_options import tell, tell_locked
    from tinyedge.engine import DRAFT_ROWS, Engine
    from tinyedge.machine.throttle_watch import ThrottleWatch
    from tinyedge.model_probe import runnable_facts
    from tinyedge.tuned import tuned_plan

    facts = runnable_facts(path)
    sampling = wanted.sampling(path)
    plan = tuned_plan(facts, request, this_machine())
    tell(plan)
    if facts.chat_template:
        status("this model has a chat template, which `run` does not apply: the prompt is continued as it stands; try -i")
    drafting = wanted.lookup or wanted.draft is not None
    with load_progress(facts.weight_bytes, quiet=wanted.json or wanted.verbose) as progress:
        engine = Engine.open(
            path,
            plan,
            lora=wanted.lora,
            draft_rows=DRAFT_ROWS if drafting else 1,
            verbose=wanted.verbose,
            progress=progress,
        )
    tell_locked(plan, facts.weight_bytes)
    with engine, _drafter(engine, wanted) as drafter, ThrottleWatch() as watch, _energy(wanted.energy) as meter:
        text, likelihoods, speed = _stream(engine, sampling, wanted, drafter)
    report = Report(
        facts=facts,
        plan=plan,
        seed=sampling.seed,
        speed=speed,
        conditions=watch.seen,
        energy=meter.used if meter else None,
        drafting=drafting,
        speedup=engine.draft_speedup,
    )
    if wanted.json:
        print_json(report_object(path, text, likelihoods, report))
    else:
        for line in (*likelihood_lines(likelihoods), *report.lines()):
            status(line)
    if sampling.grammar is not None and speed.stop_reason in ("length", "context", "stop"):
        status("warning: the text was cut before the grammar was complete, so it may not parse; raise -n")
    if speed.stop_reason == "interrupted":
        sys.exit(EXIT_INTERRUPTED)  # not typer.Exit, after which main() would say "interrupted" once more


@contextmanager
def _drafter(engine: Engine, wanted: Generation) -> Iterator[Drafter | None]:
    """What guesses ahead, as far as it was asked for."""
    if wanted.draft is None and not wanted.lookup:
        yield None
        return
    from tinyedge.draft_model import open_draft
    from tinyedge.lookup import LookupDrafter

    with closing(open_draft(wanted.draft, engine.model, engine.plan) if wanted.draft else LookupDrafter()) as drafter:
        yield drafter


@contextmanager
def _energy(wanted: bool) -> Iterator[EnergyMeter | None]:
    if not wanted:
        yield None
        return
    from tinyedge.machine.energy import EnergyMeter

    with EnergyMeter() as meter:
        yield meter


@contextmanager
def load_progress(weight_bytes: int, *, quiet: bool = False) -> Iterator[Callable[[float], None] | None]:
    """A bar of loaded weights on a terminal, once a second has passed: a warm file is loaded before."""
    with late_progress("loading", "bytes", quiet=quiet) as bar:
        yield bar and (lambda share: bar(int(share * weight_bytes), weight_bytes))


def _stream(
    engine: Engine, sampling: Sampling, wanted: Generation, drafter: Drafter | None
) -> tuple[str, tuple[TokenLikelihood, ...], Speed]:
    """The whole text, its likelihoods and its speed; prints the text as it comes unless JSON is wanted."""
    parts: list[str] = []
    likelihoods: list[TokenLikelihood] = []
    speed: Speed | None = None
    write = (lambda _text: None) if wanted.json else text_writer()
    if wanted.echo:
        write(wanted.prompt)
    prompt = _cut(engine, wanted) if wanted.truncate else wanted.prompt
    try:
        # A bar would wipe out the prompt that was echoed to the same line.
        with late_progress("reading the prompt", "tokens", quiet=wanted.json or wanted.echo) as bar:
            for chunk in engine.stream(
                prompt,
                sampling,
                wanted.max_tokens,
                stop=wanted.stops,
                logprobs=wanted.logprobs,
                drafter=drafter,
                progress=bar,
            ):
                parts.append(chunk.text)
                write(chunk.text)
                likelihoods += chunk.likelihoods
                speed = chunk.speed
    except KeyboardInterrupt:
        speed = None
    text = "".join(parts)
    if not wanted.json and _report_follows_text() and not text.endswith("\n"):
        write("\n")
    return text, tuple(likelihoods), speed or engine.speed("interrupted")


def _cut(engine: Engine, wanted: Generation) -> list[int]:
    """The prompt's tokens, at most so many that the answer has room: the beginning goes, but for BOS."""
    tokens = engine.model.tokenize(wanted.prompt)
    context = engine.plan.context
    answer = min(wanted.max_tokens or context, max(1, context // 4))
    excess = len(tokens) + answer - context
    if excess <= 0:
        return tokens
    status(
        f"the first {excess} of the prompt's {len(tokens)} tokens are cut: the context holds {context}, "
        f"{answer} of them for the answer"
    )
    begin = tokens[:1] if tokens[0] == engine.model.bos else []
    return [*begin, *tokens[len(begin) + excess :]]


def _report_follows_text() -> bool:
    """Whether stdout and stderr end in one place, a terminal or one file: then the text's last line must end first."""
    if sys.stdout is None or sys.stderr is None:
        return False
    try:
        return sys.stdout.isatty() or os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except OSError:
        return False


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
