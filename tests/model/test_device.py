"""The table of peak rates knows the device names that drivers report; memory limits are set in MLX."""

import mlx.core as mx
import pytest

from nanochat.model.device import (
    apply_memory_limits,
    device_name,
    memory_bytes,
    peak_flops,
    recommended_bytes,
    runs_on_cpu,
)


@pytest.mark.parametrize(
    ("name", "bfloat16", "float32"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA H200", 989e12, 67e12),
        ("NVIDIA L4", 121e12, 30.3e12),
        ("NVIDIA L40S", 362e12, 91.6e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA A10", 125e12, 31.2e12),
        ("NVIDIA A10G", 70e12, 35e12),
        ("NVIDIA GB10", 125e12, 29.7e12),
        ("NVIDIA B200", 2250e12, 75e12),
        ("NVIDIA RTX 6000 Ada Generation", 364.2e12, 91.1e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 88.2e12, 44.1e12),
        ("NVIDIA GeForce RTX 4070 Ti", 80.2e12, 40.1e12),
        ("NVIDIA GeForce RTX 3060", 25.4e12, 12.7e12),
        ("Apple M1", 2.6e12, 2.6e12),
        ("Apple M3 Max", 14.3e12, 14.3e12),
        ("Apple M2 Ultra", 27.2e12, 27.2e12),
        ("Apple M4", 4.0e12, 4.0e12),
        ("Apple M5", 16.16e12, 4.04e12),  # 10 cores x 1,578 MHz x 1,024 and 256 FLOP
        ("Apple M5 Max", 64.8e12, 16.2e12),
    ],
)
def test_peak_rates(name, bfloat16, float32):
    assert (peak_flops(name, "bfloat16"), peak_flops(name, "float32")) == pytest.approx((bfloat16, float32))


@pytest.mark.parametrize(
    "name",
    [
        *("AMD EPYC", "NVIDIA A100X", "Apple M30", ""),
        # Variants with other rates
        *("NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 5090 D", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"),
        "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
    ],
)
def test_unknown_devices_have_no_rate(name):
    assert peak_flops(name, "bfloat16") is None


@pytest.mark.cpu
def test_the_tests_run_on_the_cpu():
    assert runs_on_cpu()
    assert device_name()
    assert 2**30 < recommended_bytes() <= memory_bytes() < 2**50


@pytest.mark.cpu
def test_a_given_limit_reaches_mlx_and_none_changes_nothing_on_a_cpu():
    before = mx.get_memory_limit()
    try:
        apply_memory_limits(None)
        assert mx.get_memory_limit() == before
        apply_memory_limits(3 * 2**30)
        assert mx.get_memory_limit() == 3 * 2**30
    finally:
        mx.set_memory_limit(before)
