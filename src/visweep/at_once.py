"""From where on the processor drops the elements of a tensor without a mask; see
`visweep.dropping`. It is by itself since estimates, which know no torch, count with it."""

LEAST = 2**17
"""Elements of a replica; with fewer, torch's own products with a mask are faster."""
