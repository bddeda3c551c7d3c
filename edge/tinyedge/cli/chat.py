"""`tinyedge chat`: a conversation at the terminal, or one message per line from a pipe."""

from __future__ import annotations

import inspect
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from tinyedge.cli.load_options import LoadOptions
from tinyedge.cli.option_groups import with_option_groups
from tinyedge.cli.output import status
from tinyedge.cli.sampling_options import SamplingOptions
from tinyedge.cli.text import say_error

if TYPE_CHECKING:
    from tinyedge.chat.chat_template import ChatTemplate
    from tinyedge.cli.dialogue import Dialogue
    from tinyedge.gguf_file import GGUFFile

_EXAMPLES = """\b
Examples:
  tinyedge chat model.gguf
  tinyedge chat tinyllama --system "You answer in one sentence." --temp 0.6
  printf 'Who wrote Faust?\\nWhen?\\n' | tinyedge chat model.gguf --json
  jq -Rsc '{content: .}' letter.txt | tinyedge chat model.gguf --json
"""
_NO_TEMPLATE = (
    "this model has no chat template, so it continues what stands here: your messages and its texts, line by line; "
    "--template FILE gives it one"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """What belongs to a chat alone. `cache` allows files in the cache folder: the history, the state of system prompts."""

    system: str | None = None
    template: Path | None = None
    session: Path | None = None
    cache: bool = True
    quiet: bool = False


@with_option_groups
def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF file, a checkpoint, a pulled name, or `demo`.")],
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="What the model is told first.")] = None,
    template: Annotated[
        Path | None, typer.Option("--template", metavar="FILE", help="A jinja2 chat template in place of the model's.")
    ] = None,
    session: Annotated[
        Path | None,
        typer.Option("--session", metavar="FILE", help="Go on with the chat in FILE and keep it there, answer by answer."),
    ] = None,
    tokens: Annotated[int, typer.Option("-n", "--tokens", min=-1, help="Most tokens in an answer; -1 for no limit.")] = -1,
    lora: Annotated[
        list[str] | None, typer.Option("--lora", metavar="FILE[:SCALE]", help="Apply a LoRA adapter (GGUF); several.")
    ] = None,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Keep history and the state of system prompts.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", help="No remarks; warnings and errors only.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per message, for messages from a pipe.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show llama.cpp's own log.")] = False,
    *,
    sampling: SamplingOptions,
    load: LoadOptions,
) -> None:
    """Hold a conversation with a model. /help lists what a line with a slash can do.

    From a pipe every line is a message; the answers go to stdout, an empty line between. Since an answer may have empty lines
    of its own and a refused message has no answer, scripts should use --json: one object for each message, with `text`, or with
    `error` and `exit_code`. There a line {"content": "TEXT"} is a message too, whose text may have line breaks.
    """
    options = ChatOptions(system=system, template=template, session=session, cache=cache, quiet=quiet)
    converse(model, options, sampling=sampling, load=load, lora=lora, tokens=tokens, json=json, verbose=verbose)


chat.__doc__ = f"{inspect.cleandoc(chat.__doc__ or '')}\n\n{_EXAMPLES}"


