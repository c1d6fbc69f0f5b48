from __future__ import annotations

import errno
import hashlib
import io
import lzma
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from nanochat.data.documents import single_pass
from nanochat.data.places import archives
from nanochat.data.places.archives import unpack
from nanochat.data.sources.source_contents import resolve_files
from nanochat.data.sources.source_downloads import fetch
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import PreflightError
from nanochat.tasks.core_bundle import bundle_folder, check_bundle, read_bundle, read_items

LINES = [b'{"text": "text %d"}\n' % i for i in range(100)]
FILES = {"texts/train/a.jsonl": b"".join(LINES[:50]), "texts/train/b.jsonl": b"".join(LINES[50:]), "texts/empty": b""}


def make_zip(files, *, change=lambda info: None, compression=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.mkdir("texts")
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            change(info)
            archive.writestr(info, content)
    return out.getvalue()


def make_tar(files, *, change=lambda info: None, layout=tarfile.PAX_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=layout) as archive:
        folder = tarfile.TarInfo("texts")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            change(info)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def compress(content, codec):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


ARCHIVES = {
    "a.zip": make_zip,
    "stored.ZIP": lambda files: make_zip(files, compression=zipfile.ZIP_STORED),
    "a.tar": make_tar,
    "old.tar": lambda files: make_tar(files, layout=tarfile.USTAR_FORMAT),
    "a.tar.gz": lambda files: compress(make_tar(files), "gzip"),
    "a.tgz": lambda files: compress(make_tar(files), "gzip"),
    "a.tar.zst": lambda files: compress(make_tar(files), "zstd"),
    "a.tar.bz2": lambda files: compress(make_tar(files), "bz2"),
    "a.tar.xz": lambda files: lzma.compress(make_tar(files), preset=0),
}


@pytest.fixture
def try_unpack(tmp_path):
    """Return the files that an archive becomes."""

    def unpack_content(name: str, content: bytes) -> dict[str, bytes]:
        (tmp_path / "archive").write_bytes(content)
        folder = tmp_path / "outside" / "folder"
        shutil.rmtree(tmp_path / "outside", ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            unpack(tmp_path / "archive", name, folder)
        finally:
            assert list(folder.parent.iterdir()) == [folder]
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return unpack_content


@pytest.mark.parametrize("name", ARCHIVES)
def test_unpack_writes_the_files_of_every_kind_of_archive(try_unpack, name):
    assert try_unpack(name, ARCHIVES[name](FILES)) == FILES


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", ["/tmp/evil", "../evil", "texts/../../evil", "a\\..\\evil", "C:/evil"])
def test_unpack_refuses_names_that_leave_the_folder(try_unpack, make, name):
    with pytest.raises(PreflightError, match="its name leaves the folder; this archive is refused"):
        try_unpack("a.zip" if make is make_zip else "a.tar", make({"good": b"1", name: b"2"}))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_unpack_refuses_links_and_special_files_in_a_tar(try_unpack, kind):
    def change(info):
        info.type, info.linkname, info.size = kind, "good", 0

    with pytest.raises(PreflightError, match=r"a\.tar, member `link`: it is a link or a special file"):
        try_unpack("a.tar", make_tar({"link": b""}, change=change))


def test_unpack_refuses_links_and_encrypted_files_in_a_zip(try_unpack):
    def link(info):
        info.external_attr = (stat.S_IFLNK | 0o777) << 16

    with pytest.raises(PreflightError, match=r"a\.zip, member `link`: it is a link or a special file"):
        try_unpack("a.zip", make_zip({"link": b"/etc/passwd"}, change=link))
    content = bytearray(make_zip({"secret": b"1"}))
    entry = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    content[entry + 8] |= 1
    with pytest.raises(PreflightError, match="member `secret`: it is encrypted"):
        try_unpack("a.zip", bytes(content))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_unpack_refuses_names_that_occur_twice(try_unpack):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a", "1")
        archive.writestr("a", "2")
    with pytest.raises(PreflightError, match="its name occurs twice"):
        try_unpack("a.zip", out.getvalue())
    with pytest.raises(PreflightError, match="its name occurs twice"):
        try_unpack("a.tar", make_tar({"a": b"1", "a/b": b"2"}))


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar.xz"])
def test_unpack_refuses_a_decompression_bomb(try_unpack, monkeypatch, name):
    monkeypatch.setattr(archives, "_MIN_LIMIT_BYTES", 1 << 20)
    bomb = ARCHIVES[name]({"bomb": bytes(3 << 20)})
    with pytest.raises(
        PreflightError, match=r"member `bomb`: the content of the archive has more than 1 MB, 100 times"
    ):
        try_unpack(name, bomb)
    with pytest.raises(PreflightError, match="the content of the archive has more than"):
        try_unpack(name, ARCHIVES[name]({f"part{i}": bytes(300_000) for i in range(10)}))


def test_unpack_refuses_a_tar_that_hides_a_bomb_in_its_headers_or_behind_its_end(try_unpack, monkeypatch):
    def change(info):
        info.pax_headers = {"comment": "x" * (3 << 20)}

    for content in (make_tar({"a": b"1"}, change=change), make_tar(FILES) + bytes(70 << 20)):
        with pytest.raises(PreflightError, match="too much data between or after its members"):
            try_unpack("a.tar.gz", compress(content, "gzip"))


def test_unpack_refuses_a_zip_member_that_is_larger_than_announced(try_unpack):
    content = bytearray(make_zip({"a": b"x" * 1000}))
    entry = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    content[entry + 24 : entry + 28] = (10).to_bytes(4, "little")
    with pytest.raises(PreflightError, match="member `a`"):
        try_unpack("a.zip", bytes(content))


@pytest.mark.parametrize("name", ARCHIVES)
def test_unpack_names_a_damaged_or_truncated_archive(try_unpack, name):
    noise = {"noise": b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(2000))}
    content = ARCHIVES[name](noise)
    broken = [content[: len(content) // 2], b"", b"this is no archive at all" * 50]
    if "tar" not in name or name.endswith((".gz", ".xz", ".zst", ".bz2")):  # a plain tar has no checksum of contents
        middle = len(content) // 2
        broken.append(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    for damaged in broken:
        if name.endswith(".zst") and len(damaged) == len(content):
            continue  # zstd's checksum is optional
        with pytest.raises(PreflightError, match=rf"^{name}.*(damaged|get it again)"):
            try_unpack(name, damaged)


def test_unpack_refuses_an_archive_that_does_not_fit_on_the_disk(try_unpack, monkeypatch):
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 28))
    with pytest.raises(PreflightError, match=r"member `texts/train/a\.jsonl`: no room"):
        try_unpack("a.zip", make_zip(FILES))


def source(web, content):
    return SourceSpec(name="texts", uri=f"{web.url}/texts.zip", sha256=hashlib.sha256(content).hexdigest())


def get(spec, base):
    fetch(spec, base=base, offline=False)


def test_fetch_unpacks_an_archive_and_reads_its_files_like_a_folder(web, base):
    content = web.files["/texts.zip"] = make_zip(FILES)
    spec = source(web, content)
    get(spec, base)
    names = [str(path.relative_to(path.parents[2])) for path in resolve_files(spec, base=base)]
    assert names == ["texts/train/a.jsonl", "texts/train/b.jsonl"]
    assert len(list(single_pass(spec, "train", base=base))) in range(90, 100)
    get(spec, base)
    assert len(web.requests) == 1


@pytest.mark.parametrize("problem", ["damaged", "disk full", "killed"])
def test_fetch_leaves_no_folder_of_an_archive_that_cannot_be_unpacked(web, base, certificate, monkeypatch, problem):
    content = web.files["/texts.zip"] = make_zip(FILES)
    spec, write, written = source(web, content), archives._Target.write, []

    def fail(target, name, size, stream):
        write(target, name, size, stream)
        written.append(name)
        if len(written) == 2:
            raise {
                "damaged": zipfile.BadZipFile("bad checksum"),
                "disk full": OSError(errno.ENOSPC, "No space left on device"),
                "killed": KeyboardInterrupt(),
            }[problem]

    monkeypatch.setattr(archives._Target, "write", fail)
    with pytest.raises((PreflightError, KeyboardInterrupt)) as caught:
        get(spec, base)
    if problem != "killed":
        assert spec.uri in str(caught.value) and {"damaged": "train/b.jsonl", "disk full": "No space"}[problem] in str(
            caught.value
        )
    left = [path.name for path in base.rglob("*") if path.is_file()]
    assert sorted(left) == [".lock", spec.sha256]
    monkeypatch.undo()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    get(spec, base)
    assert len(resolve_files(spec, base=base)) == 2 and len(web.requests) == 1
    assert not any(Path(base).rglob(spec.sha256))


def test_core_bundle_is_read_from_the_archive_at_an_address(web, base):
    entry = "{label: a, dataset_uri: a.jsonl, num_fewshot: [0], icl_task_type: language_modeling}"
    content = web.files["/texts.zip"] = make_zip(
        {
            "eval_bundle/core.yaml": f"icl_tasks: [{entry}]\n".encode(),
            "eval_bundle/eval_meta_data.csv": b"Eval Task,Random baseline\na,50\n",
            "eval_bundle/eval_data/a.jsonl": b'{"context": "c", "continuation": "d"}\n',
        }
    )
    spec = source(web, content)
    with pytest.raises(PreflightError, match="is not downloaded under"):
        check_bundle(spec, base=base)
    get(spec, base)
    check_bundle(spec, base=base)
    (task,) = read_bundle(bundle_folder(spec, base=base))
    assert (task.label, task.chance) == ("a", 0.5)
    assert len(read_items(task)) == 1
