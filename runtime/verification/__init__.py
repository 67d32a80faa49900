# SPDX-License-Identifier: Apache-2.0
"""Checks that an exported file or a built engine computes what the checkpoint computes. The entry point is `verify`."""
