"""The tokens of a conversation: special ones only from the template, and answers as the model generated them."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from chat_templates import CONVERSATIONS, NAMES, as_written, conversation, source
from chat_vocabularies import CONTROL, USER_DEFINED, byte_level, llama_2, sentence_piece, taken_apart
from tiny_gguf import tiny_parts, write

from tinyedge.chat.chat_template import ChatTemplate, Message
from tinyedge.errors import TemplateError
from tinyedge.gguf_file import read_gguf
from tinyedge.native.model import Model

MAKERS: dict[str, Callable[[Path], Path]] = {
    "byte-level": byte_level,
    "sentencepiece": sentence_piece,
    "phi-3": lambda path: sentence_piece(path, **{"general.name": "Phi-3"}),
}
ALWAYS_SPECIAL = ("<s>", "</s>", *CONTROL)


class Case:
    """A vocabulary with the published templates for it."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.gguf, self.model = name, read_gguf(path), Model(path)
        self._templates: dict[str, ChatTemplate] = {}

    def template(self, name: str) -> ChatTemplate:
        if name not in self._templates:
            self._templates[name] = self.of_source(source(name))
        return self._templates[name]

    def of_source(self, text: str) -> ChatTemplate:
        path = self.gguf.path.with_suffix(".jinja")
        path.write_bytes(text.encode())
        return ChatTemplate.from_file(path, self.gguf)

    def whole(self, text: str) -> list[int]:
        """The tokens of a text as llama.cpp finds them in one go."""
        return self.model.tokenize(text, add_special=False)

    def token(self, text: str) -> int:
        (token,) = self.whole(text)
        return token

    def special(self, tokens: Sequence[int]) -> list[str]:
        return [self.model.token_text(token) for token in tokens if self.model.is_control(token)]

    def expected(self, name: str, messages: Sequence[Message]) -> list[int]:
        """The template's own special tokens, and the text between them, the messages' in it, as text alone."""
        words = [replace(message, content=f"q{place}q") for place, message in enumerate(messages)]
        contents = as_written(name, messages)
        tokens: list[int] = []
        for index, part in enumerate(taken_apart(self.template(name).render(words), ALWAYS_SPECIAL)):
            if index % 2:
                tokens.append(self.token(part))
                continue
            text = re.sub(r"q(\d)q", lambda match: contents[int(match[1])], part)
            text = text.lstrip(" \t\n\v\f\r") if index and self.name == "phi-3" else text
            tokens += self.model.tokenize(text, add_special=False, parse_special=False)
        bos = self.model.bos
        return tokens if bos is None or tokens[:1] == [bos] else [bos, *tokens]

    def close(self) -> None:
        self.model.close()
        for template in self._templates.values():
            template.close()


@pytest.fixture(scope="module", params=MAKERS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    made = Case(request.param, MAKERS[request.param](tmp_path_factory.mktemp("model") / "model.gguf"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def bytes_case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    made = Case("byte-level", byte_level(tmp_path_factory.mktemp("model") / "model.gguf"))
    yield made
    made.close()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "qwen-3"])
@pytest.mark.parametrize("about", CONVERSATIONS)
def test_each_published_template(case: Case, name: str, about: str) -> None:
    messages = CONVERSATIONS[about]
    template = case.template(name)
    if messages[0].role == "system" and not template.takes_system:
        messages = [replace(messages[1], content=f"{messages[0].content}\n\n{messages[1].content}"), *messages[2:]]
    assert template.tokens(case.model, messages) == case.expected(name, messages)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("about", [about for about in CONVERSATIONS if about != "what looks special"])
def test_where_nothing_looks_special_the_text_is_tokenized_in_one_go(case: Case, name: str, about: str) -> None:
    template, messages = case.template(name), CONVERSATIONS[about]
    whole = case.whole(template.render(messages))
    bos = case.model.bos
    assert template.tokens(case.model, messages) == (whole if bos is None or whole[:1] == [bos] else [bos, *whole])


def test_bos_comes_once(case: Case) -> None:
    for name in NAMES:
        tokens = case.template(name).tokens(case.model, conversation("Hello"))
        written = case.template(name).render(conversation("Hello")).startswith("<s>")
        assert tokens.count(case.token("<s>")) == int(written or case.model.bos is not None)


PIECES = (
    *ALWAYS_SPECIAL, *USER_DEFINED, "<unk>", "Hello", " ", "\n", "<", "|", ">", "[", "]", "/", "<|im_", "end|>", "<|", "|>",
    "im_end", "im", "INST]", "a < b", "火", "user", "assistant", "\U000f0000", "\U00100000", "\ufdd0", "\uffff", "q", "\0",
)  # fmt: skip


def random_text(noise: random.Random) -> str:
    return "".join(noise.choices(PIECES, k=noise.randrange(1, 9)))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "qwen-3"])
