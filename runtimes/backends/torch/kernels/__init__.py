"""Small kernels of our own between the products, compiled by numba: each is one call where torch needs five to ten."""
