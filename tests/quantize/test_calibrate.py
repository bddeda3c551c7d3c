"""What calibration collects: against torch's own activations, whole and resumed, on every kind of weight and graph."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from tinyedge.cli.models import demo_checkpoint
from tinyedge.errors import ImatrixError, NativeError
from tinyedge.native import library
from tinyedge.native.context import ContextSettings
from tinyedge.native.model import Model
from tinyedge_quantize.convert import convert
from tinyedge_quantize.imatrix import calibrate
from tinyedge_quantize.imatrix.calibrate import Collection, collect, collect_into
from tinyedge_quantize.imatrix.file import Imatrix, merge, read_imatrix
from tinyedge_quantize.imatrix.text import Text, read_tokens

SIZE = 64
SETTINGS = ContextSettings(context=SIZE, threads=1)
WORDS = [
    "once upon a",
    "time",
    "there was",
    "an old",
    "wolf",
    "who ran into the",
    "dark wood",
    "and",
    "said nothing",
    "to her",
    "brother",
]
HF_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def a_text(words: int, seed: int = 0) -> str:
    choose = random.Random(seed)
    return " ".join(choose.choice(WORDS) for _ in range(words)) + ".\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibrate")
    (path / "text.txt").write_text(a_text(400))
    convert(demo_checkpoint(), path / "F32.gguf", "F32")
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Model]:
    with Model(folder / "F32.gguf") as opened:
        yield opened


@pytest.fixture(scope="module")
def tokens(folder: Path, model: Model) -> list[int]:
    return read_tokens(model, Text(folder / "text.txt"), SIZE, None)


def collected(model: Model, tokens: list[int], chunks: int | None = None, size: int = SIZE) -> Collection:
    collection = Collection("model", size)
    for _ in collect(model, tokens, collection, SETTINGS, chunks):
        pass
    return collection


@pytest.mark.torch
def test_sums_counts_and_perplexity_are_those_of_torch(model: Model, tokens: list[int]) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoModelForCausalLM.from_pretrained(demo_checkpoint(), dtype=torch.float32).eval()
    sums: dict[str, np.ndarray] = {}
    rows: dict[str, int] = {}

    def watch(name: str) -> None:
        def seen(_module: object, inputs: tuple[torch.Tensor, ...]) -> None:
            values = inputs[0].double().reshape(-1, inputs[0].shape[-1])
            sums[name] = sums.get(name, 0) + (values * values).sum(0).numpy()
            rows[name] = rows.get(name, 0) + len(values)

        reference.get_submodule(name).register_forward_pre_hook(seen)

    for layer in range(reference.config.num_hidden_layers):
        for part in HF_NAMES.values():
            watch(f"model.layers.{layer}.{part}")
    losses = []
    chunks = 3
    with torch.no_grad():
        for start in range(0, chunks * SIZE, SIZE):
            chunk = torch.tensor(tokens[start : start + SIZE])
            targets = chunk[SIZE // 2 + 1 :].clone()
            chunk[0] = reference.config.bos_token_id
            logits = reference(chunk[None]).logits[0, SIZE // 2 : SIZE - 1]
            losses.append(torch.nn.functional.cross_entropy(logits.double(), targets, reduction="none"))
    ours = collected(model, tokens, chunks)
    assert len(ours.sums) == len(sums)
    for name, values in ours.sums.items():
        _, layer, part, _ = name.split(".")
        theirs = f"model.layers.{layer}.{HF_NAMES[part]}"
        assert ours.counts[name].tolist() == [rows[theirs]] == [chunks * SIZE]
        # The KV cache is of F16.
        np.testing.assert_allclose(values, sums[theirs], rtol=0.02, atol=1e-3 * float(sums[theirs].mean()))
        assert abs(values.sum() / sums[theirs].sum() - 1) < 1e-3
    loss = torch.cat(losses)
    assert ours.predicted == len(loss)
    assert ours.perplexity == pytest.approx(float(loss.mean().exp()), rel=1e-3)
    error = float(loss.std(unbiased=False)) / (len(loss) - 1) ** 0.5 * ours.perplexity
    assert ours.perplexity_error == pytest.approx(error, rel=1e-3)


def test_matrices_with_the_same_input_get_the_same_sums(model: Model, tokens: list[int]) -> None:
    found = collected(model, tokens, 2).sums
    for group in (("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up")):
        first, *others = (found[f"blk.1.{name}.weight"] for name in group)
        assert first.any()
        assert all(np.array_equal(first, other) for other in others)
    assert not np.array_equal(found["blk.1.attn_q.weight"], found["blk.2.attn_q.weight"])


def test_a_chunk_is_the_same_whatever_was_read_before(model: Model, tokens: list[int]) -> None:
    both, second = collected(model, tokens, 2), collected(model, tokens[SIZE:], 1)
    first = collected(model, tokens, 1)
    for name, sums in both.sums.items():
        assert np.array_equal(sums, first.sums[name] + second.sums[name])


@pytest.mark.parametrize("size", [17, 50, 100, 200])
def test_parts_of_a_chunk_add_up(model: Model, tokens: list[int], size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large vocabulary makes a chunk be decoded in parts, of which none may be too small to be counted."""
    whole = collected(model, tokens, 2, size)
    monkeypatch.setattr(calibrate, "_LOGIT_BYTES", 1)
    parts = collected(model, tokens, 2, size)
    assert parts.perplexity == pytest.approx(whole.perplexity, rel=1e-3)
    for name, sums in whole.sums.items():
        assert parts.counts[name].tolist() == whole.counts[name].tolist() == [2 * size]
        np.testing.assert_allclose(parts.sums[name], sums, rtol=0.02, atol=1e-3 * float(sums.mean()))


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_K_M", "Q8_0"])
def test_repacked_weights_are_collected_for_too(type_name: str, folder: Path, model: Model, tokens: list[int]) -> None:
    convert(demo_checkpoint(), folder / f"{type_name}.gguf", type_name)
    exact = collected(model, tokens, 1)
    with Model(folder / f"{type_name}.gguf") as quantized:
        found = collected(quantized, tokens, 1)
    assert found.counts == exact.counts
    for name, sums in found.sums.items():
        assert sums.sum() == pytest.approx(exact.sums[name].sum(), rel=0.3)


