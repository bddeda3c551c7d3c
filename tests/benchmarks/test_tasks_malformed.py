"""A task file from a stranger is refused with its line, and never does more than be read."""

from __future__ import annotations

import json
import os
import random
import re
import time
from pathlib import Path

import pytest
from task_files import ARC, BOOLQ, HELLASWAG, PIQA, PUBLISHED, WINOGRANDE, Json, write_lines, write_mmlu, write_published

from tinyedge.errors import TaskFileError
from tinyedge_bench.quality.tasks import read_task, rows


def refusal(argument: str) -> str:
    with pytest.raises(TaskFileError) as caught:
        read_task(argument)
    assert "\n" not in str(caught.value)
    return caught.value.problem


ARC_CHOICES = {"question": {"stem": "x", "choices": [1, 2]}}
ARC_LABELS = {"choices": {"text": ["a", "b"], "label": ["A", "B", "C"]}, "question": "x"}
WRONG = [
    ("hellaswag", HELLASWAG[0], {"label": 9}, 'x.jsonl line 2: "label" is 9, of 4 endings'),
    ("hellaswag", HELLASWAG[0], {"label": -1}, 'x.jsonl line 2: "label" is -1, of 4 endings'),
    ("hellaswag", HELLASWAG[0], {"label": 1.0}, 'x.jsonl line 2: "label" is 1.0, not a number'),
    ("hellaswag", HELLASWAG[0], {"label": True}, 'x.jsonl line 2: "label" is True, not a number'),
    ("hellaswag", HELLASWAG[0], {"label": "two"}, "x.jsonl line 2: \"label\" is 'two', not a number"),
    ("hellaswag", HELLASWAG[0], {"label": ""}, 'x.jsonl line 2: "label" is missing'),
    ("hellaswag", HELLASWAG[0], {"label": 10**400}, 'x.jsonl line 2: "label" is far too large, of 4 endings'),
    ("hellaswag", HELLASWAG[0], {"endings": "abcd"}, 'x.jsonl line 2: "endings" is no list of 2 to 26 texts'),
    ("hellaswag", HELLASWAG[0], {"endings": ["a"] * 1000}, 'x.jsonl line 2: "endings" is no list of 2 to 26 texts'),
    ("hellaswag", HELLASWAG[0], {"endings": ["a", 5, "b", "c"]}, 'x.jsonl line 2: "endings" is no text'),
    ("hellaswag", HELLASWAG[0], {"ctx_a": None}, 'x.jsonl line 2: "ctx_a" is no text'),
    ("winogrande", WINOGRANDE[0], {"answer": "3"}, 'x.jsonl line 2: "answer" is 3, of 2 options'),
    ("winogrande", WINOGRANDE[0], {"sentence": "no gap"}, 'x.jsonl line 2: "sentence" has no gap (_), or nothing behind it'),
    ("winogrande", WINOGRANDE[0], {"option1": " "}, 'x.jsonl line 2: "option1" is empty'),
    ("arc_easy", ARC[0], {"answerKey": "E"}, "x.jsonl line 2: \"answerKey\" is 'E', of the labels 'A, B, C, D'"),
    ("arc_easy", ARC[0], {"question": {"stem": "x"}}, 'x.jsonl line 2: "choices" is missing'),
    ("arc_easy", ARC[0], ARC_CHOICES, 'x.jsonl line 2: "choices" holds something that is no object'),
    ("arc_easy", ARC[0], ARC_LABELS, 'x.jsonl line 2: "choices" has 2 texts and 3 labels'),
    ("piqa", PIQA[0], {"label": 2}, 'x.jsonl line 2: "label" is 2, of 2 solutions'),
    ("boolq", BOOLQ[0], {"answer": "yes"}, "x.jsonl line 2: \"answer\" is 'yes', not a number"),
    ("boolq", BOOLQ[0], {"passage": "\ud800"}, 'x.jsonl line 2: "passage" holds half of a character (a lone surrogate)'),
    ("boolq", BOOLQ[0], {"passage": "x" * 200_000}, 'x.jsonl line 2: "passage" has 200000 characters, more than 131072'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "change", "problem"), WRONG)
