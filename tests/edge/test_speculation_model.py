"""Drafts from a second model: they come true when it is much like the first, and only one of the same vocabulary is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chat_vocabularies import byte_level
from tiny_gguf import CONTEXT, HIDDEN, Parts, tiny_parts, write

from tinyedge.backends import LoadPlan, Request, choose, this_machine
from tinyedge.draft_model import ModelDrafter, open_draft
from tinyedge.engine import DRAFT_ROWS, Engine
from tinyedge.errors import DraftError, GGUFError
from tinyedge.model_probe import runnable_facts
from tinyedge.native.context import Context, ContextSettings
from tinyedge.native.model import Model
from tinyedge.native.sampler import Sampler
from tinyedge.sampling import Sampling

GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model") / "tiny.gguf", tiny_parts())


@pytest.fixture(scope="module")
def plan(path: Path) -> LoadPlan:
    return choose(runnable_facts(path), Request(backend="cpu", threads=1), this_machine())


@pytest.fixture(scope="module")
def target(path: Path) -> Iterator[Model]:
    with Model(path) as model:
        yield model


@pytest.fixture
def drafter(path: Path, target: Model, plan: LoadPlan) -> Iterator[ModelDrafter]:
    opened = open_draft(path, target, plan)
    yield opened
    opened.close()


def certain(path: Path, context: int = CONTEXT) -> ModelDrafter:
    """A drafter that goes on however unsure it is."""
    model = Model(path)
    return ModelDrafter(model, Context(model, ContextSettings(context=context, threads=1)), least_probability=1e-9)


def greedy(model: Model, prompt: list[int], count: int) -> list[int]:
    with Context(model, ContextSettings(context=CONTEXT, threads=1)) as context, Sampler(model, GREEDY) as sampler:
        context.decode_all(prompt)
        drawn = [sampler.sample(context)]
        while len(drawn) < count:
            context.decode(drawn[-1])
            drawn.append(sampler.sample(context))
        return drawn


def test_the_draft_is_what_the_model_would_say(path: Path, target: Model) -> None:
    prompt = target.tokenize("abc")
    drafter = certain(path)
    expected = greedy(target, prompt, 12)
    assert drafter.propose(prompt, 6) == expected[:6]
    assert drafter.propose([*prompt, *expected[:3]], 4) == expected[3:7]  # the first part of the draft was taken
    assert drafter.propose([*prompt, *expected[:7]], 5) == expected[7:12]
    other = [*prompt, expected[0], 270, 271]  # and now something else was said
    assert drafter.propose(other, 5) == greedy(target, other, 5)
    assert drafter.propose(prompt, 6) == expected[:6]
    drafter.close()


def test_a_draft_ends_where_the_model_is_not_sure(drafter: ModelDrafter, target: Model) -> None:
    assert drafter.propose(target.tokenize("abc"), 6) == []


def test_a_draft_stays_within_the_context_of_the_draft_model(path: Path, target: Model) -> None:
    drafter = certain(path, 16)
    text = target.tokenize("abcdefghijkl")[:12]
    assert len(drafter.propose(text, 10)) == 4
    assert drafter.propose([*text, 270, 271, 272, 273], 10) == []
    assert drafter.propose([*text, *[270] * 20], 10) == []
    assert len(drafter.propose(text, 2)) == 2
    drafter.close()


def test_a_token_that_the_draft_model_lacks_is_not_given_to_it(path: Path, target: Model) -> None:
    drafter = certain(path)
    assert drafter.propose([1, 270, target.vocabulary_size], 4) == []
    assert len(drafter.propose([1, 270, 271], 4)) == 4
    drafter.close()


def test_through_the_engine_the_text_is_the_same(path: Path, plan: LoadPlan) -> None:
    with Engine.open(path, plan, draft_rows=DRAFT_ROWS) as engine:
        plain = engine.complete("abc", GREEDY, 40)
        drafter = certain(path)
        drafted = engine.complete("abc", GREEDY, 40, drafter=drafter)
        drafter.close()
    assert drafted.tokens == plain.tokens
    assert drafted.speed.drafted_tokens >= drafted.speed.accepted_tokens


def changed(key: str, kind: str, value: object) -> Callable[[Parts], None]:
    return lambda parts: parts.set(key, kind, value)


def other_text(parts: Parts) -> None:
    parts.get("tokenizer.ggml.tokens")[300] = b"other"


def more_tokens(count: int) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        row = HIDDEN // 32 * 34
        for key, added in (
            ("tokenizer.ggml.tokens", [b"more%d" % i for i in range(count)]),
            ("tokenizer.ggml.scores", [-1e3] * count),
            ("tokenizer.ggml.token_type", [1] * count),
        ):
            parts.get(key).extend(added)
        size = len(parts.get("tokenizer.ggml.tokens"))
        parts.set("llama.vocab_size", "u32", size)
        for place, tensor in enumerate(parts.tensors):
            if tensor.name in ("token_embd.weight", "output.weight"):
                data = tensor.data + tensor.data[: row * count]
                parts.tensors[place] = type(tensor)(tensor.name, (HIDDEN, size), tensor.type_id, data)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed("tokenizer.ggml.bos_token_id", "u32", 2), "its token that begins a text is number 2, not number 1"),
        (changed("tokenizer.ggml.add_bos_token", "bool", False), "its token that begins a text is none, not number 1"),
        (other_text, "its token 300 is 'other', not "),
        (more_tokens(200), "its vocabulary has 512 tokens, not 312"),
    ],
    ids=["bos", "no bos", "text", "size"],
)
def test_a_draft_of_another_vocabulary_is_refused_with_the_first_difference(
    tmp_path: Path, target: Model, plan: LoadPlan, change: Callable[[Parts], None], said: str
) -> None:
    parts = tiny_parts()
    change(parts)
    draft = write(tmp_path / "draft.gguf", parts)
    with pytest.raises(DraftError) as caught:
        open_draft(draft, target, plan)
    assert said in caught.value.problem
    assert "draft.gguf" in caught.value.problem


def test_a_draft_of_another_kind_of_vocabulary_is_refused(tmp_path: Path, target: Model, plan: LoadPlan) -> None:
    with pytest.raises(DraftError, match="its kind of vocabulary is BPE, not SentencePiece"):
        open_draft(byte_level(tmp_path / "draft.gguf"), target, plan)


def test_a_vocabulary_that_is_padded_a_little_is_taken(tmp_path: Path, target: Model, plan: LoadPlan) -> None:
    parts = tiny_parts()
    more_tokens(8)(parts)
    open_draft(write(tmp_path / "draft.gguf", parts), target, plan).close()


def test_a_damaged_draft_is_refused_before_llama_cpp_sees_it(tmp_path: Path, path: Path, target: Model, plan: LoadPlan) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(GGUFError):
        open_draft(damaged, target, plan)
