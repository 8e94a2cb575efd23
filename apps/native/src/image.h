#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "contract.h"

namespace tinyvit {

/// Decodes a JPEG or PNG file to upright RGB (steps 1 to 3 of the contract).
/// @throws Failure the file is missing, empty, damaged, of another format, or larger than
///     `kMaxPixels`; or the program was built without decoders.
Pixels decode(const std::filesystem::path& path);

/// The bytes of a file.
/// @throws Failure it cannot be read.
std::vector<std::uint8_t> read_file(const std::filesystem::path& path);

// One decoder a format: pixels as they are stored, before orientation.
// @throws std::runtime_error what is wrong with the content, without the file's name.
Pixels decode_jpeg(const std::vector<std::uint8_t>& file);
Pixels decode_png(const std::vector<std::uint8_t>& file);

/// Checks what a header says, before memory is taken for it.
/// @throws std::runtime_error the image is empty or larger than `kMaxPixels`.
void check_dimensions(std::uint32_t width, std::uint32_t height);

}  // namespace tinyvit
