"""What is started for one program: an interpreter, in bubblewrap or not."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from pkt.errors import SandboxError

ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "PYTHONHASHSEED": "0",  # sets of strings have one order, so that a score can be repeated
    "OPENBLAS_NUM_THREADS": "1",
}
"""All that a program sees of an environment; bubblewrap itself is started with it too."""
SYSTEM = ("/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")
"""Shared libraries; read-only, as far as they exist."""
LINKS = ("/lib", "/lib64")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


def find_bubblewrap() -> str | None:
    """Where bubblewrap is."""
    return shutil.which("bwrap")


@cache
def interpreter() -> tuple[str, ...]:
    """The interpreter of this process, its virtual environment left behind, about to run `inside.py`; arguments follow."""
    text = Path(__file__).with_name("inside.py").read_text(encoding="utf-8")
    return _executable(), "-P", "-s", "-S", "-B", "-X", "utf8", "-c", text


def folders(packages: Sequence[str]) -> list[Path]:
    """The installed folders of packages, and those of the shared libraries that wheels put beside them.

    Raises:
        SandboxError: one is not installed.
    """
    found = []
    for name in packages:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise SandboxError(f"the tests of this task import {name}, which is not installed; pip install {name}")
        place = Path(spec.submodule_search_locations[0])
        found += [place, *(p for p in (place.with_name(f"{name}.libs"),) if p.is_dir())]
    return found


def sandboxed(command: Sequence[str], folder: int, seccomp: int, packages: Sequence[str]) -> list[str]:
    """The command in bubblewrap.

    Args:
        folder: bytes that fit into /tmp.
        seccomp: descriptor to read the filter from.
    """
    found = [
        find_bubblewrap() or "bwrap", "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534", "--hostname", "sandbox",
        "--die-with-parent", "--new-session", "--seccomp", str(seccomp), "--size", str(folder), "--tmpfs", "/tmp",
    ]  # fmt: skip
    prefix = Path(sys.base_prefix)
    binds = [Path(p) for p in SYSTEM]
    binds += [prefix / "lib", prefix / "lib64", Path(_executable()), *folders(packages)]
    for place in dict.fromkeys(map(str, binds)):
        found += ["--ro-bind-try", place, place]
    for link in LINKS:
        found += ["--symlink", os.readlink(link), link] if os.path.islink(link) else ["--ro-bind-try", link, link]
    for device in DEVICES:
        found += ["--dev-bind", device, device]
    return [*found, "--chdir", "/tmp", "--remount-ro", "/", "--", *command]


def _executable() -> str:
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))
