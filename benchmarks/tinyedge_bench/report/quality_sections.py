"""The sections about quality: size against divergence, perplexity, multiple choice over models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tinyedge_bench.report.checked_values import text
from tinyedge_bench.report.look import MOST_SERIES
from tinyedge_bench.report.page_parts import Section, Table, decimal, mebibytes, seconds
from tinyedge_bench.report.placing import Spot
from tinyedge_bench.report.plots import MOST_STRIPS, LinePlot, Plot, ScatterPlot, Series, Strip, StripPlot
from tinyedge_bench.report.rows import Estimate, QualityModel, model_labels, quality_models
from tinyedge_bench.result_files import Document

_MOST_PLACES = 40
_PERCENTILES = ("max", "99.9", "99.0", "95.0", "90.0", "median", "10.0", "5.0", "1.0", "min")


def quality_sections(documents: Sequence[tuple[str, Document]]) -> list[Section]:
    """The sections of the quality and sweep documents, each with its short name."""
    sets = [(name, document.kind, [*_base(document, name), *quality_models(document, name)]) for name, document in documents]
    models = [model for _, _, found in sets for model in found]
    return [
        Section(
            title="Size and distance from the original",
            intro="KL divergence says how far a model's predictions are from those of its base; 0 is the same.",
            plots=[plot for i, (name, _, found) in enumerate(sets) for plot in _size_plot(i, name, found)],
            tables=[_divergence_table(models)],
        ),
        Section(title="Perplexity", plots=_perplexity_plots(models), tables=[_perplexity_table(models)]),
        Section(
            title="Multiple choice",
            intro="Accuracy by likelihood per length where there is one, else by the plain one; bars: one standard error.",
            plots=[
                plot for i, (name, kind, found) in enumerate(sets) if kind == "quality" for plot in _progress(i, name, found)
            ],
            tables=[_task_table(models)],
        ),
        Section(
            title="Types compared", tables=[_sweep_table([m for _, kind, found in sets if kind == "sweep" for m in found])]
        ),
    ]


def _base(document: Document, name: str) -> list[QualityModel]:
    """The file that a sweep compares with."""
    base = document.more.get("base")
    if not isinstance(base, dict):
        return []
    named = {**base, "type": f"{text(base.get('type'), 20)} (base)".strip(), "pareto": False}
    return quality_models(replace(document, results=(named,)), name)


def _size_plot(index: int, name: str, models: Sequence[QualityModel]) -> list[Plot]:
    known = [model for model in models if model.file_bytes and model.mean_kl and model.mean_kl.value > 0]
    if len(known) < 2:
        return []
    spots = [
        Spot(name=label, x=model.file_bytes / 2**20, y=model.mean_kl.value, front=model.pareto)
        for label, model in zip(model_labels(known), known, strict=True)
        if model.mean_kl
    ]
    front = "Filled and joined: no other is both smaller and closer. " if any(spot.front for spot in spots) else ""
    base = f"Measured against {known[0].base}. " if known[0].base else ""
    same = [model.kind or model.model for model in models if model.file_bytes and model.mean_kl and model.mean_kl.value <= 0]
    left_out = f" Not drawn, since a logarithmic axis has no 0: {', '.join(same[:8])}." if same else ""
    return [
        ScatterPlot(
            name=f"size-quality-{index + 1}",
            title=f"Size and KL divergence{f' of {name}' if name else ''}",
            description=f"{front}{base}Lower and further left is better.{left_out}",
            x_label="file, MiB",
            y_label="mean KL divergence",
            spots=spots,
            log_y=True,
        )
    ]


def _perplexity_plots(models: Sequence[QualityModel]) -> list[Plot]:
    """A strip of models for each text and window that more than one was measured with."""
    groups: dict[tuple[str, int], list[QualityModel]] = {}
    for model in models:
        if model.perplexity:
            groups.setdefault((model.perplexity_text, model.context), []).append(model)
    plots: list[Plot] = []
    for (of, context), group in groups.items():
        if len(group) < 2:
            continue
        strips = [
            Strip(
                name=name, middle=model.perplexity.value, value=_with_error(model.perplexity, 3), error=model.perplexity.error
            )
            for name, model in zip(model_labels(group), group, strict=True)
            if model.perplexity
        ]
        more = f" The first {MOST_STRIPS} of {len(strips)}; the table has more." if len(strips) > MOST_STRIPS else ""
        of_text = f" of {of}" if of else ""
        window = f", windows of {context} tokens" if context else ""
        plots.append(
            StripPlot(
                name=f"perplexity-{len(plots) + 1}",
                title=f"Perplexity{of_text}",
                description=f"Lower is better{window}. Lines are one standard error. The axis does not begin at 0.{more}",
                x_label="perplexity",
                strips=strips,
                from_zero=False,
            )
        )
    return plots


def _progress(index: int, name: str, models: Sequence[QualityModel]) -> list[Plot]:
    """Accuracy per task over the models in the order given, as of a training run's checkpoints."""
    models = models[:_MOST_PLACES]
    tasks = list(dict.fromkeys(task.task for model in models for task in model.tasks))
    series = []
    for name_of_task in tasks:
        found = [
            (float(i), best)
            for i, model in enumerate(models)
            for task in model.tasks
            if task.task == name_of_task and (best := task.best_known)
        ]
        if found:
            series.append(
                Series(
                    name=name_of_task,
                    places=[place for place, _ in found],
                    middles=[best.value * 100 for _, best in found],
                    errors=[None if best.error is None else best.error * 100 for _, best in found],
                    level=next(
                        (task.chance * 100 for m in models for task in m.tasks if task.task == name_of_task and task.chance),
                        None,
                    ),
                )
            )
    if len(models) < 2 or not series:
        return []
    chances = [f"{each.name} {each.level:.3g} %" for each in series[:MOST_SERIES] if each.level]
    guessing = f" Dotted: what guessing gives ({', '.join(chances)})." if chances else ""
    more = f" {len(series) - MOST_SERIES} more tasks are in the table." if len(series) > MOST_SERIES else ""
    return [
        LinePlot(
            name=f"multiple-choice-{index + 1}",
            title=f"Accuracy over models{f' of {name}' if name else ''}",
            description=f"In the order in which the models were given.{guessing}{more}",
            x_label="model",
            y_label="accuracy, %",
            series=series,
            place_names=model_labels(models),
            from_zero=False,
            bounds=(0.0, 100.0),
        )
    ]


