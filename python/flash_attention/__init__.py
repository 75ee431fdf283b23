"""Exact attention for PyTorch whose kernels are generated, compiled and tuned on this machine.

    from flash_attention import FlashAttention, flash_attention

    output = flash_attention(query, key, value, is_causal=True)   # as torch's scaled_dot_product_attention
    attention = FlashAttention(head_dim=64)                       # as a module
    output = attention(query, key, value)

The algorithm is FlashAttention (Dao et al., arXiv:2205.14135) in the loop order of FlashAttention-2
(Dao, arXiv:2307.08691): softmax(query @ key.T * scale) @ value tile by tile, with memory linear in seqlen.
"""

from flash_attention.functional import flash_attention
from flash_attention.module import FlashAttention

__all__ = ["FlashAttention", "flash_attention"]
__version__ = "0.1.0"
