"""Which fields change the fingerprint of which stage, and how a change is explained."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from nanochat.plan.fingerprint import document, explain, fingerprint_document
from nanochat.plan.plan import Plan, StagePlan
from nanochat.plan.stages import STAGES

Compile = Callable[..., Plan]

ALL = {"tokenizer", "pretrain", "base_eval", "sft", "chat_eval"}
FROM_PRETRAIN = ALL - {"tokenizer"}
CHAT = {"sft", "chat_eval"}


def fingerprint(stage: StagePlan, upstream_digests: Mapping[str, str]) -> str:
    return fingerprint_document(document(stage, upstream_digests))


def fingerprints(plan: Plan, digests: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the fingerprint of each stage, taking it as the digest of the stage's output."""
    outputs: dict[str, str] = {"init_from": "digest of the starting weights"}
    for stage in plan.stages:
        known = replace(stage, source_digests=stage.source_digests if digests is None else digests)
        outputs[stage.name] = fingerprint(known, outputs)
    del outputs["init_from"]
    return outputs


def changed_stages(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    return {name for name in ALL if before[name] != after[name]}


OVERRIDES = [  # and the stages that they change
    (set(), [
        "name=other", "description=other", "expect=null", "run.device=cpu", "run.dtype=float32",
        "run.micro_batch_size=2", "run.activation_checkpointing=true", "run.checkpoint.every_steps=3",
        "run.monitor.evaluate.suites={text: {task: bpb}, quiz: {task: mmlu, source: words2}}",
        "run.monitor.evaluate.chat_suites={spell: {task: simple_spelling, source: words}}",
        "run.monitor={validate_every_steps: 1, prompts: [hello]}", "run.limits={memory: 1G, minutes: 5}",
        "run.offline=true", "run.distributed={processes: 4, backend: ring, hostfile: hosts.json}",
        "tracking={kind: none, experiment: other, tags: {a: b}}", "vars={x: 1}", "sources.unused={path: nowhere.txt}",
        "sources.stdlib.max_bad_rows=0.5",
    ]),
    (FROM_PRETRAIN, [
        "seed=8", "model.n_layer=5", "model.sequence_len=128", "model.window_pattern=L", "model.architecture=current",
        "pretrain.horizon={tokens: 1.6M}", "pretrain.tokens_per_step=2048", "pretrain.optimizer.matrix_lr=0.01",
        "pretrain.optimizer.weight_decay=0.2", "pretrain.schedule.warmup_steps=5", "pretrain.buffer_documents=10",
        "pretrain.data={words2: {}}", "pretrain.long_documents=crop", "pretrain.hand_on=best",
    ]),
    (ALL, [
        "tokenizer.vocab_size=1024", "tokenizer.max_chars=1M", "sources.stdlib.max_files=10",
        "sources.stdlib.dedup=exact",
        "sources.stdlib.max_document_chars=5000", "sources.stdlib.validation={hash_frac: 0.1}",
    ]),
    ({"base_eval"}, ["base_eval.suites.bpb.tokens=1000", "base_eval.samples=[other]", "base_eval.sample_tokens=5"]),
    (CHAT, [
        "sft.horizon.tokens=300_000", "sft.lr_scale=0.5", "sft.sequence_len=128", "sft.tokens_per_step=2048",
        "sft.schedule.constant_frac=0.1", "sft.buffer_conversations=10", "sft.data.spelling.repeat=2",
        "sft.data.spelling.weight=2", "sft.init_from=other", "sft.data.spelling.validation.split=test",
    ]),
    ({"chat_eval"}, [
        "chat_eval.suites.spelling.max_tokens=16", "chat_eval.suites.spelling={temperature: 1, top_k: null}",
        "chat_eval.init_from=other",
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("override", "changed"), [(flag, stages) for stages, flags in OVERRIDES for flag in flags])
def test_fingerprint_changes_only_for_the_stages_that_a_field_concerns(
    compiled: Compile, override: str, changed: set[str]
) -> None:
    extra = ("sources.words2={path: more.txt}",) if "words2" in override else ()
    assert changed_stages(fingerprints(compiled()), fingerprints(compiled(*extra, override))) == changed


@pytest.mark.parametrize("change", ["run.monitor.validate_every_steps=10", "run.monitor.validate_tokens=1000"])
def test_validation_enters_the_fingerprint_of_a_stage_whose_best_model_it_chooses(
    compiled: Compile, change: str
) -> None:
    best = ("sft.hand_on=best", "sft.data.spelling.validation.hash_frac=0.1")
    assert changed_stages(fingerprints(compiled(*best)), fingerprints(compiled(*best, change))) == CHAT


@pytest.mark.parametrize(
    "same",
    [
        "pretrain.horizon={steps: 367}",
        "model.window_pattern=SSSL",
        "model.n_kv_head=2",
        "pretrain.schedule={kind: cosine, warmup_steps: 0}",
        "pretrain.optimizer.lr_scale=1",
        "sft.sequence_len=256",
        "sft.tokens_per_step=4096",
        "sft.lr_scale=1",
        "tokenizer.max_document_chars=10K",
        "base_eval.suites.bpb.source=stdlib",
    ],
)
def test_fingerprint_is_the_same_for_two_ways_to_write_a_computation(compiled: Compile, same: str) -> None:
    """The derived values and defaults of the base recipe: 367 steps, SSSL, cosine."""
    assert fingerprints(compiled(same)) == fingerprints(compiled())


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_fingerprint_of_a_horizon_in_minutes_depends_on_the_minutes_but_not_on_the_device(
    compiled: Compile, stage: str
) -> None:
    def fields(minutes: float, device: str) -> object:
        plan = compiled(f"{stage}.horizon={{minutes: {minutes}}}", device_class=device)
        return plan.stage(stage).identity["fields"]

    assert fields(5, "cpu") == fields(5, "cuda")
    assert fields(5, "cpu") != fields(6, "cpu")
    found = fields(5, "cpu")
    assert isinstance(found, dict)
    assert {name: value for name, value in found.items() if ".horizon." in name} == {f"{stage}.horizon.minutes": 5}


def test_fingerprint_ignores_the_order_of_fields(compiled: Compile) -> None:
    both = "sources={a: {path: a.txt}, b: {path: b.txt}}"
    one = compiled(both, "pretrain.data={stdlib: null, a: {weight: 2}, b: {}}")
    other = compiled(both, "pretrain.data={b: {}, stdlib: null, a: {weight: 2}}", "base_eval.suites.bpb.source=a")
    assert fingerprints(one)["pretrain"] == fingerprints(other)["pretrain"]


def test_fingerprint_depends_on_the_contents_of_a_source_and_not_its_path(compiled: Compile) -> None:
    here, there = (compiled(f"sources.stdlib={{path: {place}}}") for place in ("a.txt", "b.txt"))
    assert fingerprints(here) == fingerprints(there)
    changed = {"stdlib": "digest of stdlib", "words": "another digest"}
    assert changed_stages(fingerprints(here), fingerprints(here, changed)) == CHAT


def test_fingerprint_depends_on_the_digest_of_starting_weights(compiled: Compile) -> None:
    one, other = compiled("sft.init_from=one").stage("sft"), compiled("sft.init_from=other").stage("sft")
    assert fingerprint(one, {"init_from": "abc"}) == fingerprint(other, {"init_from": "abc"})
    assert fingerprint(one, {"init_from": "abc"}) != fingerprint(one, {"init_from": "def"})


def test_fingerprint_is_the_sha256_of_canonical_json(compiled: Compile) -> None:
    """The document of the tokenizer by hand: vocabulary and source differ from their defaults, and it has no seed."""
    text = (
        '{"code":4,"fields":{"tokenizer.source":"stdlib","tokenizer.vocab_size":2048},'
        '"sources":{"stdlib":"digest of stdlib"},"stage":"tokenizer","upstream":{}}'
    )
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert fingerprint(compiled().stage("tokenizer"), {}) == expected


def test_fingerprint_document_is_ascii_and_refuses_nan() -> None:
    assert fingerprint_document({"b": 1, "a": "é"}) == hashlib.sha256(b'{"a":"\\u00e9","b":1}').hexdigest()
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint_document({"a": float("nan")})


def test_fingerprint_asserts_that_no_digest_is_missing(compiled: Compile) -> None:
    with pytest.raises(AssertionError, match="upstream tokenizer"):
        fingerprint(compiled().stage("pretrain"), {})


def test_fingerprint_changes_with_the_code_version(compiled: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprints(compiled())
    monkeypatch.setitem(STAGES, "sft", replace(STAGES["sft"], code_version=99))
    assert changed_stages(before, fingerprints(compiled())) == CHAT


@pytest.mark.parametrize(
    ("override", "stage", "lines"),
    [
        ("sft.horizon.tokens=300_000", "sft", ["sft.horizon.tokens: 400000 -> 300000"]),
        ("sft.data.spelling.repeat=2", "sft", ["sft.data.spelling.repeat: default -> 2"]),
        (
            "sft.data.more={task: simple_spelling, source: words, max_examples: 50}",
            "sft",
            ["sft.data.more added"],
        ),
        ("seed=8", "sft", ["seed: 7 -> 8"]),
        ("pretrain.optimizer.matrix_lr=0.01", "sft", ["pretrain.optimizer.matrix_lr: default -> 0.01"]),
        (
            "pretrain.horizon={tokens: 819_200}",
            "pretrain",
            ["pretrain.horizon.steps: 367 -> 200", "pretrain.schedule.warmdown_steps: 147 -> 80"],
        ),
        ("model.architecture=current", "pretrain", ["model.architecture: default -> current"]),
        ("base_eval.samples=[a, b]", "base_eval", ['base_eval.samples: ["import "] -> ["a", "b"]']),
        ("name=other", "sft", []),
    ],
)
def test_explain_names_the_changed_fields_of_the_recipe(
    compiled: Compile, override: str, stage: str, lines: list[str]
) -> None:
    upstream = dict.fromkeys(ALL, "same")
    old = document(compiled().stage(stage), upstream)
    assert explain(old, document(compiled(override).stage(stage), upstream)) == lines


def test_explain_names_changed_inputs_and_code(compiled: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = compiled().stage("pretrain")
    old, before = document(stage, {"tokenizer": "a"}), STAGES["pretrain"].code_version
    monkeypatch.setitem(STAGES, "pretrain", replace(STAGES["pretrain"], code_version=99))
    new = document(replace(compiled().stage("pretrain"), source_digests={"stdlib": "other"}), {"tokenizer": "b"})
    assert explain(old, new) == [
        f"code version {before} -> 99",
        "source `stdlib` changed",
        "upstream tokenizer changed",
    ]
    replaced = document(compiled("sft.init_from=x").stage("sft"), {"init_from": "w"})
    assert explain(document(compiled().stage("sft"), {"pretrain": "p"}), replaced) == [
        "upstream init_from added",
        "upstream pretrain dropped",
    ]
