"""The Triton kernels of fused attention, one forward and four backward.

A program is most often a tile of one head in one row. `common` explains what they read, `backward` derives the
gradients.
"""

from adaptive_span.attention.fused_kernels.backward import delta_kernel, key_value_kernel, memory_kernel, query_kernel
from adaptive_span.attention.fused_kernels.forward import forward_kernel

__all__ = ["delta_kernel", "forward_kernel", "key_value_kernel", "memory_kernel", "query_kernel"]
