"""Hostile programs fail within their limits and leave no process, file or connection."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nanochat.errors import StageError
from nanochat.tools import sandbox
from nanochat.tools.sandbox import Limits, namespaces_work, run_program

LIMITS = Limits(wall_seconds=0.6, cpu_seconds=1, memory_bytes=256 * 2**20, file_bytes=2**20, output_bytes=4096)
ROOMY = replace(LIMITS, wall_seconds=20.0, cpu_seconds=20)  # programs that end by themselves, on a busy machine
OVER_SECONDS = 45.0  # programs that would run for 60 s or more are ended; start and clean-up may be slow
ISOLATIONS = ["hooks", *(["namespaces"] if namespaces_work() else [])]

# {outside}: a folder outside the sandbox; {port}: a port that the test listens on; {parent}: the test's process id.
HOSTILE = {
    "fork bomb": "import os\nwhile True: os.fork()",
    "fork bomb that catches refusals": "import os\nwhile True:\n try: os.fork()\n except BaseException: pass",
    "thread bomb": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()",
    "memory at once": "x = bytearray(10**10)",
    "memory bit by bit": "x = []\nwhile True: x.append(bytearray(10**6))",
    "memory in a number": "x = 9**9**9",
    "endless loop": "while True: pass",
    "endless loop in C": "sum(iter(int, 1))",
    "sleep": "import time; time.sleep(1000)",
    "sleep that ignores signals": "import signal, time\nfor s in range(1, 32):\n"
    " try: signal.signal(s, signal.SIG_IGN)\n except (OSError, ValueError): pass\nwhile True: time.sleep(1)",
    "endless recursion": "import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "endless output": "while True: print('x' * 1000)",
    "endless error output": "import sys\nwhile True: sys.stderr.write('x' * 1000)",
    "output through the descriptor": "import os\nwhile True: os.write(1, b'x' * 65536)",
    "write outside": "open('{outside}/made', 'w').write('x')",
    "write above": "open('../made', 'w').write('x')",
    "write home": "import os; open(os.path.expanduser('~root/made'), 'w')",
    "overwrite": "import os; os.truncate('{outside}/kept', 0)",
    "delete": "import os; os.remove('{outside}/kept')",
    "delete all": "import shutil; shutil.rmtree('{outside}')",
    "move": "import os; os.rename('{outside}/kept', '{outside}/moved')",
    "move out": "import os; open('x', 'w').close(); os.rename('x', '{outside}/made')",
    "change mode": "import os; os.chmod('{outside}/kept', 0)",
    "symbolic link": "import os; os.symlink('{outside}', 'link'); open('link/made', 'w').write('x')",
    "hard link": "import os; os.link('{outside}/kept', 'mine'); open('mine', 'w').write('x')",
    "folder descriptor": "import os; fd = os.open('{outside}', os.O_RDONLY)\n"
    "os.open('made', os.O_CREAT | os.O_WRONLY, dir_fd=fd)",
    "change folder": "import os; os.chdir('{outside}'); open('made', 'w').write('x')",
    "pipe file": "import os; os.mkfifo('{outside}/made')",
    "big file": "f = open('big', 'wb')\nwhile True: f.write(b'x' * 65536); f.flush()",
    "many files": "for i in range(10**6): open(str(i), 'w').write('x' * 1000)",
    "deep folders": "import os\nwhile True: os.mkdir('d'); os.chdir('d')",
    "unremovable folders": "import os; os.mkdir('d'); open('d/f', 'w').close(); os.chmod('d', 0); raise ValueError",
    "many open files": "import os; x = [os.open('/dev/null', os.O_RDONLY) for _ in range(10**6)]",
    "environment": "import os; assert 'SECRET_OF_THE_TEST' in os.environ",
    "environment of the parent": "print(open('/proc/{parent}/environ').read())",
    "own environment": "assert 'SECRET_OF_THE_TEST' in open('/proc/self/environ').read()",
    "connect": "import socket; socket.create_connection(('127.0.0.1', {port}), timeout=1).send(b'x')",
    "listen": "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()",
    "fetch": "import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}/', timeout=1)",
    "resolve": "import socket; socket.getaddrinfo('localhost', 80)",
    "abstract socket": "import socket; socket.socket(socket.AF_UNIX).bind('\\0x')",
    "kill the parent": "import os; os.kill({parent}, 9)",
    "kill its own parent": "import os; os.kill(os.getppid(), 9)",
    "kill the group": "import os; os.killpg(0, 9)",
    "kill everything": "import os; os.kill(-1, 9)",
    "command": "import os; os.system('touch {outside}/made')",
    "subprocess": "import subprocess; subprocess.run(['touch', '{outside}/made'])",
    "posix_spawn": "import os; os.posix_spawn('/bin/touch', ['touch', '{outside}/made'], {{}})",
    "fork_exec": "import _posixsubprocess as p; p.fork_exec()",
    "exec": "import os; os.execv('/bin/touch', ['touch', '{outside}/made'])",
    "multiprocessing": "import multiprocessing as m; m.Process(target=print).start()",
    "daemon": "import os\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n  import time; time.sleep(60)",
    "thread that does not end": "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()",
    "daemon thread that does not end": "import threading, time\n"
    "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
    "leave early": "import sys; sys.exit(0)",
    "leave early, hard": "import os; os._exit(0)",
    "leave with the sandbox's code": "import os; os._exit(98)",
    "interrupt": "raise KeyboardInterrupt",
    "abort": "import os; os.abort()",
    "native code": "import ctypes; ctypes.CDLL(None).getpid()",
    "native code in another frame": "import sys; sys._getframe(1).f_globals['_libc'].syscall(57)",
    "look around in memory": "import gc; gc.get_objects()",
    "raise the limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "syntax error": "def f(:",
    "null byte": "\0",
    "lone surrogate": "print('\\ud800')",
}


def _processes_of(folder: Path) -> list[str]:
    """Return the ids of the processes that were started for a sandbox in `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"HOME={folder}".encode() in (entry / "environ").read_bytes():
                found.append(entry.name)
    return found


@pytest.fixture
def sandboxes(monkeypatch):
    """The parent folder of all sandboxes. It must be empty, and without processes, at the end of the test.

    It is not in pytest's own folder, which other users cannot read: root's programs run as nobody.
    """
    reachable = Path(tempfile.mkdtemp())
    reachable.chmod(0o755)
    folder = reachable / "sandboxes"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("SECRET_OF_THE_TEST", "1")
    yield folder
    assert list(folder.iterdir()) == []
    shutil.rmtree(reachable)
    if sys.platform == "linux":
        assert _processes_of(folder) == []


@pytest.fixture
def outside(tmp_path):
    """A folder that everybody can write to but that must not be changed."""
    folder = tmp_path / "outside"
    folder.mkdir()
    folder.chmod(0o777)
    kept = folder / "kept"
    kept.write_text("kept")
    kept.chmod(0o666)
    yield folder
    assert [path.name for path in folder.iterdir()] == ["kept"]
    assert kept.read_text() == "kept"
    assert kept.stat().st_mode & 0o777 == 0o666


@pytest.fixture
def listener():
    """The port of a socket that must not receive a connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server.getsockname()[1]
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("isolation", ["hooks", pytest.param("namespaces", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", HOSTILE)
def test_run_program_fails_hostile_programs_and_leaves_nothing(name, isolation, sandboxes, outside, listener):
    """The program does not pass, ends in time, and the fixtures find nothing left or changed.

    In namespaces the guard refuses first. The kernel's own refusals are tested separately below.
    """
    if isolation not in ISOLATIONS:
        pytest.skip("this user cannot create namespaces here")
    source = HOSTILE[name].format(outside=outside, port=listener, parent=os.getpid())
    start = time.monotonic()
    outcome = run_program(source, limits=LIMITS, isolation=isolation)
    assert not outcome.passed, outcome
    assert time.monotonic() - start < OVER_SECONDS
    assert max(len(outcome.stdout), len(outcome.stderr)) <= LIMITS.output_bytes + len(
        "\n[1,000,000,000 bytes left out]\n"
    )


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_run_program_passes_an_ordinary_program(isolation, sandboxes):
    """Programs may compute, import the standard library, print, and use their own files."""
    source = """
import collections, dataclasses, hashlib, heapq, itertools, json, math, random, re, string, sys, typing, tempfile

@dataclasses.dataclass
class Point:
    x: int

class Pair(typing.NamedTuple):
    a: int

with open("notes.txt", "w") as file:
    file.write("kept")
with tempfile.NamedTemporaryFile() as file:
    file.write(b"x")
assert open("notes.txt").read() == "kept"
assert hashlib.md5(b"").hexdigest() == "d41d8cd98f00b204e9800998ecf8427e"
assert __name__ == "__main__"
print(Point(1), Pair(2), "größe")
print("careful", file=sys.stderr)
"""
    outcome = run_program(source, limits=ROOMY, isolation=isolation)
    assert outcome.passed, outcome
    assert (outcome.stdout, outcome.stderr) == ("Point(x=1) Pair(a=2) größe\n", "careful\n")
    assert outcome.isolation == isolation


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_run_program_keeps_start_and_end_of_long_output(isolation, sandboxes):
    """Much output does not fail a program that reaches its end. What it printed last is kept, as an error would be."""
    source = "print('first')\nfor n in range(100_000): print('x' * 9)\nprint('last')"
    outcome = run_program(source, limits=ROOMY, isolation=isolation)
    assert outcome.passed, outcome
    lost = len("first\n") + 100_000 * 10 + len("last\n") - ROOMY.output_bytes
    head, note, tail = outcome.stdout.partition(f"\n[{lost:,} bytes left out]\n")
    assert note, outcome.stdout[2000:2200]
    assert (len(head), len(tail)) == (2048, 2048)
    assert head.startswith("first\nxxxxxxxxx\n")
    assert tail.endswith("\nxxxxxxxxx\nlast\n")
    failed = run_program(source + "\nraise ValueError('at the end')", limits=ROOMY, isolation=isolation)
    assert (failed.reason, failed.stderr.splitlines()[-1]) == ("failed", "ValueError: at the end")


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize(
    ("source", "reason", "message"),
    [
        ("assert 1 == 2, 'no'", "failed", "AssertionError: no"),
        ("import time; time.sleep(9)", "timeout", ""),
        ("import os; os.fork()", "refused", "refused: os.fork"),
        ("x = 'a' * 10**10", "failed", "MemoryError"),
        ("import sys; sys.exit(0)", "failed", "SystemExit"),
    ],
)
def test_run_program_reports_the_reason(source, reason, message, isolation, sandboxes):
    limits = LIMITS if reason == "timeout" else ROOMY
    outcome = run_program(source, limits=limits, isolation=isolation)
    assert outcome.reason == reason
    assert message in outcome.stderr


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_run_program_fixes_the_hash_seed(isolation, sandboxes):
    """Otherwise the order of sets could change whether a program passes."""
    runs = {run_program("print(hash('a'))", limits=ROOMY, isolation=isolation).stdout for _ in range(3)}
    assert len(runs) == 1


KERNEL_ONLY = {
    "start processes": (
        "import os, time\nn = 0\ntry:\n for n in range(100):\n  if os.fork() == 0: time.sleep(60)\n"
        "except OSError: pass\nprint(n < 40)"
    ),
    "daemon": "import os, time\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n  time.sleep(60)\n os._exit(0)\n"
    "print(True)",
    "see the parent": "import os; print(not os.path.exists('/proc/{parent}') and os.getpid() < 10)",
    "kill the parent": "import os\ntry: os.kill({parent}, 9)\nexcept OSError: print(True)",
    "kill init": "import os\ntry: os.kill(1, 9)\nexcept OSError: pass\nprint(os.getppid() == 1)",
    "write outside": "import os\ntry: open('{outside}/made', 'w')\nexcept OSError: print(True)",
    "mount again": "import ctypes\nlibc = ctypes.CDLL(None)\n"
    "print(libc.mount(None, b'/', None, 32 | 4096, None) != 0 and libc.umount(b'/proc') != 0)",
    "new namespaces": "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.unshare(0x10000000 | 0x20000)\n"
    "libc.mount(None, b'/', None, 32 | 4096, None)\n"
    "try: open('/var/made', 'w')\nexcept OSError: print(True)",
    "connect": "import socket\n"
    "try: socket.create_connection(('127.0.0.1', {port}), timeout=1)\nexcept OSError: print(True)",
    "other machine": "import socket\n"
    "try: socket.create_connection(('192.0.2.1', 80), timeout=1)\nexcept OSError: print(True)",
    "fill the disk": "n = 0\ntry:\n"
    " for n in range(100): open(str(n), 'wb').write(b'x' * 10**5)\nexcept OSError: print(n < 12)",
    "become root": "import os\ntry: os.setuid(0)\nexcept OSError: print(True)\nelse: print(os.getuid() != 0)",
    "write to memory of its parent": "import os\ntry: open('/proc/1/mem', 'wb')\nexcept OSError: print(True)",
}


@pytest.mark.skipif(not namespaces_work(), reason="this user cannot create namespaces here")
@pytest.mark.parametrize("name", KERNEL_ONLY)
def test_namespaces_refuse_without_the_guard(name, sandboxes, outside, listener):
    """Each program runs without the audit hook and prints True if the kernel stops it."""
    source = KERNEL_ONLY[name].format(outside=outside, port=listener, parent=os.getpid())
    outcome, is_ready = sandbox._run(source, ROOMY, "namespaces", is_guarded=False)
    assert is_ready
    assert outcome.stdout == "True\n", outcome


AS_ANOTHER_USER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from nanochat.errors import StageError
from nanochat.tools import sandbox
limits = sandbox.Limits(wall_seconds=4, memory_bytes=2**28, file_bytes=2**20)
guarded, unguarded = json.load(sys.stdin)
works = sandbox.namespaces_work()
reasons = {
    isolation: [sandbox.run_program(source, limits=limits, isolation=isolation).reason for source in guarded]
    for isolation in ("hooks", "namespaces") if works or isolation == "hooks"
}
printed = []
for source in unguarded * works:
    printed.append(sandbox._run(source, limits, "namespaces", is_guarded=False)[0].stdout)
print(json.dumps([reasons, printed]))
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root to change the user")
def test_run_program_works_for_an_ordinary_user(outside, listener, monkeypatch):
    """A user without privileges gets the same outcomes, with namespaces if that user can create them."""
    python = next((path for path in (sys.executable, "/usr/bin/python3") if _is_open_to_all(path)), None)
    ask_version = "import sys; print(sys.version_info >= (3, 11))"
    if python is None or subprocess.check_output([python, "-c", ask_version]) != b"True\n":
        pytest.skip("no Python that other users can run")
    guarded = ["print(1)", "1/0", "import os; os.fork()", "while 1: pass", "open('/tmp/made', 'w')"]
    fill = {"outside": outside, "port": listener, "parent": os.getpid()}
    unguarded = [source.format(**fill) for name, source in KERNEL_ONLY.items()]
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    with tempfile.TemporaryDirectory() as folder:
        _copy_sandbox(Path(folder))
        command, sources = [python, "-c", AS_ANOTHER_USER, folder], json.dumps([guarded, unguarded]).encode()
        other_user = {"user": 65533, "group": 65533, "extra_groups": [], "env": {}, "cwd": "/"}
        done = subprocess.run(command, input=sources, capture_output=True, **other_user)
    assert done.returncode == 0, done.stderr
    reasons, printed = json.loads(done.stdout)
    for reason in reasons.values():
        assert reason == ["finished", "failed", "refused", "timeout", "refused"]
    assert printed in ([], ["True\n"] * len(unguarded)), dict(zip(KERNEL_ONLY, printed, strict=True))


def _copy_sandbox(folder: Path) -> None:
    """Copy the modules of the sandbox into a folder that everybody can read."""
    folder.chmod(0o755)
    source = Path(sandbox.__file__).parents[1]
    target = folder / "nanochat" / "tools"
    target.mkdir(parents=True)
    shutil.copy(source / "errors.py", target.parent)
    for name in ("sandbox.py", "sandbox_child.py", "sandbox_guard.py"):
        shutil.copy(source / "tools" / name, target)


def _is_open_to_all(executable: str) -> bool:
    path = Path(executable).resolve()
    return path.exists() and all(part.stat().st_mode & 0o005 == 0o005 for part in (path, *path.parents))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of the parent")
def test_run_program_ends_the_program_when_its_caller_is_killed(sandboxes):
    """Only the temporary folder is left."""
    program = (
        "from nanochat.tools.sandbox import Limits, run_program\n"
        "import sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "run_program('import time; time.sleep(60)', limits=Limits(wall_seconds=60))"
    )
    caller = subprocess.Popen([sys.executable, "-c", program, str(sandboxes)])
    deadline = time.monotonic() + 20
    while not _processes_of(sandboxes) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _processes_of(sandboxes)
    caller.kill()
    caller.wait()
    while _processes_of(sandboxes) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _processes_of(sandboxes) == []
    for folder in sandboxes.iterdir():
        folder.rmdir()


def test_a_program_that_was_suspended_is_not_out_of_time(monkeypatch):
    """Ctrl-Z suspends the program together with the stage, whose clock continues."""
    real, jumps = time.monotonic, [0]

    def monotonic() -> float:
        jumps[0] += 1
        return real() + (1000 if jumps[0] > 5 else 0)  # after the first poll

    monkeypatch.setattr("nanochat.tools.sandbox.time.monotonic", monotonic)
    outcome = run_program("import time; time.sleep(0.3)", limits=ROOMY)
    assert (outcome.reason, outcome.seconds > 1000) == ("finished", True)


def test_run_program_starts_the_clock_when_the_sandbox_is_ready(sandboxes, monkeypatch):
    """A sandbox that takes longer than the limit for its start is an error."""
    slow = sandboxes.parent / "slow.py"
    slow.write_text(f"import runpy, time\ntime.sleep(1)\nrunpy.run_path({str(sandbox.CHILD)!r}, run_name='__main__')\n")
    monkeypatch.setattr(sandbox, "CHILD", slow)
    outcome = run_program("print(1)", limits=replace(ROOMY, wall_seconds=0.9), isolation="hooks")
    assert outcome.passed, outcome
    assert outcome.seconds > 1
    monkeypatch.setattr(sandbox, "_START_SECONDS", 0.2)
    with pytest.raises(StageError, match="could not be set up"):
        run_program("print(1)", limits=ROOMY, isolation="hooks")
