"""Where the processor drops the elements of a tensor without a mask in memory, see
`visweep.dropping`. By itself, since estimates, which know no torch, count with it."""

LEAST = 2**17
"""Elements of a replica. With fewer, torch's own products with a mask take less time."""


def pays(elements: int, threads: int) -> bool:
    """Whether one replica's elements are dropped so; with several threads, products are shared
    out among them, and this is not."""
    return threads == 1 and elements >= LEAST
