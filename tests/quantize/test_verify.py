"""What `verify` finds in a file: its figures against numpy's and hashlib's, and every kind of damage by name."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import shutil
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from family_tokenizers import write_tokenizer

from tinyedge.errors import ModelNotFoundError, TinyEdgeError, VerificationError
from tinyedge.ggml_types import type_named
from tinyedge.gguf_file import read_gguf
from tinyedge.llama_check import MATRIX_TYPES
from tinyedge.native import quantize as native
from tinyedge_bench.suite.random_checkpoint import SHAPES, LlamaShape, demo_tokenizer, make_checkpoint
from tinyedge_quantize.checkpoint import open_checkpoint
from tinyedge_quantize.controls.options import make_controls
from tinyedge_quantize.convert import Wishes, convert
from tinyedge_quantize.plan import make_plan
from tinyedge_quantize.recipes import find_recipe
from tinyedge_quantize.selfcheck import STOCK_ERRORS, dequantized, sample
from tinyedge_quantize.verification.against import metadata_problems, open_reference
from tinyedge_quantize.verification.report import FAILED, PASSED, SKIPPED, Check, Verification
from tinyedge_quantize.verification.tensors import SlabObserver, error_bound, slab_sums
from tinyedge_quantize.verification.tokenizer import TEXTS
from tinyedge_quantize.verification.verify import verify, verify_written
from tinyedge_quantize.write import write

TINY = SHAPES["tiny"]
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


def make_source(folder: Path, shape: LlamaShape = TINY, seed: int = 5, **tokenizer_config: Any) -> Path:
    make_checkpoint(folder, shape, demo_tokenizer(), seed=seed)
    if tokenizer_config:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("source") / "tiny", chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def pristine(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("quantized") / "tiny.gguf"
    convert(source, target, "Q4_K_M")
    return target


@pytest.fixture
def quantized(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(pristine, tmp_path / "copy.gguf"))


def results(report: Verification) -> dict[str, str]:
    return {check.name: check.result for check in report.checks}


def failures(report: Verification) -> dict[str, str]:
    return {check.name: check.detail for check in report.checks if check.result == FAILED}


def change(path: Path, place: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[place : place + len(data)] = data
    path.write_bytes(content)


def place_of(path: Path, name: str) -> tuple[int, int]:
    """Where a tensor's data begins in the file, and its size, as the gguf package finds it."""
    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name)
    return int(tensor.data_offset), int(tensor.n_bytes)


def source_weights(folder: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The checkpoint's weights under their own names, read without our code."""
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    weights = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            bits = np.frombuffer(data[8 + length + begin : 8 + length + end], np.uint16).astype(np.uint32) << 16
            weights[name] = bits.view(np.float32).reshape(entry["shape"])
    return weights


def permuted(weights: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """llama.cpp, conversion/llama.py, LlamaModel.permute."""
    rows, columns = weights.shape
    return weights.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def test_a_good_file_passes_every_check(pristine: Path, source: Path) -> None:
    report = verify(pristine, source)
    assert results(report) == dict.fromkeys(
        ("structure", "values", "chat template", "tokenizer", "token ids", "source", "metadata", "tensors", "errors"), PASSED
    )
    assert report.passed
    assert len(report.tensors) == 21
    report.require()


def test_without_a_source_there_is_nothing_to_compare(pristine: Path) -> None:
    report = verify(pristine)
    assert results(report) == dict.fromkeys(("structure", "values", "chat template", "tokenizer"), PASSED)
    assert report.worst_first == ()


def test_errors_are_those_that_numpy_finds(pristine: Path, source: Path) -> None:
    weights = source_weights(source)
    names = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
        "blk.1.ffn_down.weight": weights["model.layers.1.mlp.down_proj.weight"],
        "blk.0.attn_q.weight": permuted(weights["model.layers.0.self_attn.q_proj.weight"], TINY.heads),
        "blk.1.attn_k.weight": permuted(weights["model.layers.1.self_attn.k_proj.weight"], TINY.kv_heads),
    }
    reports = {tensor.name: tensor for tensor in verify(pristine, source).tensors}
    checked = 0
    for tensor in gguf.GGUFReader(pristine).tensors:
        if tensor.name not in names:
            continue
        restored = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64).ravel()
        wanted = names[tensor.name].astype(np.float64).ravel()
        errors = reports[tensor.name].errors
        assert errors is not None
        assert errors.relative_rms == pytest.approx(np.linalg.norm(restored - wanted) / np.linalg.norm(wanted), rel=1e-5)
        assert errors.largest == pytest.approx(np.abs(restored - wanted).max(), rel=1e-5)
        cosine = restored @ wanted / np.linalg.norm(restored) / np.linalg.norm(wanted)
        assert errors.cosine == pytest.approx(cosine, rel=1e-9)
        checked += 1
    assert checked == len(names)


