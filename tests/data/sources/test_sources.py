from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nanochat.data.files.content_checks import document_lines
from nanochat.data.files.digests import remembered_digests
from nanochat.data.sources.source_contents import check_source, digest, list_files, resolve_files
from nanochat.data.sources.source_spec import SourceSpec, validation_frac
from nanochat.errors import PreflightError
from nanochat.storage.files import write_text


def test_resolve_files_sorts_folders_patterns_and_lists(files, base):
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
    [
        ("gone.txt", "no such file$"),
        ("emty", r"no such file; did you mean `empty`\?$"),
        ("emty/books.txt", r"no such file; there is no folder \S+/emty; did you mean `empty`\?$"),
        ("*.jsonl", "no file matches the pattern$"),
        ("emty/books/*.txt", r"no file matches the pattern; there is no folder \S+/emty; did you mean `empty`\?$"),
        ("empty", "the folder holds no"),
        ("$HOME/books", r"no such file; environment variables such as `\$HOME` are not replaced"),
        ("https:/host/a.txt", "`https://host/a.txt` is an address"),
        ("hf:/datasets/a/b", "write a data set of the Hugging Face hub as `uri: hf://datasets/a/b`"),
        ("OWNER/NAME", "if `OWNER/NAME` is a data set of the Hugging Face hub, write `uri: hf://datasets/OWNER/NAME`"),
        ("x" * 256, "no such file; a name in it is longer than 255 bytes"),
    ],
)
def test_resolve_files_and_digest_name_a_path_that_matches_nothing(files, base, pattern, message):
    (files.folder / "empty").mkdir()
    source = files.source(pattern)
    for act in (lambda: resolve_files(source, base=base), lambda: digest(source, base=base)):
        with pytest.raises(PreflightError, match=message) as caught:
            act()
        assert str(files.folder / pattern) in str(caught.value)
        assert "source `mine`" in str(caught.value)


def test_resolve_files_says_why_a_name_that_exists_is_no_file(files, base):
    """The advice to write the name that is written already would lead nowhere."""
    (files.folder / "link.txt").symlink_to("gone.txt")
    os.mkfifo(files.folder / "pipe.txt")
    for name, why in (("link.txt", "a broken link"), ("pipe.txt", "not an ordinary file")):
        with pytest.raises(PreflightError, match=rf"{name}: {why}$"):
            resolve_files(files.source(name), base=base)


def test_list_files_follows_links_once_and_skips_hidden_names(files, base):
    """A link leads to a folder beside it, another one back to the folder itself."""
    for name in ("folder/a.txt", "folder/B.TXT", "folder/c.png", "folder/.git/d.txt", "folder/._a.txt", "beside/e.txt"):
        files.text(name, name)
    (files.folder / "folder/linked").symlink_to("../beside")
    (files.folder / "folder/loop").symlink_to(".")
    choice = list_files(files.source("folder"), base=base)
    assert [path.name for path in choice.paths] == ["B.TXT", "a.txt", "e.txt"]
    assert {path.name: why for path, why in choice.left_out} == {
        ".git": "hidden",
        "._a.txt": "hidden",
        "c.png": "neither text nor rows, by its suffix",
    }
    assert choice.found == 6

    def names(pattern):
        return [path.name for path in resolve_files(files.source(pattern), base=base)]

    assert names("folder/**/*.txt") == ["B.TXT", "a.txt", "e.txt"]
    assert names("folder/*") == ["B.TXT", "a.txt", "e.txt"]
    assert names("folder/.*.txt") == ["._a.txt"] and names("folder/.git") == ["d.txt"]
    assert names("folder/B.TXT") == ["B.TXT"]


def test_list_files_leaves_out_empty_files_and_names_all_of_them_if_there_is_no_other(files, base):
    for name in ("1.txt", "2.txt"):
        files.text(f"books/{name}", "")
    with pytest.raises(PreflightError, match=r"no file with content; left out: 1\.txt, 2\.txt \(empty\)"):
        list_files(files.source("books"), base=base)
    files.text("books/3.txt", "text")
    choice = list_files(files.source("books"), base=base)
    assert [path.name for path in choice.paths] == ["3.txt"] and choice.found == 3


def test_list_files_takes_a_pattern_that_is_a_name_for_the_name(files, base):
    files.text("a [1].txt", "text")
    files.text("a 1.txt", "text")
    assert resolve_files(files.source("a [1].txt"), base=base) == (files.folder / "a [1].txt",)


def test_digest_depends_on_contents_and_names_but_not_on_the_folder(files, base, tmp_path):
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


def test_digest_tells_a_list_of_all_files_from_their_folder(files, base):
    """All files of the list are trained on, because not every name contains a split. The folder holds out a file."""
    for name in ("a.jsonl", "test.jsonl"):
        files.jsonl(f"folder/{name}", [{"text": name}])
    listed = files.source("folder/a.jsonl", "folder/test.jsonl")
    assert digest(listed, base=base) != digest(files.source("folder"), base=base)


