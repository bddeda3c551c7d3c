"""A conversation computes nothing twice, slides when it is too long, and survives what goes wrong."""

from __future__ import annotations

import ctypes
import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import chat_templates
import pytest

import tinyedge
from tinyedge.backends import LoadPlan, Request, choose, this_machine
from tinyedge.chat.chat_template import ChatTemplate, Message
from tinyedge.chat.conversation import Conversation
from tinyedge.chat.plain_text import PlainText
from tinyedge.engine import Engine
from tinyedge.errors import PromptError, SessionError, TemplateError
from tinyedge.generation import Chunk, Speed
from tinyedge.model_probe import runnable_facts
from tinyedge.sampling import Sampling
from tinyedge_quantize.convert import convert

CONTEXT = 256
EOS = 2
SYSTEM = "You tell short stories."
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Every message tells how many there are, so that no part of one rendering is a part of another.
COUNTED = "{% for m in messages %}{{ messages | length }}{{ m['role'] }}: {{ m['content'] }}\\n{% endfor %}assistant: "
REFUSING = "{% for m in messages %}{% if 'bad' in m['content'] %}{{ raise_exception('not that') }}{% endif %}" + CHATML[30:]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "demo.gguf"
    convert(Path(tinyedge.__file__).parent / "demo", path, "Q4_K_M")
    return path


@pytest.fixture(scope="module")
def plan(model: Path) -> LoadPlan:
    return choose(runnable_facts(model), Request(context=CONTEXT, threads=1, backend="cpu"), this_machine())


@pytest.fixture(scope="module")
def shared(model: Path, plan: LoadPlan) -> Iterator[Engine]:
    with Engine.open(model, plan) as engine:
        yield engine


@pytest.fixture
def engine(shared: Engine) -> Engine:
    shared.forget()
    return shared


@pytest.fixture(scope="module")
def templates() -> Iterator[dict[str, ChatTemplate]]:
    made = {name: ChatTemplate(source) for name, source in (("chatml", CHATML), ("counted", COUNTED), ("refusing", REFUSING))}
    yield made
    for template in made.values():
        template.close()


@pytest.fixture
def chatml(templates: dict[str, ChatTemplate]) -> ChatTemplate:
    return templates["chatml"]


def endless(seed: int = 0, temperature: float = 0.8) -> Sampling:
    """Sampling of an answer that only a limit ends."""
    return Sampling(seed=seed, temperature=temperature, logit_bias={EOS: -1e6})


def heard(chunks: Iterator[Chunk]) -> tuple[str, Speed]:
    """The whole answer and its speed."""
    parts, speed = [], None
    for chunk in chunks:
        parts.append(chunk.text)
        speed = chunk.speed
    assert speed is not None
    return "".join(parts), speed


def rendered(conversation: Conversation, *more: Message) -> list[int]:
    """The prompt of the turns that are not forgotten and `more`, made anew."""
    head = [Message("system", conversation.system)] if conversation.system else []
    turns = [each for turn in conversation.turns[conversation.forgotten :] for each in (turn.user, turn.answer)]
    assert conversation.template is not None
    return conversation.template.tokens(conversation.engine.model, [*head, *turns, *more])


def test_the_second_turn_reads_only_what_is_new(engine: Engine, chatml: ChatTemplate) -> None:
    conversation = Conversation(engine, chatml, SYSTEM)
    _, first = heard(conversation.ask("Who is there?", endless(), 30))
    _, second = heard(conversation.ask("And who else?", endless(), 30))
    assert first.reused_tokens == 0
    assert second.reused_tokens >= first.prompt_tokens + first.generated_tokens - 1
    assert second.prompt_tokens - second.reused_tokens < 50


def test_an_answer_is_the_one_that_reading_everything_anew_gives(engine: Engine, chatml: ChatTemplate) -> None:
    conversation = Conversation(engine, chatml, SYSTEM)
    greedy = endless(temperature=0)
    for question in ("Who is there?", "Why?"):
        heard(conversation.ask(question, endless(3), 20))
    prompt = rendered(conversation, Message("user", "And then?"))
    text, _ = heard(conversation.ask("And then?", greedy, 20))
    engine.forget()
    assert text == engine.complete(prompt, greedy, 20).text


