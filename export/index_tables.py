# SPDX-License-Identifier: Apache-2.0
"""Index tables of the portable operator, as ONNX functions: rows of tiles and buckets, tiles of windows.

They depend on the attributes alone, so a runtime that folds constants computes them once, when it loads the model.
`extent`, `counts`, `size`, `tiles` and `window` are int64 [3] (frame, height, width); S is the number of video tokens.
"""

# mypy: ignore-errors
# (onnxscript reads these functions, Python never runs them: their operators and closures make ONNX nodes)

from __future__ import annotations

from onnxscript import INT64, script, values
from onnxscript import opset23 as op

VORTA = values.Opset("vorta", 1)


@script(VORTA, default_opset=op)
def rows_by_box(raster: INT64, counts: INT64, size: INT64) -> INT64:
    """Raster rows of each box (tile or bucket) of the grid, raster order inside a box: [boxes, box tokens]."""
    interleaved = op.Reshape(op.Concat(op.Unsqueeze(counts, [1]), op.Unsqueeze(size, [1]), axis=1), [-1])  # F/t, t, ...
    boxes_first = op.Transpose(op.Reshape(raster, interleaved), perm=[0, 2, 4, 1, 3, 5])  # [F/t, H/h, W/w, t, h, w]
    return op.Reshape(boxes_first, op.Concat([-1], op.ReduceProd(size, keepdims=1), axis=0))


@script(VORTA, default_opset=op)
def slot_by_box(raster: INT64, counts: INT64, size: INT64) -> INT64:
    """Inverse of `rows_by_box`: where each raster token stands when the boxes follow each other, [S]."""
    boxes_first = op.Reshape(raster, op.Concat(counts, size, axis=0))  # [F/t, H/h, W/w, t, h, w]
    return op.Reshape(op.Transpose(boxes_first, perm=[0, 3, 1, 4, 2, 5]), [-1])


@script(VORTA, default_opset=op)
def strides(extent: INT64) -> INT64:
    """Cells to step over along each axis of a box of that extent: [3] = (h*w, w, 1)."""
    area = op.ReduceProd(op.Slice(extent, [1], [3]), keepdims=1)  # [1]
    return op.Concat(area, op.Slice(extent, [2], [3]), [1], axis=0)


@script(VORTA, default_opset=op)
def coordinates(extent: INT64) -> INT64:
    """(frame, height, width) of each cell of a box of that extent in raster order: [cells, 3]."""
    cells = op.Range(0, op.ReduceProd(extent, keepdims=0), 1)  # [cells]
    return op.Mod(op.Unsqueeze(cells, [1]) / strides(extent), extent)


@script(VORTA, default_opset=op)
def window_visits(tiles: INT64, window: INT64) -> INT64:
    """Tiles that each tile sees: its window, moved inwards at the border of the grid. [tiles, seen]."""
    span = op.Min(window, tiles)  # [3] tiles seen along each axis
    first = op.Max(op.Min(coordinates(tiles) - window / 2, tiles - span), [0])  # [tiles, 3]
    seen = op.Unsqueeze(first, [1]) + coordinates(span)  # [tiles, seen, 3]
    return op.ReduceSum(seen * strides(tiles), [-1], keepdims=0)


@script(VORTA, default_opset=op)
def in_blocks(count: INT64) -> INT64:
    """0..count-1 in blocks of at most 256 rows, the last number filling up the last block: [blocks, block rows]."""
    rows = op.Min(count, 256)  # 256 x 32,760 scores in float32 are 34 MB
    blocks = (count + rows - 1) / rows
    numbers = op.Min(op.Range(0, blocks * rows, 1), count - 1)
    return op.Reshape(numbers, op.Concat([-1], op.Unsqueeze(rows, [0]), axis=0))


@script(VORTA, default_opset=op)
def one_group(blocks: INT64) -> INT64:
    """Visits of blocks that all see the one and only group of keys: [blocks, 1]."""
    return op.Expand([0], op.Concat(op.Shape(blocks, start=0, end=1), [1], axis=0))
