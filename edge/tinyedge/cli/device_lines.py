"""The report of `tinyedge devices` for a person, from the object that --json prints."""

from __future__ import annotations

from typing import Any

from tinyedge.cli.devices import NATIVE, TRIPLES
from tinyedge.cli.output import format_bytes, printable

LABEL_WIDTH = 14
_SHOWN_COUNTS = 6


def report_lines(found: dict[str, Any]) -> list[str]:
    """The report for a person."""
    rows = [*_machine_rows(found), *_build_rows(found["build"])]
    lines = [f"{label:<{LABEL_WIDTH}} {value}" for label, value in rows]
    if found["devices"]:
        lines += ["", *_device_table(found["devices"])]
    if found["features"]:
        lines += ["", *_feature_table(found["features"])]
    return [*lines, "", *_verdict_lines(found)]


def _machine_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    board, cpu, memory = found["board"], found["cpu"], found["memory"]
    cores = cpu["cores"]
    kind = cpu["level"] or cpu["architecture"]
    model = printable(cpu["model"], 80) or ("emulated" if cpu["emulated"] else "unknown")
    cache = f", {format_bytes(cpu['cache_bytes'])} of last-level cache" if cpu["cache_bytes"] else ""
    words = "not told by this system" if cpu["features"] is None else " ".join(cpu["features"]) or "none that matter to ggml"
    return [
        ("board", f"{printable(board['model'], 80) or '-'} ({board['name']})"),
        ("cpu", f"{model}, {kind}{cache}"),
        ("cores", _cores(cores)),
        ("features", words),
        ("memory", _memory(memory)),
        *_sensor_rows(found["sensors"]),
        *_bandwidth_rows(found["bandwidth"]),
    ]


def _cores(cores: dict[str, Any]) -> str:
    """`8 usable (4 performance, 4 efficiency), a quota of 2; 2 threads (a CPU quota of 2)`."""
    online = f" of {cores['online']}" if cores["online"] > cores["logical"] else ""
    kinds = f" ({cores['performance']} performance, {cores['efficiency']} efficiency)" if cores["efficiency"] else ""
    quota = "" if cores["quota"] is None else f", a quota of {cores['quota']:g}"
    threads = f"{cores['threads']} thread{'s' if cores['threads'] > 1 else ''}"
    return f"{cores['logical']}{online} usable{kinds}{quota}; {threads} ({cores['reason']})"


def _memory(memory: dict[str, Any]) -> str:
    """`7.6 GiB, 5.1 GiB available, limited to 2.0 GiB by a control group, swap 100 MiB of 2.0 GiB in use`."""
    parts = [format_bytes(memory["total_bytes"]), f"{format_bytes(memory['available_bytes'])} available"]
    if memory["cgroup_limit_bytes"] is not None:
        parts.append(f"limited to {format_bytes(memory['cgroup_limit_bytes'])} by a control group")
    if swap := memory["swap_total_bytes"]:
        used = swap - memory["swap_free_bytes"]
        zram = f", {format_bytes(memory['zram_total_bytes'])} of it zram" if memory["zram_total_bytes"] else ""
        parts.append(f"swap {format_bytes(used)} of {format_bytes(swap)} in use{zram}")
    return ", ".join(parts)


def _sensor_rows(sensors: dict[str, Any]) -> list[tuple[str, str]]:
    """The machine's state, one row for each thing that it tells."""
    clock, throttling, power = sensors["clock"], sensors["throttling"], sensors["power"]
    rows = []
    if sensors["temperature_c"] is not None:
        rows.append(("temperature", f"{sensors['temperature_c']:.0f} °C"))
    if throttling is not None:
        said = [f"{', '.join(throttling['now'])} now"] if throttling["now"] else []
        said += [f"{', '.join(throttling['since_boot'])} since it was started"] if throttling["since_boot"] else []
        rows.append(("throttling", printable("; ".join(said)) or "none"))
    rates = [f"{clock[key]:.0f} MHz{word}" for key, word in (("now", " now"), ("maximum", " at most")) if clock[key]]
    rates += [f"governor {printable(', '.join(sensors['governors']), 40)}"] if sensors["governors"] else []
    rows += [("clock", ", ".join(rates))] if rates else []
    if power is not None:
        charge = "" if power["percent"] is None else f", charged to {power['percent']}%"
        rows.append(("power", f"{power['source']}{charge}"))
    return rows


