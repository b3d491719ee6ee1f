"""Start a command in several real processes that talk over the loopback."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_process(arguments: Sequence[str], log: Path, cache: Path) -> subprocess.Popen[str]:
    """A Python process with one CPU device, whose output goes to a file: an unread pipe would stop it."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        # Programs that one process has compiled need not be compiled in the next.
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, *arguments], stdout=file, stderr=subprocess.STDOUT, text=True, env=environment
        )
