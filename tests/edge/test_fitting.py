"""The ladder on models and memories of every size; what the machine has is a value, the arithmetic is the real one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_gguf import tiny_parts, write

from tinyedge.errors import MemoryFitError
from tinyedge.fitting import KV_TYPES, Case, Room, Settings, blocks_divide, fit, fittable, quantized, size, smallest
from tinyedge.gguf_file import read_gguf
from tinyedge.memory import memory_needed
from tinyedge.model_facts import ModelFacts, describe_model

MIB, GIB = 1 << 20, 1 << 30
WISHED = Settings(context=2048, kv_type="F16", gpu_layers=0)
ON_GPU = replace(WISHED, gpu_layers=23)
SMALLER_BATCH = "batch 512 -> 128 tokens: 42 MiB of buffers saved, prompts may be read slower"


@pytest.fixture(scope="module")
def tinyllama(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    """TinyLlama-1.1B as Q4_K_M: the numbers of its header."""
    tiny = describe_model(read_gguf(write(tmp_path_factory.mktemp("model") / "tiny.gguf", tiny_parts())))
    return replace(
        tiny,
        parameters=1_100_048_384,
        layers=22,
        hidden=2048,
        heads=32,
        kv_heads=4,
        head_dim_k=64,
        head_dim_v=64,
        ffn=5632,
        vocabulary=32000,
        context=2048,
        key_width=22 * 256,
        value_width=22 * 256,
        embedding_type="Q4_K",
        tied_bytes=0,
        weight_bytes=667_078_656,
        file_bytes=667_814_624,
    )


def case(facts: ModelFacts, main: int, gpu: int | None = None, *, shared: bool = False, flash: bool = True) -> Case:
    return Case(facts=facts, room=Room(main=main, gpu=gpu, shared=shared), longest=facts.context, flash=flash)


def need(facts: ModelFacts, context: int, kv_type: str = "F16", batch: int = 512) -> int:
    return memory_needed(facts, context, kv_type=kv_type, batch=batch).total_bytes


def test_what_fits_is_left_as_it_was_wished(tinyllama: ModelFacts) -> None:
    found = fit(case(tinyllama, need(tinyllama, 2048)), WISHED)
    assert (found.settings, found.steps) == (WISHED, ())
    assert found.need.total_bytes == need(tinyllama, 2048)


def test_the_first_step_is_a_smaller_batch(tinyllama: ModelFacts) -> None:
    found = fit(case(tinyllama, need(tinyllama, 2048) - 1), WISHED)
    assert found.settings == replace(WISHED, batch=128)
    assert found.steps == (SMALLER_BATCH,)


def test_the_second_is_a_shorter_context_as_long_as_it_can_be(tinyllama: ModelFacts) -> None:
    found = fit(case(tinyllama, need(tinyllama, 1024, batch=128) + 1), WISHED)
    assert found.settings == replace(WISHED, context=1024, batch=128)
    assert found.steps == (SMALLER_BATCH, "context 2048 -> 1024 tokens: 22 MiB of KV cache saved")
    asked = fit(case(tinyllama, need(tinyllama, 1024, batch=64) + 1), replace(WISHED, batch=64))
    assert asked.settings == replace(WISHED, context=1024, batch=64)


def test_the_third_is_a_q8_0_cache_with_as_long_a_context_as_it_allows(tinyllama: ModelFacts) -> None:
    free = need(tinyllama, 512, batch=128) - 1
    found = fit(case(tinyllama, free), WISHED)
    assert found.settings == replace(WISHED, context=768, kv_type="Q8_0", batch=128)
    told = ("context 2048 -> 768 tokens: 28 MiB of KV cache saved", "KV cache F16 -> Q8_0: 7.7 MiB saved")
    assert found.steps == (SMALLER_BATCH, *told)
    assert need(tinyllama, 768, "Q8_0", 128) <= free < need(tinyllama, 1024, "Q8_0", 128)


def test_without_flash_attention_the_cache_is_not_quantized(tinyllama: ModelFacts) -> None:
    least = memory_needed(tinyllama, 512, flash=False).total_bytes
    found = fit(case(tinyllama, least - 1, flash=False), WISHED)
    assert found.settings.kv_type == "F16"
    assert found.settings.batch == 128


@pytest.mark.parametrize("kv_type", ["Q8_0", "Q4_0", "IQ4_NL", "Q5_1"])
def test_a_cache_that_is_small_already_stays(tinyllama: ModelFacts, kv_type: str) -> None:
    found = fit(case(tinyllama, need(tinyllama, 512, kv_type, 128)), replace(WISHED, kv_type=kv_type))
    assert (found.settings.kv_type, found.settings.context) == (kv_type, 512)


def test_heads_of_a_width_that_does_not_divide_keep_their_f16_cache(tinyllama: ModelFacts) -> None:
    odd = replace(tinyllama, head_dim_k=80, head_dim_v=80)
    assert not blocks_divide(odd, "Q8_0")
    assert fit(case(odd, need(odd, 512) - 1), WISHED).settings.kv_type == "F16"


def test_a_full_gpu_gives_up_context_and_cache_before_layers(tinyllama: ModelFacts) -> None:
    roomy = case(tinyllama, 8 * GIB, need(tinyllama, 2048))
    assert fit(roomy, ON_GPU).settings == ON_GPU
    assert fit(case(tinyllama, 8 * GIB, need(tinyllama, 1024)), ON_GPU).settings == replace(ON_GPU, context=1024)
    small = fit(case(tinyllama, 8 * GIB, need(tinyllama, 512, "Q8_0")), ON_GPU).settings
    assert small == replace(ON_GPU, context=512, kv_type="Q8_0")


def test_when_layers_must_go_the_wished_context_comes_back(tinyllama: ModelFacts) -> None:
    found = fit(case(tinyllama, 8 * GIB, 400 * MIB), ON_GPU)
    assert (found.settings.context, found.settings.kv_type) == (2048, "F16")
    assert 0 < found.settings.gpu_layers < 23
    layers = found.settings.gpu_layers
    assert found.steps == (f"GPU layers 23 -> {layers} of 23: the rest runs on the CPU, slower",)
    more = replace(found.settings, gpu_layers=layers + 1)
    assert case(tinyllama, 8 * GIB, 400 * MIB).on_gpu(found.settings) <= 400 * MIB
    assert case(tinyllama, 8 * GIB, 400 * MIB).on_gpu(more) > 400 * MIB


def test_what_is_not_on_the_gpu_must_fit_main_memory(tinyllama: ModelFacts) -> None:
    assert not fittable(case(tinyllama, 100 * MIB, 400 * MIB), ON_GPU)
    assert fittable(case(tinyllama, 500 * MIB, 400 * MIB), ON_GPU)


def test_a_gpu_that_shares_main_memory_is_not_counted_twice(tinyllama: ModelFacts) -> None:
    shared = case(tinyllama, 500 * MIB, 500 * MIB, shared=True)
    assert not fittable(shared, ON_GPU)
    assert fittable(case(tinyllama, 500 * MIB, 500 * MIB), ON_GPU)


def test_strict_names_every_option_that_would_make_it_fit(tinyllama: ModelFacts) -> None:
    with pytest.raises(MemoryFitError, match="for 2048 tokens") as caught:
        fit(case(tinyllama, need(tinyllama, 512, batch=128) - 1), WISHED, strict=True)
    assert caught.value.remedy == "this fits: --ctx 768 --kv q8_0 --batch 128"
    with pytest.raises(MemoryFitError) as caught:
        fit(case(tinyllama, 8 * GIB, 400 * MIB), ON_GPU, strict=True)
    assert "this fits: --gpu-layers " in caught.value.remedy


def test_nothing_that_fits_is_refused_with_the_numbers_and_what_would_help(tinyllama: ModelFacts) -> None:
    with pytest.raises(MemoryFitError, match=r"weights 636 MiB, KV cache 5\.8 MiB for 512 tokens.* 600 MiB are free") as caught:
        fit(case(tinyllama, 600 * MIB), WISHED)
    assert caught.value.remedy == "quantize it to Q3_K_M; this file has 4.9 bits per weight"
    with pytest.raises(MemoryFitError) as caught:
        fit(case(tinyllama, 406 * MIB), WISHED)
    assert caught.value.remedy == "no type of it is small enough: free some memory or choose a smaller model"


def test_the_need_that_is_told_is_the_least_that_the_ladder_could_make_of_it(tinyllama: ModelFacts) -> None:
    least = need(tinyllama, 512, "Q8_0", 128)
    room = case(tinyllama, least - 1)
    assert smallest(room, WISHED) == Settings(context=512, kv_type="Q8_0", gpu_layers=0, batch=128)
    assert fittable(case(tinyllama, least), WISHED)
    with pytest.raises(MemoryFitError) as caught:
        fit(replace(room, facts=replace(tinyllama, file_type="Q2_K")), WISHED)
    assert caught.value.remedy == "a context of 256 tokens fits: --ctx 256"
    assert caught.value.problem.startswith(f"the model needs at least {round(least / MIB)} MiB (")
    assert fit(room, replace(WISHED, context=256)).settings.context == 256


def test_what_no_gpu_helps_with_is_told_with_both_memories(tinyllama: ModelFacts) -> None:
    with pytest.raises(MemoryFitError, match=r"and 100 MiB and 400 MiB on the GPU are free"):
        fit(case(tinyllama, 100 * MIB, 400 * MIB), ON_GPU)


@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"])
@pytest.mark.parametrize("shape", ["SmolLM2-360M", "Qwen2.5-0.5B", "TinyLlama-1.1B", "Llama-3.2-3B"])
def test_the_type_that_is_advised_is_smaller_and_fits(shape: str, kind: str) -> None:
    from tinyedge.advice import ADVISED_TYPES, SHAPES
    from tinyedge_quantize.recipes import RECIPES, ModelShape, choose_types

    form = next(each for each in SHAPES if each.name == shape)
    model = ModelShape(layers=form.layers, heads=form.heads, kv_heads=form.kv_heads)
    files = {each: form.facts(each, choose_types(RECIPES[each], form.tensors, model)) for each in ADVISED_TYPES}
    advised = set()
    for main in range(50 * MIB, 4 * GIB, 23 * MIB):
        room = replace(case(files[kind], main), repacked=())
        try:
            fit(room, WISHED)
        except MemoryFitError as error:
            named = error.remedy.partition("quantize it to ")[2].partition(";")[0]
            if named:
                advised.add(named)
                assert fittable(replace(room, facts=files[named]), WISHED)
                assert files[named].weight_bytes < files[kind].weight_bytes
    assert not advised if kind == "Q2_K" else advised or form.hidden % 256  # there types of few bits save next to nothing


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (640 << 10, "640 KiB"),
        (2_516_582, "2.4 MiB"),
        (637 * MIB, "637 MiB"),
        (1670 * MIB, "1670 MiB"),
        (12 * GIB, "12.0 GiB"),
        (-1, "0 B"),
    ],
)
def test_sizes_are_told_finely_where_they_are_small_and_comparably_where_not(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize("main", range(640, 760, 7))
def test_whatever_the_ladder_finds_fits(tinyllama: ModelFacts, main: int) -> None:
    room = case(tinyllama, main * MIB)
    try:
        found = fit(room, WISHED)
    except MemoryFitError:
        assert not room.fits(replace(WISHED, context=512, kv_type="Q8_0", batch=128))
        return
    assert found.need.total_bytes <= main * MIB
    assert found.settings.context >= 512
    assert bool(found.steps) == (found.settings != WISHED)


def test_the_kv_types_are_those_that_the_context_takes() -> None:
    assert [kind for kind in KV_TYPES if not quantized(kind)] == ["F16", "BF16", "F32"]


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_llama_cpp_makes_a_context_with_every_kv_type(tmp_path: Path, kv_type: str) -> None:
    from tinyedge.native.context import Context, ContextSettings
    from tinyedge.native.model import Model

    path = write(tmp_path / "tiny.gguf", tiny_parts())
    with Model(path) as model, Context(model, ContextSettings(context=64, threads=1, kv_type=kv_type)) as context:
        context.decode(5)
