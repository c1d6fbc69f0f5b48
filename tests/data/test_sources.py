from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nanochat.data.files.digests import FileDigests
from nanochat.data.sources import SourceSpec, check_source, digest, resolve_files, validation_frac
from nanochat.errors import PreflightError


def test_a_folder_a_pattern_and_a_list_of_files_are_resolved_in_sorted_order(files, base):
    for name in ("b.parquet", "sub/c.parquet", "a.parquet"):
        files.parquet(name, ["x"])
    files.text("README.md", "no data")

    def names(*patterns, **settings):
        return [path.name for path in resolve_files(files.source(*patterns, **settings), base=base)]

    assert names("") == ["a.parquet", "b.parquet", "c.parquet"]
    assert names("*.parquet") == ["a.parquet", "b.parquet"]
    assert names("**/*.parquet") == ["a.parquet", "b.parquet", "c.parquet"]
    assert names("b.parquet", "a.parquet", "a.*") == ["a.parquet", "b.parquet"]
    assert names("", max_files=1, validation_shard="b.parquet") == ["a.parquet", "b.parquet"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("gone.txt", "no such file"), ("*.jsonl", "no file matches the pattern"), ("empty", "the folder holds no")],
)
def test_what_matches_nothing_is_named(files, base, pattern, message):
    (files.folder / "empty").mkdir()
    source = files.source(pattern)
    for act in (lambda: resolve_files(source, base=base), lambda: digest(source, base=base)):
        with pytest.raises(PreflightError, match=message) as caught:
            act()
        assert str(files.folder / pattern) in str(caught.value)
        assert "source `mine`" in str(caught.value)


def test_the_digest_follows_contents_and_names_and_not_the_place(files, base, tmp_path):
    first = files.text("one/a.txt", "some text")
    files.text("one/b.txt", "more text")
    files.text("two/a.txt", "some text")
    files.text("two/b.txt", "more text")
    before = digest(files.source("one"), base=base)
    assert digest(files.source("two/*.txt"), base=base) == before
    first.write_text("some Text")
    assert digest(files.source("one"), base=base) != before
    first.write_text("some text")
    assert digest(files.source("one"), base=base) == before
    first.rename(first.with_name("c.txt"))
    assert digest(files.source("one"), base=base) != before


def test_the_digest_of_a_folder_covers_what_describes_its_data(files, base):
    """As the tasks and baselines of an evaluation bundle; other files beside the data are of no account."""
    files.jsonl("bundle/eval_data/a.jsonl", [{"query": "q"}])
    described = [files.text("bundle/core.yaml", "shots: 0"), files.text("bundle/meta.csv", "task,50")]
    digests = [digest(files.source("bundle"), base=base)]
    for path in described:
        path.write_text(path.read_text() + "0")
        digests.append(digest(files.source("bundle"), base=base))
    assert len(set(digests)) == 3
    files.text("bundle/README.md", "about")
    assert digest(files.source("bundle"), base=base) == digests[-1]


def test_an_unchanged_file_is_not_hashed_again(files, base, monkeypatch):
    path = files.text("a.txt", "some text")
    os.utime(path, ns=(10**18, 10**18))
    before = digest(files.source("a.txt"), base=base)
    monkeypatch.setattr("nanochat.data.files.digests.sha256_of_file", lambda _: pytest.fail("hashed again"))
    assert digest(files.source("a.txt"), base=base) == before


def test_a_file_changed_within_the_clocks_grain_is_hashed_again(files, base):
    """Same size, and a time of change that is only just past: the memory must not be trusted."""
    path = files.text("a.txt", "one")
    before = digest(files.source("a.txt"), base=base)
    stamp = path.stat().st_mtime_ns
    path.write_text("two")
    os.utime(path, ns=(stamp, stamp))
    assert digest(files.source("a.txt"), base=base) != before


def test_a_damaged_memory_of_digests_counts_as_empty(files, base):
    path = files.text("a.txt", "one")
    base.mkdir()
    for content in ("{broken", "[]", '{"x": 5}'):
        memory = base / "memory.json"
        memory.write_text(content)
        with FileDigests(memory) as digests:
            assert digests.of(path) == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"


def test_builtin_sources_have_digests_of_their_own(base):
    digests = {digest(SourceSpec(name="x", builtin=name), base=base) for name in ("python-stdlib", "spelling")}
    assert len(digests) == 2
    assert all(len(one) == 64 for one in digests)


def test_defaults_of_the_validation_rule(files):
    assert validation_frac(files.source("a")) == 0.01
    assert validation_frac(SourceSpec(name="x", builtin="python-stdlib")) == 0.02
    assert validation_frac(files.source("a", validation_hash_frac=0.3)) == 0.3


@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "column", "no rows"])
def test_preflight_names_what_is_wrong_with_a_file(files, base, kind):
    path = files.parquet("a.parquet", ["x"] * 100)
    match kind:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(path.read_bytes()[:-9])
        case "column":
            files.parquet("a.parquet", ["x"], column="body")
        case "no rows":
            files.parquet("a.parquet", [])
    message = {
        "missing": "no such file",
        "empty": "the file is empty",
        "truncated": "damaged or cut off",
        "column": "no column `text`; its columns are: body",
        "no rows": "the file has no rows",
    }[kind]
    with pytest.raises(PreflightError, match=message) as caught:
        check_source(files.source("a.parquet"), base, True, columns=["text"])
    assert str(path) in str(caught.value) and str(caught.value).startswith("source `mine`")


def test_preflight_is_content_with_what_is_there(files, base):
    files.parquet("a.parquet", ["x"])
    check_source(files.source("a.parquet"), base, True, columns=["text"])
    check_source(SourceSpec(name="x", builtin="python-stdlib"), base, True)
    check_source(SourceSpec(name="x", builtin="spelling"), base, True)


def test_importing_sources_loads_nothing_heavy():
    """Planning a run imports this module and must stay quick."""
    program = (
        "import sys, nanochat.data.sources\n"
        "heavy = {'mlx', 'numpy', 'pyarrow', 'requests', 'huggingface_hub', 'datasets', 'sentencepiece', 'mlflow'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
