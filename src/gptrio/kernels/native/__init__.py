"""Kernels in C, compiled once for the processor at hand when there is a compiler.

They share torch's OpenMP threads. Where they cannot be had (no compiler, not Linux, `GPTRIO_KERNELS=torch`), the same
products run through torch's own calls.
"""
