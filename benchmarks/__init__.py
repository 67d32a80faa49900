# SPDX-License-Identifier: Apache-2.0
"""One harness, one file per question: `vorta-trt bench`."""