def test_inputs_in_the_memory_of_a_device_are_copied(model: Model, tokens: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: what ggml's own function for reading a tensor gives is the same as what lies in the buffer."""
    there = collected(model, tokens, 1)
    function = library.function
    monkeypatch.setattr(
        library,
        "function",
        lambda name, *types: (lambda _buffer: False) if name == "ggml_backend_buffer_is_host" else function(name, *types),
    )
    copied = collected(model, tokens, 1)
    assert all(np.array_equal(copied.sums[name], sums) for name, sums in there.sums.items())


def test_output_weight_is_collected_when_asked(folder: Path, model: Model, tokens: list[int]) -> None:
    found = Collection("model", SIZE, process_output=True)
    for _ in collect(model, tokens, found, SETTINGS, 1):
        pass
    there = {tensor.name for tensor in gguf.GGUFReader(folder / "F32.gguf").tensors}
    assert ("output.weight" in found.sums) == ("output.weight" in there)
    assert set(found.sums) - {"output.weight"} == set(collected(model, tokens, 1).sums)


def test_resumed_is_the_same_to_the_last_bit(model: Model, tokens: list[int], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.gguf", tmp_path / "parts.gguf"
    for _ in collect_into(whole, "text", model, tokens, Collection("model", SIZE), SETTINGS, 5):
        pass
    with closing(collect_into(parts, "text", model, tokens, Collection("model", SIZE), SETTINGS, 5, save_every=2)) as steps:
        assert [next(steps).chunk for _ in range(3)] == [1, 2, 3]
    assert read_imatrix(parts).chunks == 3
    begun = Collection("model", SIZE).resumed(read_imatrix(parts), tokens)
    done = list(collect_into(parts, "text", model, tokens, begun, SETTINGS, 5))
    assert [each.chunk for each in done] == [4, 5]
    assert parts.read_bytes() == whole.read_bytes()
    again = Collection("model", SIZE).resumed(read_imatrix(parts), tokens)
    assert not list(collect_into(parts, "text", model, tokens, again, SETTINGS, 5))
    assert again.perplexity == done[-1].perplexity


def test_it_is_saved_when_it_is_interrupted(model: Model, tokens: list[int], tmp_path: Path) -> None:
    path = tmp_path / "stopped.gguf"
    with pytest.raises(KeyboardInterrupt), closing(_steps(path, model, tokens)) as steps:
        for done in steps:
            if done.chunk == 2:
                raise KeyboardInterrupt
    assert read_imatrix(path).chunks == 2
    assert [child.name for child in tmp_path.iterdir()] == [path.name]


def _steps(path: Path, model: Model, tokens: list[int]) -> Generator[calibrate.ChunkDone, None, None]:
    return collect_into(path, "text", model, tokens, Collection("model", SIZE), SETTINGS, save_every=10)


def test_a_signal_never_leaves_half_a_chunk(model: Model, tokens: list[int]) -> None:
    """A handler that does not raise lets the program go on, but the chunk in which the signal came was not computed whole."""
    seen: list[int] = []
    usual = signal.signal(signal.SIGINT, lambda number, _frame: seen.append(number))
    collection, timer = Collection("model", SIZE), threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        with pytest.raises(NativeError, match="a signal interrupted"):
            for _ in collect(model, tokens[:SIZE] * 2000, collection, SETTINGS):
                pass
    finally:
        timer.join()
        signal.signal(signal.SIGINT, usual)
    assert seen == [signal.SIGINT]
    assert {int(counts[0]) for counts in collection.counts.values()} <= {collection.chunks * SIZE}


def test_only_the_same_collection_is_gone_on_with(model: Model, tokens: list[int], tmp_path: Path) -> None:
    path = tmp_path / "there.gguf"
    for _ in collect_into(path, "text", model, tokens, Collection("model", SIZE), SETTINGS, 1):
        pass
    there, ours = read_imatrix(path), Collection("model", SIZE)
    for other, words in (
        (replace(ours, model="other"), "another model"),
        (replace(ours, chunk_size=32), "chunks of another size"),
        (replace(ours, process_output=True), "--process-output"),
        (replace(ours, merged=("aa",)), "other files to begin with"),
    ):
        with pytest.raises(ImatrixError, match=words):
            other.resumed(there, tokens)
    with pytest.raises(ImatrixError, match="another text"):
        ours.resumed(there, [1, *tokens])
    with pytest.raises(ImatrixError, match="was not collected by this command"):
        ours.resumed(replace(there, notes={}), tokens)
    for key, value in (("chunks", "-1"), ("chunks", "99999"), ("nll", "nan"), ("chunks", "x"), ("tokens", "")):
        with pytest.raises(ImatrixError, match=r"was (not )?collected"):
            ours.resumed(replace(there, notes={**there.notes, key: value}), tokens)


def test_what_is_begun_with_is_added(model: Model, tokens: list[int], tmp_path: Path) -> None:
    first = collected(model, tokens, 1).imatrix(tmp_path / "first.gguf", "first")
    upon = Collection("model", SIZE)
    upon.begin_with(first, ["ff"])
    for _ in collect(model, tokens, upon, SETTINGS, 1):
        pass
    found = upon.imatrix(tmp_path / "second.gguf", "second")
    both = merge([first, first], tmp_path / "both.gguf", SIZE)
    assert (found.chunks, found.datasets) == (2, ("first", "second"))
    assert _as_lists(found) == _as_lists(both)
    with pytest.raises(ImatrixError, match=r"has 256 values in the file to begin with and 3 in this model"):
        upon.add_chunk({"blk.0.attn_q.weight": (np.ones(3, np.float32), np.ones(1, np.int64))})


def _as_lists(imatrix: Imatrix) -> dict[str, tuple[list[float], list[int]]]:
    return {name: (tensor.sums.tolist(), tensor.counts.tolist()) for name, tensor in imatrix.tensors.items()}


def test_a_model_that_computes_nan_is_refused(folder: Path, tokens: list[int], tmp_path: Path) -> None:
    path = tmp_path / "nan.gguf"
    path.write_bytes((folder / "F32.gguf").read_bytes())
    reader = gguf.GGUFReader(path, "r+")
    next(tensor for tensor in reader.tensors if tensor.name == "blk.1.attn_norm.weight").data[3] = np.nan
    reader.data.flush()
    with Model(path) as broken, pytest.raises(ImatrixError, match=r"the inputs of blk\.1\.attn_[qkv]\.weight are NaN"):
        collected(broken, tokens, 1)


def test_the_text_is_read_as_llama_imatrix_reads_it(folder: Path, model: Model, tmp_path: Path) -> None:
    text = (folder / "text.txt").read_text()
    assert text.endswith("\n")
    assert read_tokens(model, Text(folder / "text.txt"), SIZE, None) == model.tokenize(text[:-1], parse_special=False)
    marked = tmp_path / "marked.txt"
    marked.write_text("<s> " + text)
    plain, special = (read_tokens(model, Text(marked), SIZE, None, parse_special=parsed) for parsed in (False, True))
    assert plain.count(model.bos or 1) == 1
    assert special.count(model.bos or 1) == 2


def test_of_a_long_text_only_what_is_needed_is_read(model: Model, tmp_path: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text("é" * 40_001 + a_text(30_000))
    few, all_of_it = read_tokens(model, Text(long), 32, 2), read_tokens(model, Text(long), 32, None)
    assert len(few) < len(all_of_it)
    assert few[: 2 * 32] == all_of_it[: 2 * 32]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"too short", "tokens, fewer than one chunk of 64"),
        (b"", "fewer than one chunk"),
        (b"\xff\xfe\x00", r"is not UTF-8 text \(byte 0\)"),
    ],
)
def test_a_text_that_cannot_be_used(content: bytes, words: str, model: Model, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ImatrixError, match=words):
        read_tokens(model, Text(path), SIZE, None)


