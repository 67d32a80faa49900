# SPDX-License-Identifier: Apache-2.0
"""The three branches of the portable operator, as ONNX functions. A branch is a policy: four tables of row numbers.

- `query_rows` [blocks, block rows]: the queries of each block;
- `key_rows` [groups, group rows]: groups of keys (sliding: tiles; full and coreset: one group);
- `visits` [blocks, seen]: the groups that each block attends to;
- `slot` [S]: where each video token finds its output in the blocks' rows (a dropped token: where its centre does).

The functions up to `one_group` make index tables, which depend on the attributes alone: a runtime that folds constants
computes them once, when it loads the model. Their `extent`, `counts`, `size`, `tiles` and `window` are int64 [3]
(frame, height, width); S is the number of video tokens.
"""

# mypy: ignore-errors
# (onnxscript reads these functions, Python never runs them: their operators and closures make ONNX nodes)

from __future__ import annotations

from onnxscript import BOOL, FLOAT, INT32, INT64, graph, script, values
from onnxscript import opset23 as op

from vorta_trt.plugins.operator_schema import ROUTED_ATTENTION

VORTA = values.Opset(ROUTED_ATTENTION.namespace, int(ROUTED_ATTENTION.version))


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


@script(VORTA, default_opset=op)
def coreset(tokens: FLOAT, bucket_rows: INT64, centre: INT64, keep: INT64) -> INT64:
    """Kept tokens of each bucket, its centre first, then the least similar to it: [buckets, keep].

    They are numbered by their place when the buckets follow each other. TopK sorts ascending and gives the lower index
    first on ties, as a stable sort does.
    """
    buckets = op.Gather(tokens, bucket_rows)  # [buckets, bucket tokens, D]
    unit = buckets / op.Max(op.ReduceL2(buckets, [-1], keepdims=1), 1e-12)  # [buckets, bucket tokens, D]
    cosine = op.ReduceSum(unit * op.Gather(unit, centre, axis=1), [-1], keepdims=0)  # [buckets, bucket tokens]
    bucket_tokens = op.Squeeze(op.Shape(bucket_rows, start=1, end=2))
    centre_first = op.Where(op.Range(0, bucket_tokens, 1) == centre, -2.0, cosine)  # -2 is below every cosine
    least, place = op.TopK(centre_first, op.Reshape(keep, [1]), axis=-1, largest=0, sorted=1)  # [buckets, keep]
    first = op.Range(0, op.Size(bucket_rows), bucket_tokens)  # [buckets]
    return place + op.Unsqueeze(first, [1])


@script(VORTA, default_opset=op)
def coreset_slot(kept: INT64, bucket_rows: INT64) -> INT64:
    """Where each token, by its place among the buckets, finds its output among the kept tokens: [S].

    A dropped token finds its centre's.
    """
    centres = op.Range(0, op.Size(kept), op.Squeeze(op.Shape(kept, start=1, end=2)))  # [buckets]
    slot_of_centre = op.Reshape(op.Expand(op.Unsqueeze(centres, [1]), op.Shape(bucket_rows)), [-1])  # [S]
    return op.ScatterElements(slot_of_centre, op.Reshape(kept, [-1]), op.Range(0, op.Size(kept), 1), axis=0)


@script(VORTA, default_opset=op)
def policy(
    query: FLOAT,
    key: FLOAT,
    route: INT32,
    raster: INT64,
    full_blocks: INT64,
    tile_rows: INT64,
    tile_slot: INT64,
    window_visits: INT64,
    bucket_rows: INT64,
    bucket_slot: INT64,
    centre: INT64,
    keep: INT64,
    keys_choose: BOOL,
):
    """The four tables of a head's branch: query_rows, key_rows, visits, slot."""

    @graph()
    def coreset_branch():
        kept = coreset(query, bucket_rows, centre, keep)  # [buckets, keep]
        raster_rows = op.Reshape(bucket_rows, [-1])  # [S]
        kept_rows = op.Gather(raster_rows, op.Reshape(kept, [-1]))  # [buckets * keep]

        @graph()
        def choice_of_keys():
            return op.Gather(raster_rows, op.Reshape(coreset(key, bucket_rows, centre, keep), [-1]))  # [buckets * keep]

        @graph()
        def choice_of_queries():
            return op.Identity(kept_rows)

        kept_keys = op.If(keys_choose, then_branch=choice_of_keys, else_branch=choice_of_queries)
        blocks = in_blocks(op.Squeeze(op.Shape(kept_rows)))
        query_rows = op.Gather(kept_rows, blocks)  # [blocks, block rows]
        key_rows = op.Reshape(kept_keys, [1, -1])  # [1, buckets * keep]
        visits = one_group(blocks)  # [blocks, 1]
        slot = op.Gather(coreset_slot(kept, bucket_rows), bucket_slot)  # [S]
        return query_rows, key_rows, visits, slot

    @graph()
    def sliding_branch():
        query_rows = op.Identity(tile_rows)  # [tiles, tile tokens]
        key_rows = op.Identity(tile_rows)  # [tiles, tile tokens]
        visits = op.Identity(window_visits)  # [tiles, seen]
        slot = op.Identity(tile_slot)  # [S]
        return query_rows, key_rows, visits, slot

    @graph()
    def full_branch():
        query_rows = op.Identity(full_blocks)  # [blocks, block rows]
        key_rows = op.Reshape(raster, [1, -1])  # [1, S]
        visits = one_group(full_blocks)  # [blocks, 1]
        slot = op.Identity(raster)  # [S]
        return query_rows, key_rows, visits, slot

    @graph()
    def sliding_or_full():
        query_rows, key_rows, visits, slot = op.If(route == 2, then_branch=sliding_branch, else_branch=full_branch)
        return query_rows, key_rows, visits, slot

    query_rows, key_rows, visits, slot = op.If(route == 1, then_branch=coreset_branch, else_branch=sliding_or_full)
    return query_rows, key_rows, visits, slot
