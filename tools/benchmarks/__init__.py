"""Benchmarks of operators, backbones and kernels: nothing here is imported by the package."""
