# SPDX-License-Identifier: Apache-2.0
"""The commands of `vorta-trt`, one file each; `vorta_trt.cli` puts them together."""
