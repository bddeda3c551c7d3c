"""GGUF files as the source: quantized as llama.cpp's own quantizer does it, and in parts."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
from gguf_comparison import assert_same_gguf, own_fields

from tinyedge.cli.models import demo_checkpoint
from tinyedge.errors import (
    CheckpointError,
    GGUFError,
    OutputError,
    RequantizeError,
    UnsupportedArchitectureError,
    WeightValueError,
)
from tinyedge.gguf_split import read_model, split_path
from tinyedge_quantize.controls.values import ControlError, Controls
from tinyedge_quantize.convert import Wishes, convert
from tinyedge_quantize.metadata import string
from tinyedge_quantize.recipes import RECIPES
from tinyedge_quantize.splits import SplitError, parse_size

AGAIN = Wishes(controls=Controls(allow_requantize=True))


def llama_cpp_quantize(source: Path, target: Path, type_name: str, *, requantize: bool = False) -> None:
    """llama.cpp's llama_model_quantize with its default parameters."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = RECIPES[type_name].file_type
    parameters.nthread = 2
    parameters.allow_requantize = requantize
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), parameters) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo as GGUF files of four types, made from its checkpoint."""
    folder = tmp_path_factory.mktemp("gguf")
    for name in ("F32", "F16", "BF16", "Q8_0", "Q5_K_M"):
        convert(demo_checkpoint(), folder / f"{name}.gguf", name)
    return folder


@pytest.mark.parametrize("source", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("target", ["Q4_K_M", "Q8_0", "F16", "IQ4_NL"])
def test_every_byte_equals_llama_cpp(source: str, target: str, folder: Path, tmp_path: Path) -> None:
    convert(folder / f"{source}.gguf", tmp_path / "ours.gguf", target)
    llama_cpp_quantize(folder / f"{source}.gguf", tmp_path / "theirs.gguf", target)
    assert_same_gguf(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


def test_q8_0_may_become_smaller_and_others_only_when_allowed(folder: Path, tmp_path: Path) -> None:
    convert(folder / "Q8_0.gguf", tmp_path / "ours.gguf", "Q4_K_M")
    llama_cpp_quantize(folder / "Q8_0.gguf", tmp_path / "theirs.gguf", "Q4_K_M", requantize=True)
    assert_same_gguf(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")
    with pytest.raises(RequantizeError, match=r"quantized already, .* as Q"):
        convert(folder / "Q5_K_M.gguf", tmp_path / "no.gguf", "Q4_0")
    assert not (tmp_path / "no.gguf").exists()
    report = convert(folder / "Q5_K_M.gguf", tmp_path / "ours.gguf", "Q4_0", AGAIN)
    assert any("a second time" in warning and "%" in warning for warning in report.warnings)
    llama_cpp_quantize(folder / "Q5_K_M.gguf", tmp_path / "theirs.gguf", "Q4_0", requantize=True)
    assert_same_gguf(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


def test_the_source_is_named_with_its_hash(folder: Path, tmp_path: Path) -> None:
    import hashlib

    convert(folder / "F16.gguf", tmp_path / "out.gguf", "Q4_K_M")
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    assert fields["tinyedge.source.files"].contents() == ["F16.gguf"]
    digest = hashlib.sha256((folder / "F16.gguf").read_bytes()).hexdigest()
    assert fields["tinyedge.source.sha256"].contents() == [digest]
    assert fields["tinyedge.recipe"].contents() == "Q4_K_M"


def test_parts_hold_what_one_file_holds(folder: Path, tmp_path: Path) -> None:
    convert(folder / "F16.gguf", tmp_path / "whole.gguf", "Q8_0")
    report = convert(folder / "F16.gguf", tmp_path / "model.gguf", "Q8_0", Wishes(split_max_bytes=1_500_000))
    count = len(report.paths)
    assert count > 2
    assert list(report.paths) == [split_path(tmp_path / "model.gguf", number, count) for number in range(count)]
    assert report.path == report.paths[0]
    whole = gguf.GGUFReader(tmp_path / "whole.gguf")
    parts = [gguf.GGUFReader(path) for path in report.paths]
    tensors = [tensor for part in parts for tensor in part.tensors]
    assert [tensor.name for tensor in tensors] == [tensor.name for tensor in whole.tensors]
    for mine, reference in zip(tensors, whole.tensors, strict=True):
        assert np.array_equal(mine.data, reference.data)
    for number, part in enumerate(parts):
        assert part.fields["split.no"].contents() == number
        assert part.fields["split.count"].contents() == count
        assert part.fields["split.tensors.count"].contents() == len(tensors)
        assert sum(tensor.n_bytes for tensor in part.tensors) <= 1_500_000 or len(part.tensors) == 1
        assert (part.fields["split.no"].types, part.fields["split.tensors.count"].types) == (
            [gguf.GGUFValueType.UINT16],
            [gguf.GGUFValueType.INT32],
        )
    kept = {key: field for key, field in own_fields(parts[0]).items() if not key.startswith("split.")}
    assert {key: field.contents() for key, field in kept.items()} == {
        key: field.contents() for key, field in own_fields(whole).items()
    }


def test_parts_are_a_source_and_run(folder: Path, tmp_path: Path) -> None:
    from tinyedge import Engine
    from tinyedge.sampling import Sampling

    report = convert(folder / "F16.gguf", tmp_path / "m.gguf", "F16", Wishes(split_max_bytes=2_000_000))
    convert(report.path, tmp_path / "ours.gguf", "Q4_K_M")
    llama_cpp_quantize(folder / "F16.gguf", tmp_path / "theirs.gguf", "Q4_K_M")
    assert_same_gguf(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")
    texts = []
    for path in (report.path, folder / "F16.gguf"):
        with Engine.open(path) as engine:
            texts.append(engine.complete("Once upon a time", Sampling(temperature=0.0), max_tokens=12).text)
    assert texts[0] == texts[1]
    assert read_model(report.path).file_bytes == report.bytes


def test_broken_parts_end_in_one_sentence(folder: Path, tmp_path: Path) -> None:
    report = convert(folder / "F16.gguf", tmp_path / "m.gguf", "F16", Wishes(split_max_bytes=2_000_000))
    with pytest.raises(GGUFError, match="is not the first of"):
        convert(report.paths[1], tmp_path / "out.gguf", "Q4_K_M")
    shutil.copyfile(report.paths[0], tmp_path / "renamed.gguf")
    with pytest.raises(GGUFError, match="which its name does not"):
        convert(tmp_path / "renamed.gguf", tmp_path / "out.gguf", "Q4_K_M")
    shutil.copyfile(report.paths[1], report.paths[2])
    with pytest.raises(GGUFError, match="is not part 3 of"):
        convert(report.paths[0], tmp_path / "out.gguf", "Q4_K_M")
    report.paths[1].unlink()
    with pytest.raises(GGUFError, match=r"part 2 of \d+, .* is missing"):
        convert(report.paths[0], tmp_path / "out.gguf", "Q4_K_M")
    assert not (tmp_path / "out.gguf").exists()


def test_a_file_is_not_written_over_itself(folder: Path, tmp_path: Path) -> None:
    shutil.copyfile(folder / "F16.gguf", tmp_path / "m.gguf")
    with pytest.raises(OutputError, match="is read and cannot be the output"):
        convert(tmp_path / "m.gguf", tmp_path / "m.gguf", "Q4_K_M")


def test_what_belongs_to_checkpoints_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a GGUF file"):
        convert(folder / "F16.gguf", tmp_path / "out.gguf", "Q4_K_M", Wishes(config_name="tiny_LLaMA_1b"))


def test_experts_are_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "moe.gguf", "llama")
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_tensor("blk.0.ffn_up_exps.weight", np.zeros((2, 4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedArchitectureError, match="mixture of experts"):
        convert(tmp_path / "moe.gguf", tmp_path / "out.gguf", "Q4_K_M")


def test_sizes_are_read_as_llama_gguf_split_reads_them() -> None:
    assert (parse_size("2G"), parse_size("500m")) == (2_000_000_000, 500_000_000)
    for text in ("", "0M", "2", "1.5G", "2GB", "-1G"):
        with pytest.raises(SplitError):
            parse_size(text)


def write_one_matrix(path: Path, values: np.ndarray, kind: gguf.GGMLQuantizationType | None = None) -> Path:  # type: ignore[type-arg]
    """A GGUF file of a model with one matrix, as raw bytes of `kind` or in the array's own type."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_tensor("blk.0.ffn_up.weight", values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.float64])