def _bandwidth_rows(bandwidth: dict[str, Any] | None) -> list[tuple[str, str]]:
    """`22.0 GB/s with 1 thread, 40.8 with 2 (measured 2026-11-21)`; of many counts the first, the best and the last."""
    if bandwidth is None:
        return []
    rates = bandwidth["bytes_per_s_by_threads"]
    counts = list(rates)
    if len(counts) > _SHOWN_COUNTS:
        counts = list(dict.fromkeys((counts[0], max(rates, key=rates.__getitem__), counts[-1])))
    shown = [f"{rates[count] / 1e9:.1f} with {count}" for count in counts]
    first = f"{rates[counts[0]] / 1e9:.1f} GB/s with {counts[0]} thread{'s' if counts[0] != '1' else ''}"
    return [("memory reads", f"{', '.join([first, *shown[1:]])} (measured {bandwidth['measured_at']})")]


def _build_rows(build: dict[str, Any]) -> list[tuple[str, str]]:
    if build["llama_cpp_python"] is None:
        return [("llama.cpp", "not installed")]
    versions = [f"llama-cpp-python {build['llama_cpp_python']}"]
    versions += [f"ggml {build['ggml']} ({build['ggml_commit']})"] if build["ggml"] else []
    rows = [("llama.cpp", printable(", ".join(versions)))]
    if wheel := build["wheel"]:
        kernels = f"{len(wheel['variants'])} CPU variants" if wheel["variants"] else f"for {wheel['cpu']} only"
        what = ", ".join(filter(None, (wheel["triple"], kernels, wheel["glibc"] and f"glibc {wheel['glibc']}")))
        rows += [
            ("wheel", printable(f"{what}; by {wheel['compiler']}")),
            ("flags", printable(" ".join(wheel["flags"])) or "none"),
        ]
    elif build["wheel_problem"]:
        rows.append(("wheel", printable(build["wheel_problem"])))
    if build["cpu_library"]:
        rows.append(("cpu kernels", printable(build["variant"] or build["cpu_library"])))
    if build["backends"]:
        rows.append(("backends", printable(", ".join(build["backends"]))))
    return rows


def _device_table(devices: list[dict[str, Any]]) -> list[str]:
    lines = [f"{'device':<{LABEL_WIDTH}} {'memory':>10} {'free':>10}  what it is"]
    for device in devices:
        total, free = format_bytes(device["memory_total"]), format_bytes(device["memory_free"])
        lines.append(
            f"{printable(device['name'], 14):<{LABEL_WIDTH}} {total:>10} {free:>10}  {printable(device['description'])}"
        )
    return lines


def _feature_table(features: list[dict[str, Any]]) -> list[str]:
    """What the CPU has beside what the build uses, with a note where it matters that they differ."""
    lines = [f"{'ggml feature':<{LABEL_WIDTH}} {'cpu':>4} {'build':>6}"]
    for row in features:
        note = "  not used" if row["cpu"] and row["speeds"] and not row["build"] else "" if row["cpu"] else "  missing here"
        lines.append(f"{row['name']:<{LABEL_WIDTH}} {_yes(row['cpu']):>4} {_yes(row['build']):>6}{note}")
    return lines


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _verdict_lines(found: dict[str, Any]) -> list[str]:
    verdict = found["verdict"]
    words = {"fits": "the build fits: ", "slower": "the build runs, but ", "cannot run": "the build cannot run here: "}
    lines = [f"{'verdict':<{LABEL_WIDTH}} {words.get(verdict['state'], '')}{printable(verdict['reason'], 600)}"]
    if verdict["command"]:
        place = ", on a laptop" if found["cpu"]["architecture"] in TRIPLES and NATIVE not in verdict["command"] else ""
        lines.append(f"{'remedy':<{LABEL_WIDTH}} {verdict['command']}{place}")
    return lines
