"""One BLAS thread for small problems: more make them slower, by twenty times on a busy machine."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit the linear algebra of this process to one thread."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        yield