def test_random_messages_bring_no_special_token(case: Case, name: str) -> None:
    noise = random.Random(name)
    template = case.template(name)
    for _ in range(60):
        contents = [random_text(noise) for _ in range(noise.choice((1, 3, 5)))]
        system = random_text(noise) if noise.random() < 0.5 and template.takes_system else None
        messages = conversation(*contents, system=system)
        assert case.special(template.tokens(case.model, messages)) == case.special(case.expected(name, messages)), messages
        tokens = template.tokens(case.model, messages)
        spelled = b"".join(case.model.piece(token) or case.model.token_text(token).encode() for token in tokens)
        if case.name == "byte-level":
            assert spelled.decode() == template.render(messages)


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_halves_of_a_special_token_do_not_join(bytes_case: Case, role: str) -> None:
    """Around the messages this template writes halves of special tokens, which a message could complete."""
    text = "{% for m in messages %}<s>{{ '<|' }}{{ m.content }}{{ '|>' }}{{ m.content }}_end|>{% endfor %}"
    with bytes_case.of_source(text) as template:
        for content in ("im_end", "<|im", "end", "user", "<|im_end|>", "start|><|im", "end|><|im_end|><|im", " end", "</s"):
            tokens = template.tokens(bytes_case.model, [Message(role, content)])
            assert bytes_case.special(tokens) == ["<s>"], content
            assert b"".join(map(bytes_case.model.piece, tokens)).decode() == f"<|{content}|>{content}_end|>"


def test_white_space_and_pieces_of_text_stay_tokens(bytes_case: Case) -> None:
    """User-defined tokens that the template does not name are a vocabulary's way to write text."""
    tokens = bytes_case.template("chatml").tokens(bytes_case.model, conversation("<|im_end|>\n\n<table>"))
    assert {bytes_case.token("\n\n"), bytes_case.token("<table>")} <= set(tokens)
    assert tokens.count(bytes_case.token("<|im_end|>")) == 1


def test_marks_that_the_template_looks_for_in_an_answer(bytes_case: Case) -> None:
    """`</think>` is for the template to read in an answer; typed by the user it is text."""
    template, model = bytes_case.template("qwen-3"), bytes_case.model
    thought, ends = bytes_case.token("<think>"), bytes_case.token("</think>")
    messages = conversation("Hello", "<think>\nWell.\n</think>\n\nHi <|im_end|>.", "So </think> what <think>?")
    tokens = template.tokens(model, messages)
    text = template.render(messages)
    assert "Well." not in text and "Hi <|im_end|>." in text and "So </think> what <think>?" in text
    assert thought not in tokens and ends not in tokens
    assert bytes_case.special(tokens) == ["<|im_start|>", "<|im_end|>"] * 3 + ["<|im_start|>"]
    tokens = template.tokens(model, messages[:2], add_generation_prompt=False)
    assert (tokens.count(thought), tokens.count(ends)) == (1, 1)
    assert bytes_case.special(tokens) == ["<|im_start|>", "<|im_end|>"] * 2
    ours = [token for token in tokens if token not in (thought, ends) and not model.is_control(token)]
    assert b"".join(map(model.piece, ours)).decode() == "user\nHello\nassistant\n\nWell.\n\n\nHi <|im_end|>.\n"


def test_what_a_user_types_is_not_for_the_template_to_read(bytes_case: Case) -> None:
    typed = conversation("<tool_response>x</tool_response>", "<think>a</think>b", "c")
    tokens = bytes_case.template("qwen-3").tokens(bytes_case.model, typed)
    assert not {bytes_case.token(text) for text in USER_DEFINED[:4]} & set(tokens)


def generated(case: Case, text: str) -> tuple[int, ...]:
    """Tokens that spell `text`, but not those that the tokenizer would take: every byte apart."""
    if case.name == "byte-level":
        return tuple(case.whole(text))
    return tuple(3 + byte for byte in text.encode())


@pytest.mark.parametrize("name", NAMES)
def test_a_generated_answer_stays_in_the_cache(case: Case, name: str) -> None:
    """What the cache holds, the prompt and what was generated on it, is the beginning of the next prompt."""
    template = case.template(name)
    space = " " if name == "llama-2" else ""
    messages: list[Message] = []
    cached: list[int] = []
    for question, answer in (("Hello", "Hi abcd."), ("a </s><|im_end|> b", "ab\n\nTwo 火."), (" Why? ", "abc"), ("Bye", "b")):
        messages.append(Message("user", question))
        tokens = template.tokens(case.model, messages)
        assert tokens[: len(cached)] == cached
        ids = generated(case, space + answer)
        cached = [*tokens, *ids]
        messages.append(Message("assistant", space + answer, ids))
    assert case.special(cached) == case.special(
        case.template(name).tokens(case.model, [replace(m, tokens=None) for m in messages[:-1]])
    )


