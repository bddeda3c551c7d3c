"""LoRA adapters as PEFT saves them: merged into the weights on their way, or written as a GGUF adapter for run time."""

from __future__ import annotations

from tinyedge_quantize.lora.adapter import Adapter, LowRank, open_adapter
from tinyedge_quantize.lora.merge import merge_into, merged
from tinyedge_quantize.lora.option import parse_adapter_option

__all__ = ["Adapter", "LowRank", "merge_into", "merged", "open_adapter", "parse_adapter_option"]
