// tinyvit-statistics: reads numbers from standard input and prints their median, their 90th
// percentile, and the SQNR of their first half against their second, for a comparison with NumPy.

#include "statistics.h"

#include <cstdio>
#include <iostream>
#include <iterator>

int main() {
  const std::vector<double> values{std::istream_iterator<double>(std::cin), {}};
  const std::vector<float> all(values.begin(), values.end());
  const auto half = all.begin() + static_cast<std::ptrdiff_t>(all.size() / 2);
  std::printf("%.17g %.17g %.17g\n", tinyvit::quantile(values, 0.5),
              tinyvit::quantile(values, 0.9),
              tinyvit::sqnr_db({all.begin(), half}, {half, all.end()}));
}
