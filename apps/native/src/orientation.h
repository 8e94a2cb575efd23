#pragma once

#include <cstdint>
#include <vector>

namespace tinyvit {

/// The EXIF orientation (tag 0x0112) of a JPEG or PNG file, 1 to 8; 1 where the file has none or a
/// damaged one. As in Pillow, the tag in XMP counts where EXIF has none.
int orientation_of(const std::vector<std::uint8_t>& file);

}  // namespace tinyvit
