# SPDX-License-Identifier: Apache-2.0
"""The three branches of the portable operator, as ONNX functions. A branch is a policy: four tables of row numbers.

- `query_rows` [blocks, block rows]: the queries of each block;
- `key_rows` [groups, group rows]: groups of keys (sliding: tiles; full and coreset: one group), -1 where there is none;
- `visits` [blocks, seen]: the groups that each block attends to;
- `slot` [S]: the row of the blocks whose output each video token takes (a dropped token takes its centre's).

The functions up to `one_group` make index tables, which depend on the attributes alone: a runtime that folds constants
computes them once, when it loads the model. Their `grid`, `extent`, `size`, `tiles` and `window` are int64 [3] (frame,
height, width); S is the number of video tokens, C the number of kept tokens. A box (tile or bucket) at the end of an
axis may be shorter than `size`. Every box has as many places as a whole box has tokens; a shorter box leaves some of
its places empty.
"""

# mypy: ignore-errors
# (onnxscript reads these functions, Python never runs them: their operators and closures make ONNX nodes)

from __future__ import annotations

from onnxscript import BOOL, FLOAT, INT32, INT64, graph, script, values
from onnxscript import opset23 as op

from vorta_trt.plugins.operator_schema import ROUTED_ATTENTION

VORTA = values.Opset(ROUTED_ATTENTION.namespace, int(ROUTED_ATTENTION.version))


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
def boxes_along(grid: INT64, size: INT64) -> INT64:
    """Boxes along each axis: [3]."""
    return (grid + size - 1) / size


@script(VORTA, default_opset=op)
def place_by_box(grid: INT64, size: INT64) -> INT64:
    """Place of each raster token when the places of all boxes are numbered box by box: [S]."""
    token = coordinates(grid)  # [S, 3]
    box = token / size  # [S, 3]
    number = op.ReduceSum(box * strides(boxes_along(grid, size)), [-1], keepdims=0)  # [S]
    inside = op.ReduceSum((token - box * size) * strides(size), [-1], keepdims=0)  # [S]
    return number * op.ReduceProd(size, keepdims=0) + inside


@script(VORTA, default_opset=op)
def rows_by_box(grid: INT64, size: INT64) -> INT64:
    """Raster rows of each box of the grid, raster order inside a box, -1 at an empty place: [boxes, box tokens]."""
    boxes = op.ReduceProd(boxes_along(grid, size), keepdims=1)  # [1]
    tokens = op.ReduceProd(size, keepdims=1)  # [1]
    raster = op.Range(0, op.ReduceProd(grid, keepdims=0), 1)  # [S]
    nothing = op.Expand([-1], boxes * tokens)  # [boxes * box tokens]
    rows = op.ScatterElements(nothing, place_by_box(grid, size), raster, axis=0)
    return op.Reshape(rows, op.Concat(boxes, tokens, axis=0))


@script(VORTA, default_opset=op)
def extents_of_boxes(grid: INT64, size: INT64) -> INT64:
    """Tokens along each axis of every box: [boxes, 3]."""
    return op.Min(grid - coordinates(boxes_along(grid, size)) * size, size)


@script(VORTA, default_opset=op)
def centres_of_boxes(grid: INT64, size: INT64) -> INT64:
    """Place of every box's centre (t//2, h//2, w//2) in its row of places: [boxes]."""
    return op.ReduceSum(extents_of_boxes(grid, size) / 2 * strides(size), [-1], keepdims=0)


@script(VORTA, default_opset=op)
def kept_by_box(grid: INT64, size: INT64, keep: INT64, of: INT64) -> INT64:
    """Tokens that every box keeps, where a box of `of` tokens keeps `keep`: [boxes]."""
    tokens = op.ReduceProd(extents_of_boxes(grid, size), [-1], keepdims=0)  # [boxes]
    return op.Max(tokens * keep / of, 1)


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
def filled(rows: INT64) -> INT64:
    """The rows that are not -1, in one list: [rows]."""
    flat = op.Reshape(rows, [-1])
    return op.Compress(flat, flat >= 0)


