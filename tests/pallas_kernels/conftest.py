"""Settings that must stand before the first array is made."""

import os

# The Mosaic GPU interpreter runs a block's three warpgroups at once, and one that waits on a
# barrier keeps its thread. XLA's CPU client has as many threads as there are cores, or as NPROC
# says: with two, two that wait for the third may leave it none.
os.environ.setdefault("NPROC", str(max(4, os.cpu_count() or 1)))