def test_checksums_are_those_of_hashlib(pristine: Path) -> None:
    data = pristine.read_bytes()
    report = verify(pristine, threads=3)
    (file,) = report.files
    assert (file.path, file.bytes, file.sha256) == (pristine, len(data), hashlib.sha256(data).hexdigest())
    places = {tensor.name: (int(tensor.data_offset), int(tensor.n_bytes)) for tensor in gguf.GGUFReader(pristine).tensors}
    assert [tensor.name for tensor in report.tensors] == list(places)
    for tensor in report.tensors:
        begin, size = places[tensor.name]
        assert tensor.bytes == size
        assert tensor.sha256 == hashlib.sha256(data[begin : begin + size]).hexdigest()


@pytest.mark.parametrize("name", sorted(MATRIX_TYPES & set(STOCK_ERRORS)))
def test_the_sums_of_every_type_are_those_of_numpys_dequantizing(name: str) -> None:
    rows = sample()
    importance = np.ones(rows.shape[1], np.float32)
    blocks = np.empty((len(rows), type_named(name).row_bytes(rows.shape[1])), np.uint8)
    native.quantize_rows(name, rows.ctypes.data, blocks.ctypes.data, *rows.shape, importance.ctypes.data)
    restored = dequantized(name, blocks).astype(np.float64)
    sums = slab_sums(name, blocks.ravel(), rows)
    assert sums.valid
    assert sums.difference == pytest.approx(((restored - rows) ** 2).sum(), rel=1e-5)
    assert sums.source == pytest.approx((rows.astype(np.float64) ** 2).sum(), rel=1e-12)
    assert sums.restored == pytest.approx((restored**2).sum(), rel=1e-6)
    assert sums.product == pytest.approx((restored * rows).sum(), rel=1e-6)
    assert math.sqrt(sums.difference / sums.source) <= error_bound(name)


def test_no_bound_admits_another_tensor_or_zeros() -> None:
    assert all(error_bound(name) < 1 for name in MATRIX_TYPES)


# Where the first scale of a block lies, and a value that is infinite or NaN there.
SCALES = {
    "Q4_0": (0, "<H", 0x7C00),
    "Q4_1": (2, "<H", 0xFC00),
    "Q5_0": (0, "<H", 0x7E00),
    "Q5_1": (0, "<H", 0x7C00),
    "Q8_0": (0, "<H", 0xFE00),
    "Q2_K": (80, "<H", 0x7C00),
    "Q3_K": (108, "<H", 0x7C00),
    "Q4_K": (2, "<H", 0x7C00),
    "Q5_K": (0, "<H", 0x7C01),
    "Q6_K": (208, "<H", 0x7C00),
    "IQ4_XS": (0, "<H", 0x7C00),
    "TQ1_0": (52, "<H", 0x7C00),
    "TQ2_0": (64, "<H", 0x7C00),
    "F16": (6, "<H", 0x7C00),
    "BF16": (6, "<H", 0x7F80),
    "F32": (12, "<I", 0xFFC00000),
}


