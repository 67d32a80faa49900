// SPDX-License-Identifier: Apache-2.0
//
// The buckets of the coreset, and where the tokens of each stand in a head's lists. A list has the buckets in their
// order without gaps, so a bucket's place is the number of kept (or dropped) tokens before it. Along each axis a bucket
// is whole or the last one, so there are at most eight kinds of buckets. All buckets before a position on an axis are
// whole along it. So the number of tokens before a bucket is a sum of three products, and three divisions invert it.
#ifndef VORTA_TRT_KERNELS_BUCKET_PARTITION_H_
#define VORTA_TRT_KERNELS_BUCKET_PARTITION_H_

#include "box_partition.h"

namespace vorta {

struct Bucket {
  int tokens, kept;
  int first_token;                // its id
  int centre;                     // among its tokens in raster order
  int first_kept, first_dropped;  // in the lists of a head
  int kind;                       // 4 f + 2 h + w, each 1 if the bucket is last along the axis; 0 unless ragged
};

/// A row of a head's list of kept tokens.
struct KeptRow {
  int slot;           // in its bucket; 0 is the centre
  int first_dropped;  // where the bucket's dropped tokens start in the head's list of them
  int dropped;        // of the bucket
};

struct BucketPartition : BoxPartition {
  int kept_tokens, dropped_tokens;  // of a head
  // Kept tokens. Indices say whether a bucket is whole (0) or last (1) along frames, height and width.
  FastDivmod bucket_kept[2][2][2];
  FastDivmod row_kept[2][2];  // of a row of buckets
  FastDivmod plane_kept;      // of a layer of buckets that is whole along frames

  BucketPartition() = default;
  /// A bucket keeps max(1, tokens * keep / (tokens of `bucket`)).
  BucketPartition(const int32_t (&grid_)[3], const int32_t (&bucket)[3], int keep) : BoxPartition(grid_, bucket) {
    const int nominal = bucket[0] * bucket[1] * bucket[2];
    int plane[2];
    for (int f = 0; f < 2; ++f) {
      for (int h = 0; h < 2; ++h) {
        for (int w = 0; w < 2; ++w) {
          const int kept = kind_extent(0, f) * kind_extent(1, h) * kind_extent(2, w) * keep / nominal;
          bucket_kept[f][h][w] = FastDivmod(kept > 1 ? kept : 1);
        }
        row_kept[f][h] = FastDivmod((boxes[2] - 1) * bucket_kept[f][h][0].divisor + bucket_kept[f][h][1].divisor);
      }
      plane[f] = (boxes[1] - 1) * row_kept[f][0].divisor + row_kept[f][1].divisor;
    }
    plane_kept = FastDivmod(plane[0]);
    kept_tokens = (boxes[0] - 1) * plane[0] + plane[1];
    dropped_tokens = grid[0] * frame_stride - kept_tokens;
  }

  CUTLASS_HOST_DEVICE Bucket bucket(int index) const {
    Bucket result;
    int position[3];
    split(index, position);
    result.first_token = first_token(position);
    if (!ragged) {
      result.tokens = tokens.divisor;
      result.kept = bucket_kept[0][0][0].divisor;
      result.centre = centre_of(extent);
      result.first_kept = index * result.kept;
      result.first_dropped = index * (result.tokens - result.kept);
      result.kind = 0;
      return result;
    }
    const int extents[3] = {extent_at(0, position[0]), extent_at(1, position[1]), extent_at(2, position[2])};
    const int f = is_last(0, position[0]), h = is_last(1, position[1]), w = is_last(2, position[2]);
    result.tokens = extents[0] * extents[1] * extents[2];
    result.kept = bucket_kept[f][h][w].divisor;
    result.centre = centre_of(extents);
    result.first_kept = position[0] * plane_kept.divisor + position[1] * row_kept[f][0].divisor +
                        position[2] * bucket_kept[f][h][0].divisor;
    result.first_dropped = tokens_before(position, extents) - result.first_kept;
    result.kind = 4 * f + 2 * h + w;
    return result;
  }

  /// Where the kept token `row` of a head stands.
  CUTLASS_HOST_DEVICE KeptRow kept_row(int row) const {
    KeptRow result;
    if (!ragged) {
      int index;
      bucket_kept[0][0][0](index, result.slot, row);
      result.dropped = tokens.divisor - bucket_kept[0][0][0].divisor;
      result.first_dropped = index * result.dropped;
      return result;
    }
    // A bucket that is last along an axis keeps no more than a whole one: the quotients need no bound.
    int position[3], in_plane, in_row;
    plane_kept(position[0], in_plane, row);
    const int f = is_last(0, position[0]);
    row_kept[f][0](position[1], in_row, in_plane);
    const int h = is_last(1, position[1]);
    bucket_kept[f][h][0](position[2], result.slot, in_row);
    const int w = is_last(2, position[2]);
    const int extents[3] = {extent_at(0, position[0]), extent_at(1, position[1]), extent_at(2, position[2])};
    result.dropped = extents[0] * extents[1] * extents[2] - bucket_kept[f][h][w].divisor;
    result.first_dropped = tokens_before(position, extents) - (row - result.slot);
    return result;
  }

 private:
  /// Tokens along `axis` of a box that is whole (0) or last (1) along it.
  int kind_extent(int axis, int kind) const { return extent_at(axis, kind == 0 ? 0 : boxes[axis] - 1); }

  CUTLASS_HOST_DEVICE static int centre_of(const int (&extents)[3]) {
    return (extents[0] / 2 * extents[1] + extents[1] / 2) * extents[2] + extents[2] / 2;
  }

  /// Tokens of the buckets before the one at `position`, which has `extents`.
  CUTLASS_HOST_DEVICE int tokens_before(const int (&position)[3], const int (&extents)[3]) const {
    return position[0] * extent[0] * frame_stride +
           extents[0] * (position[1] * extent[1] * row_stride + extents[1] * position[2] * extent[2]);
  }
};

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_BUCKET_PARTITION_H_