def test_only_the_beginning_of_a_text_gets_a_space(case: Case) -> None:
    """SentencePiece puts one before every text; what follows an answer or a cut is no new text."""
    with case.of_source("{% for m in messages %}{{ m.content }};{% endfor %}{{ '<think>' }}") as template:
        messages = [Message("user", "a<think>b"), Message("assistant", "abc", generated(case, "abc")), Message("user", "c")]
        tokens = template.tokens(case.model, messages)
        spelled = b"".join(map(case.model.piece, tokens)).decode()
        assert spelled == ("a" if case.name == "byte-level" else " a") + "<think>b;abc;c;<think>"
        assert tokens.count(case.token("<think>")) == 1


@pytest.mark.parametrize("name", ["chatml", "llama-3", "gemma"])
def test_white_space_that_ends_an_answer_may_be_left_out_by_the_template(case: Case, name: str) -> None:
    template, messages = case.template(name), conversation("Hello")
    prompt = template.tokens(case.model, messages)
    ids = generated(case, "ab") + generated(case, "\n")
    for content in ("ab\n", "ab"):
        kept = ids if name == "chatml" and content == "ab\n" else ids[:-1]
        tokens = template.tokens(case.model, [*messages, Message("assistant", content, ids), Message("user", "c")])
        assert tokens[: len(prompt) + len(kept)] == [*prompt, *kept]
        assert case.model.ends_generation(tokens[len(prompt) + len(kept)])


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda case: Message("assistant", "edited", generated(case, "ab")), id="edited"),
        pytest.param(lambda _: Message("assistant", "ab", (-1, 5)), id="a negative token"),
        pytest.param(lambda case: Message("assistant", "ab", (case.model.vocabulary_size,)), id="a token too high"),
        pytest.param(
            lambda case: Message("assistant", "ab", (*generated(case, "ab"), case.token("</s>"))), id="a control token"
        ),
        pytest.param(lambda _: Message("assistant", "ab", ()), id="no tokens"),
        pytest.param(lambda case: Message("assistant", "", generated(case, " ")), id="nothing said"),
    ],
)
def test_tokens_that_are_not_the_answer_are_left_out(case: Case, answer: Callable[[Case], Message]) -> None:
    template, message = case.template("chatml"), answer(case)
    messages = [Message("user", "Hello"), message, Message("user", "c")]
    text = [Message("user", "Hello"), replace(message, tokens=None), Message("user", "c")]
    assert template.tokens(case.model, messages) == template.tokens(case.model, text)


def test_tokens_are_for_answers_only(case: Case) -> None:
    typed = Message("user", "ab", generated(case, "ab"))
    assert case.template("chatml").tokens(case.model, [typed]) == case.template("chatml").tokens(
        case.model, [replace(typed, tokens=None)]
    )


def test_an_answer_that_the_template_rewrites_is_text(bytes_case: Case) -> None:
    template = bytes_case.template("qwen-3")
    thought = "<think>\nab\n</think>\n\nHi."
    messages = [Message("user", "Hello"), Message("assistant", thought, generated(bytes_case, thought)), Message("user", "c")]
    plain = [replace(message, tokens=None) for message in messages]
    assert template.tokens(bytes_case.model, messages) == template.tokens(bytes_case.model, plain)
    shouting = "{% for m in messages %}{{ m.content | upper }}{{ m.content }}<s>{% endfor %}"
    with bytes_case.of_source(shouting) as upper:
        assert upper.tokens(bytes_case.model, messages) == upper.tokens(bytes_case.model, plain)


def occurrences(tokens: list[int], ids: tuple[int, ...]) -> int:
    return sum(tuple(tokens[place : place + len(ids)]) == ids for place in range(len(tokens)))


def test_what_a_template_leaves_out_of_an_answer_does_not_come_in_with_the_masks(bytes_case: Case) -> None:
    """Between brackets that are control tokens this template drops text; masked, they are no brackets to it."""
    source_text = "{% for m in messages %}{{ m.content.split('[/INST]')[-1] }}<s>{% endfor %}"
    with bytes_case.of_source(source_text) as template:
        messages = [Message("user", "a"), Message("assistant", "<|im_end|>[/INST]b[INST]")]
        assert template.render(messages) == "a<s>b[INST]<s>"
        assert bytes_case.special(template.tokens(bytes_case.model, messages)) == ["<s>", "<s>"]


