"""Settings that must stand before the first array of the run is made, whatever test comes first."""

import os

# The Mosaic GPU interpreter runs a block's three warpgroups as computations of their own beside
# the call that started them, and one that waits on a barrier holds a thread of XLA's CPU pool
# meanwhile. With as few threads as a small machine has cores, none may be left for the one waited
# for. Eight are enough: four computations, and for each an operation within its callback. For
# other tests NPROC only spreads loops over more threads, which costs them no CPU time.
os.environ.setdefault("NPROC", str(max(8, os.cpu_count() or 1)))