@pytest.mark.parametrize("name", SCALES)
def test_one_bad_scale_makes_a_slab_invalid_and_says_nothing_on_stderr(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    rows = sample()[:8]
    if name == "F32":
        blocks = rows.view(np.uint8).ravel().copy()
    else:
        blocks = np.empty(len(rows) * type_named(name).row_bytes(rows.shape[1]), np.uint8)
        native.quantize_rows(name, rows.ctypes.data, blocks.ctypes.data, *rows.shape)
    assert slab_sums(name, blocks, rows).valid
    offset, form, value = SCALES[name]
    place = 3 * type_named(name).block_bytes * 7 + offset
    blocks[place : place + struct.calcsize(form)] = np.frombuffer(struct.pack(form, value), np.uint8)
    assert not slab_sums(name, blocks, rows).valid
    assert not native.is_valid(name, blocks.ctypes.data, len(blocks))
    # ggml itself has now complained once; what is asked above must not.
    assert capfd.readouterr().err.count("ggml_validate_row_data") <= 1


def test_a_bad_scale_is_found_in_the_file(quantized: Path, source: Path) -> None:
    begin, _ = place_of(quantized, "blk.0.ffn_up.weight")
    change(quantized, begin + 144 * 5, b"\x00\x7c")
    found = failures(verify(quantized))
    assert found == {"values": "'blk.0.ffn_up.weight' (Q4_K) holds NaN or infinite values"}
    found = failures(verify(quantized, source))
    assert set(found) == {"values", "errors"}
    assert "'blk.0.ffn_up.weight' (Q4_K) has a relative RMS error of nan" in found["errors"]


def test_a_changed_scale_that_is_a_number_is_found_against_the_source(quantized: Path, source: Path) -> None:
    begin, size = place_of(quantized, "blk.0.ffn_up.weight")
    data = bytearray(quantized.read_bytes())
    for block in range(begin, begin + size, 144 * 16):
        data[block + 1] ^= 0x20
    quantized.write_bytes(data)
    assert verify(quantized).passed
    assert set(failures(verify(quantized, source))) == {"errors"}


def test_swapped_tensors_are_found_against_the_source(quantized: Path, source: Path) -> None:
    first, size = place_of(quantized, "blk.0.attn_q.weight")
    second, other = place_of(quantized, "blk.1.attn_q.weight")
    assert size == other
    data = quantized.read_bytes()
    change(quantized, first, data[second : second + size])
    change(quantized, second, data[first : first + size])
    assert verify(quantized).passed
    report = verify(quantized, source)
    assert set(failures(report)) == {"errors"}
    assert {tensor.name for tensor in report.worst_first[:2]} == {"blk.0.attn_q.weight", "blk.1.attn_q.weight"}
    assert [tensor.within_bound for tensor in report.worst_first[:3]] == [False, False, True]
    with pytest.raises(VerificationError, match=r"errors: 'blk.0.attn_q.weight' .*; 'blk.1.attn_q.weight'"):
        report.require()


def test_another_models_weights_are_found(pristine: Path, tmp_path: Path) -> None:
    other = make_source(tmp_path / "other", seed=6, chat_template=TEMPLATE)
    found = failures(verify(pristine, other))
    assert set(found) == {"source", "errors"}
    assert found["source"] == "the file was made from another 'model.safetensors'"
    assert "and 13 more" in found["errors"]


def test_a_key_with_another_value_is_named(pristine: Path, source: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(source, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 500000.0, "rms_norm_eps": 1e-5 + 1e-13}))
    found = failures(verify(pristine, other))
    assert found == {"metadata": "'llama.rope.freq_base' is 10000.0 where 500000.0 was expected"}


def test_a_long_array_of_a_strangers_is_not_decoded(quantized: Path, source: Path) -> None:
    """Five million numbers under a key of the architecture: an array is decoded only where one of its length is expected."""
    data = quantized.read_bytes()
    reader = gguf.GGUFReader(quantized)
    begin = min(int(tensor.data_offset) for tensor in reader.tensors)
    key, count = b"llama.vocab_size", 5_000_000
    field = reader.fields[key.decode()]
    end = int(field.offset) + sum(len(part.tobytes()) for part in field.parts)
    array = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, 0, count) + bytes(count)
    changed = data[: field.offset] + array + data[end:begin].rstrip(b"\0")
    quantized.write_bytes(changed + bytes(-len(changed) % 32) + data[begin:])
    assert "metadata" in failures(verify(quantized, source))
    with open_reference(source) as reference:
        header = read_gguf(quantized)
        tracemalloc.start()
        problems = metadata_problems(header, reference)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert problems == ["'llama.vocab_size' is an array of 5000000 where 4096 was expected"]
    assert peak < 20_000_000


