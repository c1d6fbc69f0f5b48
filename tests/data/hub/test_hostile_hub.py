"""A hub, or a mirror in its place, that means harm: it is refused with exit code 3, and nothing outside changes."""

from __future__ import annotations

import gzip
import json
import re
from functools import partial

import pytest
from local_server import LocalServer

from nanochat.cli.run import main
from nanochat.data.hub import listing
from nanochat.data.sources.source_contents import check_source, resolve_files
from nanochat.data.sources.source_downloads import fetch
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import PreflightError

RECIPE = """\
nanochat: 1
name: tiny
sources:
  texts: {uri: 'hf://datasets/some/texts'}
tokenizer: {source: texts, vocab_size: 300}
tracking: {kind: none}
"""
NAME = "train.jsonl"
LINES = b"".join(b'{"text": "line %d"}\n' % i for i in range(30))
SPEC = SourceSpec(name="texts", uri="hf://datasets/some/texts")
OTHER_PIN = f"hf://datasets/evil/texts@main: {'e' * 40}"
REVISION, COMMIT = "/api/datasets/some/texts/revision/main", "c0ffee" + "0" * 34
TREE = f"/api/datasets/some/texts/tree/{COMMIT}"
SMALL_BYTES = 100_000


@pytest.fixture
def texts(fake_hub):
    fake_hub.files[NAME] = LINES
    return fake_hub


@pytest.fixture
def fetch_recipe(tmp_path, capsys):
    """Return the message of `nanochat-run fetch`, which must end with exit code 3 and change nothing but its base."""
    (tmp_path / "project").mkdir()
    recipe = tmp_path / "project" / "tiny.yaml"
    recipe.write_text(RECIPE)
    (tmp_path / "secret.jsonl").write_text("mine")

    def contents(*, of_base):
        paths = (path for path in tmp_path.rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in paths if path.is_relative_to(tmp_path / "base") == of_base}

    def run():
        before = contents(of_base=False)
        code = main(["fetch", str(recipe)])
        message = capsys.readouterr().err
        lock = recipe.with_suffix(".lock")
        if lock.exists():  # the hub's commit was usable
            assert OTHER_PIN not in lock.read_text()
            lock.unlink()
        assert contents(of_base=False) == before
        inside = contents(of_base=True)
        assert not [path for path in inside if path.parent.name == "manifests" or path.name == NAME]
        assert sum(map(len, inside.values())) < SMALL_BYTES
        assert (code, message[:7]) == (3, "error: ")
        assert message.removesuffix("\n").replace("\n", " ").isprintable()
        return message

    return run


def list_name(name, hub):
    hub.listed = [hub.entry("x.jsonl", LINES) | {"path": name}]


def list_entry(entry, hub):
    hub.listed = [entry]


def change(changes, hub):
    hub.changes[NAME] = changes


def set_commit(commit, hub):
    hub.commit = commit


def set_file_host(place, hub):
    hub.file_host = place.format(hub=hub.url)


def set_next_page(place, hub):
    hub.next_page = place.format(hub=hub.url)


def answer(path, content, hub):
    hub.answers[path] = content


def send_endlessly(path, hub):
    hub.answers.setdefault(path, b"[")
    hub.endless.add(path)
    hub.headers[path] = {"Content-Length": None}


def send_more(hub):
    hub.endless.add(NAME)
    hub.headers[NAME] = {"Content-Length": None}


def announce(size, hub):
    hub.headers[NAME] = {"Content-Length": str(size)}


def compress(hub):
    content = gzip.compress(bytes(50_000_000))
    hub.files[NAME] = content
    hub.changes[NAME] = hub.entry(NAME, LINES)
    hub.headers[NAME] = {"Content-Encoding": "gzip", "Content-Length": None}


def redirect_endlessly(hub):
    path = f"/datasets/some/texts/resolve/{COMMIT}/{NAME}"
    hub.redirects[path] = "/nothing"
    hub.endless.add(path)


def change_a_byte(hub):
    hub.broken.add(NAME)


