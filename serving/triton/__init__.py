# SPDX-License-Identifier: Apache-2.0
"""A model repository for Triton's Python backend: `repository` writes it, `model` is what the backend runs."""
