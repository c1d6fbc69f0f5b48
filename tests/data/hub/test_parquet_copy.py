"""Tests of data sets without a file that can be read, of which the hub may have a parquet copy."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data.documents import single_pass
from nanochat.data.hub import hub
from nanochat.data.hub.hub_source import HubSource
from nanochat.data.sources.source_contents import check_source, list_files
from nanochat.data.sources.source_downloads import fetch, resolve_revision
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import PreflightError

URI = "hf://datasets/some/texts"
BRANCH = "refs/convert/parquet"


@pytest.fixture
def script(fake_hub):
    """A data set that consists of a program and a readme."""
    fake_hub.files = {"README.md": b"# Texts", "texts.py": b"import datasets", "texts.bin": b"data"}
    return fake_hub


def parquet(*texts):
    out = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), out)
    return out.getvalue()


def source(uri=URI, **settings):
    return SourceSpec(name="texts", uri=uri, **settings)


def test_parquet_copy_is_read_if_the_data_set_has_no_file_to_read(script, base):
    script.parquet_copy = {"one/train/0000.parquet": parquet("a", "b"), "one/test/0000.parquet": parquet("c")}
    fetch(source(), base=base, offline=False)
    assert sorted(single_pass(source(), "train", base=base)) == ["a", "b"]
    assert resolve_revision(source(), base=base, offline=True) == script.parquet_commit
    assert list_files(source(), base=base).notes == (f"read from `{BRANCH}`, the hub's parquet copy of the data set",)


def test_folder_of_the_uri_chooses_a_configuration_of_the_parquet_copy(script, base):
    script.parquet_copy = {f"{name}/train/0000.parquet": parquet(name, name) for name in ("one", "two")}
    spec = source(f"{URI}/two")
    fetch(spec, base=base, offline=False)
    assert set(single_pass(spec, "train", base=base)) == {"two"}


@pytest.mark.parametrize(
    ("files", "settings", "advice"),
    [
        (
            ["one/train/0", "two/train/0"],
            {},
            f"`revision: {BRANCH}` and end its `uri` with one of the folders one, two",
        ),
        (["one/partial-train/0"], {}, f"`revision: {BRANCH}` .it holds only the beginning of the data set"),
        (["one/train/0"], {"revision": "v1/a"}, f"`revision: {BRANCH}`$"),
    ],
)
def test_parquet_copy_that_differs_from_what_the_recipe_names_is_suggested(script, base, files, settings, advice):
    script.parquet_copy = {f"{name}.parquet": parquet("a") for name in files}
    with pytest.raises(PreflightError, match=f"the hub has a parquet copy: set the source's {advice}"):
        check_source(source(**settings), base, False)


def test_suggested_parquet_copy_can_be_read(script, base):
    script.parquet_copy = {"one/partial-train/0000.parquet": parquet("a", "b")}
    spec = source(revision=BRANCH)
    fetch(spec, base=base, offline=False)
    assert sorted([*single_pass(spec, "train", base=base), *single_pass(spec, "validation", base=base)]) == ["a", "b"]


def test_data_set_without_a_file_to_read_or_a_copy_names_its_files(script, base):
    script.files = {"texts.lz": b"data", "other.bin": b"data"}
    with pytest.raises(PreflightError, match=r"no data file matches; files there are: other\.bin, texts\.lz$"):
        check_source(source(), base, False)


def test_pattern_without_a_match_does_not_ask_for_the_copy_of_a_data_set_with_data(script):
    script.files["data/train.jsonl"] = b'{"text": "a"}'
    script.parquet_copy = {"one/train/0000.parquet": parquet("a")}
    with pytest.raises(PreflightError, match=r"no data file matches; files there are: README\.md, data/train\.jsonl"):
        hub.check(HubSource.parse(f"{URI}/dat", None))
    assert not [path for path, _ in script.requests if "convert" in path]
