"""Whether lm-evaluation-harness is there, and has a task, is known without importing it."""

from __future__ import annotations

import sys

from nanochat.plan.derive import lm_eval_tasks as installed


def test_tasks_are_found_in_the_configuration_files_of_the_package(tmp_path, monkeypatch):
    """A name counts as a task, a group or a tag; a part of a name, or a word elsewhere in a file, does not."""
    folder = tmp_path / "lm_eval_stub" / "tasks" / "arc"
    folder.mkdir(parents=True)
    (tmp_path / "lm_eval_stub" / "__init__.py").write_text("raise SystemExit(9)\n")
    (folder / "arc_easy.yaml").write_text("tag:\n  - ai2_arc\ntask: arc_easy\ndataset_path: allenai/other\n")
    monkeypatch.setattr(installed, "PACKAGE", "lm_eval_stub")
    monkeypatch.syspath_prepend(tmp_path)
    names = ["arc_easy", "ai2_arc", "arc", "allenai/other", "a.c_easy"]
    assert [installed.has_task(name) for name in names] == [True, True, False, False, False]
    assert "lm_eval_stub" not in sys.modules
    assert installed.harness_version() is None, "the stub is no distribution"
