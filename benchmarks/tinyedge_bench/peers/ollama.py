"""Ollama, through the API of its server.

The same file becomes a model of the server's for the time of the run: uploaded, and removed at the end. A sample is a warm-up
request, which loads the model and reads a prompt as long as the case's, and a second request with a fresh prompt; the model
is unloaded after it, so that its memory is free while the others are measured. What counts are the durations that the server
gives: `prompt_eval_duration` for a prompt, `eval_duration` for generation. They include taking the most likely token and, for
a prompt, tokenizing; not the request itself. The server counts the token that ends the prompt's processing as generated and
starts that clock after it (runner/llamarunner/runner.go, `processBatch`), so n + 1 tokens are asked for to time n of them.

Prompts are random words that are one token each, since the API takes text; the first word is another one in every request,
so that no prompt is answered from the server's cache. The API has no option to go on after an end-of-text token: when the
model ends early, the time per token is taken from those that came, and `notes` says so. Flash attention is as the server was
started with (OLLAMA_FLASH_ATTENTION).
"""

from __future__ import annotations

import hashlib
import os
import random
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyedge.errors import PeerError
from tinyedge.model_facts import ModelFacts
from tinyedge.native.model import Model
from tinyedge_bench.peers.ollama_server import OllamaServer, configured_server
from tinyedge_bench.peers.peer import no_value, patience_s, quoted
from tinyedge_bench.speed.cases import Case

NAME = "ollama"
_SHORT_S = 30.0
_ATTEMPTS = 3
_WORDS = 64
_DRAWS = 20_000
_REMEDY = "leave --peer ollama out"
_ALL_LAYERS = 999


def open_peer(value: str, model: Path, facts: ModelFacts) -> Ollama:
    """The server that OLLAMA_HOST names; it takes no value. Raises PeerError."""
    no_value(NAME, value)
    return Ollama(configured_server(), model, facts)


