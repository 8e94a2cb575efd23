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

/// Takes the golden vectors through contract and model: docs/bundle.md, "Checking an
/// implementation".
std::vector<Gate> check(const Bundle& bundle, const std::vector<Golden>& goldens, Model& model);

bool all_passed(const std::vector<Gate>& gates);

/// `passed`, and `gates`; a measured value that is not a number is null.
nlohmann::ordered_json to_json(const std::vector<Gate>& gates);

}  // namespace tinyvit