def test_a_wrong_field_is_named_with_its_line(name: str, row: Json, change: Json, problem: str, tmp_path: Path) -> None:
    right = json.dumps(row | ({"label": 0} if name == "piqa" else {}))
    (tmp_path / "x.jsonl").write_text(f"{right}\n{json.dumps(row | change)}\n")
    assert refusal(f"{name}={tmp_path / 'x.jsonl'}") == problem


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_field_is_missed(name: str, tmp_path: Path) -> None:
    needless = {"ind", "ctx", "split", "split_type", "source_id", "qID", "id", "title"}
    whole = PUBLISHED[name][0] | ({"label": 0} if name == "piqa" else {})
    for field in whole.keys() - needless:
        row = {key: value for key, value in whole.items() if key != field}
        assert refusal(f"{name}={write_lines(tmp_path / 'x.jsonl', [row])}") == f'x.jsonl line 1: "{field}" is missing'


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "x.jsonl holds no questions"),
        (b"\n \n", "x.jsonl holds no questions"),
        (b'{"goal": 1', "x.jsonl line 1: not JSON"),
        (b"\n[]", "x.jsonl line 2: no JSON object"),
        (b"[" * 100_000, "x.jsonl line 1: not JSON"),
        (b'{"goal": ' + b"[" * 100_000, "x.jsonl line 1: not JSON"),
        (b'{"goal": ' + b"9" * 10_000 + b"}", "x.jsonl line 1: not JSON"),
        (b'{"goal": "\xff"}', "x.jsonl line 1: not UTF-8"),
        (b"\x80\x04cos\nsystem\n", "x.jsonl line 1: not UTF-8"),
    ],
)
def test_what_is_not_json_lines(content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    assert refusal(f"piqa={tmp_path / 'x.jsonl'}") == problem


def test_labels_must_be_as_many_as_questions(tmp_path: Path) -> None:
    path = write_published(tmp_path, "piqa")
    labels = path.with_name("piqa-labels.lst")
    labels.write_text("0\n1\n")
    assert refusal(f"piqa={path}") == "piqa.jsonl line 3: its file of labels has only 2"
    labels.write_text("0\n1\n1\n0\n")
    assert refusal(f"piqa={path}") == "piqa.jsonl has 3 questions and its file of labels 4"
    labels.write_text("0\n1\n7\n")
    assert refusal(f"piqa={path}") == 'piqa.jsonl line 3: "label" is 7, of 2 solutions'
    labels.unlink()
    assert refusal(f"piqa={path}") == 'piqa.jsonl line 1: "label" is missing'


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ("one,two\n", "line 1: 2 columns, not 6"),
        ("q,a,b,c,d,E\n", "line 1: the answer is 'E', not one of A, B, C, D"),
        ('q,a,b,c,d,A\n"x\ny",a,b,c,d\n', "line 3: 5 columns, not 6"),
        (",a,b,c,d,A\n", 'line 1: "column 1" is empty'),
        (f'"{"x" * 200_000}",a,b,c,d,A\n', "line 1: not CSV (field larger than field limit (131072))"),
    ],
)
def test_wrong_records_of_mmlu(record: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "x_test.csv"
    path.write_text(record)
    assert refusal(f"mmlu={path}") == f"x_test.csv {problem}"


def test_llama_cpps_text_must_be_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("ctx\n1\na\nb\nc\nd\nctx\n1\n")
    assert refusal(f"hellaswag={path}") == "x.txt line 7: 2 lines, where a question has 6"
    path.write_text("ctx\n4\na\nb\nc\nd\n")
    assert refusal(f"hellaswag={path}") == 'x.txt line 2: "label" is 4, of 4 endings'


def test_what_is_no_file_of_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal("trivia=x.jsonl") == "there is no task 'trivia'"
    assert refusal(str(tmp_path / "none.jsonl")).startswith("cannot read ")
    assert refusal(f"piqa={tmp_path}") == f"{tmp_path.name} is a folder"
    assert refusal(str(tmp_path)) == f"{tmp_path.name} has no test/*_test.csv, which a folder of MMLU has"
    (tmp_path / "notes.txt").write_text("buy milk\n")
    assert refusal(str(tmp_path / "notes.txt")) == "notes.txt is not in the format of any task we know"
    assert (
        refusal(str(write_lines(tmp_path / "x.jsonl", [{"text": "y"}]))) == "x.jsonl is not in the format of any task we know"
    )
    os.mkfifo(tmp_path / "pipe")
    assert refusal(f"piqa={tmp_path / 'pipe'}") == "pipe is no file"
    monkeypatch.setattr(rows, "MOST_BYTES", 3)
    assert refusal(str(tmp_path / "notes.txt")) == "notes.txt is larger than any task (9 bytes)"


def test_unclosed_brackets_cost_no_time(tmp_path: Path) -> None:
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choice("a[]\n [") for _ in range(30))
        row = HELLASWAG[0] | {"endings": [text, "b"], "label": 0}
        (question,) = read_task(f"hellaswag={write_lines(tmp_path / 'x.jsonl', [row])}").questions
        assert question.pairs[0][1] == " " + re.sub(r"\[.*?\]", "", text.strip()).replace("  ", " ")
    row = HELLASWAG[0] | {"endings": ["[" * 100_000] * 20, "label": 0}
    started = time.process_time()
    read_task(f"hellaswag={write_lines(tmp_path / 'x.jsonl', [row])}")
    assert time.process_time() - started < 2  # quadratic: minutes


def test_names_of_files_may_hold_commas_and_equals_signs(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a=b,c.jsonl", ARC)
    assert read_task(str(path)).name == read_task(f"arc_easy={path}").name == "arc_easy"
    folder = write_mmlu(tmp_path / "d,e")
    assert len(read_task(f"mmlu={folder}").questions) == 5
