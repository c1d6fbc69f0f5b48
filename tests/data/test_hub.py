from __future__ import annotations

import errno
import io
import json
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
from nanochat.data.files.file_selection import FileSelection
from nanochat.data.hub import download as hub_download
from nanochat.data.hub import hub
from nanochat.data.sources import (
    SourceSpec,
    check_source,
    digest,
    fetch,
    resolve_files,
    resolve_revision,
)
from nanochat.errors import PreflightError

URI = "hf://datasets/some/texts"


def parquet(texts):
    out = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), out, compression="none")
    return out.getvalue()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(hub_download, "_PAUSE_SECONDS", 0.0001)


@pytest.fixture
def texts(fake_hub):
    """Three shards in a folder, another configuration beside them, and files that are no data."""
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


def test_a_data_set_is_downloaded_once_and_read_like_local_files(texts, base):
    spec = source(f"{URI}/data", validation_hash_frac=1e-9)
    get(spec, base)
    assert [path.read_bytes() for path in resolve_files(spec, base=base)] == [
        texts.files[f"data/train-0000{i}-of-00003.parquet"] for i in range(3)
    ]
    assert len(list(single_pass(spec, "train", base=base))) == 150
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
def test_a_folder_a_file_or_a_pattern_picks_the_files(texts, base, tail, names):
    spec = source(URI + tail, max_files=2)
    get(spec, base)
    files = resolve_files(spec, base=base)
    assert ["/".join(path.parts[-2:]) for path in files] == names


def test_the_validation_shard_comes_along_beside_the_first_files(texts, base):
    paths = [PurePosixPath(f"{letter}.parquet") for letter in "abcd"]
    picked = FileSelection(max_files=2, validation_shard="d.parquet").select(paths)
    assert [path.name for path in picked] == ["a.parquet", "b.parquet", "d.parquet"]
    assert FileSelection(max_files=1, validation_shard="a.parquet").select(paths) == paths[:2]


def test_files_are_downloaded_at_the_same_time(texts, base):
    """Each of the three answers only when all three have been asked for."""
    texts.at_once = threading.Barrier(3)
    get(source(f"{URI}/data"), base)


def test_a_connection_cut_in_the_middle_goes_on_from_the_last_whole_chunk(texts, base):
    name = "data/train-00001-of-00003.parquet"
    texts.cut[name] = 65536 + 700
    get(source(f"{URI}/data"), base)
    assert file_requests(texts, name) == [None, "bytes=65536-"]
    assert resolve_files(source(f"{URI}/data"), base=base)[1].read_bytes() == texts.files[name]


def test_a_download_that_was_killed_goes_on_where_it_stopped(texts, base):
    name = "data/train-00000-of-00003.parquet"
    part = base / "hub/datasets/some/texts" / texts.commit / f"{name}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(texts.files[name][:500])
    get(source(f"{URI}/data"), base)
    assert file_requests(texts, name) == ["bytes=500-"]
    assert resolve_files(source(f"{URI}/data"), base=base)[0].read_bytes() == texts.files[name]


def test_a_process_killed_while_it_downloads_leaves_nothing_that_counts(texts, base):
    """SIGKILL with one file under way: no manifest, no file under its own name; then only the rest is asked for."""
    name = "data/train-00001-of-00003.parquet"
    texts.hold[name] = 2 * 65536
    program = (
        "import sys, pathlib\n"
        "from nanochat.data.sources import SourceSpec, fetch\n"
        "fetch(SourceSpec(name='texts', uri=sys.argv[1]), base=pathlib.Path(sys.argv[2]), offline=False)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, f"{URI}/data", str(base)])
    folder = base / "hub/datasets/some/texts" / texts.commit
    part = folder / f"{name}.part"
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
def test_a_corrupted_file_is_refused_and_fetched_again(texts, base, name):
    texts.corrupt.add(name)
    spec = source()
    get(spec, base)
    assert file_requests(texts, name) == [None, None]
    assert texts.files[name] in [path.read_bytes() for path in resolve_files(spec, base=base)]


def test_a_file_that_is_wrong_after_it_was_resumed_is_fetched_anew(texts, base):
    """What a killed download left may be anything: the whole is judged by its digest."""
    name = "data/train-00000-of-00003.parquet"
    part = base / "hub/datasets/some/texts" / texts.commit / f"{name}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(500))
    get(source(f"{URI}/data"), base)
    assert file_requests(texts, name) == ["bytes=500-", None]
    assert resolve_files(source(f"{URI}/data"), base=base)[0].read_bytes() == texts.files[name]


def test_a_file_that_stays_corrupted_is_named_and_nothing_counts_as_downloaded(texts, base):
    name = "data/train-00002-of-00003.parquet"
    texts.broken.add(name)
    spec = source(f"{URI}/data")
    with pytest.raises(PreflightError, match=r"train-00002-of-00003\.parquet: .*not what the hub announced"):
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
        (source("hf://datasets/some/nothing"), "hf://datasets/some/nothing: no such data set"),
        (source(f"{URI}/missing"), r"no data file matches; files there are: README\.md, data/train-00000"),
        (source("hf://models/x"), "expected hf://datasets/OWNER/NAME"),
    ],
)
def test_what_the_hub_does_not_have_is_named_at_preflight(texts, base, spec, message):
    with pytest.raises(PreflightError, match=message):
        if spec.uri == f"{URI}/missing":
            hub.check(hub.HubSource.parse(spec.uri, None))
        check_source(spec, base, False)


