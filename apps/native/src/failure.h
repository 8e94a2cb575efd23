#pragma once

#include <stdexcept>
#include <string>

namespace tinyvit {

/// What the program ends with; the same numbers as the `tinyvit-edge` command.
enum class Exit { ok = 0, check_failed = 1, bad_input = 2, unsupported = 3 };

/// An error that the user can cause: one line that names the input, then the remedy.
class Failure : public std::runtime_error {
 public:
  explicit Failure(const std::string& message, Exit code = Exit::bad_input)
      : std::runtime_error(message), code_(code) {}

  Exit code() const { return code_; }

 private:
  Exit code_;
};

}  // namespace tinyvit