class Ollama:
    """A server that is given the GGUF file `model`, at once. Raises PeerError."""

    name = NAME

    def __init__(self, server: OllamaServer, model: Path, facts: ModelFacts) -> None:
        self._server = server
        self._facts = facts
        self._model = f"tinyedge-bench-{os.getpid()}-{secrets.token_hex(4)}"
        self._is_there = False
        self._requests = 0
        self._draw = random.Random(0)
        self._notes = () if server.is_here else (f"ollama ran at {quoted(server.host)}, which may be another machine",)
        self.version = quoted(str(server.ask("GET", "/api/version", None, _SHORT_S).get("version", "unknown")))
        self._words, self._beginning = _single_token_words(model)
        try:
            self._create(model)
        except BaseException:
            self.close()
            raise

    @property
    def notes(self) -> Sequence[str]:
        return self._notes

    def supports(self, case: Case) -> str | None:
        if case.sequences > 1:
            return "ollama is measured with one sequence only"
        if case.kv_type != "F16":
            return "ollama takes the type of its KV cache when its server starts, not from a request"
        if case.prompt and case.depth:
            return "ollama cannot be asked to fill its cache before a prompt that is timed"
        return None

    def sample(self, case: Case) -> float:
        try:
            self._generate(case, case.prompt or 1, 1)
            answer = self._longest(case)
            self._check_device(case)
        finally:
            self._unload()
        prompt_s = self._prompt_seconds(case, answer) if case.prompt else 0.0
        return prompt_s + (self._generation_seconds(case, answer) if case.generate else 0.0)

    def close(self) -> None:
        if not self._is_there:
            return
        self._is_there = False
        try:
            gone = self._server.status("DELETE", "/api/delete", {"model": self._model}, _SHORT_S) in (200, 404)
        except PeerError:
            gone = False
        if not gone:
            self._note(f"ollama could not be told to remove what it was given: ollama rm {self._model}")

    def _create(self, model: Path) -> None:
        digest = _digest(model)
        size = model.stat().st_size
        patience = patience_s(size)
        if self._server.status("HEAD", f"/api/blobs/{digest}", None, _SHORT_S) != 200:
            with model.open("rb") as file:
                self._server.upload(f"/api/blobs/{digest}", file, size, patience)
        self._is_there = True
        question = {"model": self._model, "files": {"model.gguf": digest}, "stream": False}
        answer = self._server.ask("POST", "/api/create", question, patience)
        if answer.get("status") != "success":
            raise PeerError(f"ollama did not make a model of the file: {quoted(str(answer.get('status')))}", _REMEDY)

    def _longest(self, case: Case) -> dict[str, Any]:
        """The answer with all tokens, or of a few attempts the one with most."""
        answers = []
        for _ in range(_ATTEMPTS):
            answers.append(self._generate(case, case.prompt or case.depth or 1, case.generate + 1))
            if _count(answers[-1], "eval_count") > case.generate:
                break
        return max(answers, key=lambda answer: _count(answer, "eval_count"))

    def _generate(self, case: Case, prompt: int, count: int) -> dict[str, Any]:
        options = {
            "num_ctx": case.positions + 8,
            "num_predict": count,
            "num_thread": case.threads,
            "num_gpu": 0 if case.backend == "cpu" else _ALL_LAYERS,
            "temperature": 0,
            "repeat_penalty": 1.0,
            "seed": 0,
        }
        question = {"model": self._model, "prompt": self._prompt(prompt), "raw": True, "stream": False, "options": options}
        tokens = case.positions + case.prompt + 2
        return self._server.ask("POST", "/api/generate", question, patience_s(self._facts.weight_bytes, tokens))

    def _prompt(self, tokens: int) -> str:
        """Words of that many tokens, BOS counted; at least one."""
        first = self._words[self._requests % len(self._words)]
        self._requests += 1
        return " ".join([first, *self._draw.choices(self._words, k=max(0, tokens - self._beginning - 1))])

    def _unload(self) -> None:
        question = {"model": self._model, "keep_alive": 0, "stream": False}
        try:
            unloaded = self._server.status("POST", "/api/generate", question, _SHORT_S) == 200
        except PeerError:
            unloaded = False
        if not unloaded:
            self._note("ollama did not unload its model after a run, so the others had less memory")

    def _check_device(self, case: Case) -> None:
        """Raises PeerError when a GPU was asked for and the server did without."""
        if case.backend == "cpu":
            return
        running = self._server.ask("GET", "/api/ps", None, _SHORT_S).get("models")
        for each in running if isinstance(running, list) else []:
            if isinstance(each, dict) and str(each.get("name", "")).startswith(self._model) and each.get("size_vram") == 0:
                raise PeerError("ollama ran the model on the CPU", "measure it with --backend cpu, or leave --peer ollama out")

    def _prompt_seconds(self, case: Case, answer: dict[str, Any]) -> float:
        count = _count(answer, "prompt_eval_count")
        if count < 1:
            raise PeerError("ollama did not say how many tokens of the prompt it read", _REMEDY)
        if count != case.prompt:
            self._note(f"ollama read {count} tokens for a prompt of {case.prompt}; its time is scaled to {case.prompt}")
        return _seconds(answer, "prompt_eval_duration") * case.prompt / count

    def _generation_seconds(self, case: Case, answer: dict[str, Any]) -> float:
        timed = _count(answer, "eval_count") - 1
        if timed < 1:
            raise PeerError(f"ollama's model ended its text at once in {_ATTEMPTS} attempts", _REMEDY)
        if timed != case.generate:
            self._note(f"ollama's model ended after fewer tokens than {case.generate}; time per token is that of those")
        return _seconds(answer, "eval_duration") * case.generate / timed

    def _note(self, sentence: str) -> None:
        if sentence not in self._notes:
            self._notes = (*self._notes, sentence)


def _count(answer: dict[str, Any], key: str) -> int:
    value = answer.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31 else 0


def _seconds(answer: dict[str, Any], key: str) -> float:
    value = answer.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 10**15:
        raise PeerError(f"ollama gave no {key}", _REMEDY)
    return value / 1e9


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def _single_token_words(path: Path) -> tuple[list[str], int]:
    """Words of the vocabulary that are one token each wherever they stand in a text, and how many tokens come before."""
    model = Model(path)
    try:
        draw = random.Random(0)
        words: dict[str, None] = {}
        for _ in range(_DRAWS):
            piece = model.piece(draw.randrange(model.vocabulary_size)).decode("ascii", "replace")
            word = piece[1:]
            if piece[:1] == " " and word.isascii() and word.isalpha() and _is_one_token(model, word):
                words[word] = None
            if len(words) == _WORDS:
                break
        if len(words) < 2:
            raise PeerError("the vocabulary has no words to make prompts for ollama of", _REMEDY)
        return list(words), len(model.tokenize(next(iter(words)))) - 1
    finally:
        model.close()


def _is_one_token(model: Model, word: str) -> bool:
    """First in a text, between others, and last."""
    alone, three = (len(model.tokenize(text, add_special=False)) for text in (word, f"{word} {word} {word}"))
    return (alone, three) == (1, 3)
