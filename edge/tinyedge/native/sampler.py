"""llama.cpp's sampler chain, and the grammar that stands beside it.

A grammar is costly to apply to a whole vocabulary, so the token is drawn without it first and only that token checked;
when it is refused, the grammar is applied to all candidates and one is drawn anew (`common_sampler_sample` in
common/sampling.cpp does the same).
"""

from __future__ import annotations

import codecs
import ctypes
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tinyedge.errors import GrammarError, NativeError
from tinyedge.native import library, log
from tinyedge.native.handle import Handle, freeing
from tinyedge.sampling import Sampling

if TYPE_CHECKING:
    from tinyedge.native.context import Context
    from tinyedge.native.model import Model

_MIN_KEEP = 0  # tokens that a step must leave; llama.cpp's own default
_MIROSTAT_TOKENS = 100  # m in the paper; common/sampling.cpp gives the same number
_SMALLEST_DIVISOR = 1e-30  # what float32 logits can be divided by and stay finite
_LONGEST_TOKEN_BYTES = 1024  # the grammar recurses once for each character of a token, 300 bytes of stack or so


class Sampler(Handle):
    """Draws the next token from logits: llama.cpp's chain in its usual order, kept to a grammar when there is one.

    The same seed gives the same draws. Raises ValueError for a logit bias outside the vocabulary, GrammarError when the
    grammar is wrong or cannot be followed by this model.
    """

    def __init__(self, model: Model, sampling: Sampling) -> None:
        self._llama: ModuleType = library.ready()
        self._pointer: Any = None
        self.grammar: Any = None
        self._model = model
        self._vocabulary = self._llama.llama_model_get_vocab(model.pointer)
        self.sampling = sampling
        self._candidates: Candidates | None = None
        self._open_character = b""  # bytes of a character that the next tokens complete
        sampling.check_vocabulary(model.vocabulary_size)
        with freeing(self):
            self._pointer = self._llama.llama_sampler_chain_init(self._llama.llama_sampler_chain_default_params())
            for part in self._parts():
                self._llama.llama_sampler_chain_add(self._pointer, part)
            if sampling.grammar is not None:
                self.grammar = self._grammar_of(sampling.grammar)

    def close(self) -> None:
        pointers = (self._pointer, self.grammar)
        self._pointer = self.grammar = None
        for pointer in pointers:
            if pointer:
                self._llama.llama_sampler_free(pointer)

    @property
    def names(self) -> tuple[str, ...]:
        """The steps of the chain by llama.cpp's names; one that does nothing begins with a question mark."""
        chain, llama = self.chain, self._llama
        parts = (llama.llama_sampler_chain_get(chain, index) for index in range(llama.llama_sampler_chain_n(chain)))
        return tuple(llama.llama_sampler_name(part).decode() for part in parts)

    def accept(self, token: int) -> None:
        """Tells the penalties of a token that was not drawn here, such as one of the prompt. The grammar is not concerned."""
        self._llama.llama_sampler_accept(self.chain, token)

    def sample(self, context: Context, row: int = -1) -> int:
        """The next token, drawn from a row of the logits of the last decode, and accepted.

        Raises GrammarError when no token of the model continues the text as the grammar wants.
        """
        if self.grammar is None:
            token: int = self._llama.llama_sampler_sample(self.chain, context.pointer, row)
            return token
        return self._sample_with_grammar(context.logits(row))

    @property
    def chain(self) -> Any:
        if not self._pointer:
            raise NativeError("the sampler is closed already")
        _ = self._model.pointer  # some steps look into the model's vocabulary
        return self._pointer

    def _parts(self) -> list[Any]:
        sampling, llama = self.sampling, self._llama
        vocabulary_size = self._model.vocabulary_size
        parts = self._biases()
        temperature = sampling.temperature and max(sampling.temperature, _SMALLEST_DIVISOR)
        if sampling.mirostat:
            rule = (sampling.seed, sampling.mirostat_tau, sampling.mirostat_eta)
            parts.append(llama.llama_sampler_init_temp(temperature))
            if sampling.mirostat == 1:
                parts.append(llama.llama_sampler_init_mirostat(vocabulary_size, *rule, _MIROSTAT_TOKENS))
            else:
                parts.append(llama.llama_sampler_init_mirostat_v2(*rule))
            return parts
        makers: dict[str, Callable[[], Any]] = {
            "penalties": self._penalties,
            "dry": self._dry,
            "top_n_sigma": lambda: llama.llama_sampler_init_top_n_sigma(sampling.top_n_sigma),
            "top_k": lambda: llama.llama_sampler_init_top_k(sampling.top_k),
            "typ_p": lambda: llama.llama_sampler_init_typical(sampling.typical_p, _MIN_KEEP),
            "top_p": lambda: llama.llama_sampler_init_top_p(sampling.top_p, _MIN_KEEP),
            "min_p": lambda: llama.llama_sampler_init_min_p(sampling.min_p, _MIN_KEEP),
            "xtc": lambda: llama.llama_sampler_init_xtc(
                sampling.xtc_probability, sampling.xtc_threshold, _MIN_KEEP, sampling.seed
            ),
            "temperature": lambda: llama.llama_sampler_init_temp_ext(
                temperature, sampling.dynatemp_range, sampling.dynatemp_exponent
            ),
        }
        if sampling.greedy:  # the steps that only remove unlikely tokens, and the sorting they need, are left out
            return [*parts, makers["penalties"](), makers["dry"](), llama.llama_sampler_init_greedy()]
        return [*parts, *(makers[name]() for name in sampling.samplers), llama.llama_sampler_init_dist(sampling.seed)]

    def _biases(self) -> list[Any]:
        """The user's biases and the tokens that the model's file forbids, as one step; none without either."""
        biases = dict(self.sampling.logit_bias)
        forbidden_of = getattr(self._llama, "llama_vocab_get_suppress_tokens", None)  # older releases do not know them
        if forbidden_of is not None:
            count = ctypes.c_int32()
            forbidden = forbidden_of(self._vocabulary, ctypes.byref(count))
            biases |= {forbidden[index]: float("-inf") for index in range(count.value)}
        if not biases:
            return []
        rows = (self._llama.llama_logit_bias * len(biases))(*biases.items())
        return [self._llama.llama_sampler_init_logit_bias(self._model.vocabulary_size, len(biases), rows)]

    def _penalties(self) -> Any:
        sampling = self.sampling
        make = self._llama.llama_sampler_init_penalties
        with_vocabulary = len(make.argtypes) == 5  # older releases do not take the size of the vocabulary
        return make(
            *((self._model.vocabulary_size,) if with_vocabulary else ()),
            sampling.repeat_last,
            max(sampling.repeat_penalty, _SMALLEST_DIVISOR),
            sampling.frequency_penalty,
            sampling.presence_penalty,
        )

    def _dry(self) -> Any:
        sampling = self.sampling
        make = self._llama.llama_sampler_init_dry
        with_context = len(make.argtypes) == 8  # older releases take the trained context as well
        breakers = [text.encode("utf-8", "replace") for text in sampling.dry_sequence_breakers]
        return make(
            self._vocabulary,
            *((sampling.dry_last,) if with_context else ()),
            sampling.dry_multiplier,
            sampling.dry_base,
            sampling.dry_allowed_length,
            sampling.dry_last,
            (ctypes.c_char_p * max(1, len(breakers)))(*breakers),
            len(breakers),
        )

    def _grammar_of(self, text: str) -> Any:
        from tinyedge.structured.grammar import check_grammar

        check_grammar(text)
        model = self._model
        if model.longest_token_bytes > _LONGEST_TOKEN_BYTES:
            raise GrammarError(
                f"this model has a token of {model.longest_token_bytes} bytes, too long to be checked against a grammar",
                "take another model, or no grammar",
            )
        log.forget()
        pointer = self._llama.llama_sampler_init_grammar(self._vocabulary, text.encode("utf-8"), b"root")
        if not pointer:
            said = log.cause()
            raise GrammarError("llama.cpp refuses the grammar" + (f' ("{said}")' if said else ""))
        return pointer

    def _sample_with_grammar(self, logits: Any) -> int:
        chain = self.chain
        if self._candidates is None:
            self._candidates = Candidates(self._model.vocabulary_size)
        candidates = self._candidates
        candidates.fill(logits)
        token = candidates.apply(chain)
        if not (candidates.allowed(self.grammar, token) and self.showable(token)):
            candidates.fill(logits)
            candidates.restrict(self.grammar)
            while True:
                if candidates.size == 0:
                    raise GrammarError(
                        "no token of this model continues the text as the grammar wants", "take another model or grammar"
                    )
                token = candidates.apply(chain)
                if self.showable(token):
                    break
                candidates.forbid(token)
        self._llama.llama_sampler_accept(chain, token)
        self._llama.llama_sampler_accept(self.grammar, token)
        if not self._model.ends_generation(token):
            text = self._open_character + self._model.piece(token)
            self._open_character = text[codecs.utf_8_decode(text, "strict", False)[1] :]
        return token

    def showable(self, token: int) -> bool:
        """Whether the token adds to the text exactly what the grammar took it for.

        llama.cpp lets control tokens count by their names, which are no text, and bytes that are no UTF-8 as characters.
        """
        if self._model.ends_generation(token):
            return True
        piece = self._model.piece(token)
        if not piece:
            return False
        try:
            codecs.utf_8_decode(self._open_character + piece, "strict", False)
        except UnicodeDecodeError:
            return False
        return True


