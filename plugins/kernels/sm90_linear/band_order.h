// SPDX-License-Identifier: Apache-2.0
//
// The order in which a persistent product visits its tiles: by bands. The grid of clusters of tiles is cut into bands
// of rows (or columns) of clusters; within a band clusters are taken column by column (row by row). The clusters that
// run at one time then form a rectangle, which reads fewer different bytes than a strip of the same area does.
#ifndef VORTA_TRT_KERNELS_SM90_LINEAR_BAND_ORDER_H_
#define VORTA_TRT_KERNELS_SM90_LINEAR_BAND_ORDER_H_

#include <cutlass/cutlass.h>

#include <cstdint>

namespace vorta::sm90_linear {

/// Whether bands consist of rows or of columns of clusters.
enum class BandsOf { kRows, kColumns };

/// A place in the grid of clusters.
struct ClusterPlace {
  uint32_t row, column;
};

/// Numbers the clusters of a grid from 0, each once.
struct BandOrder {
  uint32_t rows, columns;  // of the grid, in clusters; may be any
  uint32_t band;           // rows (columns) of clusters in a band, at least 1; the last band has what is left
  BandsOf bands_of;

  CUTLASS_HOST_DEVICE uint32_t clusters() const { return rows * columns; }

  /// Where cluster `number` lies; `number` is below clusters().
  CUTLASS_HOST_DEVICE ClusterPlace place(uint32_t number) const {
    const bool of_rows = bands_of == BandsOf::kRows;
    const uint32_t length = of_rows ? columns : rows, across = of_rows ? rows : columns;
    const uint32_t first = number / (band * length) * band, rest = number % (band * length);
    const uint32_t width = band < across - first ? band : across - first;
    const uint32_t minor = first + rest % width, major = rest / width;
    return of_rows ? ClusterPlace{minor, major} : ClusterPlace{major, minor};
  }
};

}  // namespace vorta::sm90_linear

#endif  // VORTA_TRT_KERNELS_SM90_LINEAR_BAND_ORDER_H_
