"""Shapes, counts, windows and FLOPs of the model against golden files, the reference's numbers and hand arithmetic."""

import json
from pathlib import Path

import pytest

from nanochat.model.config import GPTConfig

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.mark.parametrize("name", ["seed_c1", "seed_c2", "current_d1", "portable_p1"])
def test_config_equals_the_golden_files(name):
    """Names and their order, parameter count, windows, value embeddings and padding are those of the original."""
    expected = golden(name)
    config = GPTConfig(architecture=expected["architecture"], **expected["config"])
    assert list(config.parameter_shapes()) == list(expected["grad_norm"])
    assert config.num_parameters() == expected["n_parameters"]
    assert list(config.windows) == expected["window_per_layer"]
    assert config.padded_vocab_size == expected["padded_vocab_size"]
    assert config.head_dim == expected["head_dim"]
    with_value = [i for i in range(config.n_layer) if config.has_value_embedding(i)]
    assert with_value == expected["value_embedding_layers"]


def test_speedrun_shape_has_its_published_size():
    """The default shape is the 286M model; FLOPs are computed by hand from the formula."""
    config = GPTConfig()
    assert config.num_parameters() == 286_262_424
    blocks = 12 * 12 * 768 * 768 + 6 * 6 * 32
    assert config.num_scaling_parameters() == blocks + 32768 * 768
    attention = 12 * 768 * (9 * 1024 + 3 * 2048)
    assert config.flops_per_token() == 6 * (blocks + 32768 * 768) + attention


@pytest.mark.parametrize(
    ("depth", "width", "heads", "millions"),
    [(4, 256, 2, 36.7), (6, 384, 3, 73.5), (8, 512, 4, 126), (12, 768, 6, 286), (20, 1280, 10, 897)],
)
def test_depth_dial(depth, width, heads, millions):
    """Widths, heads and parameter counts are those of the published table."""
    config = GPTConfig.from_depth(depth)
    assert (config.n_layer, config.n_embd, config.n_head, config.n_kv_head) == (depth, width, heads, heads)
    assert config.num_parameters() == pytest.approx(millions * 1e6, rel=2e-3)


def test_odd_depth_rounds_the_width_up():
    """64 * 5 = 320 becomes 384, a multiple of the head size."""
    config = GPTConfig.from_depth(5)
    assert (config.n_embd, config.n_head) == (384, 3)


@pytest.mark.parametrize(
    ("architecture", "sequence_len", "short"),
    [("seed", 2048, 1024), ("seed", 33, 16), ("current", 2048, 512), ("current", 2050, 640), ("current", 64, 64)],
)
def test_short_window_follows_the_architecture(architecture, sequence_len, short):
    """Half the context, or ceil(T/4/128)*128 but at most T; the last layer sees everything, also as S."""
    config = GPTConfig(architecture=architecture, sequence_len=sequence_len, n_layer=3, window_pattern="SL")
    assert config.windows == (short, sequence_len, sequence_len)


def test_dict_round_trip():
    """`to_dict` returns JSON values, and `from_dict` restores an equal config."""
    shape = {"n_layer": 3, "n_embd": 96, "n_head": 6, "n_kv_head": 2, "vocab_size": 300}
    for config in (GPTConfig(architecture="current", **shape), GPTConfig(norm_eps=1e-3, **shape)):
        assert GPTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        assert config.variant.norm_eps == {"current": 2**-23, "seed": 1e-3}[config.architecture]


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"n_embd": 100, "n_head": 3, "n_kv_head": 3}, "`n_embd` 100 is not a multiple of `n_head` 3"),
        ({"n_embd": 96, "n_head": 32, "n_kv_head": 32}, "heads of 3"),
        ({"n_head": 6, "n_kv_head": 4}, "`n_head` 6 is not a multiple of `n_kv_head` 4"),
        ({"n_embd": 16, "n_head": 2, "n_kv_head": 2}, "less than the 32 channels"),
        ({"n_embd": 16, "n_head": 2, "n_kv_head": 2, "architecture": "current"}, "less than the 24 channels"),
        ({"window_pattern": "SXL"}, "'SXL'"),
        ({"window_pattern": ""}, "letters S and L"),
        ({"architecture": "portable", "window_pattern": "SL"}, "which `portable` lacks"),
        ({"n_layer": 0}, "`n_layer` is 0"),
    ],
)
def test_impossible_shapes_are_named(shape, words):
    """Each impossible shape gives exactly one problem, which contains the value."""
    (problem,) = GPTConfig(**shape).problems()
    assert words in problem
    assert GPTConfig().problems() == []