def test_tensors_of_another_shape_are_named(pristine: Path, tmp_path: Path) -> None:
    other = make_source(tmp_path / "other", LlamaShape(3, 256, 768, 8, 2, 4096, 512), chat_template=TEMPLATE)
    found = failures(verify(pristine, other))
    assert set(found) == {"source", "metadata", "tensors", "errors"}
    assert "it lacks the tensor 'blk.2." in found["tensors"]
    assert "'llama.feed_forward_length' is 512 where 768 was expected" in found["metadata"]


@pytest.mark.parametrize("kind", ["F16", "BF16", "F32"])
def test_the_source_may_be_a_gguf_file(pristine: Path, source: Path, kind: str, tmp_path: Path) -> None:
    unquantized = tmp_path / "original.gguf"
    convert(source, unquantized, kind)
    report = verify(pristine, unquantized)
    assert report.passed, failures(report)
    assert results(report)["source"] == SKIPPED
    same = verify(unquantized, unquantized)
    assert all(tensor.errors is not None and tensor.errors.relative_rms == 0 for tensor in same.tensors)
    assert all(tensor.errors is not None and tensor.errors.cosine == 1 for tensor in same.tensors)


def swap_tokens(path: Path, first: str, second: str) -> None:
    """Lets two tokens of equal length change places."""
    data = path.read_bytes()
    coded = [struct.pack("<Q", len(text.encode())) + text.encode() for text in (first, second)]
    for token, other in (coded, coded[::-1]):
        change(path, data.index(token), other)


def test_a_wrong_vocabulary_is_found(quantized: Path, source: Path) -> None:
    pytest.importorskip("sentencepiece")
    swap_tokens(quantized, "▁the", "▁and")
    found = failures(verify(quantized, source))
    assert set(found) == {"token ids", "metadata"}
    assert "sentencepiece with tokenizer.model has" in found["token ids"]
    assert "'tokenizer.ggml.tokens' is" in found["metadata"]
    shutil.copyfile(source / "tokenizer.model", quantized.parent / "tokenizer.model")
    assert set(failures(verify(quantized))) == {"token ids"}


def test_a_tokenizer_beside_the_file_is_compared_with(quantized: Path, source: Path) -> None:
    pytest.importorskip("sentencepiece")
    assert "token ids" not in results(verify(quantized))
    shutil.copyfile(source / "tokenizer.model", quantized.parent / "tokenizer.model")
    assert results(verify(quantized))["token ids"] == PASSED