def test_the_system_prompt_stays_and_the_oldest_turns_go(engine: Engine, chatml: ChatTemplate) -> None:
    conversation = Conversation(engine, chatml, SYSTEM)
    for number in range(8):
        before = conversation.forgotten
        prompt_end = len(engine.cached)
        _, speed = heard(conversation.ask(f"Once upon a time, part {number}", endless(number), 20))
        assert speed.stop_reason == "length"
        assert number == 0 or speed.prompt_tokens - speed.reused_tokens < 60
        if conversation.forgotten > before:
            assert len(engine.cached) < CONTEXT * 3 // 4 + 20
        assert prompt_end < CONTEXT
    assert conversation.forgotten > 2
    assert conversation.slides > 1
    assert conversation.recomputed == 0
    assert len(conversation.turns) == 8
    head = conversation.prefix()
    assert engine.cached[: len(head)] == head
    follow = rendered(conversation, Message("user", "x"))
    assert engine.cached == follow[: len(engine.cached)]


@pytest.mark.parametrize("system", [SYSTEM, None])
@pytest.mark.parametrize("name", chat_templates.NAMES)
def test_every_published_template_lets_turns_go_without_reading_again(
    model: Path, plan: LoadPlan, name: str, system: str | None
) -> None:
    with Engine.open(model, replace(plan, context=2 * CONTEXT)) as engine, chat_templates.template(name) as template:
        conversation = Conversation(engine, template, system)
        for number in range(16):
            _, speed = heard(conversation.ask(f"And wolf {number}?", endless(number), 25))
            assert number == 0 or speed.prompt_tokens - speed.reused_tokens < 100
        assert conversation.forgotten > 2
        assert conversation.slides > 0
        assert conversation.recomputed == 0
        follow = rendered(conversation, Message("user", "x"))
        end = len(engine.cached) - 25  # some templates take white space from the ends of an answer
        assert engine.cached[:end] == follow[:end]


def test_a_long_answer_pushes_the_oldest_turns_out(engine: Engine, chatml: ChatTemplate) -> None:
    conversation = Conversation(engine, chatml, SYSTEM)
    for number in range(3):
        heard(conversation.ask(f"Part {number}", endless(number), 10))
    text, speed = heard(conversation.ask("A long one", endless(9), 400))
    assert speed.stop_reason == "context"
    assert (conversation.forgotten, conversation.recomputed) == (3, 0)
    assert conversation.slides >= 1
    answer = conversation.turns[-1].answer
    assert answer.content == text
    assert answer.tokens is not None
    assert len(answer.tokens) == speed.generated_tokens
    prompt = rendered(Conversation(engine, chatml, SYSTEM), Message("user", "A long one"))
    assert engine.cached == [*prompt, *answer.tokens][: len(engine.cached)]
    assert len(prompt) + len(answer.tokens) == CONTEXT


def test_the_moved_cache_is_what_llama_cpp_makes_of_it(model: Path, engine: Engine, chatml: ChatTemplate) -> None:
    conversation = Conversation(engine, chatml, SYSTEM)
    steps: list[list[int]] = []  # as they were decoded: prompts together, answers token by token
    for number in range(9):
        held, turns, question = list(engine.cached), conversation.turns, f"The wolf number {number} said"
        text, speed = heard(conversation.ask(question, endless(temperature=0), 30))
        if conversation.slides:
            break
        steps += [engine.cached[len(held) : speed.prompt_tokens], *([token] for token in engine.cached[speed.prompt_tokens :])]
    prompt = rendered(replace(conversation, turns=turns), Message("user", question))
    start = next(index for index, (one, other) in enumerate(zip(held, prompt, strict=False)) if one != other)
    gone = next(count for count in range(1, len(held)) if held[start + count :] == prompt[start : len(held) - count])
    assert [token for step in steps for token in step] == held
    tokens = reference(model, steps, (start, start + gone), prompt[len(held) - gone :], 30)
    assert text == b"".join(map(engine.model.piece, tokens)).decode()


