"""How many floating-point operations a second this machine does in one large matrix product: measured once, then kept.

A prompt is read as a chain of such products, so this rate is what bounds the speed of reading it (the roof of the roofline
model: Williams, Waterman and Patterson, 2009). The kernels are those of the installed llama.cpp, which differ by type and by
build; the rate is that of the fastest pass, over all shapes and all buffers for weights that ggml offers, also those that
llama.cpp would not choose for the type. So a share of it tells what llama.cpp could do here, not what the silicon could.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING

from tinyedge.cache import cache_folder, write_atomically
from tinyedge.errors import MemoryFitError, NativeError
from tinyedge.ggml_types import BY_NAME, type_named
from tinyedge.machine.bandwidth import machine_key
from tinyedge.machine.cpu import cpu_facts

if TYPE_CHECKING:
    from tinyedge.native.library import Device
    from tinyedge.native.matrix import MatrixProduct

FORMAT = 1  # of the kept file
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K")
_SECONDS = 3.0  # for all types and thread counts
_LEAST_PASSES = 3
_LONG_ENOUGH = 0.002  # seconds of one timing: what starting a GPU or the threads costs is little beside it
_MOST_TIMES = 256
_SHARE = 4  # of a type's time that the passes of one shape take
_FREE_SHARE = 8  # an eighth of the free memory
_SOME_ROWS = 64  # different rows of weights; the others repeat them, since no kernel's speed depends on the values
_MOST_RATE = 1e18  # operations a second; a kept number beyond is damage
_MOST_THREADS = 1 << 16


@dataclass(frozen=True, slots=True)
class _Shape:
    """Weights of (rows, columns) times as many tokens. Columns are no power of two, for whose strides caches thrash."""

    rows: int
    columns: int
    tokens: int

    @property
    def operations(self) -> int:
        return 2 * self.rows * self.columns * self.tokens

    def bytes(self, ggml_type: str) -> int:
        """Memory that measuring takes: the weights twice, as they are made and as the device holds them."""
        values = 4 * self.tokens * (self.columns + self.rows) + 4 * self.tokens * self.columns
        return 2 * self.rows * type_named(ggml_type).row_bytes(self.columns) + values


# From 0.3 to 71 GFLOP: the first is short for a slow board, the last fills a large GPU. 512 tokens are llama.cpp's n_ubatch.
_SHAPES = (_Shape(1024, 1280, 128), _Shape(2048, 2304, 512), _Shape(4096, 4352, 512), _Shape(8192, 8448, 512))


@dataclass(frozen=True, slots=True)
class MatrixRate:
    """Floating-point operations per second by number of threads and type of the weights, and the day they were measured.

    A GPU's rates stand under 1, the thread that feeds it.
    """

    flops: Mapping[int, Mapping[str, float]]
    measured_at: str

    def at(self, threads: int) -> Mapping[str, float]:
        """The rates by type with `threads` threads, or with the next smaller number that was measured."""
        known = [count for count in self.flops if count <= threads]
        return self.flops[max(known, default=min(self.flops))]

    def best(self, threads: int) -> float:
        """The highest rate of any type with `threads` threads or, where fewer were faster, with fewer."""
        counts = [count for count in self.flops if count <= threads] or [min(self.flops)]
        return max(max(self.flops[count].values()) for count in counts)


def this_matrix_rate(
    backend: str = "cpu", *, threads: int | None = None, measure: bool = True, again: bool = False
) -> MatrixRate | None:
    """This machine's rate on `backend` (cpu, cuda, ...): the kept one, else one measured and kept now if `measure`.

    On the CPU it holds 1 thread and `threads`, by default as many as a plan starts, beside all that was measured before;
    `again` measures these two in any case. None when nothing is kept and nothing could be measured, as without such a device.
    """
    devices = _devices(backend)
    if not devices:
        return None
    path = _path(backend, devices)
    kept = read_matrix_rate(path) if path is not None else None
    wanted = {1, threads or cpu_facts().threads} if _is_cpu(devices) else {1}
    missing = wanted if again or kept is None else wanted - kept.flops.keys()
    if not missing or not (measure or again):
        return kept
    try:
        found = _measure(devices, sorted(missing), _SECONDS)
    except (MemoryFitError, NativeError):
        return kept
    whole = MatrixRate(MappingProxyType({**(kept.flops if kept else {}), **found.flops}), found.measured_at)
    if path is not None:
        keep_matrix_rate(path, whole)
    return whole


def measure_matrix_rate(backend: str = "cpu", counts: Iterable[int] = (1,), *, seconds: float = _SECONDS) -> MatrixRate:
    """The rate as measured now, for the numbers of threads in `counts`, of every type that a device of `backend` multiplies.

    Takes about `seconds`, more on a slow machine since each is timed at least three times. Raises NativeError when there is no
    such device, and MemoryFitError when there is too little free memory for the smallest matrices.
    """
    counts = sorted(set(counts))
    if not counts or counts[0] < 1:
        raise ValueError(f"a product needs at least one thread, not {counts}")
    devices = _devices(backend)
    if not devices:
        raise NativeError(f"there is no {backend} device to measure", "see `tinyedge devices` for those that are there")
    return _measure(devices, counts if _is_cpu(devices) else [1], seconds)


def _devices(backend: str) -> tuple[Device, ...]:
    """The devices of the backend; the CPU's include accelerators such as BLAS, to which llama.cpp gives its large products."""
    from tinyedge.native.library import devices

    return tuple(each for each in devices() if each.kind == backend or (backend == "cpu" and each.type == "accelerator"))


