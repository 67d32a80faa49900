# SPDX-License-Identifier: Apache-2.0
"""How long does a denoising step take, and a whole schedule of them: routed beside dense, end to end?"""
