"""The model class `tinyedge` of lm-evaluation-harness: a GGUF file that answers in this process, many requests at a time.

Texts become tokens, windows and stop strings as in the harness's own class for transformers (lm_eval/models/huggingface.py), so
that scores can be laid beside those of the checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from tinyedge.backends import Request, this_machine, wished_context
from tinyedge.chat.chat_template import ChatTemplate, Message
from tinyedge.errors import EvaluationError, TemplateError
from tinyedge.gguf_split import read_model
from tinyedge.memory import free_memory_bytes, memory_needed, padded_context
from tinyedge.model_facts import describe_model
from tinyedge.model_identity import model_identity
from tinyedge.stops import StopMatcher
from tinyedge_bench.harness.generation import Choice, Continuing, Generator
from tinyedge_bench.quality.likelihood import Continuation, Scorer
from tinyedge_bench.quality.models import open_model
from tinyedge_bench.result_files import build_object

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # in lm_eval's order of precedence
_CHOICES = {"temperature": float, "top_k": int, "top_p": float, "seed": int}
_MOST = {"threads": 512, "batch": 1 << 16}  # more threads make llama.cpp end the process
_CHANGE_UNTIL = "change `until` in the task's generation_kwargs"
_MEANS_NOTHING = ("do_sample", "until", *_LENGTHS, *_CHOICES)
_BACKENDS = {"cpu": "cpu", "cuda": "cuda", "mps": "metal"}  # torch's names of devices, for the harness's --device

logger = logging.getLogger(__name__)


@register_model("tinyedge")
class TinyedgeLM(TemplateLM):  # type: ignore[misc]
    """The GGUF file `pretrained`, checked as `tinyedge run` does before it is loaded.

    `ctx` is the longest text in tokens, by default the trained context up to 8192; `batch` the tokens of one call of
    llama.cpp; `batch_size` how many texts are generated side by side. `device` is the harness's word for `backend`, heeded
    where this machine has such a device: its command line says "cuda:0" of every machine. Raises what `open_model` raises, and
    EvaluationError for an argument without meaning.
    """

    def __init__(
        self,
        pretrained: str | Path | None = None,
        *,
        ctx: int | None = None,
        threads: int | None = None,
        backend: str = "auto",
        gpu_layers: int | None = None,
        batch: int = 512,
        batch_size: int | str = 8,
        max_batch_size: int | None = None,
        max_gen_toks: int = 256,
        device: str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if pretrained is None:
            raise EvaluationError("no model is named", "add pretrained=MODEL.gguf to --model_args")
        if unknown:
            known = "pretrained, ctx, threads, backend, gpu_layers, batch and max_gen_toks"
            raise EvaluationError(f"the model takes no {', '.join(unknown)}", f"--model_args may have {known}")
        given = {"ctx": ctx, "threads": threads, "batch": batch, "max_gen_toks": max_gen_toks, "max_batch_size": max_batch_size}
        for name, value in given.items():
            most = _MOST.get(name, 2**31 - 1)
            if value is not None and not (isinstance(value, int) and 0 < value <= most):
                upto = f"to {most}" if name in _MOST else "on"
                raise EvaluationError(f"{name} is a number from 1 {upto}, not {value!r:.40}", "leave it out of --model_args")
        path = Path(pretrained)
        self._path, self._gguf = path, read_model(path)
        self.max_length: int = ctx or wished_context(describe_model(self._gguf), Request())
        self.max_gen_toks = max_gen_toks
        self.batch_size = _side_by_side(batch_size, max_batch_size)
        self._opened = open_model(
            path,
            threads=threads,
            backend=_backend(device) if backend == "auto" else backend,
            gpu_layers=gpu_layers,
            context=self.max_length,
        )
        self._plan = replace(self._opened.plan, batch=batch)
        self._model = self._opened.model
        self._scorer: Scorer | None = None
        self._chat: ChatTemplate | None = None

    def close(self) -> None:
        """Frees the model. Closing twice is harmless."""
        for part in (self._chat, self._scorer, self._opened):
            if part is not None:
                part.close()

    def __enter__(self) -> TinyedgeLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def eot_token_id(self) -> int:
        return self._special("eos_token_id", "bos_token_id")

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it: BOS, or EOS in a vocabulary without one."""
        return self._special("bos_token_id", "eos_token_id")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The tokens; with BOS where the model wants it, unless the text begins with it or the argument says otherwise."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self._model.token_text(self.prefix_token_id))
        return self._model.tokenize(string, add_special=add_special_tokens)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each text, cut into windows of `max_length` tokens that overlap by one."""
        asked: list[tuple[Any, list[int], list[int]]] = []
        counts: list[int] = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1)
            pairs = [make_disjoint_window(window) for window in windows]
            asked += [(None, context, tokens) for context, tokens in pairs]
            counts.append(len(pairs))
        found = iter(self._loglikelihood_tokens(asked, disable_tqdm=disable_tqdm))
        sums = [sum(next(found)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        if self._scorer is None:
            self._scorer = Scorer(self._model, self._plan, context=self.max_length, batch=self._plan.batch)
        with tqdm(total=len(requests), desc="Running loglikelihood requests", disable=disable_tqdm) as bar:
            found = self._scorer.score(
                [Continuation(tuple(context), tuple(tokens)) for _, context, tokens in requests],
                progress=lambda done, _: bar.update(done - bar.n),
            )
        answers = [(each.logprob, each.greedy) for each in found]
        for (key, _context, _tokens), answer in zip(requests, answers, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, answer)
        return answers

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each text, up to a stop string, a token that ends generation, or `max_gen_toks`."""
        asked = [self._continuing(*request.args) for request in requests]
        answers = [""] * len(requests)
        if not asked:
            return answers
        if self._scorer is not None:  # its cache and the generator's need not both be in memory
            self._scorer.close()
            self._scorer = None
        context = min(self.max_length, max(len(each.tokens) + each.most for each in asked))
        sequences = self._fitting(context, min(self.batch_size, len(asked)))
        with (
            Generator(
                self._model,
                self._plan,
                context=context,
                sequences=sequences,
                strip_space=self._strips_space,
            ) as generator,
            tqdm(total=len(asked), desc="Running generate_until requests", disable=disable_tqdm) as bar,
        ):
            for index, text in generator.texts(asked):
                answers[index] = text
                self.cache_hook.add_partial("generate_until", requests[index].args, text)
                bar.update()
        return answers

    def _fitting(self, context: int, wanted: int) -> int:
        """How many texts of `context` tokens free memory holds side by side, at most `wanted` and at least one."""
        facts, plan = self._opened.facts, self._plan
        free = free_memory_bytes() if plan.backend == "cpu" else plan.device.memory_free
        for count in range(wanted, 1, -1):
            cells = padded_context(context) * count
            need = memory_needed(facts, cells, batch=plan.batch, kv_type=plan.kv_type, outputs=count)
            if need.kv_bytes + need.compute_bytes <= free:
                return count
        return 1

    def _continuing(self, text: str, wishes: dict[str, Any]) -> Continuing:
        """The request in our words. Raises EvaluationError for a wish that cannot be."""
        length = next((name for name in _LENGTHS if wishes.get(name) is not None), None)
        most = self.max_gen_toks if length is None else _number(length, wishes[length], int)
        if not 0 < most < self.max_length:
            raise EvaluationError(
                f"a task asks for {most} tokens and the context has {self.max_length}",
                "take a smaller max_gen_toks (--gen_kwargs) or a larger ctx (--model_args)",
            )
        for name in wishes:
            if name not in _MEANS_NOTHING:
                _say_once(f"generation argument {name!r} is not known here and does nothing")
        until = wishes.get("until") or []
        several = [until] if isinstance(until, str) else until
        if not (isinstance(several, list | tuple) and all(isinstance(stop, str) for stop in several)):
            raise EvaluationError(f"`until` is a text or a list of texts, not {until!r:.40}", _CHANGE_UNTIL)
        stops = [stop for stop in several if stop]
        try:
            StopMatcher(stops)
        except ValueError as error:
            raise EvaluationError(str(error), _CHANGE_UNTIL) from None
        chosen = {name: _number(name, wishes[name], kind) for name, kind in _CHOICES.items() if wishes.get(name) is not None}
        if wishes.get("do_sample") is False:
            chosen["temperature"] = 0.0
        elif wishes.get("do_sample"):
            chosen.setdefault("temperature", 1.0)  # as transformers
        tokens = self.tok_encode(text) or [self.prefix_token_id]
        return Continuing(tokens=tuple(tokens), most=most, stops=tuple(stops), choice=Choice(**chosen))

    @property
    def tokenizer_name(self) -> str:
        """A name that no other model has, for the harness's cache of requests."""
        return f"tinyedge-{model_identity(self._path).fingerprint[:16]}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source; a name other than True cannot choose among several, since a GGUF file has one."""
        return None if chat_template in (False, None) else self._template.source

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation; without `add_generation_prompt` it ends with the last message, to be gone on with."""
        messages = [Message(each["role"], each["content"]) for each in chat_history]
        text = self._template.render(messages, add_generation_prompt)
        if not add_generation_prompt and messages:
            last = messages[-1].content.strip()
            place = text.rfind(last)
            if place < 0:
                raise TemplateError("the chat template changes the last message, so that it cannot be gone on with")
            text = text[: place + len(last)]
        return text

    @property
    def _template(self) -> ChatTemplate:
        if self._chat is None:
            self._chat = ChatTemplate.of_model(self._gguf)
        if self._chat is None:
            raise TemplateError(f"{self._path.name} has no chat template", "leave --apply_chat_template out")
        return self._chat

    def get_model_info(self) -> dict[str, Any]:
        """What the harness keeps beside the results."""
        facts, plan = self._opened.facts, self._opened.plan
        return {
            "model_num_parameters": facts.parameters,
            "model_dtype": facts.file_type,
            "model_sha": model_identity(self._path).fingerprint,
            "tinyedge": {**build_object(), "backend": plan.backend, "threads": plan.threads, "context": self.max_length},
        }

    def _special(self, *names: str) -> int:
        """The first of these tokens that the vocabulary has."""
        for name in names:
            token = self._gguf.metadata.get(f"tokenizer.ggml.{name}")
            if isinstance(token, int) and 0 <= token < self._model.vocabulary_size:
                return token
        raise EvaluationError(f"{self._path.name} names no BOS and no EOS token", "give a model whose vocabulary has them")

    @property
    def _strips_space(self) -> bool:
        """Whether transformers drops the space that an answer begins with: it does for SentencePiece vocabularies."""
        metadata = self._gguf.metadata
        return metadata.get("tokenizer.ggml.model") == "llama" and metadata.get("tokenizer.ggml.add_space_prefix", True) is True


_said: set[str] = set()


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        logger.warning(text)


def _number(name: str, value: Any, kind: type[Any]) -> Any:
    """The wish `name` as an int or a float from 0 on. Raises EvaluationError for what is neither."""
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if not 0 <= number < 2**63:
        raise EvaluationError(f"a task asks for {name} {value!r:.40}, not a number from 0 on", "change it (--gen_kwargs)")
    return number


def _backend(device: str | None) -> str:
    """The word of the backend that torch's name `device` stands for; `auto` where this machine has no such device."""
    word = _BACKENDS.get(str(device).split(":")[0])
    return word if word is not None and any(each.kind == word for each in this_machine().devices) else "auto"


def _side_by_side(batch_size: int | str, most: int | None) -> int:
    """The number that the harness's --batch_size stands for; `auto`, in whatever form, is 8."""
    text = str(batch_size)
    count = 8 if text.startswith("auto") else int(text) if text.isdecimal() else 0
    if not 0 < count <= 256:
        raise EvaluationError(f"batch_size is a number of texts from 1 to 256 or auto, not {text[:40]}", "leave it out")
    return min(count, most or count)
