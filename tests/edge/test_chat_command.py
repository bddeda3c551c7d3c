"""`tinyedge chat` as a person meets it, in a terminal of its own, and as a script does, through pipes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_terminal import COMMAND, CTRL_D, Terminal
from test_engine_library import lora
from tiny_gguf import tiny_parts, write

import tinyedge
from tinyedge.chat.state_file import open_state_file
from tinyedge_quantize.convert import convert

TEMPLATE = (
    "{% for m in messages %}{% if 'forbidden' in m['content'] %}{{ raise_exception('not in my house') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
REMARK = r"\[[0-9.]+ tokens/s, context (\d+) of (\d+)[^\n]*\]\n"
LONG_SYSTEM = (
    "You are an old bear who lives in the deep wood and tells stories of the sea to whoever comes by in the night. " * 4
)

Chat = Callable[..., Terminal]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "demo.gguf"
    convert(Path(tinyedge.__file__).parent / "demo", path, "Q4_K_M")
    return path


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "chatml.jinja"
    path.write_text(TEMPLATE, encoding="utf-8")
    return path


@pytest.fixture
def chat(model: Path, template: Path, tmp_path: Path) -> Chat:
    """Starts a chat of short answers in a small context."""

    def start(*arguments: str | Path, stdout: Path | None = None) -> Terminal:
        usual = ("--template", template, "--ctx", "256", "-n", "20", "--seed", "1", "--threads", "1")
        return Terminal("chat", model, *usual, *arguments, cache=tmp_path / "cache", stdout=stdout)

    return start


@pytest.fixture
def piped(model: Path, template: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Runs a chat whose messages are the lines of `stdin`."""

    def run(*arguments: str | Path, stdin: bytes, of: Path = model) -> subprocess.CompletedProcess[bytes]:
        command = [COMMAND, "chat", of, "--ctx", "256", "-n", "20", "--seed", "1", "--threads", "1", *arguments]
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        command += [] if {"--plain", "--template"} & set(command) else ["--template", template]
        command = [each for each in command if each != "--plain"]
        return subprocess.run(command, input=stdin, capture_output=True, timeout=120, check=False, env=environment)

    return run


def answer(terminal: Terminal) -> str:
    """The next answer, without its remark and the line that asked for it."""
    seen = terminal.expect(REMARK)
    return re.sub(REMARK, "", seen).partition("\n")[2]


