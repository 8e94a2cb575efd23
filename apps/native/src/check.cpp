#include "check.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "image.h"
#include "sha256.h"
#include "statistics.h"

namespace tinyvit {
namespace {

/// The bounds of docs/bundle.md for logits of one file on two machines.
struct Tolerance {
  const char* precision;
  double sqnr_db;
  double agreement;
};

constexpr Tolerance kTolerances[] = {{"fp32", 90, 1}, {"fp16", 35, 2.0 / 3}};
// int8 kernels of another CPU family round differently
constexpr Tolerance kOther = {"", 15, 2.0 / 3};
// three float32 operations on values of a few units
constexpr double kTensorBound = 1e-5;

Tolerance tolerance_of(const std::string& precision) {
  for (const Tolerance& row : kTolerances) {
    if (precision == row.precision) return row;
  }
  return kOther;
}

std::size_t bytes_apart(const Pixels& found, const Pixels& recorded) {
  std::size_t count = 0;
  for (std::size_t i = 0; i < recorded.rgb.size(); ++i) count += found.rgb[i] != recorded.rgb[i];
  return count;
}

double largest_difference(const std::vector<float>& found, const std::vector<float>& recorded) {
  double largest = 0;
  for (std::size_t i = 0; i < recorded.size(); ++i) {
    const double difference = std::fabs(static_cast<double>(found[i]) - recorded[i]);
    if (std::isnan(difference)) return difference;
    largest = std::max(largest, difference);
  }
  return largest;
}

auto best(const std::vector<float>& logits) {
  return std::max_element(logits.begin(), logits.end()) - logits.begin();
}

}  // namespace

Checked check(const Bundle& bundle, const std::vector<Golden>& goldens, Model& model) {
  const Tolerance tolerance = tolerance_of(bundle.precision);
  double bytes = 0, tensors = 0, agreeing = 0;
  std::vector<float> recorded, measured;  // logits of all images, one after the other
  Checked checked;
  for (const Golden& golden : goldens) {
    const Pixels resized = resize(golden.decoded, bundle.contract);
    const std::size_t differing = bytes_apart(resized, golden.resized);
    bytes += static_cast<double>(differing);
    const double apart = largest_difference(normalise(resized, bundle.contract), golden.tensor);
    tensors = std::isnan(apart) ? apart : std::max(tensors, apart);
    // The recorded tensor: a wrong contract has gates of its own, and would hide the model's.
    std::vector<float> tensor = golden.tensor;
    const auto& logits = checked.logits.emplace_back(model.run(tensor));
    const bool same_top1 = best(logits) == best(golden.artifact_logits);
    agreeing += same_top1;
    checked.images.push_back({golden.name, differing, apart,
                              sqnr_db(golden.artifact_logits, logits), same_top1});
    recorded.insert(recorded.end(), golden.artifact_logits.begin(), golden.artifact_logits.end());
    measured.insert(measured.end(), logits.begin(), logits.end());
  }
  const bool same = sha256(read_file(bundle.artifact)) == bundle.artifact_sha256;
  const double agreement = agreeing / static_cast<double>(goldens.size());
  checked.gates = {
      {"resized bytes that differ", bytes, 0, false},
      {"input tensor max abs difference", tensors, kTensorBound, false},
      {"SQNR against recorded logits, dB", sqnr_db(recorded, measured), tolerance.sqnr_db, true},
      {"top-1 agreement with recorded logits", agreement, tolerance.agreement, true},
      {"artifact as in the manifest (1 is yes)", same ? 1.0 : 0.0, 1, true}};
  return checked;
}

bool Checked::passed() const {
  return std::all_of(gates.begin(), gates.end(), [](const Gate& gate) { return gate.passed(); });
}

nlohmann::ordered_json to_json(const Checked& checked) {
  auto rows = nlohmann::ordered_json::array();
  for (const Gate& gate : checked.gates) {
    rows.push_back({{"name", gate.name},
                    {"passed", gate.passed()},
                    {"measured", gate.measured},
                    {"bound", gate.bound},
                    {"direction", gate.at_least ? "min" : "max"}});
  }
  return {{"passed", checked.passed()}, {"gates", rows}, {"logits", checked.logits}};
}

nlohmann::ordered_json to_parity(const Checked& checked) {
  auto rows = nlohmann::ordered_json::array();
  for (const CheckedImage& image : checked.images) {
    rows.push_back({{"name", image.name},
                    {"different_bytes", image.different_bytes},
                    {"tensor_error", image.tensor_error},
                    {"sqnr_db", image.sqnr_db},
                    {"same_top1", image.same_top1}});
  }
  return {{"passed", checked.passed()}, {"images", rows}};
}

}  // namespace tinyvit
