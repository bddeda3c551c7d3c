"""The README's figures: one table for each kept result of the suite."""

from __future__ import annotations

from typing import Any

from tinyedge_bench.results import RESULTS, kept
from tinyedge_bench.speed.compare import compare_peer


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"


def one_pass() -> str:
    rows = [
        "| type | file | tinyedge | llama.cpp convert + quantize | ratio | peak memory | theirs |",
        "|---|---|---|---|---|---|---|",
    ]
    notes = []
    for name, label in (("one_pass-tuned", "README's build"), ("one_pass-stock", "stock build")):
        result = kept(name)
        for type_name, row in result["types"].items():
            theirs = f"{row['llama_cpp_convert_seconds']:.1f} s + {row['llama_cpp_quantize_seconds']:.1f} s"
            peaks = (
                f"{_megabytes(row['llama_cpp_convert_peak_rss_bytes'])}, {_megabytes(row['llama_cpp_quantize_peak_rss_bytes'])}"
            )
            rows.append(
                f"| {type_name}, {label} | {row['bytes']:,} bytes | {row['seconds']:.1f} s | {theirs} "
                f"| **{row['ratio']:.2f}** "
                f"| {_megabytes(row['peak_rss_bytes'])} | {peaks} |"
            )
        runs = next(iter(result["types"].values()))["runs"]
        notes.append(f"{label}: medians of {runs} runs in turn, {result['machine']['date']}")
    return "\n".join(rows) + f"\n\n{'; '.join(notes)}. {_machine(kept('one_pass-tuned'))}\n"


def one_pass_types() -> str:
    result = kept("one_pass-types")
    rows = ["| type | file | tinyedge | cores busy | peak memory |", "|---|---|---|---|---|"]
    rows += [
        f"| {name} | {row['bytes']:,} bytes | {row['seconds']:.1f} s | {row['busy']:.0%} "
        f"| {_megabytes(row['peak_rss_bytes'])} |"
        for name, row in result["types"].items()
    ]
    runs = next(iter(result["types"].values()))["runs"]
    return "\n".join(rows) + f"\n\nMedians of {runs} runs in turn, start and end included. {_machine(result)}\n"


def runtime() -> str:
    result = kept("runtime")
    rows = ["| what | tinyedge | beside it | ratio |", "|---|---|---|---|"]
    rows += [f"| {row['what']} | {row['ours']} | {row['beside']} | {row['ratio']} |" for row in result["rows"]]
    return "\n".join(rows) + f"\n\nMedians of {result['runs']} runs in turn. {_machine(result)}\n"


def second_start() -> str:
    result = kept("second_start")
    rows = ["| what | without | with | ratio |", "|---|---|---|---|"]
    rows += [f"| {row['what']} | {row['without']} | {row['with']} | {row['ratio']} |" for row in result["rows"]]
    return "\n".join(rows) + f"\n\nMedians of {result['runs']} starts of each in turn. {_machine(result)}\n"


def speculation() -> str:
    result = kept("speculation")
    rows = ["| what | plain | with `--lookup` | ratio | accepted |", "|---|---|---|---|---|"]
    rows += [
        f"| {row['what']} | {row['plain']} | {row['lookup']} | {row['ratio']} | {row['acceptance']} |" for row in result["rows"]
    ]
    return "\n".join(rows) + f"\n\nMedians of {result['runs']} runs of each in turn. {_machine(result)}\n"


def wheels() -> str:
    result = kept("board_wheels")
    rows = [
        "| wheel | size | build | proof | on each processor: CPU variant, worst mean KL divergence, time |",
        "|---|---|---|---|---|",
    ]
    for title, row in result["wheels"].items():
        trials = "; ".join(
            f"{trial['cpu']}: {trial['variant'] + ', ' if trial['variant'] else ''}"
            f"{trial['worst_mean_kl']:.1e}, {trial['seconds']:.0f} s"
            for trial in row["trials"]
        )
        figures = f"{row['bytes'] / 1e6:.1f} MB | {row['build_seconds'] / 60:.1f} min | {row['proof_seconds']:.0f} s"
        rows.append(f"| {title} | {figures} | {trials} |")
    again = [row["again_seconds"] for row in result["wheels"].values()]
    notes = (
        "One run each; the build with an empty cache, the proof with the emulator's Debian in place. "
        f"Asked for again, each took {min(again):.0f} to {max(again):.0f} s, the proof included."
    )
    return "\n".join(rows) + f"\n\n{notes} {next(iter(result['wheels'].values()))['compiler']}, {_machine(result)}\n"


def _machine(result: dict[str, Any]) -> str:
    facts = result["machine"]
    return f"{facts['cpu']}, {facts['cores']} cores, {facts['system']}, {facts['versions'][1]}, {facts['date']}."


def speed() -> str:
    return _beside_peers("speed")


def parity() -> str:
    return _beside_peers("parity")


