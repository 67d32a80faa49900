# SPDX-License-Identifier: Apache-2.0
"""Generates videos: a transformer for diffusers' pipelines, and on top of them everything from prompt to file."""