def test_a_conversation_from_the_first_word_to_the_last(chat: Chat, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    with chat() as terminal:
        assert "Type a message" in terminal.expect("leaves.\n")
        terminal.say("Who lives in the wood?")
        first = answer(terminal)
        terminal.say("/regen")
        second = answer(terminal)
        assert first.strip()
        assert second.strip()
        assert first != second
        terminal.say(f"/save {saved}")
        terminal.expect("saved 1 turn to ")
        terminal.say("And in the sea?")
        answer(terminal)
        terminal.say("/stats")
        statistics = terminal.expect("seed 3\n")
        reused, read = re.search(r"prompt (\d+) tokens, (\d+) of them from the cache", statistics).groups()[::-1]
        assert int(read) - int(reused) < 60
        assert "2 turns" in statistics
        assert "\n3 answers so far, 60 tokens generated" in statistics
        terminal.say("/clear")
        terminal.expect("all is forgotten")
        terminal.say("/stats")
        terminal.expect("; 0 turns;")
        terminal.say(f"/load {saved}")
        terminal.expect("loaded 1 turn from ")
        terminal.say("/save")
        terminal.expect("error: /save needs the name of a file")
        terminal.say("/sats")
        terminal.expect("error: there is no command /sats; the nearest is /stats")
        terminal.say("//slash")
        answer(terminal)
        terminal.say("/help")
        assert "/system -" in terminal.expect("Ctrl-C stops an answer")
        terminal.say("/quit")
        assert terminal.leave() == 0
    messages = json.loads(saved.read_text(encoding="utf-8"))["messages"]
    assert [each["role"] for each in messages] == ["user", "assistant"]
    assert messages[0]["content"] == "Who lives in the wood?"
    assert messages[1]["content"].strip() == second.strip()


def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(chat: Chat) -> None:
    with chat("--ctx", "60000", "-n", "-1", "--logit-bias", "2-inf") as terminal:
        terminal.say("Tell me everything")
        terminal.expect("(?s)Tell me everything\n.{60}")
        terminal.interrupt()
        terminal.expect(r"interrupted\]\n")
        terminal.say("/stats")
        statistics = terminal.expect("seed 1\n")
        assert "; 1 turn;" in statistics
        used = int(re.search(r"context (\d+) of", statistics)[1])
        terminal.say("/regen")
        terminal.expect("(?s)/regen\n.{60}")
        terminal.interrupt()
        terminal.expect(r"interrupted\]\n")
        assert used > 20
        terminal.expect("> $")
        terminal.send("half a line")
        terminal.interrupt()
        terminal.expect("> $")
        terminal.interrupt()
        terminal.expect("Ctrl-D or /quit leaves")
        terminal.expect(r"> \n> $")  # the Enter of `interrupt` is answered too: between two prompts a Ctrl-D is lost
        terminal.send(CTRL_D)
        assert terminal.leave() == 0


def test_several_lines_make_one_message(chat: Chat, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    with chat("-n", "2") as terminal:
        terminal.say("one\\")
        terminal.expect(r"\.\.\. $")
        terminal.send("two\r")
        answer(terminal)
        terminal.say('"""three')
        terminal.expect(r"\.\.\. $")
        terminal.send("/four\\\r")
        terminal.expect(r"\.\.\. $")
        terminal.send('five"""\r')
        answer(terminal)
        terminal.expect("> $")
        terminal.send("\x1b[200~six\nseven\x1b[201~\r")
        answer(terminal)
        terminal.say(f"/save {saved}")
        terminal.expect("saved 3 turns")
    messages = json.loads(saved.read_text(encoding="utf-8"))["messages"]
    assert [each["content"] for each in messages[::2]] == ["one\ntwo", "three\n/four\\\nfive", "six\nseven"]


def test_what_was_typed_comes_back_the_next_time(chat: Chat, tmp_path: Path) -> None:
    with chat("-n", "2") as terminal:
        terminal.say("Where is the café?")
        answer(terminal)
        terminal.expect("> $")
        terminal.send(CTRL_D)
        assert terminal.leave() == 0
    with chat("-n", "2") as terminal:
        terminal.expect("> $")
        terminal.send("\x1b[A\r")
        assert "Where is the café?" in terminal.expect(REMARK)
    history = tmp_path / "cache" / "tinyedge" / "chat-history.jsonl"
    assert history.stat().st_mode & 0o077 == 0
    history.write_text("".join(f'"entry {number}"\n' for number in range(5000)) + "no json\n", encoding="utf-8")
    for _ in range(2):
        with chat("-n", "2") as terminal:
            terminal.say("again")
            answer(terminal)
            terminal.expect("> $")
            terminal.send(CTRL_D)
            assert terminal.leave() == 0
        assert len(history.read_text(encoding="utf-8").splitlines()) <= 1000
        history.write_text("".join(f'"entry {number}"\n' for number in range(5000)), encoding="utf-8")


def test_no_cache_leaves_nothing_behind(chat: Chat, tmp_path: Path) -> None:
    with chat("--no-cache", "--system", LONG_SYSTEM) as terminal:
        terminal.say("Hello")
        answer(terminal)
        terminal.say("/quit")
        assert terminal.leave() == 0
    assert not (tmp_path / "cache").exists()


def test_a_conversation_longer_than_the_context_slides(chat: Chat) -> None:
    with chat("--system", "You tell stories of the sea.", "--logit-bias", "2-inf") as terminal:
        for number in range(7):
            terminal.say(f"Tell me story number {number}")
            terminal.expect(REMARK)
        terminal.say("/stats")
        statistics = terminal.expect("seed 7\n")
        assert re.search(r"7 turns, [3-6] of them no longer in the context", statistics)
        assert re.search(r"was moved [1-9] times?, read anew 0 times", statistics)


def test_what_goes_wrong_in_a_turn_is_one_sentence(chat: Chat, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("mine", encoding="utf-8")
    with chat() as terminal:
        terminal.say("Hello")
        answer(terminal)
        for line, sentence in (
            ("this is forbidden", "error: the chat template of .* not in my house; "),
            ("the sea " * 150, r"error: the message takes \d+ tokens and the context holds 256, .*: \d+ too many; "),
            (f"/save {other}", "error: .* is there and is no conversation that was saved; "),
            (f"/save {tmp_path}/absent/\x16\x01x", "saved 1 turn"),
            ("/save /proc/nothing/x", "error: /proc/nothing/x cannot be written"),
            (f"/load {other}", "error: .* cannot be used: it is not JSON; "),
            ("/load /dev/zero", "error: /dev/zero is no file; "),
            (f"/load {tmp_path}", "error: .* is no file; "),
            ("/lora 1 0.5", "error: there is no adapter; "),
            ("/system forbidden", "error: the chat template of .* not in my house; "),
        ):
            terminal.say(line)
            terminal.expect(sentence)
        terminal.say("Still here?")
        answer(terminal)
        terminal.say("/stats")
        terminal.expect("; 2 turns;")
        assert other.read_text(encoding="utf-8") == "mine"


def test_a_line_that_is_not_utf_8_is_refused_and_the_next_is_answered(chat: Chat, tmp_path: Path) -> None:
    output = tmp_path / "answers.txt"
    with chat(stdout=output) as terminal:  # without readline, which leaves such bytes out
        terminal.expect("> $")
        terminal.send(b"caf\xe9\r")
        terminal.expect("error: the message is not UTF-8 at byte 3; ")
        terminal.say("café")
        terminal.expect(REMARK)
        terminal.expect("> $")
        terminal.send(CTRL_D)
        assert terminal.leave() == 0
    assert output.read_text(encoding="utf-8").strip()


def test_an_adapter_is_switched_between_two_answers(template: Path, tmp_path: Path) -> None:
    model = write(tmp_path / "tiny.gguf", tiny_parts())
    style = write(tmp_path / "style.gguf", lora(model, alpha=40.0))
    options = ("--template", template, "--temp", "0", "-n", "20", "--threads", "1", "--logit-bias", "2-inf")
    with Terminal("chat", model, *options, "--lora", f"{style}:0", cache=tmp_path) as terminal:
        terminal.say("a")
        plain = answer(terminal)
        terminal.say("/lora")
        terminal.expect("1  style.gguf  off\n")
        terminal.say("/lora 1 1")
        terminal.expect("1  style.gguf  scale 1\n")
        terminal.say("/regen")
        assert answer(terminal) != plain
        terminal.say("/lora 1 0")
        terminal.say("/regen")
        assert answer(terminal).endswith(plain)
        for wrong in ("2 1", "1", "x y", "1 nan", "0 1", "1 1e9"):
            terminal.say(f"/lora {wrong}")
            terminal.expect("error: /lora takes the number of an adapter, 1 to 1, and a scale")


def test_the_system_prompt_is_shown_changed_and_removed(chat: Chat) -> None:
    with chat("--system", "Be brief.") as terminal:
        terminal.say("/system")
        terminal.expect("system: Be brief.\n")
        terminal.say("/system Be long.")
        terminal.expect("the system prompt is set")
        terminal.say("/system -")
        terminal.expect("the system prompt is removed")
        terminal.say("/system")
        terminal.expect("there is no system prompt")


@pytest.mark.parametrize("end", ["quit", "terminate", "hang up", "hang up while it answers"])
def test_a_session_is_kept_however_the_chat_ends(chat: Chat, tmp_path: Path, end: str) -> None:
    session = tmp_path / "talk.session"
    endless = ("--session", session, "--ctx", "20000", "--logit-bias", "2-inf")
    with chat(*endless, *(("-n", "-1") if "answers" in end else ())) as terminal:
        terminal.say("Who is there?")
        if end == "hang up while it answers":
            terminal.expect("(?s)there.\n.{60}")
        else:
            terminal.expect(REMARK)
        if end == "quit":
            terminal.say("/quit")
            assert terminal.leave() == 0
        elif end == "terminate":
            terminal.expect("> $")
            terminal.process.terminate()
            assert terminal.leave() == 143
        else:
            time.sleep(0.3)
            terminal.hang_up()
            assert terminal.process.wait(60) in (143, 9)  # 9: it was about to write to the terminal that is gone
    with chat(*endless) as terminal:
        terminal.expect("going on with 1 turn of ")
        terminal.say("And who else?")
        terminal.expect(REMARK)
        terminal.say("/stats")
        statistics = terminal.expect("seed 1\n")
        assert "; 2 turns;" in statistics
        prompt, reused = map(int, re.search(r"prompt (\d+) tokens, (\d+) of them from the cache", statistics).groups())
        assert prompt - reused < 50


def test_a_power_cut_takes_no_answer_away(chat: Chat, tmp_path: Path) -> None:
    session = tmp_path / "talk.session"
    with chat("--session", session) as terminal:
        terminal.say("Who is there?")
        terminal.expect(REMARK)
        terminal.say("And who else?")
        terminal.expect(REMARK)
        terminal.expect("> $")
        terminal.process.kill()
    assert session.stat().st_size < 10_000
    assert session.stat().st_mode & 0o077 == 0
    with chat("--session", session) as terminal:
        terminal.expect("talk.session was saved as text only: the conversation is read again from its text")
        terminal.say("Anybody?")
        terminal.expect(REMARK)
        terminal.say("/stats")
        assert "; 3 turns;" in terminal.expect("seed 1\n")
        terminal.say("/quit")
        assert terminal.leave() == 0
    assert session.stat().st_size > 10_000
    with chat("--session", session) as terminal:
        assert "read again" not in terminal.expect("going on with 3 turns of ")


def test_a_session_that_cannot_be_written_is_one_note(chat: Chat, tmp_path: Path) -> None:
    session = tmp_path / "talk.session"
    with chat("--session", session) as terminal:
        terminal.expect("> $")
        session.write_text("mine", encoding="utf-8")
        terminal.send("Hello\r")
        terminal.expect("the session is not kept so far: .* is there already and is not a session file; ")
        terminal.say("And?")
        assert "not kept" not in terminal.expect(REMARK)
        terminal.say("/quit")
        assert terminal.leave() == 27
    assert session.read_text(encoding="utf-8") == "mine"


def test_a_session_says_when_system_prompt_or_template_are_others_now(
    piped: Callable[..., subprocess.CompletedProcess[bytes]], tmp_path: Path
) -> None:
    session = ("--session", tmp_path / "talk.session")
    other = tmp_path / "other.jinja"
    other.write_text(TEMPLATE + "\n", encoding="utf-8")

    def said(*arguments: str | Path) -> str:
        done = piped(*session, *arguments, stdin=b"Hello\n")
        assert done.returncode == 0
        return done.stderr.decode()

    assert "takes the place" not in said("--system", "Be brief.")
    for arguments, replaced, rendered in (
        (("--system", "Be brief."), 0, 0),
        ((), 0, 0),
        (("--system", "Be long."), 1, 0),
        (("--template", other), 0, 1),
        (("--template", other), 0, 0),
        (("--plain",), 0, 1),
    ):
        told = said(*arguments)
        assert told.count("--system takes the place of the session's system prompt") == replaced, arguments
        assert told.count("was held with another chat template") == rendered, arguments


def test_what_save_wrote_is_no_session_and_the_way_to_read_it_is_said(
    piped: Callable[..., subprocess.CompletedProcess[bytes]], tmp_path: Path
) -> None:
    saved = tmp_path / "talk.json"
    saved.write_text('{"messages": [], "forgotten": 0}', encoding="utf-8")
    done = piped("--session", saved, stdin=b"Hello\n")
    assert done.returncode == 27
    assert "is what /save wrote and not a session file; name another file, and /load this one" in done.stderr.decode()


def test_a_session_of_another_model_is_refused(
    piped: Callable[..., subprocess.CompletedProcess[bytes]], tmp_path: Path
) -> None:
    session = tmp_path / "talk.session"
    assert piped("--session", session, stdin=b"Hello\n").returncode == 0
    other = write(tmp_path / "tiny.gguf", tiny_parts())
    done = piped("--session", session, stdin=b"Hello\n", of=other)
    assert done.returncode == 27
    assert "is a conversation with" in done.stderr.decode()
    no_session = tmp_path / "notes.txt"
    no_session.write_text("mine", encoding="utf-8")
    assert piped("--session", no_session, stdin=b"Hello\n").returncode == 27
    assert no_session.read_text(encoding="utf-8") == "mine"
    assert piped("--session", tmp_path / "absent" / "x", stdin=b"Hello\n").returncode == 9


def test_the_second_start_does_not_read_the_system_prompt(
    piped: Callable[..., subprocess.CompletedProcess[bytes]], tmp_path: Path
) -> None:
    first, second = (piped("--system", LONG_SYSTEM, "--json", stdin=b"Hello\n") for _ in range(2))
    assert list((tmp_path / "cache" / "tinyedge" / "prompts").glob("*.kv"))
    one, other = json.loads(first.stdout), json.loads(second.stdout)
    assert one["text"] == other["text"]
    assert one["reused_tokens"] == 0
    assert one["prompt_tokens"] == other["prompt_tokens"]
    assert one["ttft_s"] >= one["prompt_tokens"] / one["prompt_tokens_per_s"] * 0.99
    without = json.loads(piped("--system", LONG_SYSTEM, "--json", "--no-cache", stdin=b"Hello\n").stdout)
    assert without["reused_tokens"] == 0
    assert other["reused_tokens"] > 100


def test_every_line_of_a_pipe_is_a_message(piped: Callable[..., subprocess.CompletedProcess[bytes]]) -> None:
    done = piped("--json", stdin=b'Hello\n\nbad \xff line\n/help\nthis is forbidden\n"""\nlast')
    assert done.returncode == 15
    values = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert [value.get("exit_code") for value in values] == [None, 15, None, 23, None, None]
    assert [value.get("stop_reason") for value in values if "text" in value] == ["length"] * 4
    assert "line 3 is not UTF-8 at byte 4" in values[1]["error"]
    assert done.stderr.decode().count("error: ") == 2
    plain = piped(stdin=b"Hello\nAnd?\n")
    texts = [value["text"] for value in map(json.loads, piped("--json", stdin=b"Hello\nAnd?\n").stdout.splitlines())]
    assert plain.returncode == 0
    assert plain.stdout.decode() == "\n".join(text if text.endswith("\n") else text + "\n" for text in texts)


def test_an_object_on_a_line_is_a_message_of_several_lines(
    piped: Callable[..., subprocess.CompletedProcess[bytes]], model: Path, tmp_path: Path
) -> None:
    session = tmp_path / "talk.session"
    lines = [
        json.dumps({"content": "one\ntwo"}),
        json.dumps({"role": "user", "content": "three"}),
        '{"no": "content"}',
        "{not json",
        '{"content": 5}',
        '{"role": "system", "content": "x"}',
        '{"content": "\\ud800"}',
    ]
    done = piped("--json", "--session", session, stdin="\n".join(lines).encode())
    values = [json.loads(line) for line in done.stdout.splitlines()]
    assert [value.get("exit_code") for value in values] == [None] * 4 + [15] * 3
    assert "line 5 is an object, but not a message of the user" in values[4]["error"]
    for value in values:
        assert (value["model"], value["threads"], value["context"]) == (str(model), 1, 256)
    assert [value.get("seed") for value in values] == [1, 2, 3, 4, None, None, None]
    with open_state_file(session) as file:
        users = [each["content"] for each in file.text["messages"] if each["role"] == "user"]
    assert users == ["one\ntwo", "three", '{"no": "content"}', "{not json"]


def test_the_help_tells_scripts_what_to_use() -> None:
    done = subprocess.run([COMMAND, "chat", "--help"], capture_output=True, text=True, timeout=60, check=True)
    text = " ".join(done.stdout.split())
    assert "scripts should use --json: one object for each message, with `text`, or with `error` and `exit_code`" in text
    assert 'There a line {"content": "TEXT"} is a message too' in text


def test_without_json_an_object_is_text_and_quiet_says_nothing(
    piped: Callable[..., subprocess.CompletedProcess[bytes]], tmp_path: Path
) -> None:
    session = tmp_path / "talk.session"
    done = piped("--quiet", "--session", session, stdin=b'{"content": "x"}\n')
    assert (done.returncode, done.stderr) == (0, b"")
    with open_state_file(session) as file:
        assert file.text["messages"][0]["content"] == '{"content": "x"}'


def test_a_line_of_megabytes_is_refused_and_the_next_is_answered(
    piped: Callable[..., subprocess.CompletedProcess[bytes]],
) -> None:
    done = piped("--json", stdin=b"sea " * 9_000_000 + b"\nHello\n")
    values = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert done.returncode == 15
    assert "bytes, too many for a context of 256 tokens" in values[0]["error"]
    assert values[1]["generated_tokens"] == 20


def test_a_model_without_a_template_says_so(piped: Callable[..., subprocess.CompletedProcess[bytes]]) -> None:
    done = piped("--plain", stdin=b"Once upon a time\n")
    assert done.returncode == 0
    assert done.stderr.decode().count("has no chat template") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--template", "absent.jinja"], 23, "cannot be read"),
        (["--system", "forbidden"], 23, "not in my house"),
        (["--system", "the sea " * 300], 15, "the system prompt takes"),
        (["--temp", "-1"], 2, "the temperature must be"),
        (["--lora", "absent.gguf"], 2, "there is no adapter file"),
    ],
)
def test_what_cannot_begin_is_refused(
    piped: Callable[..., subprocess.CompletedProcess[bytes]], arguments: list[str], code: int, sentence: str
) -> None:
    done = piped(*(["--plain"] if "--template" in arguments else []), *arguments, stdin=b"Hello\n")
    assert done.returncode == code, done.stderr.decode()
    assert sentence in " ".join(done.stderr.decode().replace("│", " ").split())
    assert done.stdout == b""


def test_json_needs_a_pipe(chat: Chat) -> None:
    with chat("--json") as terminal:
        assert terminal.leave() == 2
        assert "--json is for messages that come from a pipe" in terminal.rest


def test_ctrl_c_ends_a_chat_of_lines_with_130(model: Path, template: Path, tmp_path: Path) -> None:
    command = [COMMAND, "chat", model, "--template", template, "--ctx", "60000", "--logit-bias", "2-inf", "--threads", "1"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"Hello\n")
        process.stdin.flush()
        assert process.stdout.read(30)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in error


def test_a_terminal_gets_no_control_characters_from_the_model(model: Path, template: Path, tmp_path: Path) -> None:
    wild = ["--temp", "100", "--top-k", "0", "--top-p", "1", "--min-p", "0", "-n", "200", "--ctx", "512", "--seed", "3"]
    with Terminal("chat", model, "--template", template, *wild, cache=tmp_path) as terminal:
        terminal.say("Hello")
        shown = terminal.expect(REMARK)
    assert {character for character in shown if ord(character) < 32} <= set("\n\t")
