"""The rank-row operations as Triton kernels for NVIDIA cards: one operation a file, and what chooses them.

Only `dispatch` can be imported without triton.
"""
