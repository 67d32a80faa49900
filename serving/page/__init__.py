# SPDX-License-Identifier: Apache-2.0
"""The page at `/`: its HTML is made here, `page.css` and `page.js` lie beside this file."""
