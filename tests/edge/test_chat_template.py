"""Chat templates: the same text as transformers gives, errors in one sentence, and an end to hostile ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from chat_templates import CONVERSATIONS, NAMES, VARIABLES, WITHOUT_SYSTEM, conversation, source, template
from tiny_gguf import tiny_parts, write

from tinyedge.chat.chat_template import ChatTemplate, Message
from tinyedge.chat.template_process import Limits
from tinyedge.errors import PromptError, TemplateError
from tinyedge.gguf_file import read_gguf

QUICK = Limits(seconds=1)
HELLO = [Message("user", "Hello")]


def rendered(text: str, messages: Sequence[Message] = HELLO, limits: Limits | None = None) -> str:
    with ChatTemplate(text, variables=VARIABLES, limits=limits) as made:
        return made.render(messages)


@pytest.mark.torch
@pytest.mark.parametrize("name", NAMES)
def test_the_text_is_that_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    reference = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), chat_template=source(name), **VARIABLES
    )
    compared = 0
    with template(name) as ours:
        for messages in CONVERSATIONS.values():
            if messages[0].role == "system" and not ours.takes_system:
                continue
            turns = [{"role": message.role, "content": message.content} for message in messages]
            for prompt in (True, False):
                theirs = reference.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
                assert ours.render(messages, add_generation_prompt=prompt) == theirs
                compared += 1
    assert compared >= 10


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "zephyr",
            "<|system|>\nBe brief.</s>\n<|user|>\nHello</s>\n<|assistant|>\nHi.</s>\n<|user|>\nBye</s>\n<|assistant|>\n",
        ),
        ("llama-2", "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello [/INST] Hi. </s><s>[INST] Bye [/INST]"),
        (
            "gemma",
            "<s><start_of_turn>user\nBe brief.\n\nHello<end_of_turn>\n<start_of_turn>model\nHi.<end_of_turn>\n"
            "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
        ),
        ("mistral", "<s>[INST] Be brief.\n\nHello [/INST]Hi.</s>[INST] Bye [/INST]"),
    ],
)
def test_the_text_letter_by_letter(name: str, text: str) -> None:
    with template(name) as made:
        assert made.render(CONVERSATIONS["a system text"]) == text


def test_a_template_without_a_place_for_the_system_text_is_known() -> None:
    places = {}
    for name in NAMES:
        with template(name) as made:
            places[name] = made.takes_system
    assert {name for name, takes in places.items() if not takes} == set(WITHOUT_SYSTEM)
    silent = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }};{% endif %}{% endfor %}"
    assert rendered(silent, conversation("Hello", system="Be brief.")) == "Be brief.\n\nHello;"
    assert rendered(silent, [Message("system", "Be brief.")]) == "Be brief.;"


def test_what_the_template_complains_of_is_the_error() -> None:
    twice = [Message("user", "Hello"), Message("user", "Hello?")]
    with template("gemma") as made:
        with pytest.raises(TemplateError, match=r"says: Conversation roles must alternate user/assistant") as caught:
            made.render(twice)
        assert caught.value.exit_code == 23
        assert made.render(HELLO).endswith("<start_of_turn>model\n")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{% if %}", r"cannot be parsed \(line 1: "),
        ("\n{{ 'a }}", r"cannot be parsed \(line 2: "),
        ("{{ messages.turns.first }}", r"fails \(UndefinedError: "),
        ("{{ 1 // 0 }}", r"fails \(ZeroDivisionError: "),
        ("{% include 'passwd' %}", r"fails \(TypeError: no loader"),
        ("{{ namespace(__class__=1) }}", r"fails \(SecurityError: "),
        ("{{ ''.__class__.__mro__ }}", r"fails \(SecurityError: "),
        ("{{ messages.append(1) }}", r"fails \(SecurityError: "),
        ("{{ range(10**9) }}", r"fails \(OverflowError: "),
        ("{{ '\\ud800' }}", "half of a character"),
        ("x" * (1 << 20) + "x", "more than 1 MiB"),
    ],
)
def test_a_template_that_is_wrong(text: str, problem: str) -> None:
    with pytest.raises(TemplateError, match=f"^the chat template .*{problem}"):
        rendered(text)


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param(LOOP, "takes more than 1 seconds", id="a loop"),
        pytest.param("{{ 10 ** (10 ** 10) }}", "takes (more than 1 seconds|too much memory)", id="a power"),
        pytest.param("{{ 'x' * 10**10 }}", "too much memory", id="a product"),
        pytest.param("{{ '%1000000000d' % 1 }}", "too much memory", id="a width"),
        pytest.param("{{ 'x'.center(10**9) }}", "too much memory", id="a margin"),
        pytest.param("{{ '{:>1000000000}'.format(1) }}", "too much memory", id="a format"),
        pytest.param(
            "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "too much memory",
            id="a doubling",
        ),
        pytest.param(
            "{% set n = namespace(x=[]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x == n.x ~ '' }}",
            "takes (more than 1 seconds|too much memory)",
            id="a nesting",
        ),
        pytest.param("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end", id="a recursion"),
        pytest.param("{{" + "(" * 20000 + "1" + ")" * 20000 + "}}", "calls itself without end|made the process", id="a depth"),
        pytest.param("{{ 'x' * 17000000 }}", "more than 16 million characters", id="a long text"),
    ],
)
def test_a_hostile_template_is_stopped(text: str, problem: str) -> None:
    begun = time.monotonic()
    with pytest.raises(TemplateError, match=problem):
        rendered(text, limits=QUICK)
    assert time.monotonic() - begun < 30


def test_memory_is_watched_where_the_system_does_not_limit_it() -> None:
    """The address space is twice the memory: this template stays below the one and goes beyond the other."""
    text = "{% set x = 'x' * 80000000 %}" + LOOP
    with pytest.raises(TemplateError, match="too much memory"):
        rendered(text, limits=Limits(seconds=30, memory_bytes=64 << 20))


def test_the_process_is_gone_with_the_template_and_begins_anew_after_its_end() -> None:
    made = ChatTemplate("{{ messages[0].content }}{% if messages[0].content == 'loop' %}" + LOOP + "{% endif %}", limits=QUICK)
    with made:
        assert made.render(HELLO) == "Hello"
        (first,) = psutil.Process().children()
        with pytest.raises(TemplateError, match="takes more than 1 seconds"):
            made.render([Message("user", "loop")])
        assert made.render(HELLO) == "Hello"
        (second,) = psutil.Process().children()
        assert first.pid != second.pid
    assert psutil.Process().children() == []
    made.close()
    assert made.render(HELLO) == "Hello"
    del made
    assert psutil.Process().children() == []


ORPHAN = """
import sys, time
from tinyedge.chat.chat_template import ChatTemplate, Message
template = ChatTemplate("{{ messages[0].content }}")
template.render([Message("user", "x")])
import psutil
print(psutil.Process().children()[0].pid, flush=True)
time.sleep(60)
"""


def test_the_process_does_not_outlive_a_killed_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert os.getsid(child.pid) != os.getsid(0), "Ctrl-C at the terminal would reach it"
        parent.kill()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_ctrl_c_while_rendering_leaves_no_stale_answer() -> None:
    text = "{{ messages[0].content }}{% if messages[0].content == 'loop' %}" + LOOP + "{% endif %}"
    with ChatTemplate(text) as made:
        made.render(HELLO)
        threading.Timer(0.5, signal.raise_signal, (signal.SIGINT,)).start()
        with pytest.raises(KeyboardInterrupt):
            made.render([Message("user", "loop")])
        assert made.render(HELLO) == "Hello"


def test_threads_get_their_own_answers() -> None:
    with template("chatml") as made, ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda number: made.render([Message("user", str(number))]), range(200)))
    assert texts == [f"<|im_start|>user\n{number}<|im_end|>\n<|im_start|>assistant\n" for number in range(200)]


def test_the_environment_is_that_of_transformers() -> None:
    assert rendered("{% generation %}{{ messages[0].content }}{% endgeneration %}!") == "Hello!"
    assert rendered("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "012"
    assert rendered("{{ {'ä': '<&>'} | tojson }}") == '{"ä": "<&>"}'
    assert rendered("{{ dict(a=1).a }}{{ tools is none }}{{ documents is none }}{{ pad_token }}") == "1TrueTrue"
    assert rendered("  {% if true %}\n  x\n  {% endif %}\ny") == "  x\ny"


def test_a_date_in_a_template_stays_for_the_conversation() -> None:
    with ChatTemplate("{{ strftime_now('%Y %f') }}") as made:
        first = made.render(HELLO)
        time.sleep(0.01)
        assert first.startswith(time.strftime("%Y "))
        assert made.render(HELLO) == first


def test_a_message_that_is_not_text_is_refused() -> None:
    with template("chatml") as made, pytest.raises(PromptError, match="message of the user is not UTF-8"):
        made.render([Message("user", "a\udcffb")])
    with pytest.raises(ValueError, match="must be one of system, user, assistant, tool, not 'end'"):
        Message("end", "x")


def test_the_template_of_a_file_knows_the_vocabulary(tmp_path: Path) -> None:
    parts = tiny_parts()
    parts.set("tokenizer.chat_template", "str", b"{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ pad_token }}")
    with ChatTemplate.of_model(read_gguf(write(tmp_path / "a.gguf", parts))) as made:  # type: ignore[union-attr]
        assert made.render(HELLO) == "<s>|</s>|<unk>|"
    for key in ("bos", "eos"):
        parts.drop(f"tokenizer.ggml.{key}_token_id")
    parts.set("tokenizer.ggml.padding_token_id", "u32", 9999)
    with ChatTemplate.of_model(read_gguf(write(tmp_path / "b.gguf", parts))) as made:  # type: ignore[union-attr]
        assert made.render(HELLO) == "<s>|</s>|<unk>|"
    mine = tmp_path / "mine.jinja"
    mine.write_text("{{ eos_token }}{{ messages[0].content }}", encoding="utf-8")
    with ChatTemplate.from_file(mine, read_gguf(tmp_path / "a.gguf")) as made:
        assert made.render(HELLO) == "</s>Hello"


def test_a_file_without_a_template_has_none(tmp_path: Path) -> None:
    parts = tiny_parts()
    parts.drop("tokenizer.chat_template")
    assert ChatTemplate.of_model(read_gguf(write(tmp_path / "none.gguf", parts))) is None
    parts.set("tokenizer.chat_template", "str", b"")
    assert ChatTemplate.of_model(read_gguf(write(tmp_path / "empty.gguf", parts))) is None
    parts.set("tokenizer.chat_template", "u32", 7)
    with pytest.raises(TemplateError, match=r"tokenizer\.chat_template of type u32; str was expected"):
        ChatTemplate.of_model(read_gguf(write(tmp_path / "number.gguf", parts)))


def test_a_template_file_that_cannot_be_read(tmp_path: Path) -> None:
    gguf = read_gguf(write(tmp_path / "a.gguf", tiny_parts()))
    with pytest.raises(TemplateError, match="cannot be read"):
        ChatTemplate.from_file(tmp_path / "missing.jinja", gguf)
    (tmp_path / "bytes.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(TemplateError, match="is not UTF-8"):
        ChatTemplate.from_file(tmp_path / "bytes.jinja", gguf)
    (tmp_path / "long.jinja").write_bytes(b"x" * (2 << 20))
    with pytest.raises(TemplateError, match="more than 1 MiB"):
        ChatTemplate.from_file(tmp_path / "long.jinja", gguf)
