"""One task per core, each on one thread: what is quantized is many small problems and not one large one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeVar

from threadpoolctl import threadpool_limits

from vitexport.machine import return_freed_memory, usable_cores

__all__ = ["map_parallel", "one_blas_thread"]

_BYTES = 1 << 30
"""What the tasks that run side by side may take together; two may always run."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def one_blas_thread() -> AbstractContextManager[object]:
    """Let NumPy's BLAS compute on the calling thread alone, in the whole process, until the context ends.

    Its threads spin between two products and take the cores from the images and layers that run side by side:
    quantizing DeiT-Tiny on two cores took 24 CPU seconds with them, and 15 without. Sums do not depend on the number
    of cores either.
    """
    limits: AbstractContextManager[object] = threadpool_limits(limits=1, user_api="blas")
    return limits


def map_parallel(task: Callable[[Item], Result], items: Iterable[Item], *, bytes_each: int = 0) -> list[Result]:
    """Return the results of a task that releases the interpreter most of its time, in the order of the items.

    Args:
        task: Called on threads.
        items: What it is called with.
        bytes_each: What the largest task takes while it runs.
    """
    at_once = max(2, _BYTES // max(bytes_each, 1))
    with ThreadPoolExecutor(min(usable_cores(), at_once)) as pool:
        results = list(pool.map(task, items))
    return_freed_memory()
    return results
