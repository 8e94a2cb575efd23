#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

namespace tinyvit {

inline constexpr double kBitExactDb = 300;

/// The value that `fraction` (0 to 1) of the values do not exceed, interpolated between the two
/// nearest as NumPy's `percentile` does; `values` is not empty.
inline double quantile(std::vector<double> values, double fraction) {
  std::sort(values.begin(), values.end());
  const double at = fraction * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(at);
  const std::size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (at - static_cast<double>(below)) * (values[above] - values[below]);
}

/// Signal to noise ratio over all values, in dB, within -300 to 300: the latter where nothing
/// differs, as in the project's reports. Not a number where a value is none.
inline double sqnr_db(const std::vector<float>& reference, const std::vector<float>& measured) {
  double signal = 0, noise = 0;
  for (std::size_t i = 0; i < reference.size(); ++i) {
    const double error = static_cast<double>(reference[i]) - measured[i];
    signal += static_cast<double>(reference[i]) * reference[i];
    noise += error * error;
  }
  if (noise == 0) return kBitExactDb;
  return std::clamp(10 * std::log10(signal / noise), -kBitExactDb, kBitExactDb);
}

}  // namespace tinyvit
