#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tinyvit {

/// The SHA-256 digest (FIPS 180-4) of some bytes, in lower-case hexadecimal.
std::string sha256(std::vector<std::uint8_t> bytes);

}  // namespace tinyvit
