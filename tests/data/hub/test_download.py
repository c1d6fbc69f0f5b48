from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data.documents import single_pass
from nanochat.data.files.selection.data_file import DataFile
from nanochat.data.files.selection.file_choice import COPY
from nanochat.data.files.selection.file_selection import FileSelection
from nanochat.data.hub import hub
from nanochat.data.hub.hub_source import HubSource
from nanochat.data.sources.source_contents import check_source, digest, list_files, resolve_files
from nanochat.data.sources.source_downloads import check_download, fetch, resolve_revision
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import PreflightError

URI = "hf://datasets/some/texts"


def parquet(texts):
    out = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), out, compression="none")
    return out.getvalue()


@pytest.fixture
def texts(fake_hub):
    """A data set of three shards in a folder, another configuration, and a file that holds no data."""
    for i in range(3):
        rows = [f"shard {i} text {j} {'x' * 4000}" for j in range(50)]
        fake_hub.files[f"data/train-0000{i}-of-00003.parquet"] = parquet(rows)
    fake_hub.files["other/lines.jsonl"] = b'{"text": "a line"}\n'
    fake_hub.files["README.md"] = b"# Texts\n"
    return fake_hub


def source(uri=URI, **settings):
    return SourceSpec(name="texts", uri=uri, **settings)


def get(spec, base, **changes):
    fetch(spec, base=base, **{"offline": False, **changes})


def file_requests(fake_hub, name):
    return [wanted for path, wanted in fake_hub.requests if path == f"/cdn/{name}"]


def part_of(hub, base, name):
    """The path of the bytes that a killed download of a file leaves."""
    entry = hub.entry(name, hub.files[name])
    digest = entry.get("lfs", entry)["oid"]
    return (
        base / f"hub/datasets/some/texts/parts/{hub.commit}" / hashlib.sha256(f"{name}\0{digest}".encode()).hexdigest()
    )


def leave_part(hub, base, name, content):
    part = part_of(hub, base, name)
    part.parent.mkdir(parents=True)
    part.write_bytes(content)


def test_fetch_downloads_a_data_set_once_and_its_files_are_read_like_local_ones(texts, base):
    spec = source(f"{URI}/data", validation_hash_frac=1e-9)  # holds out one text
    get(spec, base)
    assert [path.read_bytes() for path in resolve_files(spec, base=base)] == [
        texts.files[f"data/train-0000{i}-of-00003.parquet"] for i in range(3)
    ]
    assert len(list(single_pass(spec, "train", base=base))) == 149
    before = len(texts.requests)
    get(spec, base)
    assert len(texts.requests) == before


@pytest.mark.parametrize(
    ("tail", "names"),
    [
        ("", ["data/train-00000-of-00003.parquet", "data/train-00001-of-00003.parquet"]),
        ("/data/*-00002-*.parquet", ["data/train-00002-of-00003.parquet"]),
        ("/other", ["other/lines.jsonl"]),
        ("/other/lines.jsonl", ["other/lines.jsonl"]),
    ],
)
def test_hub_uri_selects_files_by_folder_file_or_pattern(texts, base, tail, names):
    spec = source(URI + tail, max_files=2)
    get(spec, base)
    files = resolve_files(spec, base=base)
    assert ["/".join(path.parts[-2:]) for path in files] == names


def test_file_selection_adds_the_validation_shard_to_the_first_files():
    paths = [PurePosixPath(f"{letter}.parquet") for letter in "abcd"]
    files = [DataFile(path, path, 1) for path in paths]
    choice = FileSelection(max_files=2, validation_shard="d.parquet").select(files)
    assert choice.paths == (paths[0], paths[1], paths[3]) and choice.left_out == ((paths[2], "beyond `max_files`"),)
    assert FileSelection(max_files=1, validation_shard="a.parquet").select(files).paths == tuple(paths[:2])


def test_fetch_downloads_files_in_parallel(texts, base):
    """The hub answers only once all three files have been requested."""
    texts.at_once = threading.Barrier(3)
    get(source(f"{URI}/data"), base)


def test_fetch_resumes_a_cut_connection(texts, base):
    name = "data/train-00001-of-00003.parquet"
    texts.cut[name] = 65536 + 700
    get(source(f"{URI}/data"), base)
    assert file_requests(texts, name) == [None, f"bytes={65536 + 700}-"]
    assert resolve_files(source(f"{URI}/data"), base=base)[1].read_bytes() == texts.files[name]


def test_fetch_resumes_a_killed_download(texts, base):
    name = "data/train-00000-of-00003.parquet"
    leave_part(texts, base, name, texts.files[name][:500])
    get(source(f"{URI}/data"), base)
    assert file_requests(texts, name) == ["bytes=500-"]
    assert resolve_files(source(f"{URI}/data"), base=base)[0].read_bytes() == texts.files[name]


