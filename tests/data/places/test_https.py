from __future__ import annotations

import gzip
import hashlib
import os
from types import SimpleNamespace

import pytest

from nanochat.data.documents import single_pass
from nanochat.data.places import transfer
from nanochat.data.sources.source_contents import check_source, content_digest, digest, resolve_files
from nanochat.data.sources.source_downloads import check_download, fetch, is_available_offline, resolve_revision
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import InterruptedRun, PreflightError

LINES = b"".join(b'{"text": "text %d"}\n' % i for i in range(9000))


@pytest.fixture
def texts(web):
    web.files["/data/my texts.jsonl"] = LINES
    return web


def source(web, content=LINES, name="/data/my%20texts.jsonl", **settings):
    return SourceSpec(name="texts", uri=web.url + name, sha256=hashlib.sha256(content).hexdigest(), **settings)


def get(spec, base, **changes):
    fetch(spec, base=base, **{"offline": False, **changes})


def test_fetch_downloads_a_file_once_and_reads_it_like_a_local_one(texts, base):
    spec = source(texts, validation_hash_frac=1e-9)  # holds out one text
    with pytest.raises(PreflightError, match=r"my%20texts\.jsonl is not downloaded under .*run once with the network"):
        get(spec, base, offline=True)
    get(spec, base)
    (path,) = resolve_files(spec, base=base)
    assert (path.name, path.read_bytes()) == ("my texts.jsonl", LINES)
    assert len(list(single_pass(spec, "train", base=base))) == 8999
    get(spec, base)
    assert len(texts.requests) == 1
    assert is_available_offline(spec, base=base) and resolve_revision(spec, base=base, offline=True) is None


def test_digest_of_an_address_is_that_of_the_same_local_file(texts, base, tmp_path):
    spec = source(texts)
    before = digest(spec, base=base)
    get(spec, base)
    (tmp_path / "my texts.jsonl").write_bytes(LINES)
    local = SourceSpec(name="texts", path=(str(tmp_path / "my texts.jsonl"),))
    assert before == digest(spec, base=base) == content_digest(spec, base=base) == digest(local, base=base)


def test_fetch_refuses_other_content_and_keeps_nothing_of_it(texts, base):
    spec = source(texts, b"what the recipe expects")
    message = f"has the sha256 {hashlib.sha256(LINES).hexdigest()}, but the recipe says {spec.sha256}"
    with pytest.raises(PreflightError, match=message):
        get(spec, base)
    assert not [path for path in base.rglob("*") if path.is_file() and path.name != ".lock"]
    assert len(texts.requests) == 1


@pytest.mark.parametrize("has_ranges", [True, False])
@pytest.mark.parametrize("has_length", [True, False])
def test_fetch_continues_a_download_that_was_stopped(texts, base, has_ranges, has_length):
    texts.has_ranges, texts.has_length = has_ranges, has_length

    def stop(done_bytes, total_bytes):
        assert total_bytes == (len(LINES) if has_length else done_bytes)
        raise InterruptedRun("stopped")

    with pytest.raises(InterruptedRun):
        get(source(texts), base, progress=stop)
    assert not is_available_offline(source(texts), base=base)
    sizes = []
    get(source(texts), base, progress=lambda done, total: sizes.append(done))
    assert texts.requests[-1] == ("/data/my texts.jsonl", f"bytes={1 << 16}-")
    assert resolve_files(source(texts), base=base)[0].read_bytes() == LINES
    assert sizes[0] == (2 << 16 if has_ranges else 1 << 16) and sizes[-1] == len(LINES)


def test_fetch_tries_again_after_a_cut_connection_and_a_busy_server(texts, base):
    texts.statuses["/data/my texts.jsonl"] = [503, 429]
    texts.cut["/data/my texts.jsonl"] = 70_000
    get(source(texts), base)
    assert [wanted for _, wanted in texts.requests] == [None, None, None, "bytes=70000-"]
    assert resolve_files(source(texts), base=base)[0].read_bytes() == LINES


def test_fetch_starts_again_if_the_kept_part_belongs_to_other_content(texts, base):
    texts.files["/data/my texts.jsonl"] = LINES.replace(b"text", b"TEXT")

    def stop(*_):
        raise InterruptedRun("stopped")

    with pytest.raises(InterruptedRun):
        get(source(texts), base, progress=stop)
    texts.files["/data/my texts.jsonl"] = LINES
    get(source(texts), base)
    assert resolve_files(source(texts), base=base)[0].read_bytes() == LINES


def test_fetch_downloads_a_damaged_file_again(texts, base):
    get(source(texts), base)
    (path,) = resolve_files(source(texts), base=base)
    path.write_bytes(LINES[:-1] + b"x")
    with pytest.raises(PreflightError, match="is damaged"):
        resolve_files(source(texts), base=base)
    get(source(texts), base)
    assert resolve_files(source(texts), base=base)[0].read_bytes() == LINES


