"""A child process that SymPy runs in: started when first needed, killed when late, replaced."""

from __future__ import annotations

import json
import os
import pickle
import select
import subprocess
import sys
import threading
import time
import weakref
from typing import Any, Self

from minillm.grading.sandbox import LENGTH, READY

MEMORY_BYTES = 1 << 30
START_SECONDS = 60.0
MAX_ANSWER_BYTES = 1 << 20


class Worker:
    """Answers questions in a process of its own, with limits on memory, processor and clock.

    Works from any thread (one question at a time); needs no signals. The process starts with the
    first question and holds neither jax nor the caller's main module.

    Args:
        memory_bytes: address space of the child.
    """

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self.memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._owner = os.getpid()
        self._finalizer: weakref.finalize | None = None

    def ask(self, operation: str, *arguments: Any, seconds: float) -> Any:
        """The answer to one of `symbolic.OPERATIONS`, or None: no answer within the time.

        Starting the process, once, is not counted in the time.
        """
        message = pickle.dumps((operation, arguments, seconds))
        with self._lock:
            process = self._running()
            if process is None or process.stdin is None:
                return None
            try:
                process.stdin.write(LENGTH.pack(len(message)) + message)
                process.stdin.flush()
            except BrokenPipeError:
                self._replace()
                return None
            line = self._line(process, seconds)
            if line is None:
                self._replace()
                return None
            return json.loads(line)

    def start(self) -> None:
        """Starts the child if none runs, and waits until it can take questions."""
        with self._lock:
            self._running()

    @property
    def pid(self) -> int | None:
        """The child's process id, None while none runs."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """Ends the child; a later question starts another."""
        with self._lock:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _running(self) -> subprocess.Popen[bytes] | None:
        if self._owner != os.getpid():
            # A fork took the pipes along; they belong to the parent.
            self._process, self._finalizer, self._owner = None, None, os.getpid()
        if self._process is not None and self._process.poll() is not None:
            self._stop()
        if self._process is None:
            self._start()
        if not self._ready and self._process is not None:
            self._ready = self._line(self._process, START_SECONDS) == READY
            if not self._ready:
                self._stop()
        return self._process

    def _start(self) -> None:
        # The parent's import path as it is now, and nothing else of its environment.
        environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH")
                       if name in os.environ}  # fmt: skip
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "minillm.grading.sandbox", str(self.memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        self._ready = False
        self._finalizer = weakref.finalize(self, _end, self._process)

    def _stop(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._process, self._finalizer, self._ready = None, None, False

    def _replace(self) -> None:
        """Another process at once, so that the next question finds it started."""
        self._stop()
        self._start()

    def _line(self, process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
        """One line from the child, or None if it is late, dead, or talks too much."""
        assert process.stdout is not None
        deadline = time.monotonic() + seconds
        descriptor = process.stdout.fileno()
        line = b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                return None
            piece = os.read(descriptor, 65_536)
            line += piece
            if not piece or len(line) > MAX_ANSWER_BYTES:
                return None
        return line


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:
                continue
    process.wait()
