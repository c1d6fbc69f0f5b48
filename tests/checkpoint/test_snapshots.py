"""Checkpoints are restored bit for bit, and damaged ones are skipped."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

from nanochat.checkpoint.snapshots import latest_checkpoint, save_checkpoint
from nanochat.errors import StageError
from nanochat.storage.checked_json import write_checked
from nanochat.storage.layout import list_checkpoints


def bits(array):
    """Return an MLX array's raw bits, so that NaN, -0 and bfloat16 compare exactly."""
    return np.array(mx.array(array).view({1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}[array.itemsize]))


def some_arrays(seed):
    key = mx.random.key(seed)
    values = mx.random.normal((7, 5), key=key)
    return {
        "float32": values,
        "bfloat16": values.astype(mx.bfloat16),
        "odd": mx.array([float("nan"), -0.0, float("inf"), 1e-45]),
        "scalar": mx.array(seed, dtype=mx.int32),
        "transposed": values.T,
    }


def some_numpy(seed):
    rng = np.random.default_rng(seed)
    return {"tokens": rng.integers(0, 9, 11, dtype=np.int32), "empty": np.zeros(0, np.int64), "mask": np.array([True])}


def save(root, step, keep=2, **options):
    groups = {"optimizer": some_arrays(step), "loader": some_numpy(step)}
    return save_checkpoint(
        root, step, groups, {"step": step, "loss": 0.1 + step, "nested": [1, None]}, keep=keep, **options
    )


def test_latest_checkpoint_restores_arrays_and_state_bit_for_bit(tmp_path):
    """Arrays include bfloat16, NaN, -0, denormals, scalars, transposed views and empty arrays."""
    save(tmp_path, 3)
    view = latest_checkpoint(tmp_path)
    assert (view.step, view.state) == (3, {"step": 3, "loss": 3.1, "nested": [1, None]})
    loaded = view.arrays("optimizer")
    for name, expected in some_arrays(3).items():
        assert loaded[name].dtype == expected.dtype
        assert loaded[name].shape == expected.shape
        np.testing.assert_array_equal(bits(loaded[name]), bits(expected), err_msg=name)
    for name, expected in some_numpy(3).items():
        got = view.numpy_arrays("loader")[name]
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)


def test_save_checkpoint_writes_the_same_bytes_for_any_order_of_arrays(tmp_path):
    arrays = some_arrays(1)
    for name, named in (("a", arrays), ("b", dict(reversed(arrays.items())))):
        save_checkpoint(tmp_path / name, 1, {"group": named}, {}, keep=1)
    first, second = (tmp_path / name / "step_00000001" / "group.safetensors" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_save_checkpoint_keeps_the_newest_and_the_best(tmp_path):
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step, keep=2, best=2 if step >= 2 else None)
    assert sorted(list_checkpoints(tmp_path)) == [2, 4, 5]


def test_save_checkpoint_deletes_later_checkpoints(tmp_path):
    """After resuming from step 10, the damaged step 20 must not count as the newest and must not be found later."""
    save(tmp_path, 10)
    save(tmp_path, 20)
    save(tmp_path, 15, keep=1)
    assert sorted(list_checkpoints(tmp_path)) == [15]


def truncate(path):
    file = path / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def flip(name):
    def damage(path):
        content = bytearray((path / name).read_bytes())
        content[len(content) // 2] ^= 0x10
        (path / name).write_bytes(bytes(content))

    return damage


def empty(path):
    shutil.rmtree(path)
    path.mkdir()


def set_format(path, number):
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["content_sha256"]
    write_checked(path / "manifest.json", json.dumps({**manifest, "format": number, "more": "of another version"}))


def drop_digest(path):
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["content_sha256"]
    (path / "manifest.json").write_text(json.dumps(manifest))


DAMAGES = {
    "truncated": truncate,
    "flipped byte in arrays": flip("optimizer.safetensors"),
    "flipped byte in numpy arrays": flip("loader.safetensors"),
    "flipped byte in the state": flip("state.json"),
    "flipped byte in the manifest": flip("manifest.json"),
    "file missing": lambda path: (path / "loader.safetensors").unlink(),
    "manifest missing": lambda path: (path / "manifest.json").unlink(),
    "empty folder": empty,
    "manifest without its digest": drop_digest,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_latest_checkpoint_reports_and_skips_a_damaged_one(tmp_path, damage):
    save(tmp_path, 1)
    damaged = save(tmp_path, 2)
    damage(damaged)
    messages = []
    assert latest_checkpoint(tmp_path, messages.append).step == 1
    assert len(messages) == 1
    assert str(damaged) in messages[0]


def test_latest_checkpoint_finds_every_flipped_byte_of_the_manifest(tmp_path):
    """None of them makes it a manifest of another version, which would be refused."""
    save(tmp_path, 1)
    manifest = save(tmp_path, 2) / "manifest.json"
    whole = manifest.read_bytes()
    for at in range(0, len(whole), 7):
        manifest.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert latest_checkpoint(tmp_path).step == 1


def test_latest_checkpoint_refuses_one_of_a_later_version(tmp_path):
    """It is not damaged, so resuming from an older one would lose steps. No checkpoint is deleted."""
    save(tmp_path, 1)
    set_format(save(tmp_path, 2), 3)
    with pytest.raises(StageError, match=r"step_00000002 has format 3 and this version reads up to 2"):
        latest_checkpoint(tmp_path)
    assert sorted(list_checkpoints(tmp_path)) == [1, 2]


def test_latest_checkpoint_reports_what_it_does_after_each_damaged_one(tmp_path):
    assert latest_checkpoint(tmp_path / "never") is None
    for step in (1, 2):
        empty(save(tmp_path, step))
    messages = []
    assert latest_checkpoint(tmp_path, messages.append) is None
    assert [message.rpartition("; ")[2] for message in messages] == ["trying the one before it", "starting over"]


LIMITED = """
import resource, signal, sys
from pathlib import Path
import mlx.core as mx
from nanochat.checkpoint.snapshots import save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_checkpoint(Path(sys.argv[1]), 2, {"optimizer": {"a": mx.zeros(50_000)}}, {}, keep=2)
except OSError as error:
    print(error.errno, [path.name for path in Path(sys.argv[1]).iterdir()])
"""


def test_save_checkpoint_raises_an_os_error_if_arrays_do_not_fit_on_the_disk(tmp_path):
    """A limit of 100 kB per file makes the write fail in the middle of an array, as on a full disk."""
    save(tmp_path, 1)
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{errno.ENOSPC} ['step_00000001']\n"


def test_latest_checkpoint_ignores_the_scratch_folder_of_a_killed_process(tmp_path):
    scratch = save(tmp_path, 2).rename(tmp_path / ".writing-123-step_00000002")
    save(tmp_path, 1)
    assert latest_checkpoint(tmp_path).step == 1
    assert scratch.is_dir()


def test_save_checkpoint_replaces_one_of_the_same_step(tmp_path):
    save(tmp_path, 1)
    empty(save(tmp_path, 2))
    save(tmp_path, 2)
    assert latest_checkpoint(tmp_path).step == 2
