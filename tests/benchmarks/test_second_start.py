"""The second-start benchmark on a tiny model: that it measures the cache at all, and that its table says what it measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_gguf import tiny_parts, write

from tinyedge_bench.suite.second_start import QUESTION_TOKENS, Start, measure, prompt_phase, rows


def test_every_start_after_the_first_restores_the_whole_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = write(tmp_path / "tiny.gguf", tiny_parts())
    samples = measure(model, 1, 80, 1)
    assert samples["filling"].restored == 0
    assert [start.restored for start in samples["with"]] == [80]
    assert [start.restored for start in samples["without"]] == [0]
    assert samples["kept_bytes"] > 80 * 4
    assert not (tmp_path / "tinyedge" / "prompts").exists()  # the person's own cache is left alone


def test_a_prompt_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = write(tmp_path / "tiny.gguf", tiny_parts())
    with pytest.raises(ValueError, match="does not fit the model's context of 128"):
        prompt_phase(model, 1, 128 - QUESTION_TOKENS, None)


def test_the_table_has_medians_and_the_median_of_the_ratios() -> None:
    def starts(*seconds: float) -> list[Start]:
        return [Start(0, each, 0.0, 1) for each in seconds]

    samples = {"filling": starts(4.4)[0], "without": starts(4.0, 4.2, 9.0), "with": starts(0.2, 0.063, 0.09)}
    table = rows({**samples, "kept_bytes": 11 << 20}, 500)
    assert [(row["without"], row["with"], row["ratio"]) for row in table] == [
        ("4.20 s", "90.0 ms", "0.015"),
        ("4.20 s", "4.40 s", "1.048"),
    ]
    assert "11.0 MiB" in table[1]["what"]
