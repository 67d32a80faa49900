// SPDX-License-Identifier: Apache-2.0
//
// Walks band_order.h over grids of every small size, and over those of real products. Prints the number of grids, or
// what is wrong and exit code 1.
#include "sm90_linear/band_order.h"

#include <cstdio>
#include <set>
#include <vector>

namespace {

using vorta::sm90_linear::BandOrder;
using vorta::sm90_linear::BandsOf;
using vorta::sm90_linear::ClusterPlace;

#define EXPECT(condition)                                                                                    \
  if (!(condition)) {                                                                                        \
    std::printf("%u x %u clusters, bands of %u %s, cluster %u: %s\n", order.rows, order.columns, order.band, \
                order.bands_of == BandsOf::kRows ? "rows" : "columns", number, #condition);                  \
    return false;                                                                                            \
  }

/// Every cluster is visited once, and a band is left only when it is whole.
bool visits_each_once(const BandOrder& order) {
  std::vector<bool> seen(order.clusters(), false);
  uint32_t current = 0;  // the band
  for (uint32_t number = 0; number < order.clusters(); ++number) {
    const ClusterPlace place = order.place(number);
    EXPECT(place.row < order.rows && place.column < order.columns);
    EXPECT(!seen[place.row * order.columns + place.column]);
    seen[place.row * order.columns + place.column] = true;
    const uint32_t band = (order.bands_of == BandsOf::kRows ? place.row : place.column) / order.band;
    EXPECT(band >= current);
    current = band;
  }
  return true;
}

/// Clusters that run together are a square: band * band of them, from the beginning of a whole band.
bool runs_in_squares(const BandOrder& order) {
  const bool of_rows = order.bands_of == BandsOf::kRows;
  const uint32_t length = of_rows ? order.columns : order.rows, across = of_rows ? order.rows : order.columns;
  for (uint32_t band = 0; band < across / order.band; ++band) {
    for (uint32_t square = 0; square < length / order.band; ++square) {
      const uint32_t number = (band * length + square * order.band) * order.band;
      std::set<uint32_t> rows, columns;
      for (uint32_t i = 0; i < order.band * order.band; ++i) {
        rows.insert(order.place(number + i).row);
        columns.insert(order.place(number + i).column);
      }
      EXPECT(rows.size() == order.band && columns.size() == order.band);
    }
  }
  return true;
}

}  // namespace

int main() {
  int grids = 0;
  const auto check = [&grids](uint32_t rows, uint32_t columns, uint32_t band) {
    for (BandsOf bands_of : {BandsOf::kRows, BandsOf::kColumns}) {
      const BandOrder order{rows, columns, band, bands_of};
      if (!visits_each_once(order) || !runs_in_squares(order)) return false;
      ++grids;
    }
    return true;
  };
  for (uint32_t rows = 1; rows <= 20; ++rows) {
    for (uint32_t columns = 1; columns <= 20; ++columns) {
      for (uint32_t band = 1; band <= 9; ++band) {
        if (!check(rows, columns, band)) return 1;
      }
    }
  }
  // 72,000 rows in clusters of 256; 5,120 and 13,824 features in tiles of 256 and 128.
  for (uint32_t columns : {20u, 40u, 54u, 108u}) {
    if (!check(282, columns, 8)) return 1;
  }
  std::printf("%d\n", grids);
  return 0;
}
