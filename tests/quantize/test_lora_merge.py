"""Adapters merged on the way in equal what PEFT merges: the same weights to float32 rounding, for every kind PEFT trains.

PEFT multiplies with torch, we with numpy: the order of additions differs, so the weights agree to 1e-6 of a tensor's largest.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyedge.errors import AdapterError
from tinyedge_quantize.checkpoint import open_checkpoint
from tinyedge_quantize.containers.safetensors_file import read_safetensors
from tinyedge_quantize.lora import merge_into, merged, open_adapter
from tinyedge_quantize.tensors import Floats, SourceTensor, WeightFile, float_rows

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")
pytestmark = pytest.mark.torch

TOLERANCE = 1e-6
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def llama(**changes: Any) -> Any:
    """A random Llama of two layers whose sizes all differ, so that no transposition goes unseen."""
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "vocab_size": 160,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | changes))


def gpt2() -> Any:
    """A random GPT-2, whose layers keep (in, out) and of which one is square."""
    torch.manual_seed(1)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=160, n_embd=64, n_layer=2, n_head=4, n_positions=32))


def shake(model: Any, seed: int) -> None:
    """Moves everything that is trained away from where PEFT begins, where B is zero and DoRA's lengths are the base's."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def save_adapter(base: Path, folder: Path, seed: int = 2, **config: Any) -> Path:
    """An adapter as PEFT trains and saves it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    trained = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **config))
    shake(trained, seed)
    trained.save_pretrained(str(folder))
    return folder


def peft_merged(base: Path, *folders: Path) -> dict[str, Floats]:
    """The weights after PEFT has merged the adapters, one after the other."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for folder in folders:
        model = peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    return {name: tensor.detach().float().numpy() for name, tensor in model.state_dict().items()}


def values(tensor: SourceTensor) -> Floats:
    """All of a tensor, read in slabs of seven rows."""
    parts = [float_rows(tensor, first, min(7, tensor.rows - first)) for first in range(0, tensor.rows, 7)]
    return np.concatenate(parts).reshape(tensor.shape)


def assert_same(tensors: Mapping[str, SourceTensor], wanted: Mapping[str, Floats]) -> None:
    assert tensors
    for name, tensor in tensors.items():
        reference = wanted[name]
        assert tensor.shape == reference.shape, name
        error = np.abs(values(tensor) - reference).max()
        assert error <= TOLERANCE * np.abs(reference).max(), f"{name}: {error:.2e}"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    llama().save_pretrained(folder)
    return folder


KINDS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 10, "target_modules": LINEAR},
    "rslora": {"r": 4, "lora_alpha": 10, "use_rslora": True, "target_modules": LINEAR},
    "dora": {"r": 4, "lora_alpha": 10, "use_dora": True, "target_modules": LINEAR},
    "rank above the rows": {"r": 48, "lora_alpha": 5, "target_modules": ["k_proj"]},
    "some layers": {"r": 4, "target_modules": ["up_proj"], "layers_to_transform": [1]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": LINEAR,
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.(up|down)_proj": 6, "model.layers.0.self_attn.v_proj": 3},
        "alpha_pattern": {r".*\.0\..*_proj": 3, "k_proj": 12},
    },
    "patterns with rslora": {
        "r": 4,
        "target_modules": LINEAR,
        "use_rslora": True,
        "rank_pattern": {"o_proj": 9},
        "alpha_pattern": {r"model.layers.1.self_attn.(k|v)_proj": 3, "o_proj": 5},
    },
    "head": {"r": 4, "target_modules": [*LINEAR, "lm_head"]},
    "embedding": {"r": 4, "lora_alpha": 6, "target_modules": ["embed_tokens", "q_proj"]},
    "embedding with dora": {"r": 4, "use_dora": True, "target_modules": ["embed_tokens", "q_proj"]},
    "replaced modules": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    "another beginning": {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_equal_pefts(base: Path, kind: str, tmp_path: Path) -> None:
    folder = save_adapter(base, tmp_path / "adapter", **KINDS[kind])
    wanted = peft_merged(base, folder)
    untouched = peft_merged(base)
    assert any(not np.array_equal(wanted[name], untouched[name]) for name in wanted)
    with open_checkpoint(base) as checkpoint, open_adapter(folder) as adapter:
        assert_same(merge_into(checkpoint.arranged, [adapter]).tensors, wanted)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_replace_the_bases(bias: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    llama(attention_bias=True).save_pretrained(base)
    folder = save_adapter(base, tmp_path / "adapter", r=4, target_modules=["q_proj", "up_proj"], bias=bias)
    wanted = peft_merged(base, folder)
    assert not np.array_equal(
        wanted["model.layers.0.self_attn.q_proj.bias"], peft_merged(base)["model.layers.0.self_attn.q_proj.bias"]
    )
    with open_checkpoint(base) as checkpoint, open_adapter(folder) as adapter:
        assert_same(merge_into(checkpoint.arranged, [adapter]).tensors, wanted)


def test_a_bias_of_b_is_added(tmp_path: Path) -> None:
    base = tmp_path / "base"
    llama(attention_bias=True).save_pretrained(base)
    folder = save_adapter(base, tmp_path / "adapter", r=4, target_modules=["q_proj"], lora_bias=True)
    with open_checkpoint(base) as checkpoint, open_adapter(folder) as adapter:
        assert_same(merge_into(checkpoint.arranged, [adapter]).tensors, peft_merged(base, folder))


@pytest.mark.parametrize("kinds", [("lora", "patterns"), ("dora", "lora"), ("lora", "dora"), ("embedding", "rslora")])
def test_several_adapters_are_merged_in_their_order(base: Path, kinds: tuple[str, str], tmp_path: Path) -> None:
    folders = [save_adapter(base, tmp_path / kind, seed, **KINDS[kind]) for seed, kind in enumerate(kinds)]
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, str(folders[0]), adapter_name="0")
    model.load_adapter(str(folders[1]), adapter_name="1")
    state = model.merge_and_unload(adapter_names=["0", "1"]).state_dict()
    wanted = {name: tensor.detach().numpy() for name, tensor in state.items()}
    with open_checkpoint(base) as checkpoint, open_adapter(folders[0]) as first, open_adapter(folders[1]) as second:
        assert_same(merge_into(checkpoint.arranged, [first, second]).tensors, wanted)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_a_scale_multiplies_as_pefts_set_scale(base: Path, kind: str, tmp_path: Path) -> None:
    folder = save_adapter(base, tmp_path / "adapter", **KINDS[kind])
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, str(folder))
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", -0.5)
    wanted = {name: tensor.detach().numpy() for name, tensor in model.merge_and_unload().state_dict().items()}
    with open_checkpoint(base) as checkpoint, open_adapter(folder, scale=-0.5) as adapter:
        assert_same(merge_into(checkpoint.arranged, [adapter]).tensors, wanted)