def test_types_that_hold_no_weights_are_refused(dtype: type, tmp_path: Path) -> None:
    source = write_one_matrix(tmp_path / "source.gguf", np.ones((4, 256), dtype))
    with pytest.raises(GGUFError, match=r"stores the matrix blk\.0\.ffn_up\.weight as [IF]\d+"):
        convert(source, tmp_path / "out.gguf", "Q8_0", AGAIN)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("target", ["F16", "Q8_0", "Q4_K_M", "IQ3_S", "TQ1_0"])
@pytest.mark.parametrize("value", [7e4, 1e8, 3e38])
def test_weights_beyond_f16_are_refused_before_ggml_sees_them(value: float, target: str, tmp_path: Path) -> None:
    """ggml makes infinite scales of some, ends the process for others, and some numbers when its compiler reordered."""
    values = np.full((4, 256), 0.01, np.float32)
    values[2, 7] = value
    source = write_one_matrix(tmp_path / "source.gguf", values)
    with pytest.raises(WeightValueError, match="beyond the 65504 of F16"):
        convert(source, tmp_path / "out.gguf", target)
    assert not (tmp_path / "out.gguf").exists()


def test_blocks_with_an_infinite_scale_are_refused_even_when_only_copied(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    blocks = np.zeros((4, 8 * 34), np.uint8)
    blocks[1, 34:36] = (0x00, 0x7C)
    blocks[1, 36] = 1
    source = write_one_matrix(tmp_path / "source.gguf", blocks, gguf.GGMLQuantizationType.Q8_0)
    with pytest.raises(WeightValueError, match="holds NaN or infinite values"):
        convert(source, tmp_path / "out.gguf", "COPY")
    assert capfd.readouterr().err == ""


def test_many_arrays_of_strings_are_read_in_linear_time(tmp_path: Path) -> None:
    """40,000 of them took 12 seconds when each copied the header."""
    import time

    writer = gguf.GGUFWriter(tmp_path / "many.gguf", "llama")
    for number in range(40_000):
        writer.add_array(f"k{number}", ["x"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    header = read_model(tmp_path / "many.gguf")
    started = time.perf_counter()
    assert all(value.raw_strings == (b"x",) for value in header.metadata.values() if not isinstance(value, str))
    assert time.perf_counter() - started < 5


def test_an_override_of_another_kind_is_refused_before_it_is_used(folder: Path, tmp_path: Path) -> None:
    controls = Controls(overrides={"llama.block_count": string("abc")})
    with pytest.raises(ControlError, match="of type int"):
        convert(folder / "F16.gguf", tmp_path / "out.gguf", "Q4_K_M", Wishes(controls=controls))