def _beside_peers(name: str) -> str:
    """A row for each test and peer: both medians, the ratio run by run and its interval."""
    result = kept(name)
    peers = dict.fromkeys(row["engine"] for row in result["results"] if row["engine"] != "tinyedge")
    rows = ["| test | threads | tinyedge | beside it | ratio | 95% interval |", "|---|---|---|---|---|---|"]
    for peer in peers:
        for case in compare_peer(RESULTS / f"{name}.json", peer).cases:
            theirs, ours, ratio = case.first, case.second, case.ratio
            rows.append(
                f"| {ours.test} | {ours.threads} | {ours.median:.2f} tokens/s | {peer} {theirs.median:.2f} tokens/s "
                f"| **{ratio.value:.3f}** | {ratio.low:.3f} to {ratio.high:.3f} |"
            )
    return "\n".join(rows) + f"\n\n{_document_note(result)}\n"


def depth() -> str:
    result = kept("depth")
    settings = list(dict.fromkeys((row["n_threads"], row["type_k"], row["n_depth"]) for row in result["results"]))
    tests = list(dict.fromkeys(row["test"].partition(" @ ")[0] for row in result["results"]))
    rows = [f"| threads | KV cache | depth | {' | '.join(tests)} |", "|---|---|---|" + "---|" * len(tests)]
    for threads, kv_type, depth in settings:
        found = {
            row["test"].partition(" @ ")[0]: f"{row['median_ts']:.1f}"
            for row in result["results"]
            if (row["n_threads"], row["type_k"], row["n_depth"]) == (threads, kv_type, depth)
        }
        rows.append(f"| {threads} | {kv_type} | {depth} | {' | '.join(found.get(test, '') for test in tests)} |")
    return "\n".join(rows) + f"\n\nTokens/s. {_document_note(result)}\n"


def batch() -> str:
    result = kept("batch")
    rows = ["| texts side by side | prompt | generation | reading memory | multiplying |", "|---|---|---|---|---|"]
    for sequences in dict.fromkeys(row["n_parallel"] for row in result["results"]):
        prompt, generation = (
            next(row for row in result["results"] if (row["n_parallel"], bool(row["n_prompt"])) == (sequences, kind))
            for kind in (True, False)
        )
        rows.append(
            f"| {sequences} | {_tokens_per_s(prompt)} | {_tokens_per_s(generation)} "
            f"| {_of_ceiling(generation['bandwidth_share'])} | {_of_ceiling(prompt['matrix_share'])} |"
        )
    return "\n".join(rows) + f"\n\n{_document_note(result)}\n"


def memory() -> str:
    result = kept("memory")
    rows = ["| what | planned | own | mapped pages of files |", "|---|---|---|---|"]
    for row in result["rows"]:
        name = "bare llama_cpp script, context 2048" if row["what"] == "bare" else f"`tinyedge run`, {row['what']}"
        planned = "" if row["planned_bytes"] is None else _megabytes(row["planned_bytes"])
        rows.append(f"| {name} | {planned} | {_megabytes(row['own_bytes'])} | {_megabytes(row['mapped_bytes'])} |")
    return "\n".join(rows) + f"\n\nMedians of {result['runs']} runs in turn. {_machine(result)}\n"


def quality() -> str:
    result = kept("quality")
    rows = [
        "| type | file | bits per weight | perplexity | bits per byte | mean KL divergence | its 99% | same top | speed | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(result["results"], key=lambda row: -row["file_bytes"]):
        divergence, perplexity = row.get("divergence"), row["perplexity"]
        apart = (
            f"{divergence['mean_kl']:.6f} ± {divergence['mean_kl_error']:.6f} | {divergence['kl_percentiles']['99.0']:.4f} "
            f"| {divergence['same_top']:.2%}"
            if divergence
            else " | | "
        )
        rows.append(
            f"| {row['type']} | {row['file_bytes']:,} bytes | {row['bits_per_weight']:.2f} "
            f"| {perplexity['value']:.4f} ± {perplexity['error']:.4f} | {row['bits_per_byte']['value']:.4f} | {apart} "
            f"| {row['generated_tokens_per_s']:.0f} tokens/s | {'Pareto' if row['pareto'] else ''} |"
        )
    return "\n".join(rows) + f"\n\n{_document_note(result)}\n"


def _tokens_per_s(row: dict[str, Any]) -> str:
    return f"{row['median_ts']:.2f} tokens/s"


def _of_ceiling(share: float | None) -> str:
    return "" if share is None else f"{share:.0%} of the ceiling"


def _document_note(result: dict[str, Any]) -> str:
    machine, build = result["machine"], result["build"]
    runs = sorted({len(row["samples_ts"]) for row in result["results"] if "samples_ts" in row})
    counted = f"Medians of {runs[0]} runs in turn. " if len(runs) == 1 else ""
    return (
        f"{counted}{machine['cpu']}, {machine['physical_cores']} cores, {machine['system'].split('-')[0]} "
        f"{machine['architecture']}, llama-cpp-python {build['llama_cpp_python']}, {result['date'][:10]}."
    )