@pytest.mark.parametrize("variant", [{}, {"use_dora": True}])
@pytest.mark.parametrize("targets", [["c_attn", "c_proj", "c_fc"], ["c_proj", "lm_head"]])
def test_layers_that_keep_in_by_out(variant: dict[str, Any], targets: list[str], tmp_path: Path) -> None:
    """transformers' Conv1D; with the linear lm_head as the last target, PEFT saves fan_in_fan_out as false."""
    base = tmp_path / "base"
    model = gpt2()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 0.5)
    model.save_pretrained(base)
    folder = save_adapter(base, tmp_path / "adapter", r=4, target_modules=targets, **variant)
    wanted = peft_merged(base, folder)
    with closing(WeightFile(base / "model.safetensors")) as file, open_adapter(folder) as adapter:
        assert_same(merged(read_safetensors(file), [adapter]), wanted)


@pytest.mark.parametrize(("lost", "config"), [("lm_head", {"modules_to_save": ["lm_head"]}), ("magnitude", {"use_dora": True})])
def test_an_adapter_that_lost_what_was_trained_is_refused(
    lost: str, config: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    """PEFT fails for a lost module, and for lost magnitudes warns and merges other weights than were trained."""
    folder = save_adapter(base, tmp_path / "a", r=4, target_modules=["q_proj"], **config)
    wanted = peft_merged(base, folder)
    file = folder / "adapter_model.safetensors"
    tensors = safetensors.load_file(file)
    safetensors.save_file({name: tensor for name, tensor in tensors.items() if lost not in name}, file)
    with pytest.raises(AdapterError, match=r"says (?:were trained|that it is a DoRA)"):
        open_adapter(folder)
    if lost == "lm_head":
        with pytest.raises(KeyError):
            peft_merged(base, folder)
    else:
        with pytest.warns(UserWarning, match="missing adapter keys"):
            other = peft_merged(base, folder)
        name = "model.layers.0.self_attn.q_proj.weight"
        assert np.abs(other[name] - wanted[name]).max() > 100 * TOLERANCE * np.abs(wanted[name]).max()


def test_weights_saved_by_torch_and_by_a_trainer_are_read(base: Path, tmp_path: Path) -> None:
    """adapter_model.bin, and keys that still have the adapter's own name."""
    from safetensors.torch import load_file

    folder = save_adapter(base, tmp_path / "adapter", **KINDS["dora"])
    wanted = peft_merged(base, folder)
    state = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    named = {
        name.replace("lora_A.", "lora_A.default.")
        .replace("lora_B.", "lora_B.default.")
        .replace("lora_magnitude_vector", "lora_magnitude_vector.default.weight"): tensor
        for name, tensor in state.items()
    }
    torch.save(named, folder / "adapter_model.bin")
    for path in (folder, folder / "adapter_model.bin"):
        with open_checkpoint(base) as checkpoint, open_adapter(path) as adapter:
            assert_same(merge_into(checkpoint.arranged, [adapter]).tensors, wanted)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights_are_widened_before_they_are_multiplied(base: Path, dtype: str, tmp_path: Path) -> None:
    """The product of what is stored, computed here in float64."""
    from safetensors.torch import load_file, save_file

    folder = save_adapter(base, tmp_path / "adapter", **KINDS["lora"])
    file = folder / "adapter_model.safetensors"
    state = {name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(file).items()}
    save_file(state, file)
    module = "model.layers.1.mlp.down_proj"
    a, b = (state[f"base_model.model.{module}.lora_{side}.weight"].double().numpy() for side in "AB")
    wanted = peft_merged(base)[f"{module}.weight"] + 10 / 4 * b @ a
    with open_checkpoint(base) as checkpoint, open_adapter(folder) as adapter:
        ours = values(merge_into(checkpoint.arranged, [adapter]).tensors[f"{module}.weight"])
    assert np.abs(ours - wanted).max() <= TOLERANCE * np.abs(wanted).max()


@pytest.fixture(scope="module")
def tied_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tied")
    llama(tie_word_embeddings=True).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
@pytest.mark.parametrize("how", ["target_modules", "modules_to_save"])
def test_an_adapter_for_one_side_of_a_tied_matrix_parts_them(tied_base: Path, target: str, how: str, tmp_path: Path) -> None:
    """The model with the adapter, not merged, is the reference: PEFT's merge would change both sides."""
    options: dict[str, Any] = {"r": 4, "target_modules": ["q_proj"]}
    options[how] = [*options.get(how, []), target]
    folder = save_adapter(tied_base, tmp_path / "adapter", **options)
    model = transformers.AutoModelForCausalLM.from_pretrained(tied_base, dtype=torch.float32)
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        wanted = peft.PeftModel.from_pretrained(model, str(folder)).eval()(tokens).logits
    with open_checkpoint(tied_base) as checkpoint, open_adapter(folder) as adapter:
        arranged = merge_into(checkpoint.arranged, [adapter])
        parted = llama(tie_word_embeddings=False)
        parted.load_state_dict({name: torch.from_numpy(values(tensor)) for name, tensor in arranged.tensors.items()})
    assert arranged.config["tie_word_embeddings"] is False
    with torch.no_grad():
        assert torch.allclose(parted.eval()(tokens).logits, wanted, atol=1e-5)


def test_a_copy_of_the_tied_matrix_leaves_it_tied(tied_base: Path, tmp_path: Path) -> None:
    """PEFT and trl save both embeddings with an adapter when the tokenizer may have changed."""
    from safetensors.torch import load_file, save_file

    folder = save_adapter(tied_base, tmp_path / "adapter", **KINDS["lora"])
    file = folder / "adapter_model.safetensors"
    embedding = 2 * torch.from_numpy(peft_merged(tied_base)["lm_head.weight"])
    names = ("base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.weight")
    save_file(load_file(file) | {name: embedding.clone() for name in names}, file)
    with open_checkpoint(tied_base) as checkpoint, open_adapter(folder) as adapter:
        arranged = merge_into(checkpoint.arranged, [adapter])
        assert arranged.config["tie_word_embeddings"] is True
        assert "lm_head.weight" not in arranged.tensors
        assert np.array_equal(values(arranged.tensors["model.embed_tokens.weight"]), embedding.numpy())


def test_names_of_a_model_without_its_head_and_within_another_are_found(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_adapter(base, tmp_path / "adapter", **KINDS["lora"])
    wanted = peft_merged(base, folder)
    state = load_file(folder / "adapter_model.safetensors")
    for prefix in ("base_model.model.", "base_model.model.model.language_model.", "model.", "model.base_model.model.model."):
        save_file(
            {name.replace("base_model.model.model.", prefix): tensor for name, tensor in state.items()},
            folder / "adapter_model.safetensors",
        )
        with open_checkpoint(base) as checkpoint, open_adapter(folder) as adapter:
            assert_same(merge_into(checkpoint.arranged, [adapter]).tensors, wanted)


def test_threads_read_the_same_rows(base: Path, tmp_path: Path) -> None:
    folder = save_adapter(base, tmp_path / "adapter", **KINDS["embedding with dora"])
    with open_checkpoint(base) as checkpoint, open_adapter(folder) as adapter:
        tensor = merge_into(checkpoint.arranged, [adapter]).tensors["model.embed_tokens.weight"]
        results: list[Floats] = []
        pool = [threading.Thread(target=lambda: results.append(values(tensor))) for _ in range(8)]
        for thread in pool:
            thread.start()
        for thread in pool:
            thread.join()
        assert len(results) == 8
        assert all(np.array_equal(result, results[0]) for result in results)


def test_the_configuration_alone_decides_the_scaling(base: Path, tmp_path: Path) -> None:
    """Three times the alpha is three times the change."""
    folder = save_adapter(base, tmp_path / "adapter", **KINDS["lora"])
    config = json.loads((folder / "adapter_config.json").read_text())
    name = "model.layers.0.self_attn.k_proj.weight"
    plain = peft_merged(base)[name]
    changes = []
    for alpha in (10, 30):
        (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": alpha}))
        with open_checkpoint(base) as checkpoint, open_adapter(folder) as adapter:
            changes.append(values(merge_into(checkpoint.arranged, [adapter]).tensors[name]) - plain)
    assert np.allclose(changes[1], 3 * changes[0], atol=1e-6)