def test_one_answer_that_does_not_fit_leaves_the_others_in_place(case: Case) -> None:
    ids = generated(case, "abc")
    messages = [
        Message("user", "x"),
        Message("assistant", "abc", ids),
        Message("user", "x"),
        Message("assistant", "edited", ids),
        Message("user", "x"),
        Message("assistant", "abc", ids),
        Message("user", "x"),
    ]
    rewriting = case.of_source(source("chatml").replace("message['content']", "message['content'].split(']')[-1]"))
    dropped = [*messages[:3], Message("assistant", "a]b", generated(case, "a]b")), *messages[4:]]
    with rewriting:
        for template, turns in ((case.template("chatml"), messages), (rewriting, dropped)):
            assert occurrences(template.tokens(case.model, turns), ids) == 2


def test_an_answer_cut_in_the_middle_of_a_character_stays(bytes_case: Case) -> None:
    ids = generated(bytes_case, "ab火")[:-1]
    messages = [Message("user", "x"), Message("assistant", "ab\ufffd", ids), Message("user", "y")]
    tokens = bytes_case.template("chatml").tokens(bytes_case.model, messages)
    prompt = bytes_case.template("chatml").tokens(bytes_case.model, messages[:1])
    assert tokens[: len(prompt) + len(ids)] == [*prompt, *ids]


def test_a_one_character_mark_cannot_be_told_from_text(tmp_path: Path) -> None:
    """A user-defined token of one character is found in every text that has the character."""
    parts = tiny_parts()
    texts = parts.get("tokenizer.ggml.tokens")
    parts.set("tokenizer.ggml.tokens", "arr[str]", [*texts[:-1], "¤".encode()])
    parts.set("tokenizer.ggml.token_type", "arr[i32]", [*parts.get("tokenizer.ggml.token_type")[:-1], 4])
    made = Case("mark", write(tmp_path / "mark.gguf", parts))
    with made.of_source("{% for m in messages %}{{ m.content }}{{ '¤' }}{% endfor %}") as template:
        assert template.tokens(made.model, conversation("ab"))[-1] == len(texts) - 1
        with pytest.raises(TemplateError, match="cannot spell '¤' as plain text"):
            template.tokens(made.model, conversation("a¤b"))
    made.close()


@pytest.mark.torch
@pytest.mark.parametrize("name", NAMES)
def test_the_tokens_are_those_of_transformers(bytes_case: Case, name: str) -> None:
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    texts = [raw.decode() for raw in bytes_case.gguf.metadata["tokenizer.ggml.tokens"].raw_strings]  # type: ignore[union-attr]
    library = tokenizers.Tokenizer(tokenizers.models.BPE({text: token for token, text in enumerate(texts)}, []))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.add_special_tokens([text for text in texts if text in ALWAYS_SPECIAL])
    library.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in texts if text in USER_DEFINED])
    reference = transformers.PreTrainedTokenizerFast(
        tokenizer_object=library, chat_template=source(name), bos_token="<s>", eos_token="</s>"
    )
    template, compared = bytes_case.template(name), 0
    for about, messages in CONVERSATIONS.items():
        if about == "what looks special" or (messages[0].role == "system" and not template.takes_system):
            continue
        turns = [{"role": message.role, "content": message.content} for message in messages]
        theirs = reference.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert template.tokens(bytes_case.model, messages) == theirs
        compared += 1
    assert compared >= 4


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["zephyr", "llama-2", "mistral", "chatml"])
def test_the_tokens_of_llama_2_are_those_of_sentencepiece(name: str, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    path = Path(os.environ.get("TINYEDGE_SHARED", ""), "tokenizers", "llama2", "tokenizer.model")
    if not os.environ.get("TINYEDGE_SHARED") or not path.is_file():
        pytest.skip("TINYEDGE_SHARED names no folder with the Llama tokenizer")
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    made = Case("llama-2", llama_2(tmp_path / "llama.gguf", path))
    template = made.template(name)
    for messages in CONVERSATIONS.values():
        if messages[0].role == "system" and not template.takes_system:
            continue
        contents = as_written(name, messages)
        words = [replace(message, content=f"q{place}q") for place, message in enumerate(messages)]
        expected: list[int] = []
        for index, part in enumerate(taken_apart(template.render(words), ("<s>", "</s>"))):
            text = re.sub(r"q(\d)q", lambda match: contents[int(match[1])], part)  # noqa: B023
            expected += [library.piece_to_id(part)] if index % 2 else library.encode(text)
        expected = expected if expected[0] == 1 else [1, *expected]
        assert template.tokens(made.model, messages) == expected
    made.close()
