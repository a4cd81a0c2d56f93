"""The C library's memory, kept by the process between two steps of a training, or two forwards."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of glibc's malloc.h


def keep_memory() -> bool:
    """Let glibc keep freed memory for the next allocation, from now on in this process.

    By default a tensor of more than 32 MiB is fetched from the kernel and given back each time, page by page and each
    page zeroed: a good part of the time of a step on a CPU, and of the prediction of many images. The price: the
    process stays as large as it once was. Returns whether it could be set (elsewhere than on glibc it cannot, and
    nothing happens).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