def test_file_damaged_without_a_new_time_is_refused_before_it_is_loaded_and_then_replaced(texts, base):
    get(source(texts), base)
    (path,) = resolve_files(source(texts), base=base)
    os.utime(path, ns=(0, 0))
    check_download(source(texts), base=base)
    path.write_bytes(LINES[:-1] + b"x")
    os.utime(path, ns=(0, 0))
    with pytest.raises(PreflightError, match="is damaged"):
        check_download(source(texts), base=base)
    get(source(texts), base)
    check_download(source(texts), base=base)
    assert path.read_bytes() == LINES


def files_in(base):
    return [path for path in base.rglob("*") if path.is_file() and path.name != ".lock"]


def test_file_without_an_announced_size_may_not_grow_without_end(texts, base, monkeypatch):
    monkeypatch.setattr(transfer, "_MAX_UNANNOUNCED_BYTES", 1_000_000)
    texts.has_length = False
    texts.endless.add("/data/my texts.jsonl")
    with pytest.raises(PreflightError, match="more than 1,000,000 bytes, the most that a file without an announced"):
        get(source(texts), base)
    assert files_in(base) == []


def test_file_without_an_announced_size_leaves_room_on_the_disk(texts, base, monkeypatch):
    """The disk is checked before each block: it may fill up for other reasons too."""
    texts.has_length = False
    texts.endless.add("/data/my texts.jsonl")
    free = iter([*[1 << 30] * 10, *[1 << 28] * 2])
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: SimpleNamespace(free=next(free)))
    with pytest.raises(PreflightError, match="no room to download"):
        get(source(texts), base)
    assert sum(path.stat().st_size for path in files_in(base)) == 9 * (1 << 16)  # one check is for the answer's start


def test_announced_size_that_does_not_fit_is_refused_before_the_first_byte(texts, base):
    texts.headers["/data/my texts.jsonl"] = {"Content-Length": str(10**15)}
    with pytest.raises(PreflightError, match=r"no room to download: 1000000\.3 GB needed"):
        get(source(texts), base)
    assert files_in(base) == []


def test_compressed_answer_is_kept_as_it_is(texts, base):
    """A server may label a compressed file like this. It is never decompressed, so it cannot become larger."""
    bomb = gzip.compress(bytes(50_000_000))
    texts.files["/data/my texts.jsonl"] = bomb
    texts.headers["/data/my texts.jsonl"] = {"Content-Encoding": "x-gzip"}
    get(source(texts, bomb), base)
    assert [path.read_bytes() for path in files_in(base) if path.name == "my texts.jsonl"] == [bomb]
    with pytest.raises(
        PreflightError, match=r"its content has the sha256 \w+, with the encoding 'x-gzip' that was not"
    ):
        get(source(texts), base)


def test_redirects_lead_to_https_only(texts, base):
    texts.redirects = {"/a.jsonl": "/b", "/b": f"{texts.url}/data/my%20texts.jsonl", "/loop.jsonl": "/loop.jsonl"}
    texts.redirects["/http.jsonl"] = "http://127.0.0.1:1/x?secret=1"
    get(source(texts, name="/a.jsonl"), base)
    assert resolve_files(source(texts, name="/a.jsonl"), base=base)[0].name == "a.jsonl"
    for act in (lambda spec: get(spec, base), lambda spec: check_source(spec, base, offline=False)):
        with pytest.raises(PreflightError, match=r"leads to http://127\.0\.0\.1:1, which is not https; refused"):
            act(source(texts, name="/http.jsonl"))
        with pytest.raises(PreflightError, match="more than 10 redirects"):
            act(source(texts, name="/loop.jsonl"))


def test_check_source_says_why_a_file_cannot_be_downloaded(texts, base, monkeypatch):
    check_source(source(texts), base, offline=False)
    with pytest.raises(PreflightError, match=r"source `texts`: .*nothing\.jsonl: the server answers 404"):
        check_source(source(texts, name="/nothing.jsonl"), base, offline=False)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(PreflightError, match=r"no usable answer \(SSLError\)"):
        check_source(source(texts), base, offline=False)
    texts.close()
    texts.close = lambda: None
    with pytest.raises(PreflightError, match=r"no usable answer \(ConnectionError\); is there a network\?"):
        check_source(source(texts), base, offline=False)


def test_hub_offline_variable_forbids_connections(texts, base, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for act in (lambda spec: get(spec, base), lambda spec: check_source(spec, base, offline=False)):
        with pytest.raises(PreflightError, match="is not downloaded under"):
            act(source(texts))
    assert texts.requests == []


def test_fetch_refuses_a_file_that_does_not_fit_on_the_disk(texts, base, monkeypatch):
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 28))
    with pytest.raises(PreflightError, match=r"no room to download: 0\.3 GB needed, 0\.3 GB free at"):
        get(source(texts), base)
