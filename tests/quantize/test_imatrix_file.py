"""Importance matrices as files: what is written and read, byte for byte, and everything that must not be believed."""

from __future__ import annotations

import os
import random
import struct
import tempfile
from pathlib import Path

import gguf
import numpy as np
import pytest
from quantize_reference import llama_quantize

from tinyedge.cli.models import demo_checkpoint
from tinyedge.errors import ImatrixError, OutputError
from tinyedge_quantize.controls.values import Controls
from tinyedge_quantize.convert import Wishes, convert
from tinyedge_quantize.imatrix.file import Imatrix, SquareSums, check_against, check_names, merge, read_imatrix, write_imatrix
from tinyedge_quantize.imatrix.statistics import layer_statistics, tensor_statistics

Q4_K_M, IQ2_XXS = 15, 19  # llama_ftype


def square_sums(sums: list[float], *counts: int) -> SquareSums:
    return SquareSums(np.array(sums, np.float32), np.array(counts, np.int64))


def imatrix(tensors: dict[str, SquareSums], path: Path = Path("x.gguf"), chunk_size: int = 512) -> Imatrix:
    return Imatrix(path, tensors, ("text.txt",), 3, chunk_size)


SMALL = {
    "blk.0.attn_q.weight": square_sums([1.5, 0, 3, 4.25], 7),
    "blk.0.ffn_down_exps.weight": square_sums([1, 2, 3, 4, 5, 6], 2, 0, 3),
}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


