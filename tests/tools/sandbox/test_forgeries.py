"""A wrong program cannot pass, whatever it does to its own process."""

from __future__ import annotations

import pytest

from nanochat.tools.sandbox.run import find_isolation, run_tests
from nanochat.tools.sandbox.settings import Limits

LIMITS = Limits(wall_seconds=1.0, cpu_seconds=2, memory_bytes=256 * 2**20)
TESTS = "def check(candidate):\n    assert candidate([1, 2]) == [2, 4]\n\ncheck(double)"

# Each of these defines `double` wrongly: the tests want [2, 4] for [1, 2].
FORGERIES = {
    "exit at once": "import os; os._exit(0)",
    "exit when called": "import os\ndef double(x): os._exit(0)",
    "replaced exit": "import os, sys\nos._exit = sys.exit = lambda *_: None\ndef double(x): raise SystemExit(0)",
    "exit at the end": "import atexit, os, sys\natexit.register(os._exit, 0)\ndef double(x): sys.exit()",
    "object that equals everything": "class Any:\n def __eq__(self, other): return True\n"
    " __hash__ = None\ndef double(x): return Any()",
    "list that equals everything": "class Any(list):\n def __eq__(self, other): return True\n"
    "def double(x): return Any([0, 0])",
    "numbers that equal everything": "class Any(int):\n def __eq__(self, other): return True\n"
    " def __index__(self): return self\n __int__ = __repr__ = bit_length = lambda self: 0\n"
    "def double(x): return [Any(), Any()]",
    "dict that lies": "class Any(dict):\n def __eq__(self, other): return True\n"
    " def items(self): return [(1, 2)]\n __iter__ = keys = values = items\ndef double(x): return Any()",
    "object that runs when it is read": "class Any(list):\n"
    ' def __reduce__(self): return exec, ("import os; os._exit(0)",)\ndef double(x): return Any()',
    "class of the expected name": "def double(x): return type('list', (list,), {'__eq__': lambda *_: True})()",
    "tests in memory": "import gc, sys\ndef double(x):\n"
    " texts = [o for o in gc.get_objects() if isinstance(o, str)]\n"
    " frame = sys._getframe()\n"
    " while frame:\n"
    "  for names in (frame.f_locals, frame.f_globals): texts += [str(value) for value in names.values()]\n"
    "  frame = frame.f_back\n"
    " for text in texts:\n"
    "  head, found, tail = text.partition('double([1, 2]) ' + '== ')\n"
    "  if found: return eval(tail.split(chr(10))[0])",
    "tests on disk": "import os\ndef double(x):\n"
    " for n in [*range(1, 64), *range(os.getpid() - 64, os.getpid() + 64), 'self', 'thread-self']:\n"
    "  for name in ('mem', 'fd/0', 'cmdline', 'environ', 'maps'):\n"
    "   try: text = open(f'/proc/{n}/{name}', 'rb').read()\n"
    "   except OSError: continue\n"
    "   if b'double' in text: return [2, 4]",
    "verdict on every descriptor": "import os\ndef double(x):\n"
    " for fd in range(256):\n"
    "  for line in (b'{\"verdict\": [true, \"\", \"\"]}\\n', b'passed\\n', b'0\\n'):\n"
    "   try: os.write(fd, line)\n"
    "   except OSError: pass",
    "verdict printed": 'print(\'{"verdict": [true, "", ""]}\')\ndef double(x): print(\'{"verdict": [true, "", ""]}\')',
    "runner patched through frames": "import sys\ndef double(x):\n"
    " frame = sys._getframe()\n"
    " while frame:\n"
    "  for name in list(frame.f_globals):\n"
    "   if name in ('judge', '_judge', 'run_judge', 'Verdict'): frame.f_globals[name] = lambda *_: [True, '']\n"
    "  frame = frame.f_back",
    "codec patched": "import sys\nvalues = sys.modules['nanochat.tools.sandbox.plain_data']\n"
    'values.dump = lambda value: b\'["returned", {"object": ["__eq__"]}, [[1, 2]], {"dict": []}]\'\n'
    "def double(x): return 0",
    "reply that is no value": "import sys\nvalues = sys.modules['nanochat.tools.sandbox.plain_data']\n"
    "values.dump = lambda value: b'\\xff\\x00' * 9\ndef double(x): return 0",
    "reply of another form": "import sys\nvalues = sys.modules['nanochat.tools.sandbox.plain_data']\n"
    'values.dump = lambda value: b\'{"dict": [["passed", true]]}\'\ndef double(x): return 0',
    "reply without an end": "import os\ndef double(x):\n"
    " for fd in range(3, 64):\n"
    "  try: os.write(fd, b'\\xff' * 1000)\n"
    "  except OSError: pass",
    "replies before the call": "import os\n"
    "for fd in range(3, 64):\n"
    ' for reply in (b\'["defined", ["double"]]\', b\'["returned", [2, 4], [[1, 2]], {"dict": []}]\'):\n'
    "  try: os.write(fd, len(reply).to_bytes(4, 'big') + reply)\n"
    "  except OSError: pass",
    "nested too deeply": "def double(x):\n y = []\n for _ in range(90_000): y = [y]\n return y",
    "nested too deeply, in text": "import sys\nvalues = sys.modules['nanochat.tools.sandbox.plain_data']\n"
    "values.dump = lambda value: b'[' * 10**6\ndef double(x): return 0",
    "contains itself": "def double(x):\n x.append(x)\n return x",
    "too much": "def double(x): return 'x' * 10**8",
    "endless iterator": "import itertools\ndef double(x): return itertools.count()",
    "range that fills the memory": "def double(x): return range(10**30)",
    "exception that ends the tests": "def double(x): raise type('SystemExit', (BaseException,), {})(0)",
    "exception that skips the tests": "def double(x): raise StopIteration",
    "tests replaced": "import builtins\nbuiltins.AssertionError = builtins.check = builtins.candidate = None\n"
    "builtins.exec = builtins.compile = lambda *_, **__: None\ndef double(x): return 0",
    "traced": "import sys\ndef trace(frame, event, argument): frame.f_locals.update(passed=True); return trace\n"
    "sys.settrace(trace)\ndef double(x): return x",
    "judge killed": "import os, signal\ndef double(x):\n"
    " for process in [os.getppid(), *range(1, 9), *range(os.getpid() - 9, os.getpid() + 9)]:\n"
    "  if process not in (0, os.getpid()):\n"
    "   try: os.kill(process, 9)\n"
    "   except OSError: pass\n"
    " return x",
    "does not define it": "def triple(x): return [2, 4]",
    "not a function": "double = [2, 4]",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_wrong_programs_cannot_pass(name, sandboxes):
    check_that_it_fails(name, find_isolation())


@pytest.mark.parametrize(
    "name", [name if name == "judge killed" else pytest.param(name, marks=pytest.mark.slow) for name in FORGERIES]
)
def test_wrong_programs_cannot_pass_in_any_isolation(name, isolation, sandboxes):
    check_that_it_fails(name, isolation)


def check_that_it_fails(name, isolation):
    """Check that the program, which tries in its way, does not pass. The fixture finds what is left."""
    outcome = run_tests(FORGERIES[name], TESTS, functions=["double"], limits=LIMITS, isolation=isolation)
    assert not outcome.passed, outcome
    assert outcome.message


def test_the_right_program_passes(isolation, sandboxes):
    """The table above would be worth nothing if its tests failed every program."""
    source = "def double(x): return [2 * y for y in x]"
    outcome = run_tests(source, TESTS, functions=["double"], limits=LIMITS, isolation=isolation)
    assert outcome.passed, outcome
