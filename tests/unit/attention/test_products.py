"""The products of `products.h` on each kind of processor that it knows, against NumPy."""

import ctypes
import platform
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive_span.attention import tiles
from adaptive_span.hardware.compilers import cpp_compiler

# Vectors of 64, 32 and 16 bytes; of the others than this processor's own, those that it runs too.
ARCHITECTURES = {"native": ("-march=native",), "plain": ()}
if platform.machine() == "x86_64":
    ARCHITECTURES["avx2"] = ("-march=x86-64-v3",)
SOURCE = """
#include "products.h"
using products::int64_t;
extern "C" void run(int64_t m, int64_t n, int64_t k, const {type}* x, int64_t x_row, int64_t x_column, const {type}* y,
                    int64_t y_row, {type} beta, {type}* z, int64_t z_row) {{
  products::product<{type}>(m, n, k, x, x_row, x_column, y, y_row, beta, z, z_row);
}}
"""


@pytest.fixture(scope="module", params=[(a, t) for a in ARCHITECTURES for t in ("float", "double")], ids="-".join)
def product(request, tmp_path_factory):
    """Compile one kind, and return its function and its type."""
    architecture, kind = request.param
    folder = tmp_path_factory.mktemp("products")
    (folder / "run.cpp").write_text(SOURCE.format(type=kind))
    command = [cpp_compiler(), "-std=c++17", "-O3", "-fPIC", "-shared", *ARCHITECTURES[architecture]]
    command += [f"-I{Path(tiles.SOURCE).parent}", "run.cpp", "-o", "run.so"]
    subprocess.run(command, cwd=folder, check=True)
    run, number = ctypes.CDLL(str(folder / "run.so")).run, ctypes.c_float if kind == "float" else ctypes.c_double
    size = ctypes.c_int64
    run.argtypes = [size, size, size, *[ctypes.c_void_p, size, size], ctypes.c_void_p, size, number]
    run.argtypes += [ctypes.c_void_p, size]
    return run, np.dtype(np.float32 if kind == "float" else np.float64)


@settings(max_examples=100)
@given(
    sizes=st.tuples(st.integers(1, 20), st.integers(1, 150), st.integers(1, 300)),
    spare=st.integers(0, 3),
    turned=st.booleans(),
    beta=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_product_is_that_of_numpy_and_touches_nothing_else(product, sizes, spare, turned, beta, seed):
    run, kind = product
    m, n, k = sizes
    random = np.random.default_rng(seed)
    x, y, z = (
        random.standard_normal((rows, columns + spare)).astype(kind) for rows, columns in ((m, k), (k, n), (m, n))
    )
    y[:, n:] = np.nan
    expected = z.copy()
    expected[:, :n] = x[:, :k].astype(np.float64) @ y[:, :n] + beta * z[:, :n]
    if beta == 0:
        z[:, :n] = np.nan  # is not read
    given_x = np.ascontiguousarray(x.T) if turned else x
    row, column = (1, m) if turned else (k + spare, 1)
    run(m, n, k, given_x.ctypes.data, row, column, y.ctypes.data, n + spare, beta, z.ctypes.data, n + spare)
    np.testing.assert_allclose(z, expected, rtol=0, atol=1e-4 if kind == np.float32 else 1e-12)