def test_a_text_that_is_not_there(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ImatrixError, match="there is no file"):
        read_tokens(model, Text(tmp_path / "none.txt"), SIZE, None)
    with pytest.raises(ImatrixError, match="cannot be read"):
        read_tokens(model, Text(tmp_path), SIZE, None)


def test_a_text_that_was_read_already(folder: Path, model: Model, tokens: list[int], tmp_path: Path) -> None:
    data = (folder / "text.txt").read_bytes()
    piped = Text(Path("-"), data)
    assert piped.name == "standard input"
    assert read_tokens(model, piped, SIZE, None) == tokens
    assert read_tokens(model, Text(Path("-"), data * 40), SIZE, 2)[: 2 * SIZE] == tokens[: 2 * SIZE]
    assert piped.read(10) == data[:10].decode()
    (tmp_path / "empty.txt").touch()
    for empty in (Text(Path("-"), b""), Text(tmp_path / "empty.txt")):
        with pytest.raises(ImatrixError, match="is empty; give a text"):
            empty.check()
    Text(folder / "text.txt").check()


def mixture(path: Path, source: Path, experts: int, used: int) -> None:
    """The demo model as a mixture: in every layer `experts` feed-forwards, of which the router chooses `used`."""
    reader, random_values = gguf.GGUFReader(source), np.random.default_rng(5)
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "llama.expert_count"):
            continue
        sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(used)
    for tensor in reader.tensors:
        data = np.asarray(tensor.data)
        kind = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
        if not kind.startswith("ffn_") or kind == "ffn_norm":
            writer.add_tensor(tensor.name, data)
            continue
        scales = random_values.uniform(0.5, 1.5, (experts, 1, 1)).astype(np.float32)
        writer.add_tensor(tensor.name.replace(kind, f"{kind}_exps"), data[None] * scales)
        if kind == "ffn_gate":
            router = random_values.standard_normal((experts, data.shape[1])).astype(np.float32)
            writer.add_tensor(tensor.name.replace(kind, "ffn_gate_inp"), router)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("used", [1, 2, 3])
def test_experts_are_counted_one_by_one(used: int, folder: Path, tokens: list[int]) -> None:
    experts = 3
    path = folder / f"mixture-{used}.gguf"
    mixture(path, folder / "F32.gguf", experts, used)
    with Model(path) as model:
        found = collected(model, tokens, 2)
    for kind in ("gate", "up", "down"):
        counts = found.counts[f"blk.1.ffn_{kind}_exps.weight"]
        assert counts.shape == (experts,)
        assert counts.sum() == 2 * SIZE * used
    router, gate = found.sums["blk.1.ffn_gate_inp.weight"], found.sums["blk.1.ffn_gate_exps.weight"]
    per_expert = gate.reshape(experts, -1)
    np.testing.assert_allclose(per_expert.sum(0), used * router, rtol=1e-4)
    if used == experts:
        for sums in per_expert:
            np.testing.assert_allclose(sums, router, rtol=1e-4)
    imatrix = found.imatrix(folder / "moe.gguf", "text")
    assert len(imatrix.entries["blk.1.ffn_gate_exps.weight"]) == len(gate)