UNSAFE_NAMES = {
    "parent": "../../x.jsonl",
    "inner parent": "data/../../../x.jsonl",
    "absolute": "/tmp/x.jsonl",
    "drive": "C:/x.jsonl",
    "backslash": "..\\..\\x.jsonl",
}
BROKEN_NAMES = {
    "line break": f"a\n{OTHER_PIN}\n.jsonl",
    "line separator": "a\u2028b.jsonl",
    "nul": "a\0b.jsonl",
    "escape": "a\x1b[2Jb.jsonl",
}
HOSTILE = {
    **{key: (partial(list_name, name), "its name leaves the folder") for key, name in UNSAFE_NAMES.items()},
    **{key: (partial(list_name, name), "has line breaks or other control") for key, name in BROKEN_NAMES.items()},
    "half a character": (partial(list_name, "\ud800.jsonl"), "cannot be the name of a file"),
    "bytes": (partial(list_name, "\udcff.jsonl"), "cannot be the name of a file"),
    "no name": (partial(list_name, ""), "cannot be the name of a file"),
    "dot": (partial(list_name, "."), "cannot be the name of a file"),
    "number as name": (partial(list_name, 7), "a file whose name is `7`"),
    "name twice": (partial(list_name, NAME), "`train.jsonl` twice, or as a file and as a folder"),
    "name in a file": (partial(list_name, f"{NAME}/x.jsonl"), "`train.jsonl` twice, or as a file and as a folder"),
    "link": (partial(list_entry, {"type": "symlink", "path": "a", "target": "/etc/passwd"}), "`a` as `symlink`"),
    "no entry": (partial(list_entry, "train.jsonl"), "it lists `'train.jsonl'`"),
    "negative size": (partial(change, {"size": -1}), "with the size `-1`"),
    "huge size": (partial(change, {"size": 10**30}), "with the size `1000000"),
    "text as size": (partial(change, {"size": "590"}), "with the size `'590'`"),
    "fraction as size": (partial(change, {"size": 590.0}), "with the size `590.0`"),
    "size that does not fit": (partial(change, {"size": 10**15}), "no room to download: 1000000.3 GB needed"),
    "digest that is a path": (partial(change, {"oid": "../../x"}), "with the git-sha1 `'../../x'`"),
    "no digest": (partial(change, {"lfs": {"size": 590}}), "with the sha256 `None`"),
    "short commit": (partial(set_commit, "c0ffee"), "its commit is `'c0ffee'`, not 40 hex digits"),
    "commit with a line break": (partial(set_commit, f"{COMMIT}\n{OTHER_PIN}"), "not 40 hex digits"),
    "commit that is a path": (partial(set_commit, "../../../../" + "x" * 28), "not 40 hex digits"),
    "list as commit": (partial(set_commit, [COMMIT]), "not 40 hex digits"),
    "endless body": (send_more, "the server sends more than 590 bytes, the announced size; refused"),
    "more than the list says": (partial(announce, 5000), "sends 5,000 bytes, but the file should have 590; refused"),
    "less than the list says": (partial(announce, 10), "sends 10 bytes, but the file should have 590; refused"),
    "compressed body": (compress, "the server sends more than 590 bytes, the announced size; refused"),
    "other bytes": (change_a_byte, "its content is not what was announced"),
    "redirect to a file": (partial(set_file_host, "file:///etc"), "leads to file://, which is not https; refused"),
    "redirect to ftp": (partial(set_file_host, "ftp://127.0.0.1"), "leads to ftp://127.0.0.1, which is not https"),
    "redirect to nowhere": (partial(set_file_host, "http://[x"), "leads to an address that is not valid; refused"),
    "redirect to itself": (
        partial(set_file_host, f"{{hub}}/datasets/some/texts/resolve/{COMMIT}"),
        "more than 10 redirects",
    ),
    "redirect that never ends": (redirect_endlessly, "the data set has no such file (404)"),
    "page in a file": (partial(set_next_page, "file:///etc/passwd"), "leads to file://, which is not https; refused"),
    "pages in a circle": (partial(set_next_page, f"{{hub}}{TREE}?x=1"), "does not end after 6 files"),
    "no list": (partial(answer, TREE, b'{"a": 1}'), "a page of its list of files is not a list"),
    "no description": (partial(answer, REVISION, b"[]"), "it does not describe the data set"),
    "no JSON": (partial(answer, REVISION, b"<html>"), "no usable answer from the hub"),
    "deep JSON": (partial(answer, TREE, b"[" * 100_000), "an answer that is nested too deeply"),
    "endless JSON": (partial(send_endlessly, TREE), "an answer of more than 1 MB"),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_hub_is_refused_and_changes_nothing_outside_the_base(texts, fetch_recipe, monkeypatch, attack):
    monkeypatch.setattr(listing, "_MAX_PAGES", 6)
    monkeypatch.setattr("nanochat.data.places.connection._MAX_JSON_BYTES", 1 << 20)
    act, expected = HOSTILE[attack]
    act(texts)
    message = fetch_recipe()
    assert expected in message and "source `texts`" in message
    assert "hf://datasets/some/texts" in message or texts.url in message


def test_hub_that_stops_being_hostile_is_read(texts, base):
    """What an attack left in the base does no harm."""
    for act in (send_more, compress, change_a_byte):
        act(texts)
        with pytest.raises(PreflightError):
            fetch(SPEC, base=base, offline=False)
        texts.files[NAME] = LINES
        for knob in (texts.endless, texts.broken, texts.headers, texts.changes):
            knob.clear()
    fetch(SPEC, base=base, offline=False)
    assert [path.read_bytes() for path in resolve_files(SPEC, base=base)] == [LINES]


def test_token_is_sent_to_the_hub_alone(texts, base, monkeypatch):
    """Neither the host of the files nor a page of another server receives it."""
    other = LocalServer()
    other.files["/page"] = b"[]"
    texts.next_page = f"{other.url}/page"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    try:
        fetch(SPEC, base=base, offline=False)
    finally:
        other.close()
    assert other.authorizations == [None]
    sent = {
        (path.startswith("/cdn/"), token) for (path, _), token in zip(texts.requests, texts.authorizations, strict=True)
    }
    assert sent == {(False, "Bearer hf_secret"), (True, None)}


@pytest.mark.parametrize(
    "settings",
    [
        {"uri": "hf://datasets/../x"},
        {"uri": "hf://datasets/a\n/x"},
        {"uri": "hf://datasets/some/texts", "revision": "../../x"},
        {"uri": "hf://datasets/some/texts", "revision": f"main\n{OTHER_PIN}"},
        {"uri": "hf://datasets/some/texts", "revision": "a b"},
        {"uri": "https://127.0.0.1/a%0Ab.jsonl", "sha256": "0" * 64},
        {"uri": "https://127.0.0.1/a/%2E%2E", "sha256": "0" * 64},
        {"uri": "https://127.0.0.1/a%00.jsonl", "sha256": "0" * 64},
    ],
)
def test_recipe_with_a_name_that_leaves_its_folder_is_refused_without_a_request(texts, base, settings):
    spec = SourceSpec(name="texts", **settings)
    for act in (lambda: check_source(spec, base, False), lambda: fetch(spec, base=base, offline=False)):
        with pytest.raises(PreflightError, match=r"cannot be the name|expected hf://|leaves the folder|control char"):
            act()
    assert texts.requests == [] and not base.exists()


ENTRY = {"path": NAME, "size": len(LINES), "sha256": "0" * 64}
DAMAGED_ENTRIES = [{"path": "../../../../../../secret.jsonl"}, {"path": 7}, {"size": "1"}, {"sha256": "x"}, {"more": 1}]
DAMAGED_RECORDS = [
    "{",
    "[]",
    json.dumps({"commit": COMMIT}),
    json.dumps({"commit": "../../../..", "files": [ENTRY]}),
    *(json.dumps({"commit": COMMIT, "files": [ENTRY | change]}) for change in DAMAGED_ENTRIES),
]


@pytest.mark.parametrize("content", DAMAGED_RECORDS)
def test_damaged_record_of_a_download_counts_as_none(texts, base, content):
    fetch(SPEC, base=base, offline=False)
    (record,) = (base / "hub/datasets/some/texts/manifests").iterdir()
    record.write_text(content)
    with pytest.raises(PreflightError, match=r"is not downloaded under .*run once with the network"):
        fetch(SPEC, base=base, offline=True)
    fetch(SPEC, base=base, offline=False)
    assert [path.read_bytes() for path in resolve_files(SPEC, base=base)] == [LINES]
    assert re.search(r'"size": 590\b', record.read_text())