def test_digest_depends_on_names_of_other_files_that_make_a_title_a_split(files, base):
    """The empty `train.md` is not read, but beside it `test.md` is no note on tests."""
    for name in ("a.md", "test.md"):
        files.text(f"notes/{name}", name)
    before = digest(files.source("notes"), base=base)
    files.text("notes/train.md", "")
    assert [path.name for path in resolve_files(files.source("notes"), base=base)] == ["a.md", "test.md"]
    assert digest(files.source("notes"), base=base) != before


def test_digest_depends_on_a_folder_that_makes_all_files_a_split(files, base):
    for folder in ("one", "two"):
        files.text(f"{folder}/{'sub' if folder == 'one' else 'test'}/a.md", "some text")
    assert digest(files.source("one"), base=base) != digest(files.source("two"), base=base)


def test_digest_of_text_or_chats_does_not_depend_on_a_recipe_beside_them(files, base):
    files.jsonl("folder/a.jsonl", [{"text": "some text"}])
    recipe = files.text("folder/recipe.yaml", "seed: 1")
    for read_as in ("text", "chats", "rows", None):
        source = files.source("folder", read_as=read_as)
        recipe.write_text("seed: 1")
        before = digest(source, base=base)
        recipe.write_text("seed: 2")
        assert digest(source, base=base) == before


def test_list_files_leaves_out_what_runs_write_unless_it_is_named(files, base, tmp_path):
    """With the working directory as the source, a run would train on the reports of earlier runs."""
    for name in ("a.md", "mlartifacts/1/report.md", "mlruns/1/log.txt", "mlflow.db", "base/runs/x/report.md"):
        files.text(name, name)
    own = files.folder / "base"

    def names(pattern):
        return [str(path.relative_to(files.folder)) for path in resolve_files(files.source(pattern), base=own)]

    for pattern in ("", "*", "**/*", "**/*.md"):
        assert names(pattern) == ["a.md"]
    assert names("mlartifacts/**/*.md") == names("mlartifacts") == ["mlartifacts/1/report.md"]
    assert names("base/*") == ["base/runs/x/report.md"]
    left_out = dict(list_files(files.source(""), base=own).left_out)
    assert {path.name for path, why in left_out.items() if why == "results of runs"} == {
        "base",
        "mlartifacts",
        "mlflow.db",
        "mlruns",
    }


def test_digest_of_a_bundle_includes_its_descriptions(files, base):
    """Descriptions are, for example, the tasks and baselines of an evaluation bundle. Other files do not count."""
    files.jsonl("bundle/eval_data/a.jsonl", [{"query": "q"}])
    described = [files.text("bundle/core.yaml", "shots: 0"), files.text("bundle/meta.csv", "task,50")]
    digests = [digest(files.source("bundle", read_as="bundle"), base=base)]
    for path in described:
        path.write_text(path.read_text() + "0")
        digests.append(digest(files.source("bundle", read_as="bundle"), base=base))
    assert len(set(digests)) == 3
    files.text("bundle/README.md", "about")
    assert digest(files.source("bundle", read_as="bundle"), base=base) == digests[-1]


def test_digest_does_not_read_an_unchanged_file_again(files, base, monkeypatch):
    path = files.text("a.txt", "some text")
    os.utime(path, ns=(10**18, 10**18))
    before = digest(files.source("a.txt"), base=base)
    monkeypatch.setattr("nanochat.data.files.digests.sha256_of_file", lambda _: pytest.fail("hashed again"))
    assert digest(files.source("a.txt"), base=base) == before


def test_digest_reads_a_recently_changed_file_again(files, base):
    """Size and modification time are the same, but the file is too new to trust the time."""
    path = files.text("a.txt", "one")
    before = digest(files.source("a.txt"), base=base)
    stamp = path.stat().st_mtime_ns
    path.write_text("two")
    os.utime(path, ns=(stamp, stamp))
    assert digest(files.source("a.txt"), base=base) != before


def test_file_digests_ignore_a_damaged_memory_file(files, base):
    path = files.text("a.txt", "one")
    base.mkdir()
    for content in ("{broken", "[]", '{"x": 5}'):
        memory = base / "memory.json"
        memory.write_text(content)
        with remembered_digests(memory) as digest_of:
            assert digest_of(path, None) == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"


def test_file_digests_ignore_a_memory_file_with_a_changed_digit(files, base):
    path = files.text("a.txt", "one")
    os.utime(path, ns=(0, 0))
    base.mkdir()
    for _ in range(2):
        with remembered_digests(base / "memory.json") as digest_of:
            assert digest_of(path, None) == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
        remembered = (base / "memory.json").read_text()
        assert "7692c3ad" in remembered
        (base / "memory.json").write_text(remembered.replace("7692c3ad", "8692c3ad"))


def test_digest_of_each_builtin_source_differs(base):
    digests = {digest(SourceSpec(name="x", builtin=name), base=base) for name in ("python-stdlib", "spelling")}
    assert len(digests) == 2
    assert all(len(value) == 64 for value in digests)