def converse(
    model: str,
    options: ChatOptions | None = None,
    *,
    sampling: SamplingOptions,
    load: LoadOptions,
    lora: list[str] | None,
    tokens: int,
    json: bool,
    verbose: bool,
) -> None:
    """Chats with what the MODEL argument names, on a terminal or with the lines of a pipe."""
    from tinyedge.backends import this_machine
    from tinyedge.chat.conversation import Conversation
    from tinyedge.cli.chat_files import keep_session, opened_session, prompt_cache
    from tinyedge.cli.chat_lines import answer_lines
    from tinyedge.cli.dialogue import Dialogue
    from tinyedge.cli.load_options import tell, tell_locked
    from tinyedge.cli.models import resolve_model
    from tinyedge.cli.run import adapters_of, load_progress
    from tinyedge.cli.sampling_options import sampling_of
    from tinyedge.engine import Engine
    from tinyedge.gguf_split import read_model
    from tinyedge.model_probe import runnable_facts
    from tinyedge.tuned import tuned_plan

    options = options or ChatOptions()
    at_terminal = sys.stdin is not None and sys.stdin.isatty()
    if json and at_terminal:
        raise typer.BadParameter("--json is for messages that come from a pipe, one on each line")
    if sampling.logprobs:
        raise typer.BadParameter("a chat shows no --logprobs; `tinyedge run` does")
    sampling_of(sampling)  # wrong usage is said before a checkpoint is quantized
    adapters = adapters_of(lora)
    path = resolve_model(model, quiet=options.quiet)
    facts = runnable_facts(path)
    gguf = read_model(path)
    with ExitStack() as stack:
        template = _template(gguf, options.template)
        if template is None:
            status(_NO_TEMPLATE)
        else:
            stack.enter_context(template)
            template.start()
        plan = tuned_plan(facts, load.request(), this_machine())
        if options.quiet:
            for warning in (*(f"to fit memory, {step}" for step in plan.steps), *plan.warnings):
                status(f"warning: {warning}")
        else:
            tell(plan)
        with load_progress(facts.weight_bytes, quiet=json or verbose) as progress:
            engine = stack.enter_context(Engine.open(path, plan, lora=adapters, verbose=verbose, progress=progress))
        tell_locked(plan, facts.weight_bytes)
        session = options.session
        conversation = Conversation(engine, template)
        if session is not None:
            conversation = opened_session(session, engine, template, quiet=options.quiet)
        if options.system and options.system != conversation.system:
            if conversation.turns or conversation.system:
                status("--system takes the place of the session's system prompt, and the conversation is read again behind it")
            conversation.set_system(options.system)
        dialogue = Dialogue(
            conversation=conversation,
            facts=facts,
            sampling=sampling_of(sampling, gguf.metadata, engine.model.vocabulary_size),
            max_tokens=None if tokens < 0 else tokens,
            stops=sampling.stops,
            adapters=tuple(file for file, _ in adapters),
            show=not json,
            quiet=options.quiet or not at_terminal,
            prompts=prompt_cache(options.cache),
            session=session,
        )
        stack.enter_context(_hang_up_as_termination())
        dialogue.read_system_prompt()
        try:
            code = _talk(dialogue, options) if at_terminal else answer_lines(dialogue, json=json)
        finally:
            if session is not None:
                keep_session(session, dialogue.conversation, dialogue.sampling, quiet=options.quiet)
    if code:
        sys.exit(code)


def _template(gguf: GGUFFile, file: Path | None) -> ChatTemplate | None:
    from tinyedge.chat.chat_template import ChatTemplate

    return ChatTemplate.of_model(gguf) if file is None else ChatTemplate.from_file(file, gguf)


@contextmanager
def _hang_up_as_termination() -> Iterator[None]:
    """A terminal that goes away ends the chat as SIGTERM does, which native calls heed and which lets the session be kept."""

    def terminate(_number: int, _frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGTERM)

    if signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL:  # nohup
        yield
        return
    signal.signal(signal.SIGHUP, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _talk(dialogue: Dialogue, options: ChatOptions) -> int:
    """Talks with the person at the terminal until they leave."""
    from tinyedge.cache import cache_folder
    from tinyedge.cli.repl import LineEditor
    from tinyedge.errors import PromptError

    folder = cache_folder(needed=False) if options.cache else None
    editor = LineEditor(folder and folder / "chat-history.jsonl")
    if not options.quiet:
        status("Type a message; /help shows the commands, Ctrl-D leaves.")
    interrupted = False
    try:
        while True:
            try:
                text = editor.message()
            except EOFError:
                status("")
                return 0
            except KeyboardInterrupt:
                status("")
                if interrupted or not editor.unfinished:
                    status("Ctrl-D or /quit leaves the chat.")
                interrupted = True
                continue
            except PromptError as error:
                say_error(error)
                continue
            interrupted = False
            try:
                _respond(dialogue, text)
            except EOFError:
                return 0
            except KeyboardInterrupt:
                status("")
    finally:
        editor.close()


def _respond(dialogue: Dialogue, text: str) -> None:
    """Runs a command or answers a message; what cannot be done is said. Raises EOFError for /quit."""
    from tinyedge.cli.chat_commands import run_command
    from tinyedge.errors import OutputError, TinyEdgeError

    if text.startswith("/") and not text.startswith("//"):
        try:
            run_command(dialogue, text)
        except TinyEdgeError as error:
            say_error(error)
    elif text.strip():
        try:
            dialogue.ask(text[1:] if text.startswith("//") else text)
        except OutputError:  # nobody can read what comes
            raise
        except TinyEdgeError as error:
            say_error(error)
