"""What holds for every test: the fast BLAS before MLX, folders apart from the user's, one process for MLflow.

NANOCHAT_TEST_DEVICE=gpu runs the tests on the GPU, in float32.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from nanochat import runtime

if TYPE_CHECKING:  # MLX is imported once its device is chosen, below
    from nanochat.model.architectures import Architecture
    from nanochat.model.gpt import GPT
    from nanochat.tokenizer.bpe import Tokenizer

# A busy machine must not fail a test: none is judged by its time. Half of the library's examples take half of its time.
hypothesis.settings.register_profile("any speed", deadline=None, max_examples=50)
hypothesis.settings.load_profile("any speed")

# The libraries leave so many objects that looking through them for garbage takes 5 to 10 % of the time.
gc.set_threshold(50_000)

# No test uses the developer's login or downloads. `huggingface_hub` reads these variables when it is imported.
os.environ["HF_HOME"] = str(Path(tempfile.gettempdir()) / "nanochat-tests-hf-home")
for _name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
    os.environ.pop(_name, None)
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

# Dozens of tests start processes, and each would compile the package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Tests press Ctrl-C, which a program that a script starts in the background ignores.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_WITH_MLFLOW = (
    "tests/tracking/",
    "tests/runner/test_imports.py",
    "tests/runner/test_upload.py",
    "tests/cli/test_ui.py",
)
_FIRST = (
    *("mlflow", "tests/e2e/", "tests/runner/", "tests/stages/", "tests/package/"),
    *("tests/plan/test_new_stage.py", "tests/recipe/test_mutations.py", "tests/checkpoint/test_malformed_folders.py"),
)
"""Groups whose tests take long. If they came last, one process would wait for the other."""
_chosen = runtime.prepare(device=runtime.environment("NANOCHAT_TEST_DEVICE") or "cpu", dtype="float32")


@pytest.fixture(scope="session", autouse=True)
def _device() -> None:
    from nanochat.model.device import select_device

    select_device(_chosen.backend)


@pytest.fixture(scope="session", autouse=True)
def _quick_disk() -> Iterator[None]:
    """Nothing cuts the power of a test, so nothing waits for the disk. Tests that record flushes set their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def locks_of_nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks demand what NFS demands, which makes locks of byte ranges of them, see flock(2).

    The file of a shared lock must be open for reading, and that of any other lock for writing.
    """
    flock = fcntl.flock

    def flock_on_nfs(descriptor: int, operation: int) -> None:
        mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if mode == (os.O_WRONLY if operation & fcntl.LOCK_SH else os.O_RDONLY):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_on_nfs)


@pytest.fixture
def metal_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every module believes that it runs on a GPU without our kernels, as on a Mac. The device stays the same.

    On a CPU, MLX would compile functions with a C++ compiler, which takes half a minute; here it runs them as they are.
    """
    import mlx.core as mx

    monkeypatch.setenv("NANOCHAT_KERNELS", "mlx")
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(params=["device", pytest.param("metal", marks=pytest.mark.cpu)])
def _each_path(request: pytest.FixtureRequest) -> None:
    """Run a test with the implementations for this device, and with those of Metal."""
    if request.param == "metal":
        request.getfixturevalue("metal_path")


@pytest.fixture(autouse=True)
def _own_base_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden texts instead of comparing them")


@pytest.fixture
def check_golden(request: pytest.FixtureRequest) -> Callable[[str, Path], None]:
    """Return a check that a text equals a golden file; under `--update-golden` it rewrites the file instead."""

    def check(text: str, path: Path) -> None:
        if request.config.getoption("--update-golden"):
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8")

    return check


def process_group(nodeid: str) -> str:
    """Return a name that tests share if one process runs them: that of their file, or "mlflow".

    Module fixtures are made once this way. MLflow's import and its first database take seconds.
    """
    return "mlflow" if nodeid.startswith(_WITH_MLFLOW) else nodeid.partition("::")[0]


