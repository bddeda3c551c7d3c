"""Names of the hub's models: what they mean, and which file of a repository they pick."""

from __future__ import annotations

import pytest

from tinyedge.errors import HubError
from tinyedge.hub.names import (
    ModelName,
    choose_file,
    is_safe_file,
    known_models,
    nearest_names,
    parse_name,
    type_in_name,
)

REPO = "org/Model-GGUF"


def test_every_row_of_the_table_can_be_asked_for() -> None:
    names = [name for row in known_models() for name in (row.name, *row.aliases)]
    assert len(set(names)) == len(names)
    for row in known_models():
        assert row.licence
        assert 0 < row.parameters < 5
        assert row.file is None or row.file.endswith(".gguf")
        for name in (row.name, *row.aliases):
            assert parse_name(name) == ModelName(row.repo, row.file, None, row)
            assert parse_name(name.upper()) == parse_name(name)
        assert parse_name(row.repo) == ModelName(row.repo, None, None, row)


@pytest.mark.parametrize(
    ("text", "repo", "file", "kind"),
    [
        ("org/Model-GGUF", REPO, None, None),
        ("org/Model-GGUF:q5_k_m", REPO, None, "Q5_K_M"),
        ("org/Model-GGUF:fp16", REPO, None, "F16"),
        ("org/Model-GGUF:sub/x.Q4_0.gguf", REPO, "sub/x.Q4_0.gguf", None),
        ("org/Model-GGUF/sub/x.gguf", REPO, "sub/x.gguf", None),
        ("https://huggingface.co/org/Model-GGUF", REPO, None, None),
        ("https://huggingface.co/org/Model-GGUF/", REPO, None, None),
        ("https://huggingface.co/org/Model-GGUF/resolve/main/x%20y.gguf?download=true", REPO, "x y.gguf", None),
        ("https://huggingface.co/org/Model-GGUF/blob/main/sub/x.gguf", REPO, "sub/x.gguf", None),
        ("https://huggingface.co/org/Model-GGUF/tree/main", REPO, None, None),
        ("hf.co/org/Model-GGUF:Q4_0", REPO, None, "Q4_0"),
        ("hf://org/Model-GGUF/x.gguf", REPO, "x.gguf", None),
    ],
)
def test_a_name_is_taken_apart(text: str, repo: str, file: str | None, kind: str | None) -> None:
    assert parse_name(text) == ModelName(repo, file, kind)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "org",
            "org/",
            "/org/name",
            "org/name:",
            "a/b/c",
            "../name",
            "./name",
            "~/name",
            "org/..",
            "org/a--b",
            "org/a..b",
        ),
        *("org/model.gguf", "https://example.org/a/b/c", "org/na me", "org/name\n", "o" * 97 + "/n", "x" * 1000, "org\\name"),
    ],
)
def test_other_text_is_no_name(text: str) -> None:
    assert parse_name(text) is None


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-0.5b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("SmolLM3-Q4_K_M.gguf", "Q4_K_M"),
        ("Qwen3-0.6B-Q8_0.gguf", "Q8_0"),
        ("Phi-3-mini-4k-instruct-q4.gguf", "Q4"),
        ("Phi-3-mini-4k-instruct-fp16.gguf", "F16"),
        ("gemma-3-270m-it-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("model-IQ4_XS.gguf", "IQ4_XS"),
        ("Q5_K_M/model-Q4_K_M-00001-of-00002.gguf", "Q4_K_M"),
        ("model.i1-Q4_0_4_4.gguf", "Q4_0_4_4"),
        ("ggml-model-bf16.gguf", "BF16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("tinyllama-1.1b-chat-v1.0-Q4_K_M-by-somebody.gguf", "Q4_K_M"),
        ("model.gguf", None),
        ("qwen.gguf", None),
    ],
)
def test_the_type_is_read_off_published_file_names(file: str, kind: str | None) -> None:
    assert type_in_name(file) == kind


def _choose(text: str, *files: str) -> str:
    name = parse_name(text)
    assert name is not None
    return choose_file(name, files, lambda file: file)