class Candidates:
    """A llama_token_data_array over the vocabulary, filled from logits without a loop in Python."""

    def __init__(self, vocabulary_size: int) -> None:
        import numpy as np

        self._numpy: Any = np
        self._llama = llama = library.ready()
        kind = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._all = np.zeros(vocabulary_size, dtype=kind)  # as they come, in the order of the tokens
        self._work = np.zeros(vocabulary_size, dtype=kind)  # as the samplers leave them
        self._ids = np.arange(vocabulary_size, dtype=np.int32)
        self._one = np.zeros(1, dtype=kind)
        self._array = llama.llama_token_data_array()
        self._reference = ctypes.byref(self._array)
        self.size = 0

    def fill(self, logits: Any) -> None:
        """Takes every token of the vocabulary with its logit; `logits` is a ctypes array, as `Context.logits` gives it."""
        self._all["id"] = self._ids
        self._all["logit"] = self._numpy.frombuffer(logits, dtype=self._numpy.float32)
        self.size = len(self._ids)

    def apply(self, chain: Any) -> int:
        """The token that the chain draws from the candidates, which stay as they are."""
        self._work[: self.size] = self._all[: self.size]
        self._run(chain, self._work, self.size)
        token: int = self._array.data[self._array.selected].id
        return token

    def allowed(self, grammar: Any, token: int) -> bool:
        """Whether the grammar lets `token` come next."""
        self._one[0] = (token, 1.0, 0.0)
        self._run(grammar, self._one, 1)
        return bool(self._one["logit"][0] != -self._numpy.inf)

    def restrict(self, grammar: Any) -> None:
        """Leaves only the candidates that the grammar lets come next."""
        logits = self._all["logit"][: self.size].copy()
        self._all["logit"][: self.size] = 0.0  # so that minus infinity afterwards is the grammar's word, not the model's
        self._run(grammar, self._all, self.size)
        left = self._numpy.flatnonzero(self._all["logit"][: self.size] == 0.0)
        self._all["logit"][: self.size] = logits
        self._keep(left)

    def forbid(self, token: int) -> None:
        self._keep(self._numpy.flatnonzero(self._all["id"][: self.size] != token))

    def _keep(self, places: Any) -> None:
        self._all[: len(places)] = self._all[places]
        self.size = len(places)

    def _run(self, sampler: Any, rows: Any, count: int) -> None:
        array = self._array
        array.data = rows.ctypes.data_as(self._llama.llama_token_data_p)
        array.size, array.selected, array.sorted = count, -1, False
        self._llama.llama_sampler_apply(sampler, self._reference)
