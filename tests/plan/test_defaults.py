"""The defaults that fingerprints leave out, held by `defaults.json`. Run this file as a script to write it anew."""

import copy
import json
from pathlib import Path

from nanochat.plan.defaults import recorded_form, stale_defaults

TABLE = Path(__file__).with_name("defaults.json")


def test_no_default_changes_without_a_raised_code_version() -> None:
    """A changed default without a new code version would reuse results of the old default."""
    advice = stale_defaults(json.loads(TABLE.read_text()))
    assert not advice, "\n".join([*advice, "then run: python tests/plan/test_defaults.py"])


def test_a_changed_default_is_noticed_and_the_remedy_named() -> None:
    recorded = json.loads(TABLE.read_text())
    recorded["pretrain"]["defaults"]["pretrain.buffer_documents"] = 999
    (advice,) = stale_defaults(recorded)
    assert "`pretrain.buffer_documents` of pretrain changed from 999 to 1000" in advice
    assert "CODE_VERSIONS['pretrain']" in advice


def test_after_the_version_is_raised_only_the_table_is_out_of_date() -> None:
    recorded = json.loads(TABLE.read_text())
    recorded["sft"]["defaults"]["sft.buffer_conversations"] = 7
    recorded["sft"]["code"] = 0
    assert stale_defaults(recorded) == ["the table of sft is out of date: write it anew"]


def test_a_new_field_needs_no_new_version() -> None:
    recorded = copy.deepcopy(json.loads(TABLE.read_text()))
    del recorded["tokenizer"]["defaults"]["tokenizer.max_chars"]
    assert stale_defaults(recorded) == ["the table of tokenizer is out of date: write it anew"]


def test_the_table_knows_nested_and_alternative_sections() -> None:
    """One entry of each kind, with values from the schema's documentation."""
    table = recorded_form()
    assert table["chat_eval"]["defaults"]["chat_eval.suites.*.top_k"] == 50  # type: ignore[index,call-overload]
    assert table["base_eval"]["defaults"]["base_eval.suites.*(BpbSuite).split"] == "validation"  # type: ignore[index,call-overload]
    assert table["pretrain"]["defaults"]["optimizer plain.matrices.lr"] == 0.02  # type: ignore[index,call-overload]
    assert "sft.init_from" not in table["sft"]["defaults"]  # type: ignore[index,operator]


if __name__ == "__main__":
    TABLE.write_text(json.dumps(recorded_form(), indent=1) + "\n")
