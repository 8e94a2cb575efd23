#include "bundle.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "failure.h"
#include "image.h"

namespace tinyvit {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr int kSchemaVersion = 1;

/// Parses a file and builds a value of it; what a wrong type or a missing key throws is one line.
template <typename Build>
auto parsed(const fs::path& path, const Build& build) {
  const auto file = read_file(path);
  try {
    return build(json::parse(file.begin(), file.end()));
  } catch (const json::exception& error) {
    throw Failure(path.string() + ": not as a bundle has it (" + error.what() +
                  "); export the bundle again");
  }
}

template <typename Value>
Value one_of(const json& values, const char* key, const std::pair<const char*, Value> (&choices)[2],
             const std::string& where) {
  const auto name = values.at(key).get<std::string>();
  for (const auto& [known, value] : choices) {
    if (name == known) return value;
  }
  throw Failure(where + ": " + key + " is '" + name + "'; it must be " + choices[0].first + " or " +
                choices[1].first);
}

void check_contract(const Contract& contract, const std::string& where) {
  constexpr int largest_side = 1 << 14;  // so that no product of sides leaves 32 bits
  if (contract.size < 1 || contract.size > largest_side) {
    throw Failure(where + ": size must be 1 to " + std::to_string(largest_side));
  }
  if (!(contract.crop_pct > 0 && contract.crop_pct <= 1)) {
    throw Failure(where + ": crop_pct must be above 0 and at most 1");
  }
  for (std::size_t c = 0; c < contract.std.size(); ++c) {
    if (!std::isfinite(contract.mean[c]) || !(contract.std[c] > 0)) {
      throw Failure(where + ": mean must be finite and std above 0");
    }
  }
}

Contract contract_of(const json& values, const std::string& where) {
  Contract contract;
  for (const auto& [key, value] : values.items()) {
    static const std::vector<std::string> known = {
        "size", "crop_pct", "mode", "interpolation", "mean", "std", "channel_order"};
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      throw Failure(where + ": unknown key '" + key + "'; this program is older than the bundle");
    }
  }
  contract.size = values.at("size").get<int>();
  contract.crop_pct = values.at("crop_pct").get<double>();
  contract.mode = one_of<Contract::Mode>(
      values, "mode", {{"crop", Contract::Mode::crop}, {"squash", Contract::Mode::squash}}, where);
  contract.filter = one_of<Contract::Filter>(
      values, "interpolation",
      {{"bicubic", Contract::Filter::bicubic}, {"bilinear", Contract::Filter::bilinear}}, where);
  contract.mean = values.at("mean").get<std::array<float, 3>>();
  contract.std = values.at("std").get<std::array<float, 3>>();
  if (values.at("channel_order") != "rgb") throw Failure(where + ": channel_order must be rgb");
  check_contract(contract, where);
  return contract;
}

std::vector<std::string> read_labels(const fs::path& path) {
  std::vector<std::string> labels;
  std::string label;
  for (std::uint8_t byte : read_file(path)) {
    if (byte == '\n') {
      labels.push_back(std::exchange(label, {}));
    } else {
      label += static_cast<char>(byte);
    }
  }
  return labels;
}

/// Checks that an array is as the contract and docs/bundle.md have it, and reads it.
std::vector<std::uint8_t> bytes_of(const json& about, const fs::path& folder, const char* dtype,
                                   std::size_t item, const std::vector<int>& shape) {
  const fs::path path = folder / about.at("file").get<std::string>();
  std::size_t expected = item;
  for (int side : shape) expected *= static_cast<std::size_t>(side);
  if (about.at("dtype") != dtype || about.at("shape") != shape) {
    throw Failure(path.string() + ": dtype and shape are not those of the contract; export again");
  }
  auto bytes = read_file(path);
  if (bytes.size() != expected) {
    throw Failure(path.string() + ": " + std::to_string(bytes.size()) + " bytes, not " +
                  std::to_string(expected) + "; export again");
  }
  return bytes;
}

