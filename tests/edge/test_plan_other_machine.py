"""Machines that are not this one: what is free of their memory, how many cores they have, how fast they are said to be."""

from __future__ import annotations

import pytest

from tinyedge.other_machine import PROGRAM_BYTES, SYSTEMS, cores_of, other_machine, parse_size, speed_share

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 * MIB),
        ("1G", GIB),
        ("1g", GIB),
        ("7.5 GiB", 15 * GIB // 2),
        ("2GB", 2 * GIB),
        ("1T", 1024 * GIB),
    ],
)
def test_a_size_is_read_as_memory_is_sold(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "1", "G", "1X", "-1G", "0G", "0.0M", "1e3G", "٣G", "9" * 100 + "G", "999999T", "1G; rm"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size of memory; give it like 512M or 4G"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "performance", "physical"),
    [
        ("4x Cortex-A72 1.8 GHz", 4, 4),
        ("4x Cortex-A76 2.4 GHz + 4x Cortex-A55 1.8 GHz", 4, 8),
        ("6 to 8x Cortex-A78AE 1.7 GHz", 6, 6),
        ("4P + 6E 4.4 GHz", 4, 10),
        ("12x Cortex-A78AE 2.2 GHz", 12, 12),
        ("ARMv8-A", 4, 4),
        ("Haswell (2013) or newer", 4, 4),
    ],
)
def test_the_threads_of_a_board_are_its_performance_cores(text: str, performance: int, physical: int) -> None:
    cpu = cores_of(text)
    assert (cpu.threads, cpu.physical) == (performance, physical)


def test_every_board_has_cores_that_are_understood() -> None:
    from tinyedge_targets.boards import boards

    assert all(1 <= cores_of(board.cores).threads <= 12 for board in boards())


def test_the_reserve_leaves_of_1_gb_what_a_raspberry_pi_has_free() -> None:
    """boards.toml: 770 MiB of 1 GB and about 300 of 512 MB, tinyedge's own 60 MiB among them."""
    system = SYSTEMS["board"]
    assert GIB - system.reserve(GIB) + PROGRAM_BYTES == pytest.approx(770 * MIB, rel=0.01)
    assert 512 * MIB - system.reserve(512 * MIB) + PROGRAM_BYTES == pytest.approx(300 * MIB, rel=0.05)
    assert system.reserve(100 * MIB) == 100 * MIB


def test_the_reserve_is_said_with_its_reason() -> None:
    assert SYSTEMS["board"].reason(GIB) == (
        "of 1 GiB, 254 MiB are left to firmware, kernel and a system without a desktop and 60 MiB to tinyedge itself"
    )
    assert SYSTEMS["board"].reason(700 * MIB).startswith("of 700 MiB, 234 MiB are left")
    assert SYSTEMS["board"].reason(15 * GIB // 2).startswith("of 7.5 GiB, ")


def test_a_mac_has_a_gpu_with_two_thirds_of_its_memory_at_most() -> None:
    mac = other_machine(
        16 * GIB,
        SYSTEMS["macos"],
        architecture="aarch64",
        features=("asimd", "asimddp"),
        cpu=cores_of("4P + 4E 3.2 GHz"),
        metal=True,
    )
    gpu, cpu = mac.devices
    assert (gpu.kind, cpu.kind) == ("metal", "cpu")
    assert gpu.memory_free == gpu.memory_total == 16 * GIB * 2 // 3
    assert mac.free_bytes == 13 * GIB - PROGRAM_BYTES


def test_repacking_follows_the_board_s_features() -> None:
    def board(*features: str) -> tuple[str, ...] | None:
        cpu = cores_of("4x Cortex")
        return other_machine(GIB, SYSTEMS["board"], architecture="aarch64", features=features, cpu=cpu).repacked

    assert board("asimd") == ()
    assert "Q6_K" in (board("asimd", "asimddp") or ())


def test_the_speed_of_a_pi_4_and_a_pi_5_lies_where_it_was_measured() -> None:
    """GB/s that llama.cpp reached of the theoretical 12.8 and 17.1: see speed_share's sources."""
    old, new = speed_share("aarch64", ("asimd",)), speed_share("aarch64", ("asimd", "asimddp"))
    assert all(old.low <= rate / 12.8 <= old.high for rate in (3.1, 3.4))
    assert all(new.low <= rate / 17.1 <= new.high for rate in (9.76, 10.55))
