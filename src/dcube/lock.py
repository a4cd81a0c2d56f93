"""One process per folder: a lock of the operating system, which the kernel releases however the holder ends."""

import errno
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dcube.errors import InputError

if sys.platform == "win32":
    import msvcrt

    def _acquire(descriptor: int) -> None:
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # far behind the text: a locked byte cannot be read by others
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
else:
    import fcntl

    def _acquire(descriptor: int) -> None:
        # lockf rather than flock: forked workers do not inherit it, so they cannot outlive their parent with it.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


_held: dict[Path, int] = {}  # folder -> thread of this process that works on it


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold `folder`/.lock for the length of the block. Nested use by the same thread is free.

    Under torchrun only the process of rank 0 takes it. Raises InputError, naming the pid, where another holds it.
    """
    key, me = Path(folder).resolve(), threading.get_ident()
    if _held.get(key) == me or os.environ.get("RANK", "0") != "0":
        yield
        return
    if key in _held:
        raise InputError(_busy(folder, str(os.getpid())))
    descriptor = os.open(key / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            _acquire(descriptor)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                raise
            owner = os.pread(descriptor, 20, 0) if hasattr(os, "pread") else os.read(descriptor, 20)
            raise InputError(_busy(folder, owner.decode(errors="replace").strip() or "unknown")) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        _held[key] = me
        try:
            yield
        finally:
            del _held[key]
    finally:
        os.close(descriptor)  # releases the lock; the file stays, since removing it would let two processes in


def _busy(folder: Path, owner: str) -> str:
    return (
        f"Another process (pid {owner}) is working on {folder}: wait until it ends, or stop it, and repeat the command."
    )
