#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "contract.h"

namespace tinyvit {

/// One photo on its way through the model where the bundle was made; docs/bundle.md.
struct Golden {
  std::string name;
  Pixels decoded;
  Pixels resized;
  std::vector<float> tensor;           // (3, S, S)
  std::vector<float> artifact_logits;  // (classes,)
};

/// A bundle of the target `executorch`, without its golden vectors.
struct Bundle {
  std::filesystem::path root;
  std::filesystem::path artifact;
  std::string precision;
  std::string artifact_sha256;  // as the manifest has it
  Contract contract;
  std::vector<std::string> labels;  // one a class

  /// The name of its folder.
  std::string name() const;
};

/// Reads a bundle's manifest, contract and labels.
/// @throws Failure not a bundle, of another schema version or target, or without its artifact.
Bundle read_bundle(const std::filesystem::path& root);

/// Reads a file like preprocess.json.
/// @throws Failure a key is missing or unknown, or a value is out of range.
Contract read_contract(const std::filesystem::path& path);

/// Reads the golden vectors, at least one.
/// @throws Failure the index or an array is missing, damaged, or does not fit the contract.
std::vector<Golden> read_goldens(const Bundle& bundle);

}  // namespace tinyvit
