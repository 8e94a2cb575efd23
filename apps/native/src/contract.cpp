#include "contract.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "failure.h"

namespace tinyvit {
namespace {

constexpr int kChannels = 3;
constexpr int kFractionBits = 22;  // of a filter's integer weights

/// The input pixels that one output pixel is made of, along one axis.
struct Taps {
  int first = 0;
  std::vector<int> weights;  // fixed point, kFractionBits
};

/// Width and height of step 4, and the corner of the crop in it.
struct Geometry {
  int width = 0;
  int height = 0;
  int left = 0;
  int top = 0;
};

double weigh(Contract::Filter filter, double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (filter == Contract::Filter::bilinear) return x < 1 ? 1 - x : 0;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

Taps taps_of(int position, int in, double scale, Contract::Filter filter) {
  const double stretch = std::max(scale, 1.0);
  const double reach = (filter == Contract::Filter::bicubic ? 2.0 : 1.0) * stretch;
  const double centre = (position + 0.5) * scale;
  const int first = std::max(0, static_cast<int>(centre - reach + 0.5));
  const int last = std::min(in, static_cast<int>(centre + reach + 0.5));
  std::vector<double> weights;
  double sum = 0;
  for (int x = first; x < last; ++x) {
    // Pillow multiplies by the inverse: a division would round some weights differently
    weights.push_back(weigh(filter, (x - centre + 0.5) * (1.0 / stretch)));
    sum += weights.back();
  }
  Taps taps{first, {}};
  for (double weight : weights) {
    const double fixed = (sum != 0 ? weight / sum : weight) * (1 << kFractionBits);
    taps.weights.push_back(static_cast<int>(fixed + (fixed < 0 ? -0.5 : 0.5)));
  }
  return taps;
}

/// Taps of the output pixels `begin` to `begin + count` of an axis resized from `in` to `out`.
std::vector<Taps> axis(int in, int out, int begin, int count, Contract::Filter filter) {
  const double scale = static_cast<double>(in) / out;
  std::vector<Taps> all;
  for (int i = begin; i < begin + count; ++i) all.push_back(taps_of(i, in, scale, filter));
  return all;
}

/// The weighted sum of samples that lie `stride` bytes apart.
std::uint8_t blend(const std::uint8_t* sample, std::size_t stride, const Taps& taps) {
  int sum = 1 << (kFractionBits - 1);
  for (int weight : taps.weights) {
    sum += *sample * weight;
    sample += stride;
  }
  return static_cast<std::uint8_t>(std::clamp(sum >> kFractionBits, 0, 255));
}

Pixels blend_rows(const Pixels& image, const std::vector<Taps>& columns) {
  Pixels out{static_cast<int>(columns.size()), image.height, {}};
  out.rgb.reserve(columns.size() * image.height * kChannels);
  for (int y = 0; y < image.height; ++y) {
    const std::uint8_t* row = &image.rgb[std::size_t{kChannels} * y * image.width];
    for (const Taps& taps : columns) {
      const std::uint8_t* pixel = row + std::size_t{kChannels} * taps.first;
      for (int c = 0; c < kChannels; ++c) out.rgb.push_back(blend(pixel + c, kChannels, taps));
    }
  }
  return out;
}

Pixels blend_columns(const Pixels& image, const std::vector<Taps>& rows) {
  const std::size_t stride = std::size_t{kChannels} * image.width;
  Pixels out{image.width, static_cast<int>(rows.size()), {}};
  out.rgb.reserve(rows.size() * stride);
  for (const Taps& taps : rows) {
    const std::uint8_t* first = &image.rgb[taps.first * stride];
    for (std::size_t x = 0; x < stride; ++x) out.rgb.push_back(blend(first + x, stride, taps));
  }
  return out;
}

/// Where the crop begins; nearbyint takes a half to the even integer.
int offset(int side, int size) { return static_cast<int>(std::nearbyint((side - size) / 2.0)); }

Geometry geometry_of(int width, int height, const Contract& contract) {
  const int size = contract.size;
  double to_width = size, to_height = size;
  if (contract.mode == Contract::Mode::crop) {
    const auto [shorter, longer] = std::minmax(width, height);
    const auto brief = static_cast<std::int64_t>(size / contract.crop_pct);
    const double extended = std::floor(static_cast<double>(brief * longer) / shorter);
    to_width = width <= height ? static_cast<double>(brief) : extended;
    to_height = width <= height ? extended : static_cast<double>(brief);
  }
  // in double, which holds what no integer may; the height between the passes is the old one
  if (to_width * std::max<double>(height, to_height) > kMaxPixels) {
    throw Failure("an image of " + std::to_string(width) + " x " + std::to_string(height) +
                  " pixels would be resized to more than " + std::to_string(kMaxPixels) +
                  " pixels; crop it to a less extreme shape");
  }
  const int w = static_cast<int>(to_width), h = static_cast<int>(to_height);
  return {w, h, offset(w, size), offset(h, size)};
}

}  // namespace

Pixels orient(Pixels image, int orientation) {
  if (orientation < 2 || orientation > 8) return image;
  const int width = image.width, height = image.height;
  const bool transposed = orientation >= 5;
  Pixels out{transposed ? height : width, transposed ? width : height, {}};
  out.rgb.reserve(image.rgb.size());
  for (int y = 0; y < out.height; ++y) {
    for (int x = 0; x < out.width; ++x) {
      int from_x = transposed ? y : x, from_y = transposed ? x : y;
      if (orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8) {
        from_x = width - 1 - from_x;
      }
      if (orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7) {
        from_y = height - 1 - from_y;
      }
      const auto* pixel = &image.rgb[(std::size_t{kChannels} * from_y * width) +
                                     std::size_t{kChannels} * from_x];
      out.rgb.insert(out.rgb.end(), pixel, pixel + kChannels);
    }
  }
  return out;
}

Pixels resize(const Pixels& image, const Contract& contract) {
  const int size = contract.size;
  const Geometry to = geometry_of(image.width, image.height, contract);
  // Pixels outside the crop are nobody's input, so only those inside it are computed.
  const auto columns = axis(image.width, to.width, to.left, size, contract.filter);
  const auto rows = axis(image.height, to.height, to.top, size, contract.filter);
  return blend_columns(blend_rows(image, columns), rows);
}

std::vector<float> normalise(const Pixels& resized, const Contract& contract) {
  const std::size_t area = resized.rgb.size() / kChannels;
  std::vector<float> tensor(resized.rgb.size());
  for (std::size_t c = 0; c < kChannels; ++c) {
    for (std::size_t i = 0; i < area; ++i) {
      const float value = static_cast<float>(resized.rgb[kChannels * i + c]) / 255.0F;
      tensor[c * area + i] = (value - contract.mean[c]) / contract.std[c];
    }
  }
  return tensor;
}

std::vector<float> softmax(const std::vector<float>& logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  std::vector<double> powers;
  for (float logit : logits) powers.push_back(std::exp(logit - largest));
  const double sum = std::accumulate(powers.begin(), powers.end(), 0.0);
  std::vector<float> probabilities;
  for (double power : powers) probabilities.push_back(static_cast<float>(power / sum));
  return probabilities;
}

std::vector<Ranked> top_k(const std::vector<float>& probabilities, int k) {
  std::vector<Ranked> ranked;
  for (std::size_t i = 0; i < probabilities.size(); ++i) {
    ranked.push_back({static_cast<int>(i), probabilities[i]});
  }
  std::stable_sort(ranked.begin(), ranked.end(),
                   [](const Ranked& a, const Ranked& b) { return a.probability > b.probability; });
  ranked.resize(std::min(ranked.size(), static_cast<std::size_t>(k)));
  return ranked;
}

}  // namespace tinyvit
