// SPDX-License-Identifier: Apache-2.0
//
// Walks every bucket of random small grids and compares the closed forms of bucket_partition.h with counts kept on the
// way. Prints the number of buckets, or what is wrong and exit code 1.
#include "bucket_partition.h"

#include <algorithm>
#include <cstdio>
#include <random>
#include <vector>

namespace {

#define EXPECT(condition)                                                                                         \
  if (!(condition)) {                                                                                             \
    std::printf("grid %d %d %d, bucket %d %d %d, keep %d, bucket %d: %s\n", grid[0], grid[1], grid[2], bucket[0], \
                bucket[1], bucket[2], keep, index, #condition);                                                   \
    return false;                                                                                                 \
  }

bool check(const int32_t (&grid)[3], const int32_t (&bucket)[3], int keep, int& index) {
  const vorta::BucketPartition partition(grid, bucket, keep);
  const int video_tokens = grid[0] * grid[1] * grid[2];
  std::vector<int> seen(video_tokens, 0);
  int kept = 0, dropped = 0;
  index = 0;
  for (int f = 0; f < grid[0]; f += bucket[0]) {
    for (int h = 0; h < grid[1]; h += bucket[1]) {
      for (int w = 0; w < grid[2]; w += bucket[2], ++index) {
        const int extent[3] = {std::min(bucket[0], grid[0] - f), std::min(bucket[1], grid[1] - h),
                               std::min(bucket[2], grid[2] - w)};
        const int tokens = extent[0] * extent[1] * extent[2];
        const int keeps = std::max(1, tokens * keep / (bucket[0] * bucket[1] * bucket[2]));
        const vorta::Bucket found = partition.bucket(index);
        EXPECT(found.tokens == tokens);
        EXPECT(found.kept == keeps);
        EXPECT(found.centre == (extent[0] / 2 * extent[1] + extent[1] / 2) * extent[2] + extent[2] / 2);
        EXPECT(found.first_token == (f * grid[1] + h) * grid[2] + w);
        EXPECT(found.first_kept == kept);
        EXPECT(found.first_dropped == dropped);
        int position[3];
        partition.split(index, position);
        EXPECT(partition.size_at(position) == tokens);
        for (int inside = 0; inside < tokens; ++inside) {
          const int row = inside / extent[2];
          const int token = ((f + row / extent[1]) * grid[1] + h + row % extent[1]) * grid[2] + w + inside % extent[2];
          EXPECT(partition.token(position, inside) == token);
          ++seen[token];
        }
        for (int slot = 0; slot < keeps; ++slot) {
          const vorta::KeptRow row = partition.kept_row(kept + slot);
          EXPECT(row.slot == slot && row.first_dropped == dropped && row.dropped == tokens - keeps);
        }
        kept += keeps;
        dropped += tokens - keeps;
      }
    }
  }
  EXPECT(partition.count() == index);
  EXPECT(partition.kept_tokens == kept && partition.dropped_tokens == dropped);
  EXPECT(std::all_of(seen.begin(), seen.end(), [](int times) { return times == 1; }));
  return true;
}

}  // namespace

int main() {
  std::mt19937 random(std::random_device{}());
  const auto upto = [&](int most) { return static_cast<int32_t>(1 + random() % most); };
  long buckets = 0;
  for (int trial = 0; trial < 3000; ++trial) {
    const int32_t grid[3] = {upto(9), upto(9), upto(9)}, bucket[3] = {upto(4), upto(4), upto(4)};
    int index = 0;
    if (!check(grid, bucket, upto(bucket[0] * bucket[1] * bucket[2]), index)) return 1;
    buckets += index;
  }
  std::printf("%ld\n", buckets);
}
