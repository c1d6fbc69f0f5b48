"""The specifications of the two evaluation stages, and of suites during training. Suites are sorted by name.

A suite may name a Python file. Its source becomes a part of the specification, so the run uses the file as it was when
the run was planned. The file is parsed, but never run here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import assert_never

from nanochat.errors import PreflightError
from nanochat.plan.derive.derivation import Derivation
from nanochat.plan.derive.lm_eval_tasks import digest_task_file
from nanochat.plan.specs.evaluation import BaseEvalSpec, ChatEvalSpec
from nanochat.plan.specs.suites import (
    AnyChatSuiteSpec,
    BaseSuiteSpec,
    BpbSuiteSpec,
    ChatQuestionsSpec,
    ChatSuiteSpec,
    ChoiceSuiteSpec,
    CoreSuiteSpec,
    LmEvalSuiteSpec,
    PythonSuiteSpec,
    QuestionsSuiteSpec,
)
from nanochat.recipe.merge.tree import KeyPath
from nanochat.recipe.schema import recipe as schema
from nanochat.recipe.schema.evaluation_sections import BaseSuite
from nanochat.tasks.custom import python_files


def derive_base_eval(section: schema.BaseEval, given: Derivation) -> BaseEvalSpec:
    """Return the specification of the base_eval stage."""
    return BaseEvalSpec(
        suites=derive_base_suites(section.suites, ("base_eval", "suites"), given),
        samples=section.samples,
        sample_tokens=section.sample_tokens,
        init_from=section.init_from,
        seed=given.recipe.seed,
    )


def derive_base_suites(sections: Mapping[str, BaseSuite], path: KeyPath, given: Derivation) -> dict[str, BaseSuiteSpec]:
    """Return the specifications of the suites at `path`. Those without a source are refused."""
    sources = given.sources
    suites: dict[str, BaseSuiteSpec] = {}
    for name, suite in sorted(sections.items()):
        match suite:
            case schema.BpbSuite():
                source = suite.source or given.bpb_source
                if source is None:
                    message = f"`{name}` names no source, and there is no `pretrain` section to take it from"
                    advice = "add `source: NAME`, a source with held-out documents"
                    given.issues.refuse((*path, name), "missing-field", message, advice=advice)
                    continue
                suites[name] = BpbSuiteSpec(source=sources[source], split=suite.split, tokens=suite.tokens)
            case schema.ChoiceSuite():
                fields = suite.model_dump(exclude={"source"})
                suites[name] = ChoiceSuiteSpec(source=sources[suite.source], **fields)
            case schema.CoreSuite():
                suites[name] = CoreSuiteSpec(source=sources[suite.source], max_problems=suite.max_problems)
            case schema.QuestionsSuite():
                fields = suite.model_dump(exclude={"source"})
                suites[name] = QuestionsSuiteSpec(source=sources[suite.source], **fields)
            case schema.LmEvalSuite():
                if (files := _digest_task(suite.name, (*path, name, "name"), given)) is not None:
                    suites[name] = LmEvalSuiteSpec(files=files, **suite.model_dump())
            case _:
                assert_never(suite)
    return suites


def _digest_task(name: str, path: KeyPath, given: Derivation) -> str | None:
    """Return the digest of the files of a task of lm-evaluation-harness: empty for its own tasks, None if refused."""
    if not name.endswith((".yaml", ".yml")):
        return ""
    try:
        return digest_task_file(name)
    except PreflightError as error:
        given.issues.refuse(path, "file-missing", str(error))
        return None


def derive_chat_eval(section: schema.ChatEval, given: Derivation) -> ChatEvalSpec:
    """Return the specification of the chat_eval stage."""
    suites = derive_chat_suites(section.suites, ("chat_eval", "suites"), given)
    return ChatEvalSpec(suites=suites, init_from=section.init_from, seed=given.recipe.seed)


def derive_chat_suites(
    sections: Mapping[str, schema.AnyChatSuite], path: tuple[str, ...], given: Derivation
) -> dict[str, AnyChatSuiteSpec]:
    """Return the specifications of the suites at `path`, without those whose Python file is refused."""
    derived = {name: derive_chat_suite(suite, given, (*path, name)) for name, suite in sorted(sections.items())}
    return {name: spec for name, spec in derived.items() if spec is not None}


def derive_chat_suite(suite: schema.AnyChatSuite, given: Derivation, path: tuple[str, ...]) -> AnyChatSuiteSpec | None:
    """Return the specification of a suite at a path of the recipe. None if its Python file is refused."""
    match suite:
        case schema.ChatQuestionsSuite():
            program = None
            if suite.program is not None and suite.grade == "program":
                program = _read_python(python_files.read_function, suite.program, given, (*path, "program"))
                if program is None:
                    return None
            fields = suite.model_dump(exclude={"source", "program"})
            return ChatQuestionsSpec(source=given.sources[suite.source], program=program, **fields)
        case schema.PythonSuite():
            file = _read_python(python_files.read_class, suite.task.python, given, (*path, "task", "python"))
            fields = suite.model_dump(exclude={"task"})
            return None if file is None else PythonSuiteSpec(file=file, **fields)
        case schema.ChatSuite():
            fields = suite.model_dump(exclude={"source"})
            return ChatSuiteSpec(source=given.sources[suite.source], **fields)
        case _:
            assert_never(suite)


def _read_python(
    read: Callable[[str], python_files.PythonFile], reference: str, given: Derivation, path: tuple[str, ...]
) -> python_files.PythonFile | None:
    """Return a Python file. If it cannot be used, refuse the field at `path` of the recipe and return None."""
    try:
        return read(reference)
    except python_files.PythonFileError as error:
        given.issues.refuse(path, "python-file", str(error))
        return None
