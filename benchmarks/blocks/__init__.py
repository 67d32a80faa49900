# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt bench blocks`: every operator of a transformer block beside torch."""