def test_killed_download_leaves_no_complete_file_or_manifest(texts, base):
    """After SIGKILL during one file, there is no manifest and no file of that name; then only the rest is requested."""
    name = "data/train-00001-of-00003.parquet"
    texts.hold[name] = 2 * 65536
    program = (
        "import sys, pathlib\n"
        "from nanochat.data.sources.source_downloads import fetch\n"
        "from nanochat.data.sources.source_spec import SourceSpec\n"
        "fetch(SourceSpec(name='texts', uri=sys.argv[1]), base=pathlib.Path(sys.argv[2]), offline=False)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, f"{URI}/data", str(base)])
    folder = base / "hub/datasets/some/texts" / texts.commit
    part = part_of(texts, base, name)
    assert texts.holding.wait(timeout=30)
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size >= 65536):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    texts.released.set()
    kept = part.stat().st_size
    assert part.read_bytes() == texts.files[name][:kept] and not (folder / name).exists()
    assert not (base / "hub/datasets/some/texts/manifests").exists()
    with pytest.raises(PreflightError, match="is not downloaded"):
        get(source(f"{URI}/data"), base, offline=True)
    get(source(f"{URI}/data"), base)
    assert file_requests(texts, name) == [None, f"bytes={kept}-"]
    assert resolve_files(source(f"{URI}/data"), base=base)[1].read_bytes() == texts.files[name]


@pytest.mark.parametrize("name", ["data/train-00002-of-00003.parquet", "other/lines.jsonl"])
def test_fetch_downloads_a_corrupted_file_again(texts, base, name):
    texts.corrupt.add(name)
    spec = source()
    get(spec, base)
    assert file_requests(texts, name) == [None, None]
    assert texts.files[name] in [path.read_bytes() for path in resolve_files(spec, base=base)]


def test_fetch_starts_a_file_over_if_it_is_wrong_after_resuming(texts, base):
    """A killed download may leave anything, so the digest of the whole file decides."""
    name = "data/train-00000-of-00003.parquet"
    leave_part(texts, base, name, bytes(500))
    get(source(f"{URI}/data"), base)
    assert file_requests(texts, name) == ["bytes=500-", None]
    assert resolve_files(source(f"{URI}/data"), base=base)[0].read_bytes() == texts.files[name]


def test_fetch_names_a_file_that_stays_corrupted_and_the_data_set_is_not_downloaded(texts, base):
    name = "data/train-00002-of-00003.parquet"
    texts.broken.add(name)
    spec = source(f"{URI}/data")
    with pytest.raises(PreflightError, match=r"train-00002-of-00003\.parquet: .*not what was announced"):
        get(spec, base)
    with pytest.raises(PreflightError, match="is not downloaded"):
        resolve_files(spec, base=base)
    assert not list(base.rglob("train-00002*"))
    texts.broken.clear()
    get(spec, base)
    assert len(file_requests(texts, "data/train-00000-of-00003.parquet")) == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (source(revision="v9"), "has no revision `v9`"),
        (source(f"{URI}/missing"), r"no data file matches; files there are: README\.md, data/train-00000"),
        (source("hf://models/x"), "expected hf://datasets/OWNER/NAME"),
        (source(f"{URI}@v1/a"), "expected hf://datasets/OWNER/NAME without a revision"),
    ],
)
def test_check_source_names_what_the_hub_does_not_have(texts, base, spec, message):
    with pytest.raises(PreflightError, match=message):
        if spec.uri == f"{URI}/missing":
            hub.check(HubSource.parse(spec.uri, None))
        check_source(spec, base, False)


def test_check_source_refuses_a_hub_that_cannot_be_reached(base, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PreflightError, match=r"no usable answer from the hub at http://127\.0\.0\.1:9 .*network\?"):
        check_source(source(), base, False)


def test_offline_source_without_a_download_is_named_without_a_request(texts, base):
    for act in (lambda: get(source(), base, offline=True), lambda: check_source(source(), base, True)):
        with pytest.raises(PreflightError, match=r"hf://datasets/some/texts \(revision main\) is not downloaded"):
            act()
    assert texts.requests == []


def test_offline_source_with_a_download_needs_no_request(texts, base):
    get(source(), base)
    before = len(texts.requests)
    get(source(), base, offline=True)
    check_source(source(), base, True)
    assert len(list(single_pass(source(f"{URI}", validation_hash_frac=1e-9), "train", base=base))) == 150
    assert resolve_revision(source(), base=base, offline=True) == texts.commit
    assert len(texts.requests) == before


def test_fetch_replaces_a_file_missing_from_a_download(texts, base):
    get(source(), base)
    path = resolve_files(source(), base=base)[0]
    path.unlink()
    with pytest.raises(PreflightError, match=f"{path.name} is missing or cut off"):
        resolve_files(source(), base=base)
    get(source(), base)
    assert path.is_file()


def test_fetch_replaces_a_file_damaged_after_its_download(texts, base):
    """The size is the same. Without the network this is an error; with it, only that file is downloaded."""
    get(source(), base)
    path = resolve_files(source(), base=base)[0]
    path.write_bytes(b"X" + path.read_bytes()[1:])
    with pytest.raises(PreflightError, match=f"{path.name} is damaged; run once with the network"):
        get(source(), base, offline=True)
    before = len(texts.requests)
    get(source(), base)
    assert [name for name, _ in texts.requests[before:] if name.startswith("/cdn/")] == [f"/cdn/data/{path.name}"]
    assert path.read_bytes() == texts.files[f"data/{path.name}"]