# What llama-imatrix writes for SMALL, put together from the format's description and compared with a file of its own.
LITERAL = (
    b"GGUF"
    + struct.pack("<IQQ", 3, 4, 4)
    + (text("general.type") + struct.pack("<I", 8) + text("imatrix"))
    + (text("imatrix.datasets") + struct.pack("<IIQ", 9, 8, 1) + text("text.txt"))
    + (text("imatrix.chunk_count") + struct.pack("<II", 4, 3))
    + (text("imatrix.chunk_size") + struct.pack("<II", 4, 512))
    + (text("blk.0.attn_q.weight.in_sum2") + struct.pack("<IQIQ", 1, 4, 0, 0))
    + (text("blk.0.attn_q.weight.counts") + struct.pack("<IQIQ", 1, 1, 0, 32))
    + (text("blk.0.ffn_down_exps.weight.in_sum2") + struct.pack("<IQQIQ", 2, 2, 3, 0, 64))
    + (text("blk.0.ffn_down_exps.weight.counts") + struct.pack("<IQQIQ", 2, 1, 3, 0, 96))
)
LITERAL = (
    LITERAL.ljust(-(-len(LITERAL) // 32) * 32, b"\0")
    + struct.pack("<4f", 1.5, 0, 3, 4.25).ljust(32, b"\0")
    + struct.pack("<f", 7).ljust(32, b"\0")
    + struct.pack("<6f", 1, 2, 3, 4, 5, 6).ljust(32, b"\0")
    + struct.pack("<3f", 2, 0, 3).ljust(32, b"\0")
)


def dat_entry(name: bytes, chunks: int, values: list[float]) -> bytes:
    return struct.pack("<i", len(name)) + name + struct.pack(f"<ii{len(values)}f", chunks, len(values), *values)


DAT = (
    struct.pack("<i", 2)
    + dat_entry(b"blk.1.attn_q.weight", 4, [8, 2, 0])
    + dat_entry(b"blk.0.attn_q.weight", 2, [1, 3])
    + struct.pack("<ii", 4, 8)
    + b"text.txt"
)


def read_bytes(data: bytes, folder: Path, name: str = "x.gguf") -> Imatrix:
    path = folder / name
    path.write_bytes(data)
    return read_imatrix(path)


def test_the_bytes_are_those_of_llama_imatrix(tmp_path: Path) -> None:
    write_imatrix(imatrix(SMALL), tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == LITERAL


def test_gguf_reader_finds_what_was_written(tmp_path: Path) -> None:
    write_imatrix(imatrix(SMALL), tmp_path / "x.gguf")
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["text.txt"]
    found = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
    assert found["blk.0.ffn_down_exps.weight.in_sum2"].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert found["blk.0.attn_q.weight.counts"].tolist() == [7]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_imatrix(Imatrix(Path("y"), SMALL, ("a", "é"), 9, 128, {"nll": "1.5"}), tmp_path / "x.gguf")
    found = read_imatrix(tmp_path / "x.gguf")
    assert (found.path, found.datasets, found.chunks, found.chunk_size) == (tmp_path / "x.gguf", ("a", "é"), 9, 128)
    assert found.notes == {"nll": "1.5"}
    assert list(found.tensors) == list(SMALL)
    for name, tensor in found.tensors.items():
        assert np.array_equal(tensor.sums, SMALL[name].sums)
        assert np.array_equal(tensor.counts, SMALL[name].counts)
        assert (tensor.sums.dtype, tensor.counts.dtype) == (np.float32, np.int64)


def test_entries_are_the_weights_that_llama_quantize_uses(tmp_path: Path) -> None:
    found = read_bytes(LITERAL, tmp_path).entries
    assert found["blk.0.attn_q.weight"].tolist() == [np.float32(value) / np.float32(7) for value in (1.5, 0, 3, 4.25)]
    # An expert that saw no row counts as 1 in every column.
    expected = np.array([0.5, 1, 1, 1, 5 / np.float32(3), 2], np.float32)
    assert found["blk.0.ffn_down_exps.weight"].tolist() == expected.tolist()
    assert found["blk.0.attn_q.weight"].dtype == np.float32


def test_the_dat_form_is_read(tmp_path: Path) -> None:
    found = read_bytes(DAT, tmp_path, "x.dat")
    assert (found.datasets, found.chunks, found.chunk_size) == (("text.txt",), 4, 0)
    assert {name: values.tolist() for name, values in found.entries.items()} == {
        "blk.0.attn_q.weight": [0.5, 1.5],
        "blk.1.attn_q.weight": [2, 0.5, 0],
    }
    rows = found.in_rows(512)["blk.1.attn_q.weight"]
    assert (rows.sums.tolist(), rows.counts.tolist()) == ([4096, 1024, 0], [2048])


def test_the_first_dat_files_ended_with_their_entries(tmp_path: Path) -> None:
    old = read_bytes(DAT[:-16], tmp_path, "x.dat")
    assert (old.datasets, old.chunks) == ((), 0)
    assert read_bytes(DAT[:-12], tmp_path, "x.dat").chunks == 4


def test_merging_adds_sums_and_counts(tmp_path: Path) -> None:
    first, second = imatrix(SMALL), read_bytes(DAT, tmp_path, "x.dat")
    again = imatrix(SMALL | {"blk.0.ffn_down_exps.weight": square_sums([1] * 6, 2, 2, 2)})
    found = merge([first, again], tmp_path / "m.gguf", 512)
    experts = found.tensors["blk.0.ffn_down_exps.weight"]
    assert (experts.sums.tolist(), experts.counts.tolist()) == ([2, 3, 4, 5, 6, 7], [4, 2, 5])
    assert found.tensors["blk.0.attn_q.weight"].counts.tolist() == [14]
    assert found.datasets == ("text.txt", "text.txt")
    assert SMALL["blk.0.ffn_down_exps.weight"].sums.tolist() == [1, 2, 3, 4, 5, 6]
    whole = merge([second, second], tmp_path / "m.gguf", 256)
    assert (whole.chunks, whole.chunk_size) == (8, 256)
    assert whole.tensors["blk.1.attn_q.weight"].counts.tolist() == [2048]
    with pytest.raises(ImatrixError, match=r"has 2 values for 'blk.0.attn_q.weight' and what it is to be merged with 4"):
        merge([first, second], tmp_path / "m.gguf")


def test_files_of_several_models_are_not_merged(tmp_path: Path) -> None:
    attention = {f"blk.{layer}.attn_k.weight": square_sums([1, 1], 4) for layer in range(3)}
    long, short = imatrix(attention, Path("p1.gguf")), imatrix(dict(list(attention.items())[:2]), Path("qwen2.im"))
    for pair in ([long, short], [short, long]):
        problem = (
            r"^qwen2\.im is of another model than p1\.gguf: it has no values for 'blk\.2\.attn_k\.weight'; merge files of one"
        )
        with pytest.raises(ImatrixError, match=problem):
            merge(pair, tmp_path / "m.gguf")
    # What one text reaches and another does not, and what --process-output adds.
    more = {"blk.1.ffn_up_exps.weight": square_sums([1, 1], 1, 0), "output.weight": square_sums([1, 1], 4)}
    for pair in ([long, imatrix(attention | more)], [imatrix(attention | more), long]):
        assert set(merge(pair, tmp_path / "m.gguf").tensors) == set(attention | more)


def test_one_count_stands_for_every_expert_when_merged(tmp_path: Path) -> None:
    single = imatrix({"e": square_sums([1, 1], 4)})
    several = imatrix({"e": square_sums([1, 1], 1, 2)})
    for pair in ([single, several], [several, single]):
        assert merge(pair, tmp_path / "m.gguf").tensors["e"].counts.tolist() == [5, 6]
    with pytest.raises(ImatrixError, match="has 2 counts for 'e' and what it is to be merged with 3"):
        merge([imatrix({"e": square_sums([1] * 6, 1, 2, 3)}), imatrix({"e": square_sums([1] * 6, 1, 2)})], tmp_path / "m")


def test_llama_cpp_quantizes_with_what_we_write(tmp_path: Path) -> None:
    source = tmp_path / "f16.gguf"
    convert(demo_checkpoint(), source, "F16")
    values = np.random.default_rng(1)
    tensors = {
        tensor.name: SquareSums((values.random(tensor.shape[0]) * 1000).astype(np.float32), np.array([100], np.int64))
        for tensor in gguf.GGUFReader(source).tensors
        if len(tensor.shape) == 2
    }
    outputs = []
    for factor in (None, 1, 4):
        controls = Controls()
        if factor is not None:
            write_imatrix(imatrix({name: each.scaled(factor) for name, each in tensors.items()}), tmp_path / "x.gguf")
            controls = Controls(imatrix=read_imatrix(tmp_path / "x.gguf"))
        target = tmp_path / f"{factor}.gguf"
        assert llama_quantize(source, target, Q4_K_M, controls) == 0
        outputs.append(gguf.GGUFReader(target))
    plain, once, scaled = ({tensor.name: bytes(tensor.data) for tensor in each.tensors} for each in outputs)
    assert plain != once
    assert once == scaled  # sums and counts four times as large stand for the same weights
    assert llama_quantize(source, tmp_path / "no.gguf", IQ2_XXS, Controls()) != 0
    assert llama_quantize(source, tmp_path / "yes.gguf", IQ2_XXS, controls) == 0


def raw_file(
    tensors: dict[str, SquareSums], leave_out: str = "", f16: tuple[str, ...] = (), **facts: int | str | list[object] | None
) -> bytes:
    """A file by gguf's own writer, which checks nothing. `facts` replace the metadata, None leaving it out."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "raw.gguf"
        writer = gguf.GGUFWriter(path, "x")
        for key, value in ({"datasets": ["t"], "chunk_count": 1, "chunk_size": 512} | facts).items():
            if isinstance(value, list):
                writer.add_array(f"imatrix.{key}", value)
            elif isinstance(value, int):
                writer.add_uint32(f"imatrix.{key}", value)
            elif isinstance(value, str):
                writer.add_string(f"imatrix.{key}", value)
        for name, tensor in tensors.items():
            for suffix, data in ((".in_sum2", tensor.sums), (".counts", tensor.counts)):
                if suffix != leave_out:
                    writer.add_tensor(name + suffix, data.astype(np.float16 if suffix in f16 else np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def changed(sums: list[float], *counts: int) -> bytes:
    """The file with another entry for attn_q, whatever it holds."""
    return raw_file(SMALL | {"blk.0.attn_q.weight": square_sums(sums, *counts)})


NAN, INFINITE = float("nan"), float("inf")
HOSTILE = {
    "zero counts": (changed([1, 2], 0), "has zero counts for 'blk.0.attn_q.weight'"),
    "NaN": (changed([1, NAN], 1), "holds NaN or infinite sums for 'blk.0.attn_q.weight'"),
    "infinite": (changed([1, INFINITE], 1), "holds NaN or infinite sums"),
    "negative": (changed([1, -2], 1), "holds negative sums"),
    "huge": (changed([1, 3e38], 1), r"sums of squares up to 3e\+38"),
    "negative counts": (changed([1, 2], -5), "that are no numbers of rows"),
    "counts do not divide": (changed([1, 2, 3], 1, 1), "has 2 counts for the 3 sums"),
    "no counts": (raw_file(SMALL, ".counts"), r"has no 'blk.0.attn_q.weight.counts'"),
    "no sums": (raw_file(SMALL, ".in_sum2"), r"has no 'blk.0.attn_q.weight.in_sum2'"),
    "sums of F16": (raw_file(SMALL, f16=(".in_sum2",)), "as F16; F32 was expected"),
    "counts of F16": (raw_file(SMALL, f16=(".counts",)), "as F16; F32 was expected"),
    "no datasets": (raw_file(SMALL, datasets=None), "does not name its texts"),
    "datasets no strings": (raw_file(SMALL, datasets=[1, 2]), "does not name its texts"),
    "no chunk count": (raw_file(SMALL, chunk_count=None), "does not give its chunk count"),
    "chunk size a text": (raw_file(SMALL, chunk_size="512"), "does not give its chunk size"),
    "chunk size 0": (raw_file(SMALL, chunk_size=0), "claims chunks of 0 tokens"),
    "no tensors": (raw_file({}), "without an importance matrix"),
    "nothing": (b"", "is not an importance matrix"),
    "a text": (b"Once upon a time there was a wolf. " * 10, "is not an importance matrix"),
    "only the magic": (b"GGUF", "truncated|ends|not"),
    "dat without entries": (struct.pack("<i", 0) + DAT[4:], "is not an importance matrix"),
    "dat of a billion entries": (struct.pack("<i", 10**9) + DAT[4:], "is not an importance matrix"),
    "dat with one entry too many": (struct.pack("<i", 3) + DAT[4:], "for its entry 2"),
    "dat with a long name": (DAT[:4] + struct.pack("<i", 2**31 - 1) + DAT[8:], "is not an importance matrix"),
    "dat with binary names": (struct.pack("<i", 1) + dat_entry(b"\xff\x00\x1b", 1, [1]), "is not an importance matrix"),
    "dat twice": (struct.pack("<i", 2) + 2 * dat_entry(b"a", 1, [1]), "has the tensor 'a' twice"),
    "dat zero counts": (struct.pack("<i", 1) + dat_entry(b"a", 0, [1]), "has zero counts for 'a'"),
    "dat negative counts": (struct.pack("<i", 1) + dat_entry(b"a", -4, [1]), "claims 1 values and -4 chunks"),
    "dat NaN": (struct.pack("<i", 1) + dat_entry(b"a", 1, [NAN]), "holds NaN"),
    "dat of 8 GiB": (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 2**31 - 1) + bytes(64), "is truncated"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    data, words = HOSTILE[case]
    with pytest.raises(ImatrixError, match=words) as raised:
        read_bytes(data, tmp_path)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 31


@pytest.mark.parametrize("whole", [LITERAL, DAT], ids=["gguf", "dat"])
def test_a_file_cut_anywhere_is_refused_or_complete(whole: bytes, tmp_path: Path) -> None:
    entries = read_bytes(whole, tmp_path).entries
    for length in range(len(whole)):
        try:
            found = read_bytes(whole[:length], tmp_path)
        except ImatrixError:
            continue
        assert {name: values.tolist() for name, values in found.entries.items()} == {
            name: values.tolist() for name, values in entries.items()
        }


@pytest.mark.parametrize("whole", [LITERAL, DAT], ids=["gguf", "dat"])
def test_a_file_with_changed_bytes_is_refused_or_usable(whole: bytes, tmp_path: Path) -> None:
    choose = random.Random(7)
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(choose.randint(1, 3)):
            data[choose.randrange(len(data))] = choose.choice((0, 1, 0x7F, 0x80, 0xFF, choose.randrange(256)))
        try:
            found = read_bytes(bytes(data), tmp_path)
        except ImatrixError:
            continue
        for values in found.entries.values():
            assert np.isfinite(values).all()
            assert values.min() >= 0


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImatrixError, match="there is no file"):
        read_imatrix(tmp_path / "none.gguf")
    with pytest.raises(ImatrixError, match="is not a regular file"):
        read_imatrix(tmp_path)


def test_a_file_of_holes_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.dat"
    path.write_bytes(struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 2**31 - 1))
    os.truncate(path, 8 << 30)
    with pytest.raises(ImatrixError, match="more than any importance matrix"):
        read_imatrix(path)


def test_nothing_is_left_where_it_cannot_be_written(tmp_path: Path) -> None:
    long = imatrix({"x" * 60: square_sums([1], 1)})
    with pytest.raises(ImatrixError, match="is too long for an imatrix in GGUF"):
        write_imatrix(long, tmp_path / "x.gguf")
    with pytest.raises(OutputError, match="does not exist"):
        write_imatrix(imatrix(SMALL), tmp_path / "none" / "x.gguf")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists and is not a GGUF file"):
        write_imatrix(imatrix(SMALL), tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_imatrix_of_another_model_is_refused() -> None:
    ours = imatrix(SMALL)
    check_against(ours, {"blk.0.attn_q.weight": 4, "blk.0.ffn_down_exps.weight": 6, "output.weight": 4})
    with pytest.raises(ImatrixError, match=r"another model: it has 4 values for 'blk.0.attn_q.weight', which needs 8"):
        check_against(ours, {"blk.0.attn_q.weight": 8, "blk.0.ffn_down_exps.weight": 7})
    names = [f"blk.{layer}.attn_q.weight" for layer in range(3)]
    with pytest.raises(ImatrixError, match=r"2 of 3 matrices have no entry in it, 'blk.1.attn_q.weight' for one"):
        check_against(ours, dict.fromkeys(names, 4))
    check_against(ours, dict.fromkeys(names[:2], 4))


def test_values_for_tensors_that_a_model_lacks_are_refused(tmp_path: Path) -> None:
    """Also where those that it has are of the right size, and before layers are pruned."""
    there = {
        tensor.name.replace("blk.4.", "blk.5."): square_sums([1] * int(tensor.shape[0]), 4)
        for tensor in gguf.GGUFReader(_demo(tmp_path)).tensors
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2
    }
    theirs = imatrix(there, Path("demo.imatrix.gguf"))
    problem = "demo.imatrix.gguf is for another model: it has values for 'blk.5.attn_k.weight', which this model does not have"
    for source in (demo_checkpoint(), tmp_path / "f16.gguf"):
        for layers in ((), (4,), (0,)):
            wishes = Wishes(controls=Controls(imatrix=theirs, prune_layers=layers))
            with pytest.raises(ImatrixError, match=problem) as refusal:
                convert(source, tmp_path / "x.gguf", "Q4_K_M", wishes)
            assert refusal.value.remedy == "give the one that was made from this model"
    check_names(imatrix({"output.weight": square_sums([1], 1)}), {"token_embd.weight"})


def _demo(folder: Path) -> Path:
    convert(demo_checkpoint(), folder / "f16.gguf", "F16")
    return folder / "f16.gguf"


def test_an_imatrix_of_the_whole_model_serves_a_pruned_one(tmp_path: Path) -> None:
    whole = {
        tensor.name: square_sums([1] * int(tensor.shape[0]), 4)
        for tensor in gguf.GGUFReader(_demo(tmp_path)).tensors
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2
    }
    write_imatrix(imatrix(whole), tmp_path / "imatrix.gguf")
    controls = Controls(imatrix=read_imatrix(tmp_path / "imatrix.gguf"), prune_layers=(1, 4))
    convert(demo_checkpoint(), tmp_path / "x.gguf", "IQ2_XXS", Wishes(controls=controls))
    assert gguf.GGUFReader(tmp_path / "x.gguf").fields["llama.block_count"].contents() == 3


def test_an_embedding_that_does_not_fit_is_ignored_as_in_llama_cpp() -> None:
    ours = imatrix(SMALL | {"token_embd.weight": square_sums([1, 2], 1), "output.weight": square_sums([1, 2], 1)})
    check_against(ours, {"token_embd.weight": 8})
    with pytest.raises(ImatrixError, match=r"output\.weight"):
        check_against(ours, {"output.weight": 8})


def test_statistics_follow_their_formulas() -> None:
    found = imatrix(
        {
            "blk.0.ffn_up.weight": square_sums([4, 0, 0, 12], 4),
            "blk.1.ffn_up.weight": square_sums([8, 0, 0, 8], 2),
            "blk.1.ffn_exps.weight": square_sums([1, 3, 9, 9], 1, 0),
            "output.weight": square_sums([1, 1], 1),
        }
    )
    by_name = {each.name: each for each in tensor_statistics(found)}
    first = by_name["blk.0.ffn_up.weight"]  # means 1 0 0 3
    assert (first.layer, first.short_name, first.values) == (0, "ffn_up", 4)
    assert (first.total, first.minimum, first.maximum, first.mean) == (4, 0, 3, 1)
    assert first.deviation == pytest.approx(1.5**0.5)
    assert first.active == 0.5
    assert first.entropy == pytest.approx(-(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75)))
    assert first.evenness == pytest.approx(first.entropy / 2)
    assert first.outliers == 0.25
    assert first.similarity is None
    second = by_name["blk.1.ffn_up.weight"]
    assert second.similarity == pytest.approx((4 * 8 + 12 * 8) / ((16 + 144) ** 0.5 * 128**0.5))
    assert by_name["blk.1.ffn_exps.weight"].values == 2  # the expert without rows is left out
    assert by_name["output.weight"].layer is None
    assert [each.name for each in tensor_statistics(found)][1:3] == ["blk.1.ffn_up.weight", "blk.0.ffn_up.weight"]
    layers = layer_statistics(tensor_statistics(found))
    assert [each.layer for each in layers] == [0, 1]
    assert (layers[0].similarity, layers[1].similarity) == (None, second.similarity)  # of what there is before
    assert layers[1].total == pytest.approx((4 * second.total + 2 * 4) / 6)
