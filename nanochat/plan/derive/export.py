"""The specification of the export stage."""

from __future__ import annotations

from typing import assert_never

from nanochat.plan.derive.derivation import Derivation
from nanochat.plan.derive.evals import derive_chat_suite
from nanochat.plan.specs.evaluation import ExportSpec
from nanochat.plan.specs.suites import ChatQuestionsSpec, ChatSuiteSpec
from nanochat.recipe.schema import recipe as schema
from nanochat.recipe.schema.export_section import ExportCheck
from nanochat.tasks.table import TASKS


def derive_export(section: schema.Export, given: Derivation) -> ExportSpec:
    """Return the specification of the export stage."""
    check = section.check or ExportCheck()
    quantize = section.formats.mlx.quantize if section.formats.mlx is not None else None
    return ExportSpec(
        formats=tuple(name for name in ("mlx", "hf", "torch") if getattr(section.formats, name) is not None),
        bits=quantize.bits if quantize else None,
        group_size=quantize.group_size if quantize else None,
        prompts=check.prompts,
        max_tokens=check.max_tokens,
        suites=_suites(check, given),
        is_chat=any(x is not None for x in (given.recipe.sft, given.recipe.rl, section.init_from)),
        init_from=section.init_from,
        seed=given.recipe.seed,
    )


def _suites(check: ExportCheck, given: Derivation) -> dict[str, ChatSuiteSpec | ChatQuestionsSpec]:
    known = given.recipe.chat_eval.suites if given.recipe.chat_eval is not None else {}
    suites: dict[str, ChatSuiteSpec | ChatQuestionsSpec] = {}
    for name in sorted(check.suites):
        path = ("export", "check", "suites")
        if name not in known:
            advice = f"name some of: {', '.join(known)}" if known else "add the section `chat_eval`"
            given.issues.refuse(path, "unknown-suite", f"`chat_eval` has no suite `{name}`", advice=advice)
            continue
        suite = known[name]
        if not _is_text(suite):
            message = f"the answers of `{name}` are not text that can be graded"
            given.issues.refuse(path, "unfit-suite", message, advice="leave the suite out")
            continue
        spec = derive_chat_suite(suite, given, ("chat_eval", "suites", name))
        assert isinstance(spec, ChatSuiteSpec | ChatQuestionsSpec), "other suites were refused"
        suites[name] = spec
    return suites


def _is_text(suite: schema.AnyChatSuite) -> bool:
    """Return whether the answers of a suite are generated, and graded without running a program."""
    match suite:
        case schema.ChatSuite():
            return TASKS[suite.task].kind == "generative" and not TASKS[suite.task].runs_programs
        case schema.ChatQuestionsSuite():
            return suite.grade != "program"
        case schema.PythonSuite():
            return False
        case _:
            assert_never(suite)
