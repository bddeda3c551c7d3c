"""Adapters for every family, whatever its layers are called and however their rows lie: the runtime computes what PEFT does.

Merged on the way in, and applied at run time to the unmerged model, the log-probabilities are those of PEFT's own forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import FAMILIES
from family_checkpoint import FamilyCase, write_checkpoint
from lora_adapters import log_probabilities
from test_lora_gguf import converted
from test_lora_merge import shake

from tinyedge.errors import AdapterError
from tinyedge_quantize.convert import Wishes, convert

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

# One of each way to store rows: (in, out), fused by head, fused, as they are; all other families were checked by hand.
NAMES = ("gpt-2", "pythia", "phi-3-mini", "gemma3-with-vision")


@dataclass(frozen=True)
class Trained:
    """Folders of a base and its adapter, the tokens, and PEFT's log-probabilities of them."""

    case: FamilyCase
    base: Path
    adapter: Path
    tokens: Any
    wanted: Any


def train(name: str, folder: Path, **config: Any) -> Trained:
    case = FAMILIES[name]
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir()
    tokens, plain = write_checkpoint(case, base)
    model = getattr(transformers, case.model).from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    trained = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, **config))
    shake(trained, 3)
    trained.save_pretrained(str(adapter))
    with torch.no_grad():
        logits = trained.eval()(input_ids=torch.from_numpy(tokens)[None]).logits[0].float()
    wanted = torch.log_softmax(logits, -1).numpy()
    assert np.abs(wanted - plain).max() > 0.1
    return Trained(case, base, adapter, tokens, wanted)


def assert_merged(trained: Trained, folder: Path) -> None:
    convert(trained.base, folder / "merged.gguf", "F32", Wishes(adapters=[(trained.adapter, 1.0)]))
    merged = log_probabilities(folder / "merged.gguf", trained.tokens.tolist())
    assert np.abs(merged - trained.wanted).max() < 2 * trained.case.loosest


def assert_applied(trained: Trained, folder: Path) -> None:
    convert(trained.base, folder / "plain.gguf", "F32")
    converted(trained.adapter, trained.base, folder / "adapter.gguf")
    applied = log_probabilities(folder / "plain.gguf", trained.tokens.tolist(), folder / "adapter.gguf")
    assert np.abs(applied - trained.wanted).max() < 2 * trained.case.loosest


@pytest.mark.parametrize("name", NAMES)
def test_log_probabilities_are_pefts(name: str, tmp_path: Path) -> None:
    targets = r".*language_model.*_proj" if "vision" in name else "all-linear"
    trained = train(name, tmp_path, use_rslora=True, target_modules=targets)
    assert_merged(trained, tmp_path)
    assert_applied(trained, tmp_path)


def test_a_head_with_a_bias_is_applied_though_peft_saves_the_bases_bias(tmp_path: Path) -> None:
    """PEFT saves the layer below an adapted head, which no training changed; Phi's has a bias too."""
    trained = train("phi-1.5", tmp_path, target_modules=["lm_head", "fc1"])
    with safetensors.safe_open(trained.adapter / "adapter_model.safetensors", "np") as file:
        assert "base_model.model.lm_head.base_layer.bias" in file.keys()  # noqa: SIM118
    assert_merged(trained, tmp_path)
    assert_applied(trained, tmp_path)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_a_trained_bias_of_the_head_is_merged_and_cannot_be_applied(bias: str, tmp_path: Path) -> None:
    trained = train("phi-1.5", tmp_path, target_modules=["lm_head"], bias=bias)
    assert_merged(trained, tmp_path)
    with pytest.raises(AdapterError, match=r"replaces '.*bias', which llama\.cpp cannot do at run time; merge it"):
        converted(trained.adapter, trained.base, tmp_path / "adapter.gguf")