def reference(model: Path, steps: Sequence[Sequence[int]], span: tuple[int, int], new: Sequence[int], count: int) -> list[int]:
    """What llama.cpp, called by hand, generates greedily after these steps without `span`, moved together, and `new`."""
    import llama_cpp as llama

    parameters = llama.llama_model_default_params()
    parameters.n_gpu_layers = 0
    weights = llama.llama_model_load_from_file(str(model).encode(), parameters)
    settings = llama.llama_context_default_params()
    settings.n_ctx, settings.n_threads, settings.n_threads_batch = CONTEXT, 1, 1
    context = llama.llama_init_from_model(weights, settings)
    memory = llama.llama_get_memory(context)
    found: list[int] = []

    def decode(tokens: Sequence[int]) -> None:
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        assert llama.llama_decode(context, llama.llama_batch_get_one(array, len(tokens))) == 0

    for step in steps:
        decode(step)
    assert llama.llama_memory_seq_rm(memory, 0, *span)
    llama.llama_memory_seq_add(memory, 0, span[1], sum(map(len, steps)), span[0] - span[1])
    decode(new)
    size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(weights))
    while len(found) < count:
        logits = llama.llama_get_logits_ith(context, -1)
        found.append(max((token for token in range(size) if token != EOS), key=lambda token: logits[token]))
        decode(found[-1:])
    llama.llama_free(context)
    llama.llama_model_free(weights)
    return found


def test_a_template_that_does_not_allow_moving_is_read_again(engine: Engine, templates: dict[str, ChatTemplate]) -> None:
    conversation = Conversation(engine, templates["counted"], SYSTEM)
    greedy = endless(temperature=0)
    for number in range(9):
        heard(conversation.ask(f"Say something about wolf {number}", endless(1), 30))
        if conversation.forgotten:
            break
    assert (conversation.slides, conversation.recomputed) == (0, 1)
    prompt = rendered(conversation, Message("user", "And?"))
    text, _ = heard(conversation.ask("And?", greedy, 8))
    engine.forget()
    assert text == engine.complete(prompt, greedy, 8).text


def test_an_answer_goes_on_where_the_rest_had_to_be_read_again(engine: Engine, templates: dict[str, ChatTemplate]) -> None:
    conversation = Conversation(engine, templates["counted"], SYSTEM)
    for number in range(3):
        heard(conversation.ask(f"Part {number}", endless(number), 20))
    text, speed = heard(conversation.ask("A long one", endless(9), 150))
    assert conversation.recomputed >= 1
    assert conversation.slides == 0
    assert (speed.stop_reason, speed.generated_tokens) == ("length", 150)
    answer = conversation.turns[-1].answer
    assert answer.content == text
    assert answer.tokens is not None
    assert len(answer.tokens) == 150


@pytest.mark.parametrize("how", ["close", "interrupt"])
def test_an_answer_that_is_stopped_counts_as_far_as_it_came(engine: Engine, chatml: ChatTemplate, how: str) -> None:
    conversation = Conversation(engine, chatml, SYSTEM)
    answer = conversation.ask("Tell me", endless(), 100)
    parts = [next(answer).text for _ in range(5)]
    if how == "close":
        answer.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            answer.throw(KeyboardInterrupt)
    assert conversation.turns[-1].answer.content == "".join(parts)
    held = len(engine.cached)
    _, speed = heard(conversation.ask("Go on", endless(), 5))
    assert speed.reused_tokens >= held - 1


def test_a_message_that_is_stopped_before_the_answer_was_not_said(engine: Engine, chatml: ChatTemplate) -> None:
    conversation = Conversation(engine, chatml, SYSTEM)

    def stop(_done: int, _total: int) -> None:
        signal.raise_signal(signal.SIGINT)

    heard(conversation.ask("Hello", endless(), 5))
    before = conversation.messages
    with pytest.raises(KeyboardInterrupt):
        heard(conversation.ask("And?", endless(), 5, progress=stop))
    assert conversation.messages == before
    heard(conversation.ask("And?", endless(), 5))