def test_the_type_that_was_asked_for_is_taken() -> None:
    files = ("m-Q2_K.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "README.md")
    assert _choose(REPO, *files) == "m-Q4_K_M.gguf"
    assert _choose(f"{REPO}:q8_0", *files) == "m-Q8_0.gguf"
    assert _choose(f"{REPO}:M-q2_k.gguf", *files) == "m-Q2_K.gguf"
    assert _choose("qwen3-0.6b", *files) == "m-Q8_0.gguf"


def test_without_q4_k_m_the_nearest_type_is_taken() -> None:
    assert _choose(REPO, "m-Q2_K.gguf", "m-Q8_0.gguf", "m-Q4_0.gguf") == "m-Q4_0.gguf"
    assert _choose(REPO, "m-F16.gguf", "m-Q8_0.gguf") == "m-Q8_0.gguf"
    assert _choose(REPO, "anything.gguf") == "anything.gguf"


def test_pictures_and_importance_matrices_are_no_models() -> None:
    assert _choose(REPO, "mmproj-model-f16.gguf", "imatrix.gguf", "m-Q8_0.gguf", "m.imatrix.gguf") == "m-Q8_0.gguf"


@pytest.mark.parametrize(
    ("text", "files", "problem"),
    [
        (f"{REPO}:Q5_0", ("m-Q4_K_M.gguf", "m-Q8_0.gguf"), "no file of type Q5_0.*there are whole files of Q4_K_M, Q8_0"),
        (f"{REPO}:m-Q4_K.gguf", ("m-Q4_K_M.gguf", "other.gguf"), r"no file m-Q4_K.gguf; take m-Q4_K_M.gguf"),
        (REPO, ("model.safetensors",), "has no GGUF file.*quantize"),
        (REPO, ("a.gguf", "b.gguf"), "names give no type.*there are a.gguf, b.gguf"),
        (REPO, ("a-Q4_K_M.gguf", "b-Q4_K_M.gguf"), "2 files of type Q4_K_M; name one: org/Model-GGUF:FILE.*a-Q4_K_M.gguf"),
        (
            REPO,
            ("m-Q4_K_M-00001-of-00002.gguf", "m-Q4_K_M-00002-of-00002.gguf"),
            "split into several files.*another repository",
        ),
        (
            f"{REPO}:F16",
            ("m-F16-00001-of-00002.gguf", "m-F16-00002-of-00002.gguf", "m-Q4_0.gguf"),
            "F16 of org/Model-GGUF is split into several files.*whole files of Q4_0",
        ),
        (f"{REPO}:m-00001-of-00002.gguf", ("m-00001-of-00002.gguf", "m-Q8_0.gguf"), "piece of a split model.*Q8_0"),
        (f"{REPO}:../evil.gguf", ("../evil.gguf", "m-Q8_0.gguf"), r"no file \.\./evil\.gguf"),
    ],
)
def test_what_cannot_be_taken_says_what_there_is(text: str, files: tuple[str, ...], problem: str) -> None:
    with pytest.raises(HubError, match=problem):
        _choose(text, *files)


@pytest.mark.parametrize(
    "file",
    [
        *("", "/etc/x.gguf", "../x.gguf", "a/../../x.gguf", "a//x.gguf", "./x.gguf", "a\\..\\x.gguf", "C:x.gguf", "a\0.gguf"),
        *("a\n.gguf", "\x1b[2J.gguf", "\u202egguf.x.gguf", "x" * 300 + ".gguf", "a/" * 400 + "x.gguf", "é" * 150 + ".gguf"),
    ],
)
def test_a_file_name_that_could_leave_its_folder_is_never_used(file: str) -> None:
    assert not is_safe_file(file)


def test_a_misspelt_short_name_finds_its_like() -> None:
    assert nearest_names("tinylama")[0] == "tinyllama"
    assert "qwen2.5-0.5b" in nearest_names("qwen-2.5-0.5b")
    assert nearest_names("zzzzzz") == [row.name for row in known_models()]