def _with_error(estimate: Estimate | None, decimals: int = 4) -> str:
    """With as many decimals as llama-perplexity gives."""
    if estimate is None:
        return ""
    return f"{estimate.value:,.{decimals}f}" + ("" if estimate.error is None else f" ± {estimate.error:.{decimals}f}")


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    return f"{estimate.value * 100:.2f}" + ("" if estimate.error is None else f" ± {estimate.error * 100:.2f}")


def _perplexity_table(models: Sequence[QualityModel]) -> Table:
    known = [model for model in models if model.perplexity or model.bits_per_byte]
    rows = [
        (
            *(model.source, model.model, model.kind, mebibytes(model.file_bytes)),
            *(_with_error(model.perplexity), _with_error(model.bits_per_byte), str(model.context or ""), model.perplexity_text),
        )
        for model in known
    ]
    head = ("results", "model", "type", "file, MiB", "perplexity", "bits per byte", "window", "text")
    return Table(
        caption="Perplexity and bits per byte, ± one standard error",
        head=head,
        rows=rows,
        words=("results", "model", "type", "text"),
    )


def _divergence_table(models: Sequence[QualityModel]) -> Table:
    known = [model for model in models if model.mean_kl]
    rows = [
        (
            *(model.source, model.model, model.kind, model.base, mebibytes(model.file_bytes), _with_error(model.mean_kl, 6)),
            *(decimal(model.kl_percentiles.get(key)) for key in _PERCENTILES),
            _percent(model.same_top),
        )
        for model in known
    ]
    head = (
        "results",
        "model",
        "type",
        "base",
        "file, MiB",
        "mean KL",
        *map(_percentile_name, _PERCENTILES),
        "same top token, %",
    )
    words = ("results", "model", "type", "base")
    return Table(
        caption="KL divergence from the base: its mean and percentiles", head=head, rows=rows, words=words, once=("base",)
    )


def _percentile_name(key: str) -> str:
    return f"KL {key.removesuffix('.0')} %" if key[0].isdigit() else f"KL {key}"


def _task_table(models: Sequence[QualityModel]) -> Table:
    rows = [
        (
            *(model.source, model.model, model.kind, task.task, str(task.questions or ""), str(task.shots)),
            *(_percent(task.plain), _percent(task.normalised)),
        )
        for model in models
        for task in model.tasks
    ]
    head = ("results", "model", "type", "task", "questions", "shots", "accuracy, %", "by length, %")
    words = ("results", "model", "type", "task")
    return Table(caption="Multiple choice, ± one standard error", head=head, rows=rows, words=words)


def _sweep_table(models: Sequence[QualityModel]) -> Table:
    rows = [
        (
            *(
                model.source,
                model.kind or model.model,
                mebibytes(model.file_bytes),
                decimal(model.bits),
                _with_error(model.perplexity),
            ),
            *(
                _with_error(model.mean_kl, 6),
                _percent(model.same_top),
                decimal(model.prompt_speed),
                decimal(model.generation_speed),
            ),
            *(seconds(model.quantize_s), "yes" if model.pareto else ""),
        )
        for model in models
    ]
    head = (
        *("results", "type", "file, MiB", "bits per weight", "perplexity", "mean KL", "same top token, %"),
        *("prompt tokens/s", "generated tokens/s", "time to quantize", "on the front"),
    )
    return Table(
        caption="Every type of the sweep; on the front: no other is both smaller and closer",
        head=head,
        rows=rows,
        words=("results", "type"),
    )
