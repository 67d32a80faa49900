# SPDX-License-Identifier: Apache-2.0
"""Sampling videos: a transformer for diffusers' pipelines, and generation from prompt to file on top of them."""