def test_a_message_longer_than_the_context_says_by_how_much(engine: Engine, chatml: ChatTemplate) -> None:
    conversation = Conversation(engine, chatml, SYSTEM)
    heard(conversation.ask("Hello", endless(), 5))
    before, held = conversation.messages, list(engine.cached)
    long = "the sea " * 300
    count = len(chatml.tokens(engine.model, [Message("system", SYSTEM), Message("user", long)]))
    with pytest.raises(PromptError) as caught:
        heard(conversation.ask(long))
    assert f"takes {count} tokens" in caught.value.problem
    assert f"{count + 1 - CONTEXT} too many" in caught.value.problem
    with pytest.raises(PromptError, match="has 8000000 bytes, too many for a context of 256 tokens"):
        heard(conversation.ask("the sea " * 1_000_000))
    assert (conversation.messages, engine.cached) == (before, held)
    _, speed = heard(conversation.ask("And?", endless(), 5))
    assert speed.reused_tokens >= len(held) - 1


def test_another_answer_takes_the_place_of_the_last(engine: Engine, chatml: ChatTemplate) -> None:
    conversation = Conversation(engine, chatml, SYSTEM)
    with pytest.raises(PromptError, match="no answer yet"):
        heard(conversation.regenerate())
    heard(conversation.ask("Hello", endless(), 5))
    first, _ = heard(conversation.ask("Who?", endless(1), 20))
    second, speed = heard(conversation.regenerate(endless(2), 20))
    assert second != first
    assert speed.prompt_tokens - speed.reused_tokens == 1
    assert len(conversation.turns) == 2
    assert conversation.turns[-1].answer.content == second
    again, _ = heard(conversation.regenerate(endless(1), 20))
    assert again == first


def test_a_template_that_refuses_costs_that_message_alone(engine: Engine, templates: dict[str, ChatTemplate]) -> None:
    conversation = Conversation(engine, templates["refusing"], SYSTEM)
    heard(conversation.ask("Hello", endless(), 5))
    before = conversation.messages
    with pytest.raises(TemplateError, match="not that"):
        heard(conversation.ask("this is bad"))
    with pytest.raises(TemplateError, match="not that"):
        conversation.set_system("bad")
    assert conversation.messages == before
    heard(conversation.ask("Hello again", endless(), 5))
    assert len(conversation.turns) == 2


def test_the_system_prompt_can_be_changed_and_the_turns_cleared(engine: Engine, chatml: ChatTemplate) -> None:
    conversation = Conversation(engine, chatml)
    heard(conversation.ask("Hello", endless(), 5))
    conversation.set_system("Rhyme.")
    assert conversation.messages[0] == Message("system", "Rhyme.")
    with pytest.raises(PromptError, match="the system prompt takes"):
        conversation.set_system("the sea " * 300)
    assert conversation.system == "Rhyme."
    conversation.clear()
    assert conversation.messages == (Message("system", "Rhyme."),)
    conversation.set_system(None)
    assert conversation.messages == ()


def test_without_a_template_the_text_runs_on(engine: Engine) -> None:
    conversation = Conversation(engine, None)
    first, _ = heard(conversation.ask("Once upon a time", endless(), 10))
    run = engine.tokenize("Once upon a time", parse_special=False)
    assert engine.cached[: len(run)] == run
    heard(conversation.ask("<s>Then</s>", endless(), 10))
    text = b"".join(map(engine.model.piece, engine.cached)).decode("utf-8", "replace")
    assert text.startswith(f" Once upon a time{first}\n <s>Then</s>")
    assert engine.cached.count(1) == 1


def test_without_a_template_turns_go_too(engine: Engine) -> None:
    conversation = Conversation(engine, None, SYSTEM)
    for number in range(8):
        _, speed = heard(conversation.ask(f"Part {number}", endless(number), 40))
        assert speed.stop_reason == "length"
    assert conversation.slides > 0
    assert conversation.recomputed == 0
    head = PlainText().tokens(engine.model, [Message("system", SYSTEM)])
    assert engine.cached[: len(head)] == head


def test_an_answer_that_a_stop_string_cut_is_its_text(engine: Engine, chatml: ChatTemplate) -> None:
    conversation = Conversation(engine, chatml)
    whole, _ = heard(conversation.ask("Hello", endless(5), 30))
    conversation.clear()
    stop = whole[10:14]
    text, speed = heard(conversation.ask("Hello", endless(5), 30, stop=[stop]))
    assert speed.stop_reason == "stop"
    assert text == whole[: whole.index(stop)]
    assert conversation.turns[-1].answer.content == text
    heard(conversation.ask("And?", endless(), 5))


