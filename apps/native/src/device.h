#pragma once

#include <string>

namespace tinyvit {

/// What figures were taken on.
struct Device {
  std::string kind;     // "physical" (a phone), "emulated", or "host"
  std::string cpu;      // its name, or the machine's where it has none
  std::string os;       // name and release
  std::string machine;  // such as x86_64, aarch64
  int logical_cores;
};

/// The device that this program runs on.
Device this_device();

}  // namespace tinyvit