Pixels pixels_of(const json& about, const fs::path& folder, int width, int height) {
  return {width, height, bytes_of(about, folder, "uint8", 1, {height, width, 3})};
}

std::vector<float> floats_of(const json& about, const fs::path& folder,
                             const std::vector<int>& shape) {
  // Little-endian, as are all CPUs that the runtime is built for.
  const auto bytes = bytes_of(about, folder, "float32", sizeof(float), shape);
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

Golden golden_of(const json& entry, const fs::path& folder, const Bundle& bundle) {
  const auto name = entry.at("name").get<std::string>();
  if (!entry.contains("artifact_logits")) {
    throw Failure("golden " + name + ": no artifact logits; export again");
  }
  const int size = bundle.contract.size, classes = static_cast<int>(bundle.labels.size());
  const json& decoded = entry.at("decoded");
  const int height = decoded.at("shape").at(0).get<int>();
  const int width = decoded.at("shape").at(1).get<int>();
  if (width < 1 || height < 1 || std::int64_t{width} * height > kMaxPixels) {
    throw Failure("golden " + name + ": no image of " + std::to_string(width) + " x " +
                  std::to_string(height) + " pixels; export again");
  }
  return {name, pixels_of(decoded, folder, width, height),
          pixels_of(entry.at("resized"), folder, size, size),
          floats_of(entry.at("tensor"), folder, {3, size, size}),
          floats_of(entry.at("artifact_logits"), folder, {classes})};
}

void check_manifest(const json& manifest, const std::string& where) {
  if (manifest.at("schema_version") != kSchemaVersion) {
    throw Failure(where + ": schema version is not " + std::to_string(kSchemaVersion) +
                  "; export the bundle again");
  }
  const auto target = manifest.at("target").get<std::string>();
  if (target != "executorch") {
    throw Failure(where + ": a bundle of " + target +
                  ", which this program cannot run; export one of executorch");
  }
  if (manifest.at("input").at("kind") != "tensor") {
    throw Failure(where + ": the artifact takes no tensor; export one that does");
  }
}

}  // namespace

std::string Bundle::name() const { return fs::weakly_canonical(root).filename().string(); }

Contract read_contract(const fs::path& path) {
  return parsed(path, [&](const json& values) { return contract_of(values, path.string()); });
}

Bundle read_bundle(const fs::path& root) {
  const fs::path path = root / "manifest.json";
  Bundle bundle;
  bundle.root = root;
  const int classes = parsed(path, [&](const json& manifest) {
    check_manifest(manifest, path.string());
    bundle.precision = manifest.at("recipe").at("name").get<std::string>();
    bundle.artifact = root / manifest.at("artifact").at("file").get<std::string>();
    bundle.artifact_sha256 = manifest.at("artifact").at("sha256").get<std::string>();
    return manifest.at("output").at("shape").at(1).get<int>();
  });
  bundle.contract = read_contract(root / "preprocess.json");
  bundle.labels = read_labels(root / "labels.txt");
  if (!fs::is_regular_file(bundle.artifact)) {
    throw Failure(bundle.artifact.string() + ": the bundle's artifact is missing; export again");
  }
  if (bundle.labels.empty() || static_cast<int>(bundle.labels.size()) != classes) {
    throw Failure((root / "labels.txt").string() + ": " + std::to_string(bundle.labels.size()) +
                  " labels for " + std::to_string(classes) + " classes; export again");
  }
  return bundle;
}

std::vector<Golden> read_goldens(const Bundle& bundle) {
  const fs::path folder = bundle.root / "golden";
  return parsed(folder / "golden.json", [&](const json& index) {
    std::vector<Golden> goldens;
    for (const json& entry : index.at("images")) {
      goldens.push_back(golden_of(entry, folder, bundle));
    }
    if (goldens.empty()) throw Failure(folder.string() + ": no golden vectors; export again");
    return goldens;
  });
}

}  // namespace tinyvit