@script(VORTA, default_opset=op)
def coreset(tokens: FLOAT, bucket_rows: INT64, centre: INT64, kept: INT64) -> INT64:
    """Places of the kept tokens, [C], bucket by bucket: the centre first, then the least similar to it.

    Places are numbered through all buckets. TopK sorts ascending and gives the lower index first on ties, as a stable
    sort does.
    """
    buckets = op.Gather(tokens, op.Max(bucket_rows, 0))  # [buckets, bucket tokens, D]
    unit = buckets / op.Max(op.ReduceL2(buckets, [-1], keepdims=1), 1e-12)  # [buckets, bucket tokens, D]
    bucket_tokens = op.Squeeze(op.Shape(bucket_rows, start=1, end=2))
    first = op.Range(0, op.Size(bucket_rows), bucket_tokens)  # [buckets]
    in_one_list = op.Reshape(unit, op.Concat([-1], op.Shape(tokens, start=1, end=2), axis=0))
    centres = op.Unsqueeze(op.Gather(in_one_list, first + centre), [1])  # [buckets, 1, D]
    cosine = op.ReduceSum(unit * centres, [-1], keepdims=0)  # [buckets, bucket tokens]
    is_centre = op.Range(0, bucket_tokens, 1) == op.Unsqueeze(centre, [1])  # [buckets, bucket tokens]
    ranks = op.Where(bucket_rows < 0, 4.0, op.Where(is_centre, -2.0, cosine))  # centres first, empty places last
    most = op.ReduceMax(kept, keepdims=1)  # [1] tokens that a whole bucket keeps
    least, place = op.TopK(ranks, most, axis=-1, largest=0, sorted=1)  # [buckets, most]
    stays = op.Range(0, op.Squeeze(most), 1) < op.Unsqueeze(kept, [1])  # [buckets, most]
    return filled(op.Where(stays, place + op.Unsqueeze(first, [1]), -1))


@script(VORTA, default_opset=op)
def coreset_slot(chosen: INT64, bucket_rows: INT64, kept: INT64) -> INT64:
    """Index into `chosen` of the token whose output each place of the buckets takes: [places].

    A dropped token takes the output of its bucket's centre.
    """
    centres = op.CumSum(kept, 0, exclusive=1)  # [buckets]
    slot_of_centre = op.Reshape(op.Expand(op.Unsqueeze(centres, [1]), op.Shape(bucket_rows)), [-1])  # [places]
    return op.ScatterElements(slot_of_centre, chosen, op.Range(0, op.Size(chosen), 1), axis=0)


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
    bucket_centre: INT64,
    bucket_kept: INT64,
    keys_choose: BOOL,
):
    """The four tables of a head's branch: query_rows, key_rows, visits, slot."""

    @graph()
    def coreset_branch():
        chosen = coreset(query, bucket_rows, bucket_centre, bucket_kept)  # [C]
        rows = op.Reshape(bucket_rows, [-1])  # [places]
        kept_rows = op.Gather(rows, chosen)  # [C]

        @graph()
        def choice_of_keys():
            return op.Gather(rows, coreset(key, bucket_rows, bucket_centre, bucket_kept))  # [C]

        @graph()
        def choice_of_queries():
            return op.Identity(kept_rows)

        kept_keys = op.If(keys_choose, then_branch=choice_of_keys, else_branch=choice_of_queries)
        blocks = in_blocks(op.Squeeze(op.Shape(kept_rows)))
        query_rows = op.Gather(kept_rows, blocks)  # [blocks, block rows]
        key_rows = op.Reshape(kept_keys, [1, -1])  # [1, C]
        visits = one_group(blocks)  # [blocks, 1]
        slot = op.Gather(coreset_slot(chosen, bucket_rows, bucket_kept), bucket_slot)  # [S]
        return query_rows, key_rows, visits, slot

    @graph()
    def sliding_branch():
        query_rows = op.Max(tile_rows, 0)  # [tiles, tile tokens]; nobody reads the output of an empty place
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
