"""Tests mirror the package. Importing this first gives every runtime one thread, as tests share the cores themselves.

Libraries read these variables when they are imported, and so do processes that a test starts.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