def test_validation_frac_has_a_default_for_each_kind_of_source(files):
    assert validation_frac(files.source("a")) == 0.01
    assert validation_frac(SourceSpec(name="x", builtin="python-stdlib")) == 0.02
    assert validation_frac(files.source("a", validation_hash_frac=0.3)) == 0.3


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file"),
        ("empty", r"left out: a\.parquet \(empty\)"),
    ],
)
def test_check_source_names_what_is_wrong_with_a_file(files, base, kind, message):
    path = files.parquet("a.parquet", ["x"] * 100)
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    with pytest.raises(PreflightError, match=message) as caught:
        check_source(files.source("a.parquet"), base, True)
    assert str(path) in str(caught.value) and str(caught.value).startswith("source `mine`")


def test_check_source_accepts_good_sources(files, base):
    files.parquet("a.parquet", ["x"])
    check_source(files.source("a.parquet"), base, True)
    check_source(SourceSpec(name="x", builtin="python-stdlib"), base, True)
    check_source(SourceSpec(name="x", builtin="spelling"), base, True)


def test_importing_sources_loads_nothing_heavy():
    """Planning a run imports this module and must remain quick."""
    program = (
        "import sys, nanochat.data.sources.source_contents\n"
        "heavy = {'mlx', 'numpy', 'pyarrow', 'requests', 'huggingface_hub', 'datasets', 'sentencepiece', 'mlflow'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert completed.stdout == "[]\n"


def test_planning_looks_into_rows_beside_notes_without_pyarrow(files, base):
    """It cannot decompress zstd and bz2, so such files are taken to have the column."""
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.xz", "d.jsonl.zst", "e.jsonl.bz2"):
        files.compressed(f"notes/{name}", '{"body": "x"}\n')
    files.text("notes/f.md", "note")
    program = (
        "import sys\nfrom pathlib import Path\nfrom nanochat.data.sources.source_contents import list_files\n"
        "from nanochat.data.sources.source_spec import SourceSpec\n"
        f"files = list_files(SourceSpec(name='x', path=({str(files.folder / 'notes')!r},)), base=Path('base'))\n"
        "print([path.name for path in files.paths], 'pyarrow' in sys.modules)"
    )
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert completed.stdout == "['d.jsonl.zst', 'e.jsonl.bz2', 'f.md'] False\n"


@pytest.mark.parametrize(("name", "bad"), [("a.jsonl", b'{"text": null}\nbroken\n{"text": 5}\n'), ("a.txt", b"\xe9\n")])
def test_digest_does_not_change_when_a_bad_line_is_removed(files, base, name, bad):
    """The digest of a file without bad lines is that of all its bytes."""
    lines = [f'{{"text": "line {i}"}}\n'.encode() for i in range(24)]
    clean = b"".join([*lines[:2], b"\n", *lines[2:]])
    files.text(name, clean)
    source, usable = files.source(name), document_lines("text")
    plain = digest(source, base=base)
    assert digest(source, base=base, lines=usable) == plain
    files.text(name, b"".join([*lines[:2], b"\n", bad, *lines[2:], bad]))
    assert digest(source, base=base, lines=usable) == plain
    assert digest(source, base=base) != plain
    files.text(name, b"".join([*lines[:2], b"\n", bad, *reversed(lines[2:])]))
    assert digest(source, base=base, lines=usable) != plain


def test_digest_remembers_the_rule_by_which_lines_were_left_out(files, base):
    path = files.jsonl("a.jsonl", [{"text": "x"}, {"body": "y"}])
    os.utime(path, (1, 1))
    source = files.source("a.jsonl")
    digests = [
        digest(source, base=base, lines=lines) for lines in (None, document_lines("text"), document_lines("body"))
    ]
    assert len(set(digests)) == 3
    assert digests == [
        digest(source, base=base, lines=lines) for lines in (None, document_lines("text"), document_lines("body"))
    ]


def test_digest_and_reading_accept_a_name_that_is_not_utf8(files, base):
    name = os.fsdecode(b"caf\xe9.txt")
    files.text(name, "one\ntwo\n")
    files.text("b.txt", "three\n")
    latin = digest(files.source("."), base=base)
    (files.folder / name).rename(files.folder / os.fsdecode(b"caf\xe8.txt"))
    assert len(latin) == 64 and latin != digest(files.source("."), base=base)
    write_text(base / "report.txt", f"left out: {name}")
    assert (base / "report.txt").read_text() == r"left out: caf\udce9.txt"


@pytest.mark.parametrize(("link", "target"), [("test/b.txt", "../pool/b.txt"), ("test", "pool")])
def test_list_files_takes_the_split_of_a_link_for_the_file_it_leads_to(files, base, link, target):
    files.text("a.txt", "one\n")
    files.text("pool/b.txt", "two\n")
    (files.folder / link).parent.mkdir(exist_ok=True)
    (files.folder / link).symlink_to(target)
    splits = {file.path.name: file.split and file.split.split for file in list_files(files.source("."), base=base).used}
    assert splits == {"a.txt": None, "b.txt": "test"}


def test_list_files_prefers_the_name_whose_suffix_is_known(files, base):
    files.text("data.bin", "one\n")
    (files.folder / "a.txt").symlink_to("data.bin")
    assert [path.name for path in resolve_files(files.source("."), base=base)] == ["a.txt"]
