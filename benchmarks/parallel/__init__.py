# SPDX-License-Identifier: Apache-2.0
"""How much faster is a denoising step on several GPUs of one machine than on one, and what do the exchanges take?"""