def test_file_damaged_without_a_new_time_is_refused_before_it_is_loaded_and_then_replaced(texts, base):
    """Looking at a plan does not read it. What the stage found is remembered, so that the next command downloads it."""
    get(source(), base)
    path = resolve_files(source(), base=base)[0]
    os.utime(path, ns=(0, 0))  # files that were just written are read anyway
    check_download(source(), base=base)
    path.write_bytes(b"X" + path.read_bytes()[1:])
    os.utime(path, ns=(0, 0))
    assert path in resolve_files(source(), base=base)
    with pytest.raises(PreflightError, match=f"{path.name} is damaged; run once with the network"):
        check_download(source(), base=base)
    get(source(), base)
    check_download(source(), base=base)
    assert path.read_bytes() == texts.files[f"data/{path.name}"]


def test_downloaded_revision_keeps_its_commit(texts, base):
    """The branch moves on, but the files downloaded under its name remain those of the old commit."""
    spec = source(revision="v1/a")
    get(spec, base)
    commit, texts.commit = texts.commit, "d" * 40
    assert resolve_revision(spec, base=base, offline=False) == commit
    assert resolve_revision(source(), base=base, offline=False) == "d" * 40
    manifests = list((base / "hub/datasets/some/texts/manifests").iterdir())
    assert [json.loads(path.read_text())["commit"] for path in manifests] == [commit]


def test_hub_digest_is_of_uri_and_revision_and_needs_no_request(texts, base):
    digests = {
        digest(source(uri, revision=revision), base=base) for uri in (URI, f"{URI}/data") for revision in (None, "v1")
    }
    assert len(digests) == 4
    assert digest(source(), base=base) == digest(source(revision="main"), base=base)
    assert texts.requests == []


def test_fetch_progress_ends_with_all_bytes(texts, base):
    reports = []
    texts.cut["data/train-00000-of-00003.parquet"] = 70_000
    get(source(), base, progress=lambda done_bytes, total_bytes: reports.append((done_bytes, total_bytes)))
    size = sum(len(content) for name, content in texts.files.items() if name != "README.md")
    assert reports[-1] == (size, size)
    assert all(done <= total for done, total in reports)


def test_fetch_refuses_a_disk_that_is_too_small(texts, base, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(PreflightError, match=r"no room to download: 0\.3 GB needed, 0\.0 GB free"):
        get(source(), base)
    assert not [path for path, _ in texts.requests if path.startswith("/cdn")]


def test_disk_that_fills_up_leaves_no_complete_download(texts, base, monkeypatch):
    """The error names the file. Once there is space, the download succeeds."""
    write = Path.open

    def refuse(self, mode="r", *arguments, **options):
        if "parts" in self.parts and mode != "rb":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(PreflightError, match=r"\.(parquet|jsonl): cannot be written \(No space left on device\)"):
            get(source(), base)
    with pytest.raises(PreflightError, match="is not downloaded"):
        resolve_files(source(), base=base)
    get(source(), base)
    assert len(resolve_files(source(), base=base)) == 4


def test_commit_that_a_branch_last_named_applies_to_every_pattern_of_the_data_set(texts, base):
    """Offline, two sources of the same branch have the same commit."""
    get(source(f"{URI}/data"), base)
    get(source(f"{URI}/other"), base)
    texts.commit = "d" * 40
    for tail in ("data", "other"):
        assert resolve_revision(source(f"{URI}/{tail}"), base=base, offline=True) == "c0ffee" + "0" * 34
    assert hub.known_commit(HubSource.parse(URI, "v1"), base=base) is None


@pytest.fixture
def stories(fake_hub):
    """A data set that holds each split as parquet and as text."""
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        fake_hub.files[f"data/{name}-abc.parquet"] = parquet([name])
    for name in ("Stories-train", "Stories-valid"):
        fake_hub.files[f"{name}.txt"] = name.encode()
    fake_hub.files["README.md"] = b"# Stories"
    return fake_hub


def test_hub_data_set_in_two_formats_is_downloaded_once_and_its_validation_files_are_held_out(stories, base):
    get(source(), base)
    assert not [path for path, _ in stories.requests if path.endswith(".txt")]
    assert sorted(single_pass(source(), "train", base=base)) == ["train-00000-of-00002", "train-00001-of-00002"]
    assert list(single_pass(source(), "validation", base=base)) == ["validation-00000-of-00001"]
    choice = list_files(source(), base=base)
    assert {path.name: why for path, why in choice.left_out} == {
        "README.md": "describes the other files, by its name",
        "Stories-train.txt": COPY,
        "Stories-valid.txt": COPY,
    }
    assert (len(choice.used), choice.found) == (3, 6)


def test_hub_max_files_counts_the_files_of_each_split(stories, base):
    get(source(max_files=1), base)
    assert list(single_pass(source(max_files=1), "train", base=base)) == ["train-00000-of-00002"]
    assert list(single_pass(source(max_files=1), "validation", base=base)) == ["validation-00000-of-00001"]
