# SPDX-License-Identifier: Apache-2.0
"""Sampling: what is known of a request before its first step, and what happens at each step."""
