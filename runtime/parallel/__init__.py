# SPDX-License-Identifier: Apache-2.0
"""Several processes, one for each GPU: how they start and end, which of them computes what, and what they exchange."""
