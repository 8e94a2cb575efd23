#include "device.h"

#include <sys/utsname.h>

#include <fstream>
#include <string_view>
#include <thread>

namespace tinyvit {
namespace {

/// The value of the first line of /proc/cpuinfo with this key, or nothing.
std::string from_cpuinfo(std::string_view key) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const auto colon = line.find(": ");
    if (line.compare(0, key.size(), key) == 0 && colon != std::string::npos) {
      return line.substr(colon + 2);
    }
  }
  return {};
}

/// Whether a user-mode emulator is between this program and another CPU: it answers for the
/// machine, and lets the kernel's own description of the CPU show through.
bool is_emulated() {
#if defined(__aarch64__)
  return !from_cpuinfo("vendor_id").empty();  // a line of x86 only
#else
  return false;
#endif
}

std::string kind() {
  if (is_emulated()) return "emulated";
#if defined(__ANDROID__)
  return "physical";
#else
  return "host";
#endif
}

}  // namespace

Device this_device() {
  utsname system{};
  uname(&system);
  const std::string model = from_cpuinfo("model name");
  return {kind(), model.empty() ? system.machine : model,
          std::string(system.sysname) + " " + system.release, system.machine,
          static_cast<int>(std::thread::hardware_concurrency())};
}

}  // namespace tinyvit
