#pragma once

// The preprocessing contract of a bundle, steps 2 and 4 to 6 of the docstring of
// tinyvit_edge/preprocessing.py, to the bit. Decoding (steps 1 and 3) is in image.h.

#include <array>
#include <cstdint>
#include <vector>

namespace tinyvit {

/// An RGB image: 3 bytes a pixel, rows from the top, no padding.
struct Pixels {
  int width = 0;
  int height = 0;
  std::vector<std::uint8_t> rgb;  // (height, width, 3)
};

/// The numbers of preprocess.json.
struct Contract {
  enum class Mode { crop, squash };
  enum class Filter { bicubic, bilinear };

  int size = 0;  // S, the side of the model's input
  double crop_pct = 0.875;
  Mode mode = Mode::crop;
  Filter filter = Filter::bicubic;
  std::array<float, 3> mean{};
  std::array<float, 3> std{};
};

/// One class of an answer.
struct Ranked {
  int index;
  float probability;
};

/// More pixels than this are taken for a decompression bomb, as Pillow does.
inline constexpr std::int64_t kMaxPixels = 89'478'485;

/// Turns an image upright by an EXIF orientation of 1 to 8; any other value leaves it as it is.
Pixels orient(Pixels image, int orientation);

/// Resizes and crops (steps 4 and 5) to S x S.
/// @throws Failure so long and thin that resizing its shorter side makes a decompression bomb.
Pixels resize(const Pixels& image, const Contract& contract);

/// Scales, shifts and moves channels first (step 6): float32 (3, S, S).
std::vector<float> normalise(const Pixels& resized, const Contract& contract);

/// Probabilities of logits, (classes,), that are finite.
std::vector<float> softmax(const std::vector<float>& logits);

/// The `k` most probable classes, or all if there are fewer; of equals, the first comes first.
std::vector<Ranked> top_k(const std::vector<float>& probabilities, int k);

}  // namespace tinyvit
