"""How often a model finds the right answer of a multiple-choice question the likeliest, counted as lm-evaluation-harness does.

Texts become tokens as there (lm_eval/api/model.py, `_encode_pair`): context and continuation together, spaces at the end of the
context counted to the continuation. BOS is put first where the model wants it; nothing in a text is taken for a special token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from time import perf_counter

from tinyedge.errors import EvaluationError
from tinyedge.native.model import Model
from tinyedge_bench.quality.likelihood import Continuation, Progress, Scorer
from tinyedge_bench.quality.models import OpenModel
from tinyedge_bench.quality.tasks import Question, Task

_AT_ONCE = 64  # questions whose tokens are held at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The log-likelihoods of a question's answers. `cut` says that one did not fit the context with all of the question."""

    question: Question
    logprobs: tuple[float, ...]
    cut: bool

    @property
    def likeliest(self) -> int:
        return max(range(len(self.logprobs)), key=self.logprobs.__getitem__)

    @property
    def likeliest_by_length(self) -> int:
        """With the log-likelihood divided by the answer's characters; an empty answer never is."""
        lengths = self.question.lengths
        shares = [logprob / length if length else -math.inf for logprob, length in zip(self.logprobs, lengths, strict=True)]
        return max(range(len(shares)), key=shares.__getitem__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Of `questions`, which share had the right answer, with its standard error; None for a single question."""

    questions: int
    accuracy: float
    accuracy_error: float | None
    accuracy_norm: float | None = None
    accuracy_norm_error: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore(Rate):
    """What came of a task. `metric` names the figure that is usual for it: `accuracy` or `accuracy_norm`.

    `chance` is what guessing gives, `cut` how many questions lost their beginning as they did not fit the context. `subjects`
    are the parts of MMLU by name, empty for other tasks.
    """

    task: str
    file: str
    metric: str
    guessed: bool
    chance: float
    cut: int
    shots: int
    seconds: float
    subjects: dict[str, Rate]


def answer(
    model: OpenModel, task: Task, *, shots: int = 0, limit: int | None = None, progress: Progress | None = None
) -> TaskScore:
    """Scores `task` as `answers` finds it. Raises what that raises."""
    started = perf_counter()
    answered = list(answers(model, task, shots=shots, limit=limit, progress=progress))
    subjects: dict[str, list[Answered]] = {}
    for one in answered:
        subjects.setdefault(one.question.subject, []).append(one)
    return TaskScore(
        **asdict(_rate(list(subjects.values()), task.normed)),
        task=task.name,
        file=task.file,
        metric=task.metric,
        guessed=task.guessed,
        chance=sum(1 / len(one.logprobs) for one in answered) / len(answered),
        cut=sum(one.cut for one in answered),
        shots=shots,
        seconds=perf_counter() - started,
        subjects={name: _rate([part], task.normed) for name, part in sorted(subjects.items())} if len(subjects) > 1 else {},
    )


def answers(
    model: OpenModel, task: Task, *, shots: int = 0, limit: int | None = None, progress: Progress | None = None
) -> Iterator[Answered]:
    """Each question after `shots` solved examples, the first of the task's own; of each subject the first `limit` questions.

    `progress` is told how many questions are done, and of how many. Raises EvaluationError where the examples are too few or an
    answer is longer than the context, NativeError.
    """
    questions = list(_first(task.questions, limit))
    check_examples(task, shots, limit)
    with Scorer(model.model, model.plan, context=model.plan.context) as scorer:
        for start in range(0, len(questions), _AT_ONCE):
            part = questions[start : start + _AT_ONCE]
            asked = [_requests(model.model, task.opening(question.subject, shots), question) for question in part]
            for question, requests in zip(part, asked, strict=True):
                _check_answers(question, requests, scorer.context)
            told = None if progress is None else _scaled(progress, start, len(part), len(questions))
            found = iter(scorer.score([request for requests in asked for request in requests], told))
            for question, requests in zip(part, asked, strict=True):
                yield Answered(
                    question=question,
                    logprobs=tuple(one.logprob for one in islice(found, len(requests))),
                    cut=any(len(one.context) + len(one.tokens) > scorer.context + 1 for one in requests),
                )


def _scaled(progress: Progress, start: int, count: int, total: int) -> Progress:
    """Tells `progress` of requests done as the share of `count` questions after the first `start`, of `total`."""
    return lambda done, requests: progress(start + count * done // requests, total)


def encode_pair(model: Model, context: str, continuation: str) -> Continuation:
    """The tokens of `context`, which is not blank, and those that `continuation` adds to them."""
    bare = context.rstrip()
    added = context[len(bare) :] + continuation
    head, whole = (model.tokenize(text, add_special=False, parse_special=False) for text in (bare, bare + added))
    tokens = whole[len(head) :] or model.tokenize(added, add_special=False, parse_special=False)
    bos = () if model.bos is None else (model.bos,)
    return Continuation((*bos, *head), tuple(tokens))


def _requests(model: Model, opening: str, question: Question) -> list[Continuation]:
    return [encode_pair(model, opening + context, continuation) for context, continuation in question.pairs]


def _check_answers(question: Question, requests: Sequence[Continuation], context: int) -> None:
    longest = max(len(request.tokens) for request in requests)
    if longest > context:
        raise EvaluationError(
            f"{question.where}: an answer has {longest} tokens and the context {context}", "give a larger --ctx"
        )


def _first(questions: Sequence[Question], limit: int | None) -> Iterator[Question]:
    for _, group in groupby(questions, key=lambda question: question.subject):
        yield from islice(group, limit)


def check_examples(task: Task, shots: int, limit: int | None = None) -> None:
    """Raises EvaluationError where one of the questions to be asked has fewer than `shots` examples."""
    if not shots:
        return
    fewest = min(len(task.examples.get(question.subject, ())) for question in _first(task.questions, limit))
    if fewest < shots:
        raise EvaluationError(
            f"{task.name} has {fewest} solved examples to show and {shots} were asked for",
            f"give a file of them, {task.name}=FILE,EXAMPLES" if not fewest else f"ask for at most {fewest} with --shots",
        )


def _rate(parts: Sequence[Sequence[Answered]], normed: bool) -> Rate:
    plain = [[one.likeliest == one.question.answer for one in part] for part in parts]
    by_length = [[one.likeliest_by_length == one.question.answer for one in part] for part in parts] if normed else None
    return Rate(
        questions=sum(map(len, parts)),
        accuracy=_mean(plain),
        accuracy_error=standard_error(plain),
        accuracy_norm=_mean(by_length) if by_length else None,
        accuracy_norm_error=standard_error(by_length) if by_length else None,
    )


def _mean(parts: Sequence[Sequence[bool]]) -> float:
    return sum(map(sum, parts)) / sum(map(len, parts))


def standard_error(parts: Sequence[Sequence[bool]]) -> float | None:
    """The standard error of the share of true values: sqrt(p (1 - p) / (n - 1)), pooled over the parts of a task.

    lm_eval/api/metrics.py, `mean_stderr` and `pooled_sample_stderr`. None where no part has two values.
    """
    count = sum(map(len, parts))
    if count == len(parts):
        return None
    squares = sum(sum(part) * (len(part) - sum(part)) / len(part) for part in parts)
    return math.sqrt(squares / (count - len(parts)) / count)