def test_a_library_that_is_not_installed_is_named(
    pristine: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = "raise ModuleNotFoundError('No module named sentencepiece', name='sentencepiece')"
    (tmp_path / "sentencepiece.py").write_text(missing)
    monkeypatch.syspath_prepend(str(tmp_path))
    report = verify(pristine, source)
    sentence = "not compared with the source's own tokenizer: pip install 'tinyedge-llm[verify]'"
    assert Check("token ids", SKIPPED, sentence) in report.checks
    assert report.passed


@pytest.fixture
def byte_level(tmp_path: Path) -> Path:
    """A checkpoint whose tokenizer is a tokenizer.json of byte-level BPE."""
    pytest.importorskip("tokenizers")
    folder = tmp_path / "byte-level"
    folder.mkdir()
    rows = write_tokenizer(folder, "llama3")
    settings = folder / "tokenizer_config.json"
    kept = settings.read_bytes()
    make_checkpoint(folder, replace(TINY, vocabulary=rows), demo_tokenizer())
    (folder / "tokenizer.model").unlink()
    settings.write_bytes(kept)
    return folder


def test_a_byte_level_vocabulary_has_the_ids_of_tokenizers(byte_level: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    convert(byte_level, path, "Q4_0")
    report = verify(path, byte_level)
    assert report.passed, failures(report)
    sentence = f"{len(TEXTS)} texts have the ids that tokenizers gives them with tokenizer.json"
    assert Check("token ids", PASSED, sentence) in report.checks
    definition = json.loads((byte_level / "tokenizer.json").read_text())
    definition["model"]["merges"].reverse()
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    found = failures(verify(path))
    assert set(found) == {"token ids"}
    assert re.fullmatch(
        r"the text '.*' has from token \d+ on the ids \[.*\] where tokenizers with tokenizer.json has \[.*\]",
        found["token ids"],
    )


@pytest.mark.parametrize("content", ["", "{}", '{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}'])
def test_a_damaged_tokenizer_json_fails_the_check(byte_level: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "out.gguf"
    convert(byte_level, path, "Q4_0")
    (tmp_path / "tokenizer.json").write_text(content)
    found = failures(verify(path))
    assert set(found) == {"token ids"}
    assert "tokenizers cannot tokenize with" in found["token ids"]


def test_modules_of_the_current_folder_are_not_run(quantized: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copyfile(source / "tokenizer.model", quantized.parent / "tokenizer.model")
    for name in ("json", "sentencepiece", "ctypes", "tinyedge"):
        (quantized.parent / f"{name}.py").write_text("open('ran', 'w').close()")
    monkeypatch.chdir(quantized.parent)
    assert verify(quantized).passed
    assert not (quantized.parent / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x0a\xff\xff\xff\xff\x0f" + bytes(100)])
def test_a_damaged_source_tokenizer_fails_the_check(quantized: Path, content: bytes) -> None:
    pytest.importorskip("sentencepiece")
    (quantized.parent / "tokenizer.model").write_bytes(content)
    found = failures(verify(quantized))
    assert set(found) == {"token ids"}
    assert "sentencepiece cannot tokenize with" in found["token ids"]


def test_the_hard_texts_are_in_normal_form_c() -> None:
    import unicodedata

    assert all(unicodedata.is_normalized("NFC", text) for text in TEXTS)
    assert len(set(TEXTS)) == len(TEXTS) >= 30


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{% for m in messages %}", "the chat template"),
        ("{{ raise_exception('no') }}", "the chat template"),
        ("{{ messages[0]['content'] }}", "it leaves out what the user says"),
    ],
)
def test_a_bad_template_is_found(template: str, sentence: str, tmp_path: Path) -> None:
    folder = make_source(tmp_path / "tiny", chat_template=template)
    convert(folder, tmp_path / "out.gguf", "Q4_0")
    found = failures(verify(tmp_path / "out.gguf"))
    assert set(found) == {"chat template"}
    assert sentence in found["chat template"]


def test_a_file_without_a_template_passes(tmp_path: Path) -> None:
    folder = make_source(tmp_path / "tiny")
    convert(folder, tmp_path / "out.gguf", "Q4_0")
    report = verify(tmp_path / "out.gguf")
    assert Check("chat template", SKIPPED, "none") in report.checks
    assert report.passed


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q8_0", "F16", "BF16", "F32"])
@pytest.mark.parametrize("threads", [1, 3])
def test_what_a_conversion_sees_equals_what_verify_finds(source: Path, kind: str, threads: int, tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    observer = SlabObserver()
    with open_checkpoint(source) as checkpoint:
        plan = make_plan(checkpoint, find_recipe(kind))
        write([plan.whole], [path], threads, observer=observer)
    on_the_way = verify_written(path, observer, source, threads=threads)
    afterwards = verify(path, source, threads=threads)
    assert on_the_way.passed, failures(on_the_way)
    assert on_the_way.tensors == afterwards.tensors
    assert on_the_way.files == afterwards.files
    assert results(on_the_way)["written"] == PASSED


def test_a_file_that_reads_back_otherwise_than_written_fails(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    observer = SlabObserver()
    with open_checkpoint(source) as checkpoint:
        write([make_plan(checkpoint, find_recipe("Q4_K_M")).whole], [path], observer=observer)
    begin, _ = place_of(path, "blk.1.attn_v.weight")
    change(path, begin + 100, bytes([path.read_bytes()[begin + 100] ^ 1]))
    found = failures(verify_written(path, observer, source))
    assert found == {"written": "'blk.1.attn_v.weight' is not what was written"}


def test_a_model_in_parts_is_one_model(source: Path, pristine: Path, tmp_path: Path) -> None:
    observer = SlabObserver()
    wishes = Wishes(split_max_bytes=1_000_000)
    made = convert(source, tmp_path / "out.gguf", "Q4_K_M", wishes, observer=observer)
    assert len(made.paths) > 1
    on_the_way = verify_written(made.path, observer, source)
    afterwards = verify(made.path, source)
    assert on_the_way.passed and afterwards.passed, failures(on_the_way) | failures(afterwards)
    assert on_the_way.tensors == afterwards.tensors
    in_one = {tensor.name: tensor.sha256 for tensor in verify(pristine).tensors}
    assert {tensor.name: tensor.sha256 for tensor in afterwards.tensors} == in_one
    assert [file.path for file in afterwards.files] == list(made.paths)
    assert [file.sha256 for file in afterwards.files] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in made.paths]
    made.paths[1].unlink()
    assert "is missing" in failures(verify(made.path))["structure"]


def test_layers_that_were_dropped_are_expected_to_be_missing(source: Path, tmp_path: Path) -> None:
    wishes = Wishes(controls=make_controls(prune_layers="0", overrides=["llama.rope.freq_base=float:5000"]))
    path = tmp_path / "out.gguf"
    convert(source, path, "Q4_0", wishes)
    assert verify(path, source, wishes).passed
    assert set(failures(verify(path, source))) == {"metadata", "tensors", "errors"}


def test_progress_counts_every_byte(pristine: Path, source: Path) -> None:
    seen: list[tuple[int, int]] = []
    verify(pristine, source, progress=lambda done, total: seen.append((done, total)))
    size = pristine.stat().st_size
    assert {total for _, total in seen} == {size}
    assert sum(done for done, _ in seen) == size


@pytest.mark.parametrize("size", [0, 3, 200, 50_000, -1])
def test_a_truncated_file_gives_a_failing_report(quantized: Path, size: int, source: Path) -> None:
    data = quantized.read_bytes()
    quantized.write_bytes(data[:size])
    report = verify(quantized, source)
    assert set(failures(report)) == {"structure"}
    assert report.files[0].sha256 == hashlib.sha256(data[:size]).hexdigest()
    assert report.tensors == ()


def test_a_missing_file_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        verify(tmp_path / "missing.gguf")


def test_a_model_that_llama_cpp_would_abort_on_is_not_handed_to_it(quantized: Path) -> None:
    change(quantized, quantized.read_bytes().index(b"<0x43>"), b"<0x44>")
    report = verify(quantized)
    assert "twice in its vocabulary" in failures(report)["structure"]
    assert Check("tokenizer", SKIPPED, "not tried, for llama.cpp might abort on such a file") in report.checks


def test_damage_anywhere_gives_a_report(quantized: Path, source: Path) -> None:
    """Bytes changed in the header and the data: a report or an error of ours, and no process that dies."""
    data = quantized.read_bytes()
    (header,) = {tensor.data_offset for tensor in gguf.GGUFReader(quantized).tensors[:1]}
    chance = random.Random(7)
    for _ in range(25):
        place = chance.choice([chance.randrange(2000), chance.randrange(header), chance.randrange(header - 3000, header)])
        size = chance.randint(1, 8)
        quantized.write_bytes(data[:place] + chance.randbytes(size) + data[place + size :])
        try:
            report = verify(quantized, source)
        except TinyEdgeError as error:
            pytest.fail(f"{place}: {error}")
        assert len(report.files[0].sha256) == 64
