"""The values that say how a model is to be loaded: what was asked for, what the machine has, what was decided."""

from __future__ import annotations

from dataclasses import dataclass

from tinyedge.fitting import KV_TYPES, quantized
from tinyedge.machine.cpu import CpuFacts
from tinyedge.native.library import Device

FLASH_MODES = ("auto", "on", "off")
ROPE_SCALINGS = ("linear", "yarn")
MAX_ROPE_SCALE = 64.0  # twice what YaRN was published with (arXiv 2309.00071)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked for; None and `auto` leave it to us.

    `batch` is in tokens per decode call, `affinity` the CPUs to run on (all when empty). `rope_scaling` stretches positions so
    that a context may exceed the trained one, `rope_scale` times, by default as far as the context needs. With `strict` a
    wish that does not fit memory is refused, otherwise it is lowered. Raises ValueError, one sentence, for a value that has no
    meaning.
    """

    backend: str = "auto"
    gpu_layers: int | None = None
    context: int | None = None
    threads: int | None = None
    kv_type: str | None = None
    batch: int | None = None
    flash: str = "auto"
    mmap: bool = True
    mlock: bool = False
    affinity: tuple[int, ...] = ()
    rope_scaling: str | None = None
    rope_scale: float | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        kv_type, scaling, scale = self.kv_type, self.rope_scaling, self.rope_scale
        rules = (
            (kv_type is None or kv_type in KV_TYPES, f"the KV type is one of {', '.join(KV_TYPES)}, not {kv_type}"),
            (self.flash in FLASH_MODES, f"flash attention is auto, on or off, not {self.flash}"),
            (
                self.flash != "off" or kv_type is None or not quantized(kv_type),
                f"a {kv_type} KV cache needs flash attention, which is off: leave out --flash-attn off or --kv {kv_type}",
            ),
            (scaling is None or scaling in ROPE_SCALINGS, f"RoPE scaling is linear or yarn, not {scaling}"),
            (
                scale is None or scaling is not None,
                "a RoPE scale needs a kind of RoPE scaling: add --rope-scaling linear or yarn",
            ),
            (scale is None or 1.0 <= scale <= MAX_ROPE_SCALE, f"the RoPE scale is from 1 to {MAX_ROPE_SCALE:g}, not {scale}"),
        )
        for holds, rule in rules:
            if not holds:
                raise ValueError(rule)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What there is: backends compiled into the library, devices present, free main memory, the processor.

    `repacked` are the weight types that its CPU backend repacks (`memory.repacked_types`), None for this machine's.
    """

    compiled: tuple[str, ...]
    devices: tuple[Device, ...]
    free_bytes: int
    cpu: CpuFacts
    repacked: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """How a model will be loaded. `gpu_layers` counts the output layer too, as llama.cpp does; `reason` is one line.

    `steps` are what the ladder of `fitting` gave up, `warnings` what the user should know, one sentence each.
    """

    backend: str
    device: Device
    gpu_layers: int
    context: int
    threads: int
    kv_type: str
    reason: str
    batch: int = 512
    batch_threads: int | None = None
    flash: str = "auto"
    mmap: bool = True
    mlock: bool = False
    affinity: tuple[int, ...] = ()
    rope_scaling: str | None = None
    rope_scale: float | None = None
    steps: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What can be tuned. `affinity` are CPU numbers, all when empty; `batch` is in tokens."""

    threads: int
    batch_threads: int
    batch: int
    flash: str = "auto"
    kv_type: str = "F16"
    affinity: tuple[int, ...] = ()
    mmap: bool = True
    mlock: bool = False
