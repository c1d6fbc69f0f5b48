"""Isolation on macOS by Seatbelt, the mechanism of `sandbox-exec`.

`sandbox_init` is the call that `sandbox-exec -p PROFILE` makes before it runs its command. Making it directly isolates
a process that was forked, so that program and judge get a profile each. Apple calls both deprecated, but macOS's own
services depend on them. The memory limit is not enforced on macOS.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterable

from nanochat.tools.sandbox.kernel_calls import libc

_PROFILE = """
(version 1)
(deny default)
(allow file-read-metadata)
(allow file-read* {readable})
(if (defined? 'file-map-executable) (allow file-map-executable {readable}))
(allow file-write-data (literal "/dev/null"))
(allow signal (target self))
(allow sysctl-read (sysctl-name-prefix "hw.") (sysctl-name-prefix "kern.os"))
{writable}
"""


def enter(readable: Iterable[str], writable: str | None) -> None:
    """Let this process read only below the `readable` paths and write only below `writable`. Raises OSError."""
    error = ctypes.c_char_p()
    if libc().sandbox_init(profile(readable, writable).encode(), ctypes.c_uint64(0), ctypes.byref(error)) != 0:
        raise OSError(f"sandbox_init: {(error.value or b'no reason given').decode(errors='replace')}")


def profile(readable: Iterable[str], writable: str | None) -> str:
    """Return the profile: all that it does not name is denied, such as network, processes and signals to others."""
    paths = [*readable, *([writable] if writable is not None else [])]
    paths = sorted({*paths, *map(os.path.realpath, paths)})  # rules apply to paths without links
    allowed = f"(allow file-write* (subpath {_quote(writable)}))" if writable is not None else ""
    return _PROFILE.format(readable=" ".join(f"(subpath {_quote(path)})" for path in paths), writable=allowed)


def _quote(path: str) -> str:
    return json.dumps(path, ensure_ascii=False)
