"""What a sample of `tuning` is: a prompt read, or tokens generated, with a setting on the real model."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import TracebackType

from tinyedge.engine import context_settings
from tinyedge.errors import NativeError
from tinyedge.load_plan import LoadPlan, Setting
from tinyedge.memory import free_memory_bytes, memory_needed
from tinyedge.model_facts import ModelFacts
from tinyedge.native.context import Context
from tinyedge.native.model import Model
from tinyedge.tuning import GENERATION, PROMPT, SettingRefused

PROMPT_TOKENS = 512
# A sample is made long enough for a clock on a busy machine, and short enough for many of them.
_SAMPLE_S = 0.7
_MOST_GENERATED = 128
_SHALLOW, _DEEP = 32, 768
_OPEN_CONTEXTS = 3


class TuningRuns:
    """Samples of the GGUF file at `path`; `plan` says what is not tuned. Closes itself at the end of a `with` block."""

    def __init__(self, path: Path, facts: ModelFacts, plan: LoadPlan) -> None:
        self._path = path
        self._facts = facts
        self._plan = plan
        self._models: dict[tuple[bool, bool], Model] = {}
        self._contexts: OrderedDict[Setting, Context] = OrderedDict()
        self._depths: dict[Setting, int] = {}
        self.context = min(plan.context, 1024)
        self._tokens = [index % 1000 % facts.vocabulary for index in range(self.context)]
        self._generated = 0
        self._prompt = 0

    def __enter__(self) -> TuningRuns:
        return self

    def __exit__(self, _type: type[BaseException] | None, _value: BaseException | None, _: TracebackType | None) -> None:
        for context in self._contexts.values():
            context.close()
        for model in self._models.values():
            model.close()

    @property
    def default(self) -> Setting:
        """The setting of the plan."""
        plan = self._plan
        return Setting(
            threads=plan.threads,
            batch_threads=plan.batch_threads or plan.threads,
            batch=plan.batch,
            flash=plan.flash,
            kv_type=plan.kv_type,
            affinity=plan.affinity,
            mmap=plan.mmap,
            mlock=plan.mlock,
        )

    def prepare(self) -> int:
        """Chooses how long samples are, by the default's speed, and warms the file up; the tokens of a prompt sample."""
        context = self._context(self.default)
        context.clear()
        context.decode_all(self._tokens[:32])
        context.wait()
        started = perf_counter()
        context.decode(self._tokens[0])
        context.wait()
        single_s = perf_counter() - started
        self._generated = max(4, min(_MOST_GENERATED, int(_SAMPLE_S / max(single_s, 1e-6))))
        context.clear()
        started = perf_counter()
        context.decode_all(self._tokens[:64])
        context.wait()
        per_token_s = (perf_counter() - started) / 64
        fitting = int(2 * _SAMPLE_S / max(per_token_s, 1e-6))
        longest = min(PROMPT_TOKENS, self.context)
        self._prompt = max(64, min(longest, 1 << max(0, fitting).bit_length() - 1 if fitting else 64))
        return self._prompt

    def measure(self, setting: Setting, test: str) -> float:
        """Tokens per second of one sample. Raises SettingRefused when the memory is not there or llama.cpp refuses."""
        context = self._context(setting)
        if test == PROMPT:
            return self._time(context, setting, self._tokens[: self._prompt])
        depth = _SHALLOW if test == GENERATION else max(_SHALLOW, min(_DEEP, self.context - self._generated, 4 * self._prompt))
        return self._generate(context, setting, depth)

    def _time(self, context: Context, setting: Setting, tokens: list[int]) -> float:
        context.clear()
        self._depths.pop(setting, None)
        started = perf_counter()
        context.decode_all(tokens)
        context.wait()
        return len(tokens) / (perf_counter() - started)

    def _generate(self, context: Context, setting: Setting, depth: int) -> float:
        if self._depths.get(setting) != depth or not context.remove(depth):
            context.clear()
            context.decode_all(self._tokens[:depth])
            context.wait()
            self._depths[setting] = depth
        count = min(self._generated, self.context - depth)
        started = perf_counter()
        for token in self._tokens[:count]:
            context.decode(token)
            context.wait()
        return count / (perf_counter() - started)

    def _context(self, setting: Setting) -> Context:
        known = self._contexts.pop(setting, None)
        if known is None:
            if len(self._contexts) >= _OPEN_CONTEXTS:
                oldest, context = self._contexts.popitem(last=False)
                self._depths.pop(oldest, None)
                context.close()
            known = self._made(setting)
        self._contexts[setting] = known
        return known

    def _made(self, setting: Setting) -> Context:
        settings = replace(
            context_settings(self._plan),
            context=self.context,
            threads=setting.threads,
            batch_threads=setting.batch_threads,
            batch=setting.batch,
            flash=setting.flash,
            kv_type=setting.kv_type,
            affinity=setting.affinity,
        )
        need = memory_needed(self._facts, self.context, batch=setting.batch, kv_type=setting.kv_type)
        if need.kv_bytes + need.compute_bytes > free_memory_bytes():
            raise SettingRefused("no memory for it now")
        model = self._model(setting)
        try:
            return Context(model, settings)
        except NativeError as error:
            raise SettingRefused(error.problem) from error

    def _model(self, setting: Setting) -> Model:
        """The weights, loaded as the setting says; a second copy only where there is memory for it."""
        how = (setting.mmap, setting.mlock)
        if how not in self._models:
            if self._models and not setting.mmap and 1.1 * self._facts.weight_bytes > free_memory_bytes():
                raise SettingRefused("no memory for a second copy of the weights")
            try:
                self._models[how] = Model(self._path, mmap=setting.mmap, mlock=setting.mlock)
            except NativeError as error:
                raise SettingRefused(error.problem) from error
        return self._models[how]


def can_lock(weight_bytes: int) -> bool:
    """Whether the system lets this process keep so much in memory, and enough is left beside it."""
    import resource

    allowed = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    permitted = allowed == resource.RLIM_INFINITY or allowed >= weight_bytes
    return permitted and 2 * weight_bytes < free_memory_bytes()