def _is_cpu(devices: tuple[Device, ...]) -> bool:
    return any(device.type == "cpu" for device in devices)


def _measure(devices: tuple[Device, ...], counts: list[int], seconds: float) -> MatrixRate:
    best: dict[int, dict[str, float]] = {count: {} for count in counts}
    for device in devices:
        for kind in TYPES:
            for count, rate in _rates(device, kind, counts, seconds / len(TYPES) / len(devices)).items():
                best[count][kind] = max(rate, best[count].get(kind, 0.0))
    rates = {count: MappingProxyType(by_type) for count, by_type in best.items() if by_type}
    if not rates:
        raise NativeError(f"{devices[0].name} multiplies none of {', '.join(TYPES)}")
    return MatrixRate(MappingProxyType(rates), date.today().isoformat())


def _rates(device: Device, kind: str, counts: list[int], seconds: float) -> dict[int, float]:
    """The highest rate of the type by threads, over the shapes that memory and time allow; empty where it is not supported."""
    until, best = monotonic() + seconds, dict[int, float]()
    for shape in _fitting(device, kind):
        expected = (_LEAST_PASSES + 1) * sum(shape.operations / rate for rate in best.values())
        if best and monotonic() + expected > until:
            break
        for product in _products(device, kind, shape):
            with product:
                found = _time(product, counts, seconds / _SHARE) if product.supported else {}
            best |= {count: max(rate, best.get(count, 0.0)) for count, rate in found.items()}
    return best


def _fitting(device: Device, kind: str) -> list[_Shape]:
    """The shapes for which there is memory, the smallest first. Raises MemoryFitError when there is none."""
    from tinyedge.memory import free_memory_bytes

    free = min(filter(None, (free_memory_bytes(), device.memory_free)), default=0)  # a device that does not tell says 0
    fitting = [shape for shape in _SHAPES if shape.bytes(kind) <= free // _FREE_SHARE]
    if not fitting:
        raise MemoryFitError(
            f"{free >> 20} MiB of free memory are too little to measure how fast matrices are multiplied",
            "close other programs and measure again",
        )
    return fitting


def _products(device: Device, kind: str, shape: _Shape) -> Iterator[MatrixProduct]:
    """The product of this shape with the weights in each of the device's buffers; the caller closes them."""
    import numpy as np

    from tinyedge.native.matrix import MatrixProduct, weight_buffers

    random = np.random.default_rng(0)
    some_rows = random.standard_normal((_SOME_ROWS, shape.columns), dtype=np.float32)
    inputs = random.standard_normal((shape.tokens, shape.columns), dtype=np.float32)
    for buffer in weight_buffers(device.name):
        yield MatrixProduct(device.name, buffer, kind, some_rows, inputs, copies=shape.rows // _SOME_ROWS)


def _time(product: MatrixProduct, counts: list[int], seconds: float) -> dict[int, float]:
    """The rate of the fastest pass by threads; in turns, so that what disturbs for a while disturbs all counts alike."""
    until, times, fastest = monotonic() + seconds, dict[int, int](), dict.fromkeys(counts, math.inf)
    for done in itertools.count():
        for count in counts:
            product.use_threads(count)
            if count not in times:
                product.seconds()  # the first one compiles kernels and starts threads
                times[count] = min(_MOST_TIMES, math.ceil(_LONG_ENOUGH / product.seconds()))
            fastest[count] = min(fastest[count], product.seconds(times[count]))
        if done + 1 >= _LEAST_PASSES and monotonic() > until:
            return {count: product.operations / seconds for count, seconds in fastest.items()}
    raise AssertionError("counting has no end")


def keep_matrix_rate(path: Path, found: MatrixRate) -> bool:
    """Keeps `found` at `path`; whether it could be kept: else it is measured again next time."""
    rates = {str(count): {kind: round(rate) for kind, rate in by_type.items()} for count, by_type in found.flops.items()}
    text = json.dumps({"format": FORMAT, "measured_at": found.measured_at, "flops_by_threads": rates}, indent=1)
    try:
        write_atomically(path, text.encode())
    except OSError:
        return False
    return True


def read_matrix_rate(path: Path) -> MatrixRate | None:
    """The rate kept at `path`; None for a file that is not there or not as `keep_matrix_rate` writes it."""
    try:
        with path.open("rb") as file:
            told = json.loads(file.read(1 << 16))
        rates = {
            int(count): MappingProxyType({kind: float(rate) for kind, rate in by_type.items()})
            for count, by_type in told["flops_by_threads"].items()
        }
        day = date.fromisoformat(told["measured_at"]).isoformat()
        whole = told["format"] == FORMAT and rates and all(_possible(*row) for row in rates.items())
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    return MatrixRate(MappingProxyType(rates), day) if whole else None


def _possible(threads: int, by_type: Mapping[str, float]) -> bool:
    known = bool(by_type) and by_type.keys() <= BY_NAME.keys()
    return known and 0 < threads < _MOST_THREADS and all(0 < rate < _MOST_RATE for rate in by_type.values())


def _path(backend: str, devices: tuple[Device, ...]) -> Path | None:
    folder = cache_folder(needed=False)
    return None if folder is None else folder / f"matrix-{backend}-{_key(devices)}.json"


def _key(devices: tuple[Device, ...]) -> str:
    """16 hexadecimal digits that name this machine, its devices and the build of llama.cpp whose kernels multiply."""
    from tinyedge.native.library import versions

    named = [(device.name, device.description) for device in devices]
    return hashlib.sha256(repr((machine_key(), named, versions())).encode()).hexdigest()[:16]