def _turn(group: str) -> int:
    """Return when a group starts. Of those with the same turn, the one with the most tests starts first."""
    return next((turn for turn, name in enumerate(_FIRST) if group.startswith(name)), len(_FIRST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process of pytest-xdist whole groups of tests. Under pytest 9.2, its own marks group nothing."""
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]  # it is not annotated
        def _split_scope(self, nodeid: str) -> str:
            return process_group(nodeid)

        def _assign_work_unit(self, node: Any) -> None:
            self.workqueue.move_to_end(min(self.workqueue, key=_turn), last=False)
            super()._assign_work_unit(node)

    return GroupScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Require that tests which need an MLflow database are in files that one process runs (see below)."""
    for item in items:
        if "fresh_database" in item.fixturenames:
            assert process_group(item.nodeid) == "mlflow", f"{item.nodeid}: add its file to `_WITH_MLFLOW`"


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with the schema in it: creating one takes seconds, copying it none."""
    import sqlalchemy.engine
    import sqlalchemy.event

    from nanochat.tracking.mlflow_store import open_store

    # SQLite waits for the disk by itself, see `_quick_disk`.
    sqlalchemy.event.listen(
        sqlalchemy.engine.Engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF")
    )
    path = tmp_path_factory.mktemp("fresh") / "mlflow.db"
    open_store(f"sqlite:///{path}", "unused")
    return path


@pytest.fixture
def start_ring(tmp_path: Path) -> Iterator[Callable[..., list[subprocess.Popen[bytes]]]]:
    """A function that starts a process for each command, in a ring of MLX.

    `mlx.launch` does the same, but it would use a core while it waits for them.
    """
    from nanochat.runner.process.hosts import free_ports

    started: list[subprocess.Popen[bytes]] = []

    def start(*commands: list[str]) -> list[subprocess.Popen[bytes]]:
        port, hosts = free_ports(len(commands)), tmp_path / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port + rank}"] for rank in range(len(commands))]))
        for rank, command in enumerate(commands):
            environment = {**os.environ, "MLX_HOSTFILE": str(hosts), "MLX_RANK": str(rank)}
            started.append(subprocess.Popen(command, env=environment))
        return started

    yield start
    for process in started:
        process.kill()
        process.wait()


class RecordingDisplay:
    """Records lines and progress, and calls `on_progress` with the title of a stage that has made some."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.progress: list[tuple[str, float, str]] = []
        self.on_progress: Callable[[str], object] = lambda title: None

    def log_line(self, text: str) -> None:
        self.lines.append(text)

    def show_progress(self, title: str, fraction: float, text: str) -> None:
        self.progress.append((title, fraction, text))
        if fraction:
            self.on_progress(title)

    def clear_progress(self) -> None:
        pass

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture(scope="session")
def make_display() -> type[RecordingDisplay]:
    return RecordingDisplay


@pytest.fixture(scope="session")
def make_random_model() -> Callable[..., GPT]:
    """Return a function that builds a model, with 4 layers and grouped queries by default, of random weights only."""
    import mlx.core as mx

    from nanochat.model.config import GPTConfig
    from nanochat.model.dispatch import FastGPT

    def make(architecture: Architecture, *, make_model: Callable[[GPTConfig], GPT] = FastGPT, **shape: Any) -> GPT:
        shape = {"sequence_len": 32, "vocab_size": 100, "n_layer": 4, "n_head": 4, "n_kv_head": 2, "n_embd": 64} | shape
        if architecture == "portable":
            shape["window_pattern"] = "L"  # the only one that it has
        model = make_model(GPTConfig(architecture=architecture, **shape))
        shapes = model.config.parameter_shapes()
        drawn = {}
        for key, (name, size) in zip(mx.random.split(mx.random.key(7), len(shapes)), shapes.items(), strict=True):
            drawn[name] = mx.random.normal(size, scale=size[-1] ** -0.5 if len(size) == 2 else 0.5, key=key)
        drawn["transformer.wte.weight"] *= 8
        drawn["lm_head.weight"] *= 4
        model.set_parameters(drawn)
        return model

    return make


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, make_random_model: Callable[..., GPT]) -> Path:
    """The folder of a small model with random weights, whose answers are reproducible nonsense, and its tokenizer."""
    from nanochat.checkpoint.model_folder import save_model
    from nanochat.tokenizer import bpe

    text = ["the cat sat on the mat ABCD 0123456789"]
    tokenizer = bpe.train(text, vocab_size=320, max_chars=999, max_document_chars=999)
    model = make_random_model("seed", sequence_len=96, vocab_size=tokenizer.vocab_size, n_layer=2)
    folder: Path = tmp_path_factory.mktemp("models") / "model"
    save_model(folder, model, tokenizer)
    return folder


@pytest.fixture(scope="module", params=["seed", "current"])
def random_model(request: pytest.FixtureRequest, make_random_model: Callable[..., GPT], tokenizer: Tokenizer) -> GPT:
    """A model of each architecture for the room's tokenizer, with windows shorter than its context."""
    import mlx.core as mx

    shape = {"n_layer": 3, "window_pattern": "SSL", "sequence_len": 64 if request.param == "seed" else 256}
    model = make_random_model(request.param, vocab_size=tokenizer.vocab_size, **shape)
    model.cast_matrices(mx.float32)  # as inference does: some devices decode with other kernels then
    return model
