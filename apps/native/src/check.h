#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bundle.h"
#include "model.h"

namespace tinyvit {

/// One bound, as `tinyvit-edge parity` judges it.
struct Gate {
  std::string name;
  double measured;
  double bound;
  bool at_least;  // or at most

  /// False where `measured` is not a number.
  bool passed() const { return at_least ? measured >= bound : measured <= bound; }
};

/// What the golden vectors of one image gave.
struct CheckedImage {
  std::string name;
  std::size_t different_bytes;  // of the resized image
  double tensor_error;          // largest absolute difference
  double sqnr_db;               // of the logits
  bool same_top1;
};

/// What came out of a check.
struct Checked {
  std::vector<CheckedImage> images;
  std::vector<Gate> gates;
  std::vector<std::vector<float>> logits;  // one row a golden, (classes,)

  bool passed() const;
};

/// Takes the golden vectors through contract and model: docs/bundle.md, "Checking an
/// implementation".
Checked check(const Bundle& bundle, const std::vector<Golden>& goldens, Model& model);

/// `passed`, `gates` (a measured value that is not a number is null), and the `logits` of each
/// golden.
nlohmann::ordered_json to_json(const Checked& checked);

/// `passed` and `images`, as a device report has them.
nlohmann::ordered_json to_parity(const Checked& checked);

}  // namespace tinyvit
