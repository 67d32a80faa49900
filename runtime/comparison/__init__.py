# SPDX-License-Identifier: Apache-2.0
"""Measures how far two sets of samples, or two settings of a model, differ. Starts in `compare` and `settings`."""
