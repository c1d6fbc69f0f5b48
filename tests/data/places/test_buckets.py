from __future__ import annotations

import hashlib
import io
import sys
import zipfile

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from nanochat.data.places import buckets
from nanochat.data.sources.source_contents import check_source, resolve_files
from nanochat.data.sources.source_downloads import fetch, is_available_offline
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import InterruptedRun, PreflightError

LINES = b"".join(b'{"text": "text %d"}\n' % i for i in range(9000))


class Bucket(MemoryFileSystem):
    protocol = ("s3", "gs")

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.partition("://")[2] if "://" in path else path)


@pytest.fixture(autouse=True)
def bucket(monkeypatch):
    monkeypatch.setattr(Bucket, "store", {}, raising=False)
    monkeypatch.setattr(Bucket, "pseudo_dirs", [""])
    for scheme in Bucket.protocol:
        monkeypatch.setitem(_registry, scheme, Bucket)
    system = Bucket()
    for name in ("train-0.jsonl", "train-1.jsonl", "deep/train-2.jsonl", ".hidden.jsonl", "readme.bin"):
        system.pipe(f"/mine/texts/{name}", LINES)
    return system


def source(uri, **settings):
    return SourceSpec(name="texts", uri=uri, **settings)


def get(spec, base, **changes):
    fetch(spec, base=base, **{"offline": False, **changes})


@pytest.mark.parametrize("scheme", ["s3", "gs"])
@pytest.mark.parametrize(
    ("place", "names"),
    [
        ("mine/texts", ["train-2.jsonl", "train-0.jsonl", "train-1.jsonl"]),
        ("mine/texts/*.jsonl", ["train-0.jsonl", "train-1.jsonl"]),
        ("mine/texts/train-1.jsonl", ["train-1.jsonl"]),
    ],
)
def test_fetch_downloads_a_file_folder_or_pattern_of_a_bucket(base, bucket, scheme, place, names):
    spec = source(f"{scheme}://{place}")
    check_source(spec, base, offline=False)
    get(spec, base)
    assert [path.name for path in resolve_files(spec, base=base)] == names
    bucket.rm("/mine", recursive=True)
    get(spec, base)
    assert all(path.read_bytes() == LINES for path in resolve_files(spec, base=base))


def test_fetch_continues_an_object_unless_it_has_changed(base, bucket, monkeypatch):
    monkeypatch.setattr(buckets, "_CHUNK_BYTES", 100_000)
    spec, sizes = source("s3://mine/texts/train-0.jsonl"), []

    def stop(*_):
        raise InterruptedRun("stopped")

    with pytest.raises(InterruptedRun):
        get(spec, base, progress=stop)
    assert not is_available_offline(spec, base=base)
    get(spec, base, progress=lambda done, total: sizes.append(done))
    assert sizes == [len(LINES)]
    other = source("s3://mine/texts/train-1.jsonl")
    with pytest.raises(InterruptedRun):
        get(other, base, progress=stop)
    bucket.pipe("/mine/texts/train-1.jsonl", LINES.upper() + b"\n")
    get(other, base)
    assert resolve_files(other, base=base)[0].read_bytes() == LINES.upper() + b"\n"


def test_fetch_unpacks_an_archive_of_a_bucket_whose_sha256_is_right(base, bucket):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.jsonl", LINES)
    bucket.pipe("/mine/a.zip", out.getvalue())
    spec = source("s3://mine/a.zip", sha256=hashlib.sha256(out.getvalue()).hexdigest())
    get(spec, base)
    assert resolve_files(spec, base=base)[0].read_bytes() == LINES
    with pytest.raises(PreflightError, match=f"the recipe says sha256 {'0' * 64}, but there is: a.zip {spec.sha256}"):
        get(source("s3://mine/a.zip", sha256="0" * 64), base)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("a\nb.jsonl", "`a\\nb.jsonl`: its name has line breaks"), ("a\\..\\b.jsonl", "its name leaves the folder")],
)
def test_object_whose_name_cannot_be_a_path_is_refused(base, bucket, name, reason):
    bucket.pipe(f"/mine/texts/{name}", LINES)
    for act in (lambda spec: check_source(spec, base, offline=False), lambda spec: get(spec, base)):
        with pytest.raises(PreflightError) as caught:
            act(source("s3://mine/texts"))
        assert reason in str(caught.value)


def test_object_whose_name_is_a_folder_too_is_refused(base, bucket):
    bucket.store["/mine/texts/train-0.jsonl/more.jsonl"] = bucket.store["/mine/texts/train-0.jsonl"]
    with pytest.raises(PreflightError, match=r"`train-0\.jsonl` is a file as well as a folder"):
        check_source(source("s3://mine/texts"), base, offline=False)


@pytest.mark.parametrize("size", [None, -1, "10"])
def test_object_without_a_size_is_refused(base, monkeypatch, size):
    monkeypatch.setattr(Bucket, "size", lambda *_: size)
    with pytest.raises(PreflightError, match=rf"`train-0\.jsonl` has the size {size!r}"):
        get(source("s3://mine/texts/train-0.jsonl"), base)


def test_check_source_says_what_a_bucket_lacks(base, monkeypatch):
    with pytest.raises(PreflightError, match=r"s3://mine/nothing.*no data file there"):
        check_source(source("s3://mine/nothing"), base, offline=False)
    with pytest.raises(PreflightError, match="is not downloaded under"):
        check_source(source("s3://mine/texts"), base, offline=True)
    monkeypatch.setattr(Bucket, "isfile", lambda *_: (_ for _ in ()).throw(PermissionError("Forbidden")))
    with pytest.raises(PreflightError, match=r"PermissionError: Forbidden\); check the network, and the credentials"):
        check_source(source("s3://mine/texts"), base, offline=False)
    monkeypatch.delitem(_registry, "s3")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(PreflightError, match=r"pip install 'nanochat-run\[s3\]'"):
        check_source(source("s3://mine/texts"), base, offline=False)
