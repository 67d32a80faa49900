# SPDX-License-Identifier: Apache-2.0
"""One transformer on several GPUs: video tokens over ranks, and heads over ranks around each self-attention (Ulysses).

`placement` decides which rank computes which heads.
"""