def test_a_hub_that_cannot_be_reached_is_an_error_at_once(base, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PreflightError, match=r"no usable answer from the hub at http://127\.0\.0\.1:9 .*network\?"):
        check_source(source(), base, False)


def test_offline_without_a_download_names_it_and_asks_nobody(texts, base):
    for act in (lambda: get(source(), base, offline=True), lambda: check_source(source(), base, True)):
        with pytest.raises(PreflightError, match=r"hf://datasets/some/texts \(revision main\) is not downloaded"):
            act()
    assert texts.requests == []


def test_offline_with_a_download_asks_nobody(texts, base):
    get(source(), base)
    before = len(texts.requests)
    get(source(), base, offline=True)
    check_source(source(), base, True, columns=())
    assert len(list(single_pass(source(f"{URI}", validation_hash_frac=1e-9), "train", base=base))) == 151
    assert resolve_revision(source(), base=base, offline=True) == texts.commit
    assert len(texts.requests) == before


def test_a_file_missing_from_a_download_is_named_and_fetched_again(texts, base):
    get(source(), base)
    path = resolve_files(source(), base=base)[0]
    path.unlink()
    with pytest.raises(PreflightError, match=f"{path.name} is missing or cut off"):
        resolve_files(source(), base=base)
    get(source(), base)
    assert path.is_file()


def test_a_file_damaged_after_its_download_is_told_and_fetched_again(texts, base):
    """Same size, other content: without the network an error, with it that file alone is downloaded."""
    get(source(), base)
    path = resolve_files(source(), base=base)[0]
    path.write_bytes(b"X" + path.read_bytes()[1:])
    with pytest.raises(PreflightError, match=f"{path.name} is damaged; run once with the network"):
        get(source(), base, offline=True)
    before = len(texts.requests)
    get(source(), base)
    assert [name for name, _ in texts.requests[before:] if name.startswith("/cdn/")] == [f"/cdn/data/{path.name}"]
    assert path.read_bytes() == texts.files[f"data/{path.name}"]


def test_a_revision_is_pinned_to_its_commit(texts, base):
    """The branch moves on; what was downloaded under its name stays."""
    spec = source(revision="v1/a")
    get(spec, base)
    commit, texts.commit = texts.commit, "d" * 40
    assert resolve_revision(spec, base=base, offline=False) == commit
    assert resolve_revision(source(), base=base, offline=False) == "d" * 40
    manifests = list((base / "hub/datasets/some/texts/manifests").iterdir())
    assert [json.loads(path.read_text())["commit"] for path in manifests] == [commit]


def test_the_digest_is_of_uri_and_revision_and_asks_nobody(texts, base):
    digests = {
        digest(source(uri, revision=revision), base=base) for uri in (URI, f"{URI}/data") for revision in (None, "v1")
    }
    assert len(digests) == 4
    assert digest(source(), base=base) == digest(source(revision="main"), base=base)
    assert texts.requests == []


def test_progress_ends_with_all_bytes(texts, base):
    seen = []
    texts.cut["data/train-00000-of-00003.parquet"] = 70_000
    get(source(), base, progress=lambda done_bytes, total_bytes: seen.append((done_bytes, total_bytes)))
    size = sum(len(content) for name, content in texts.files.items() if name != "README.md")
    assert seen[-1] == (size, size)
    assert all(done <= total for done, total in seen)


def test_a_token_goes_along(texts, base, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "abc")
    get(source(f"{URI}/other"), base)
    assert set(texts.authorizations) == {"Bearer abc"}


def test_a_disk_too_small_is_told_before_the_download(texts, base, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(PreflightError, match=r"no room to download: 0\.3 GB needed, 0\.0 GB free"):
        get(source(), base)
    assert not [path for path, _ in texts.requests if path.startswith("/cdn")]


def test_a_disk_that_fills_up_leaves_nothing_that_counts(texts, base, monkeypatch):
    """The error names the file; with room again the download is made."""
    write = Path.open

    def refuse(self, mode="r", *arguments, **options):
        if self.name.endswith(".part") and mode != "rb":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(PreflightError, match=r"\.part: cannot be written \(No space left on device\)"):
            get(source(), base)
    with pytest.raises(PreflightError, match="is not downloaded"):
        resolve_files(source(), base=base)
    get(source(), base)
    assert len(resolve_files(source(), base=base)) == 4


def test_what_a_branch_named_last_serves_every_pattern_of_the_data_set(texts, base):
    """Offline, a second source of the same branch is looked up under the same commit."""
    get(source(f"{URI}/data"), base)
    get(source(f"{URI}/other"), base)
    texts.commit = "d" * 40
    for tail in ("data", "other"):
        assert resolve_revision(source(f"{URI}/{tail}"), base=base, offline=True) == "c0ffee" + "0" * 34
    assert hub.known_commit(hub.HubSource.parse(URI, "v1"), base=base) is None
