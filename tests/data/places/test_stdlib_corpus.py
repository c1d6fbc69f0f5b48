from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

import pytest

from nanochat.data.places.builtin import stdlib_corpus
from nanochat.errors import PreflightError

ROOT = Path(sysconfig.get_paths()["stdlib"])


def test_stdlib_documents_are_library_source_without_tests():
    documents = stdlib_corpus.documents("train") + stdlib_corpus.documents("validation")
    text = "".join(documents)
    assert (ROOT / "textwrap.py").read_text()[:2000] in text
    assert "class IdleConfTest" not in text
    assert len(documents) > 300
    assert max(map(len, documents)) <= 16_000


def test_stdlib_documents_are_whole_lines():
    assert all(text.endswith("\n") or len(text) < 16_000 for text in stdlib_corpus.documents("train"))


def test_stdlib_module_belongs_to_one_split_and_encoding_tables_to_training():
    train = "".join(stdlib_corpus.documents("train", held_out_frac=0.5, max_document_chars=500_000))
    held_out = "".join(stdlib_corpus.documents("validation", held_out_frac=0.5, max_document_chars=500_000))
    modules = [path for path in ROOT.glob("*.py") if path.stat().st_size > 3000 and not path.name.startswith("_")]
    sides = [(path.read_text() in train, path.read_text() in held_out) for path in modules]
    assert set(sides) == {(True, False), (False, True)}
    assert all(path.read_text() in train for path in (ROOT / "encodings").glob("cp*.py"))


def test_stdlib_validation_modules_are_chosen_by_a_hash_of_the_name():
    """The test computes the rule itself: sha256 of python-stdlib/NAME, first 7 bytes as a fraction, below 0.02."""
    held_out = "".join(stdlib_corpus.documents("validation", max_document_chars=10**7))
    for path in ROOT.glob("*.py"):
        digest = hashlib.sha256(f"python-stdlib/{path.name}".encode()).digest()
        if path.stat().st_size > 2000 and not path.name.startswith("_sysconfig"):
            assert (path.read_text() in held_out) == (int.from_bytes(digest[:7], "big") / 2**56 < 0.02)


def test_stdlib_module_limit_keeps_the_first_training_modules_and_all_validation_ones():
    """The first by name are __future__ and __hello__, long before abc."""
    few = "".join(stdlib_corpus.documents("train", max_modules=3, max_document_chars=10**7))
    assert (ROOT / "__future__.py").read_text() in few
    assert (ROOT / "abc.py").read_text() not in few
    assert stdlib_corpus.documents("validation", max_modules=3) == stdlib_corpus.documents("validation")


def test_stdlib_order_mixes_modules_and_is_always_the_same():
    documents = stdlib_corpus.documents("train", max_document_chars=2000)
    assert documents == stdlib_corpus.documents("train", max_document_chars=2000)
    first = (ROOT / "argparse.py").read_text()
    places = [i for i, text in enumerate(documents) if len(text) > 1500 and text in first]
    assert max(places) - min(places) > len(documents) / 2


def test_stdlib_digest_depends_on_names_and_contents(monkeypatch, tmp_path):
    for i in range(120):
        (tmp_path / f"m{i}.py").write_text(f"x = {i}\n")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    before = stdlib_corpus.corpus_digest()
    (tmp_path / "m7.py").write_text("x = 8\n")
    changed = stdlib_corpus.corpus_digest()
    (tmp_path / "m7.py").write_text("x = 7\n")
    assert stdlib_corpus.corpus_digest() == before != changed
    (tmp_path / "m7.py").rename(tmp_path / "n7.py")
    assert stdlib_corpus.corpus_digest() != before


def test_stdlib_corpus_refuses_a_python_without_source(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(PreflightError, match="only 0 library modules"):
        stdlib_corpus.documents("train")
