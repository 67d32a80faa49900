// SPDX-License-Identifier: Apache-2.0
#include "window_cut.h"

#include <algorithm>
#include <cstdint>

namespace vorta::sm90 {
namespace {

/// One thread fetches a block's boxes one after the other. So many are fetched while a block is computed; beyond them
/// every box takes a share of 1 / kBlockTime of a block's products. On an H100 with D = 128, blocks of 12 and 16 boxes
/// took 1.2 to 1.3 times as long as blocks of 4, and blocks of 144 five times as long.
constexpr int kFreeBoxes = 8;
constexpr int kBlockTime = 34;
/// A first part whose width or height is a multiple of one of these has boxes that fill a block of 144 keys.
constexpr int kCutMultiples[] = {9, 12, 16, 24};

constexpr int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

/// The divisors of a number up to `most`, at most kMost, in ascending order.
struct Divisors {
  static constexpr int kMost = 256;
  int value[kMost];
  int count = 0;

  Divisors(int number, int most) {
    int large[kMost], larges = 0;
    for (int low = 1; low <= most && int64_t{low} * low <= number; ++low) {
      if (number % low != 0) continue;
      value[count++] = low;
      const int high = number / low;
      if (high != low && high <= most) large[larges++] = high;
    }
    while (larges > 0) value[count++] = large[--larges];
  }
};

/// The cost of fetching and computing a window: time in shares of a block of keys (see kBlockTime), then boxes.
struct Cost {
  int64_t time = 0, boxes = 0;

  Cost operator+(const Cost& other) const { return {time + other.time, boxes + other.boxes}; }
  bool operator<(const Cost& other) const { return time < other.time || (time == other.time && boxes < other.boxes); }
};

using Parts = WindowPart[WindowCut::kParts];

/// Cuts the plane of a window of `frames` frames for blocks of `keys` keys.
class Cutter {
 public:
  Cutter(int frames, int height, int width, int keys) : frames_(frames), height_(height), width_(width), keys_(keys) {}

  void cut_in_one(Parts& parts) {
    parts[0] = {0, 0, height_, width_};
    parts[1] = {};
    best_ = choose_boxes(parts[0]);
  }

  /// After cut_in_one(): in two parts, if that is faster.
  void cut_in_two(Parts& parts) {
    const int64_t tokens = int64_t{frames_} * height_ * width_;
    if (best_.time == ceil_div(tokens, keys_) * kBlockTime) return;  // no cut needs less
    for (const int multiple : kCutMultiples) {
      consider(height_, width_ - width_ % multiple, parts);
      consider(height_ - height_ % multiple, width_, parts);
    }
  }

 private:
  void consider(int first_height, int first_width, Parts& parts) {
    if (first_height == 0 || first_width == 0 || (first_height == height_ && first_width == width_)) return;
    Parts candidate{};
    candidate[0] = {0, 0, first_height, first_width};
    candidate[1] = first_height < height_ ? WindowPart{first_height, 0, height_ - first_height, width_}
                                          : WindowPart{0, first_width, height_, width_ - first_width};
    const Cost cost = choose_boxes(candidate[0]) + choose_boxes(candidate[1]);
    if (cost.time >= best_.time) return;
    best_ = cost;
    std::copy(candidate, candidate + WindowCut::kParts, parts);
  }

  /// Picks the boxes of one part.
  Cost choose_boxes(WindowPart& part) const {
    Cost best{INT64_MAX, INT64_MAX};
    const Divisors heights(part.height, keys_), widths(part.width, keys_);
    for (int w = 0; w < widths.count; ++w) {
      for (int h = 0; h < heights.count && widths.value[w] * heights.value[h] <= keys_; ++h) {
        const int width = widths.value[w], height = heights.value[h];
        const int64_t per_block = keys_ / (width * height);
        const int64_t per_frame = int64_t{part.height / height} * (part.width / width), boxes = frames_ * per_frame;
        const int64_t block_time = kBlockTime + std::max<int64_t>(0, std::min(per_block, boxes) - kFreeBoxes);
        const Cost cost{ceil_div(boxes, per_block) * block_time, boxes};
        if (!(cost < best)) continue;
        best = cost;
        part.box_width = width;
        part.box_height = height;
        part.boxes_per_frame = static_cast<int>(per_frame);
        part.boxes_per_block = static_cast<int>(per_block);
      }
    }
    return best;
  }

  int frames_, height_, width_, keys_;
  Cost best_;
};

}  // namespace

WindowCut make_window_cut(const SlidingPlan& plan, int keys) {
  WindowCut cut{};
  const auto& axis = plan.axis;
  cut.height = axis[1][0].window_extent;
  cut.width = axis[2][0].window_extent;
  for (int i = 0; i < 2; ++i) {
    const AxisGroups(&groups)[3] = axis[i + 1];
    cut.is_shorter[i] = plan.kinds[i + 1] > 1 && groups[1].window_extent != groups[0].window_extent;
  }
  for (int h = 0; h <= cut.is_shorter[0]; ++h) {
    for (int w = 0; w <= cut.is_shorter[1]; ++w) {
      Parts& parts = cut.part[2 * h + w];
      Cutter cutter(axis[0][0].window_extent, axis[1][h].window_extent, axis[2][w].window_extent, keys);
      cutter.cut_in_one(parts);
      cutter.cut_in_two(parts);
    }
  }
  return cut;
}

}  // namespace vorta::sm90
