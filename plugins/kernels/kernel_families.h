// SPDX-License-Identifier: Apache-2.0
//
// The one table of head dimensions: which instances each family of attention kernels has. Launches, workspace, the C
// API and everything in Python ask it; an entry without its file in instances/ does not link.
#ifndef VORTA_TRT_KERNELS_KERNEL_FAMILIES_H_
#define VORTA_TRT_KERNELS_KERNEL_FAMILIES_H_

#include <cstdint>
#include <type_traits>

namespace vorta {

/// Head dimensions of a family's instances, ascending.
template <int... kHeadDims>
struct Instances {
  static constexpr int kCount = sizeof...(kHeadDims);
  static constexpr int32_t kValues[kCount] = {kHeadDims...};

  static constexpr bool has(int head_dim) { return ((head_dim == kHeadDims) || ...); }

  /// The smallest instance that holds head_dim, 0 if none does.
  static constexpr int holding(int head_dim) {
    for (int instance : kValues) {
      if (head_dim <= instance) return instance;
    }
    return 0;
  }

  /// function(std::integral_constant<int, D>{}) for the instance D that holds head_dim; `none` if none does.
  template <class Result, class Function>
  static Result call(int head_dim, Result none, Function function) {
    const int instance = holding(head_dim);
    (void)((instance == kHeadDims && (none = function(std::integral_constant<int, kHeadDims>{}), true)) || ...);
    return none;
  }
};

namespace sm80 {
using HeadDims = Instances<64, 96, 128, 192, 256>;  // a smaller D is padded with zeros
}  // namespace sm80

namespace sm89_fp8 {
using HeadDims = Instances<64, 128>;
}  // namespace sm89_fp8

namespace sm90 {
using HeadDims = Instances<64, 128>;
}  // namespace sm90

namespace sm90_fp8 {
using HeadDims = Instances<64, 128>;
}  // namespace sm90_fp8

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_KERNEL_FAMILIES_H_
