# SPDX-License-Identifier: Apache-2.0
"""Sampling: the parameters and the plan of a request before its first step, and caches and checks at each step."""
