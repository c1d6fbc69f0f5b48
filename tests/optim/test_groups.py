"""The rule of every parameter, compared with the published tables by hand."""

import pytest

from nanochat.model.config import GPTConfig
from nanochat.optim.groups import AdamWGroup, MuonGroup, OptimizerConfig, batch_scale, build_groups

CONFIGS = {
    "speedrun": GPTConfig(),
    "grouped queries": GPTConfig(n_layer=3, n_embd=96, n_head=6, n_kv_head=2, vocab_size=300),
    "current": GPTConfig(n_layer=4, n_embd=128, n_head=4, n_kv_head=4, vocab_size=251, architecture="current"),
    "portable": GPTConfig(n_layer=2, n_embd=64, n_head=2, n_kv_head=2, window_pattern="L", architecture="portable"),
}


def by_role(config, optimizer=None, tokens_per_step=2**19):
    groups = build_groups(config, optimizer or OptimizerConfig(), tokens_per_step=tokens_per_step)
    return {group.role: group for group in groups}


@pytest.mark.parametrize("variant", ["plain", "current"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_is_in_exactly_one_group(name, variant):
    """No parameter is left out, and none is updated twice."""
    config = CONFIGS[name]
    groups = build_groups(config, OptimizerConfig(variant=variant), tokens_per_step=2**19)
    names = [name for group in groups for name in group.names]
    assert sorted(names) == sorted(config.parameter_shapes())
    assert len({group.role for group in groups}) == len(groups)


@pytest.mark.parametrize("name", CONFIGS)
def test_muon_gets_the_matrices_inside_the_blocks_and_nothing_else(name):
    """Muon updates value gates, but not value embeddings."""
    config = CONFIGS[name]
    (muon,) = (group for group in by_role(config).values() if isinstance(group, MuonGroup))
    shapes = config.parameter_shapes()
    assert all(len(shapes[n]) == 2 and n.startswith("transformer.h.") for n in muon.names)
    gates = sum("ve_gate" in n for n in muon.names)
    assert len(muon.names) == 6 * config.n_layer + gates
    assert gates == sum(config.has_value_embedding(i) for i in range(config.n_layer))


TABLES = {
    "plain": {
        "wte": (0.4, (0.8, 0.95), 0.0),
        "value_embeds": (0.4, (0.8, 0.95), 0.0),
        "lm_head": (0.008, (0.8, 0.95), 0.0),
        "resid": (0.005, (0.8, 0.95), 0.0),
        "x0": (0.5, (0.96, 0.95), 0.0),
    },
    "current": {
        "wte": (0.3, (0.8, 0.995), 0.001),
        "value_embeds": (0.15, (0.8, 0.995), 0.01),
        "lm_head": (0.008, (0.8, 0.96), 0.01),
        "resid": (0.0025, (0.8, 0.95), 0.05),
        "x0": (0.25, (0.96, 0.95), 0.0),
        "smear_backout": (0.2, (0.8, 0.95), 0.0),
    },
}


@pytest.mark.parametrize(
    ("architecture", "variant", "matrices"), [("seed", "plain", (0.02, 0.95)), ("current", "current", (0.01, 0.9))]
)
def test_rates_equal_the_published_table(architecture, variant, matrices):
    """At width 768 / 4 = 192 the width factor is 2; the batch is the seed's, a quarter of the one of `current`."""
    config = GPTConfig(n_embd=192, n_head=6, n_kv_head=6, architecture=architecture)
    groups = by_role(config, OptimizerConfig(variant=variant), tokens_per_step=2**17)
    assert groups.keys() == {*TABLES[variant], "matrices"}
    for role, (lr, betas, decay) in TABLES[variant].items():
        group = groups[role]
        assert isinstance(group, AdamWGroup)
        assert (group.lr, group.betas, group.weight_decay, group.eps) == (pytest.approx(lr), betas, decay, 1e-10)
    assert (groups["matrices"].lr, groups["matrices"].beta2) == pytest.approx(matrices)
    if variant == "current":
        assert set(groups["smear_backout"].names) == {"smear_gate.weight", "smear_lambda", "backout_lambda"}


@pytest.mark.parametrize(
    ("variant", "tokens", "scale"),
    [
        *(("plain", 2**n, scale) for n, scale in ((20, 1.0), (13, 1.0), (12, 0.5**0.5), (11, 0.5), (9, 0.5))),
        *(("current", 2**n, scale) for n, scale in ((21, 2.0), (19, 1.0), (17, 0.5), (15, 0.25), (11, 0.25))),
    ],
)
def test_rates_follow_the_square_root_of_the_batch_within_bounds(variant, tokens, scale):
    """All rates follow the batch by the same factor, except smear and backout of `current`."""
    assert batch_scale(variant, tokens) == pytest.approx(scale)
    config, optimizer = CONFIGS["current"], OptimizerConfig(variant=variant)
    whole = by_role(config, optimizer, tokens_per_step=2**17 if variant == "plain" else 2**19)
    for role, group in by_role(config, optimizer, tokens_per_step=tokens).items():
        is_fixed = variant == "current" and role == "smear_backout"
        assert group.lr == pytest.approx(whole[role].lr * (1.0 if is_fixed else scale))


@pytest.mark.parametrize(
    ("field", "role", "scale"),
    [
        ("matrix_lr", "matrices", 1),
        ("embedding_lr", "wte", 2),
        ("value_embedding_lr", "value_embeds", 2),
        ("unembedding_lr", "lm_head", 2),
        ("resid_lr", "resid", 1),
        ("x0_lr", "x0", 1),
    ],
)
def test_a_chosen_rate_replaces_its_own_entry_only(field, role, scale):
    """A rate from the recipe is scaled by width and lr_scale like the table's, and changes no other rate."""
    config = GPTConfig(n_embd=192, n_head=6, n_kv_head=6)
    table = by_role(config, OptimizerConfig(lr_scale=3.0))
    chosen = by_role(config, OptimizerConfig(lr_scale=3.0, **{field: 0.07}))
    assert chosen[role].lr == pytest.approx(3 * 0.07 * scale)
    assert {r: g for r, g in chosen.items() if r != role} == {r: g for r, g in table.items() if r != role}
