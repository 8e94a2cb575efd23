#pragma once

#include <filesystem>
#include <vector>

#include "bench.h"

namespace tinyvit {

/// What the command line asks for.
struct Options {
  enum class Action { classify, check, bench, help };

  Action action = Action::classify;
  bool json = false;
  int top = 5;
  BenchOptions bench;
  std::filesystem::path bundle;
  std::vector<std::filesystem::path> images;
};

extern const char* const kUsage;

/// @throws Failure an unknown option, a value out of range, or arguments that do not go together.
Options parse_options(int count, char** arguments);

}  // namespace tinyvit
