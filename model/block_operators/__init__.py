# SPDX-License-Identifier: Apache-2.0
"""The block operators: what a transformer block computes between its routed attentions, as few fused torch operators.

Importing this package registers `torch.ops.vorta.qk_norm_rotary`, `.head_norm`, `.norm_modulate`,
`.residual_norm_modulate`, `.quantize`, `.joined_quantize`, `.norm_modulate_quantize`,
`.residual_norm_modulate_quantize`, `.linear`, `.joined_linear`, `.fp8_linear` and `.cross_attention`.
"""

from vorta_trt.model.block_operators import operators as _registers_the_torch_operators  # noqa: F401
from vorta_trt.model.block_operators.references import quantize_rows

__all__ = ["quantize_rows"]
