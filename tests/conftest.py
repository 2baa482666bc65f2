"""What every test shares.

One thread each, set before NumPy and PyTorch are imported, here and in child processes; and numbers as they come, which
a test that builds a trainer by itself leaves otherwise.
"""

from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"

import pytest  # noqa: E402


@pytest.fixture(autouse=True)
def _tiny_numbers_kept():
    from habilis.core.acceleration import tiny_numbers_kept

    with tiny_numbers_kept():
        yield
