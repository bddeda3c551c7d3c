"""Adapters for every family, whatever its layers are called and however their rows lie: the runtime computes what PEFT does.

Merged on the way in, and applied at run time to the unmerged model, the log-probabilities are those of PEFT's own forward pass.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from families import FAMILIES
from family_checkpoint import write_checkpoint
from lora_adapters import log_probabilities
from test_lora_gguf import converted
from test_lora_merge import shake

from tinyedge_quantize.convert import Wishes, convert

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

# One of each way to store rows: (in, out), fused by head, fused, as they are; all other families were checked by hand.
NAMES = ("gpt-2", "pythia", "phi-3-mini", "gemma3-with-vision")


@pytest.mark.parametrize("name", NAMES)
def test_log_probabilities_are_pefts(name: str, tmp_path: Path) -> None:
    case = FAMILIES[name]
    base, folder = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    tokens, plain = write_checkpoint(case, base)
    model = getattr(transformers, case.model).from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    targets = r".*language_model.*_proj" if "vision" in name else "all-linear"
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, use_rslora=True, target_modules=targets)
    trained = peft.get_peft_model(model, config)
    shake(trained, 3)
    trained.save_pretrained(str(folder))
    with torch.no_grad():
        logits = trained.eval()(input_ids=torch.from_numpy(tokens)[None]).logits[0].float()
    wanted = torch.log_softmax(logits, -1).numpy()
    assert np.abs(wanted - plain).max() > 0.1

    convert(base, tmp_path / "merged.gguf", "F32", Wishes(adapters=[(folder, 1.0)]))
    merged = log_probabilities(tmp_path / "merged.gguf", tokens.tolist())
    assert np.abs(merged - wanted).max() < 2 * case.loosest

    convert(base, tmp_path / "plain.gguf", "F32")
    converted(folder, base, tmp_path / "adapter.gguf")
    applied = log_probabilities(tmp_path / "plain.gguf", tokens.tolist(), tmp_path / "adapter.gguf")
    assert np.abs(applied - wanted).max() < 2 * case.loosest