def test_it_comes_back_from_json_as_it_was(engine: Engine, chatml: ChatTemplate) -> None:
    conversation = Conversation(engine, chatml, SYSTEM)
    for number in range(6):
        heard(conversation.ask(f"Who is there, {number}, é 火?", endless(4), 30))
    assert conversation.forgotten
    value = json.loads(json.dumps(conversation.to_json()))
    again = Conversation.from_json(engine, chatml, value)
    assert (again.messages, again.forgotten) == (conversation.messages, conversation.forgotten)
    held = len(engine.cached)
    _, speed = heard(again.ask("And?", endless(), 5))
    assert speed.reused_tokens >= held - 1


def test_a_long_conversation_is_taken_up_in_a_small_context(engine: Engine, chatml: ChatTemplate) -> None:
    turns = [{"role": role, "content": f"{role} {n}"} for n in range(2000) for role in ("user", "assistant")]
    conversation = Conversation.from_json(engine, chatml, {"messages": turns, "forgotten": 0})
    _, speed = heard(conversation.ask("And?", endless(), 5))
    assert conversation.forgotten > 1900
    assert CONTEXT // 2 < speed.prompt_tokens <= CONTEXT * 3 // 4


def test_tokens_that_are_not_those_of_the_text_do_not_count(engine: Engine, chatml: ChatTemplate) -> None:
    size = engine.model.vocabulary_size
    right = engine.model.tokenize("the sea", add_special=False, parse_special=False)
    for tokens in ([EOS, *right], [5, 6], [size], [-1], [True], ["x"], "no list", [1.5], [10**400]):
        answer = {"role": "assistant", "content": "the sea", "tokens": tokens}
        value = {"messages": [{"role": "user", "content": "x"}, answer]}
        assert Conversation.from_json(engine, chatml, value).turns[0].answer.tokens is None


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (None, "no list of messages"),
        ([], "no list of messages"),
        ({"messages": {}}, "no list of messages"),
        ({"messages": ["x"]}, "message 1 is no message"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "message 1 has no role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "message 1 has no role"),
        ({"messages": [{"role": "user", "content": 5}]}, "message 1 has no role"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "message 1 has half of a surrogate"),
        ({"messages": [{"role": "user", "content": "x"}]}, "by turns"),
        ({"messages": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "x"}]}, "by turns"),
        ({"messages": [], "forgotten": 1}, "has 0 turns"),
        ({"messages": [], "forgotten": -1}, "has 0 turns"),
        ({"messages": [], "forgotten": True}, "has 0 turns"),
        ({"messages": [], "forgotten": None}, "has 0 turns"),
    ],
)
def test_what_is_no_conversation_is_refused(engine: Engine, value: Any, sentence: str) -> None:
    with pytest.raises(SessionError, match=sentence):
        Conversation.from_json(engine, None, value)


def test_half_of_a_surrogate_pair_is_no_message(engine: Engine, chatml: ChatTemplate) -> None:
    with pytest.raises(PromptError, match="half of a surrogate pair"):
        heard(Conversation(engine, chatml).ask("a\ud800"))


def test_the_last_chunk_always_has_the_speed(engine: Engine, templates: dict[str, ChatTemplate]) -> None:
    for name in ("chatml", "counted"):
        for length in (1, 40, 120, 160, 170, 180):
            engine.forget()
            conversation = Conversation(engine, templates[name])
            heard(conversation.ask("a", endless(), 4))
            heard(conversation.ask("b", endless(), length))
            text, speed = heard(conversation.ask("c", endless(), 300))
            answer = conversation.turns[-1].answer
            assert speed.stop_reason == "context"
            assert (answer.content, answer.tokens and len(answer.tokens)) == (text, speed.generated_tokens)
            assert conversation.forgotten == 2


def test_a_grammar_does_not_begin_anew_within_an_answer(engine: Engine, templates: dict[str, ChatTemplate]) -> None:
    conversation = Conversation(engine, templates["counted"])
    for _ in range(2):
        heard(conversation.ask("a", endless(), 60))
    sampling = Sampling(grammar='root ::= "(" [a-z ]* ")"', logit_bias=endless().logit_bias)
    text, speed = heard(conversation.ask("b", sampling, 300))
    assert text.count("(") == 1
    assert conversation.recomputed == 0
    assert speed.stop_reason in ("context", "end")
