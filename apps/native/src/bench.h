#pragma once

#include <nlohmann/json.hpp>
#include <optional>

#include "bundle.h"

namespace tinyvit {

/// How `--bench` measures.
struct BenchOptions {
  int runs = 50;
  int warmup = 5;
  int threads = 0;  // 0: the runtime's choice
  std::optional<std::filesystem::path> image;  // absent: the first golden's decoded pixels
};

/// Times a bundle and checks it, so that no figure stands without saying whether it was right.
/// README.md describes the keys.
/// @throws Failure the bundle, the image or the model is bad.
nlohmann::ordered_json bench(const Bundle& bundle, const BenchOptions& options);

}  // namespace tinyvit
