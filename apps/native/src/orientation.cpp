#include "orientation.h"

#include <optional>
#include <string>
#include <string_view>

namespace tinyvit {
namespace {

using Bytes = std::string_view;
using namespace std::string_view_literals;

/// What a file says of itself beside its pixels; empty where it says nothing.
struct Metadata {
  Bytes exif;  // from the TIFF header on
  Bytes xmp;
};

/// An unsigned integer of `count` bytes at `at`, or nothing if it lies outside.
std::optional<std::uint32_t> number(Bytes bytes, std::size_t at, int count, bool little) {
  if (at > bytes.size() || bytes.size() - at < static_cast<std::size_t>(count)) return {};
  std::uint32_t value = 0;
  for (int i = 0; i < count; ++i) {
    const auto byte = static_cast<std::uint8_t>(bytes[at + (little ? count - 1 - i : i)]);
    value = value << 8 | byte;
  }
  return value;
}

std::optional<int> orientation_in_exif(Bytes tiff) {
  constexpr std::uint32_t orientation_tag = 0x0112, short_type = 3;
  constexpr std::size_t entry_size = 12, value_at = 8;
  const bool little = tiff.substr(0, 4) == "II*\0"sv;
  if (!little && tiff.substr(0, 4) != "MM\0*"sv) return {};
  const auto directory = number(tiff, 4, 4, little);
  if (!directory) return {};
  const auto count = number(tiff, *directory, 2, little);
  for (std::uint32_t i = 0; count && i < *count; ++i) {
    const std::size_t entry = *directory + 2 + entry_size * i;
    if (number(tiff, entry, 2, little) != orientation_tag) continue;
    if (number(tiff, entry + 2, 2, little) != short_type) return {};
    const auto value = number(tiff, entry + value_at, 2, little);
    return value ? std::optional<int>(static_cast<int>(*value)) : std::nullopt;
  }
  return {};
}

std::optional<int> orientation_in_xmp(Bytes xmp) {
  // an attribute or an element
  for (Bytes key : {"tiff:Orientation=\""sv, "tiff:Orientation>"sv}) {
    const auto at = xmp.find(key);
    if (at == Bytes::npos || at + key.size() >= xmp.size()) continue;
    const char digit = xmp[at + key.size()];
    if (digit >= '0' && digit <= '9') return digit - '0';
  }
  return {};
}

/// `bytes` without `head`, or nothing where they do not begin with it.
Bytes after(Bytes bytes, Bytes head) {
  return bytes.substr(0, head.size()) == head ? bytes.substr(head.size()) : Bytes{};
}

Metadata of_jpeg(Bytes file) {
  constexpr std::uint32_t application_1 = 0xFFE1, scan = 0xFFDA;
  Metadata found;
  std::size_t at = 2;
  while (const auto marker = number(file, at, 2, false)) {
    if (*marker == 0xFFFF) {  // a marker may be preceded by fill bytes
      ++at;
      continue;
    }
    const auto length = number(file, at + 2, 2, false);
    if (*marker >> 8 != 0xFF || *marker == scan || !length || *length < 2) break;
    const Bytes content = file.substr(at + 4, *length - 2);
    if (*marker == application_1) {
      if (found.exif.empty()) found.exif = after(content, "Exif\0\0"sv);
      if (found.xmp.empty()) found.xmp = after(content, "http://ns.adobe.com/xap/1.0/\0"sv);
    }
    at += 2 + *length;
    if (at >= file.size()) break;
  }
  return found;
}

Metadata of_png(Bytes file) {
  constexpr std::size_t signature = 8, around = 12;  // length, type and checksum of a chunk
  Metadata found;
  std::size_t at = signature;
  while (const auto length = number(file, at, 4, false)) {
    if (at + around > file.size() || *length > file.size() - at - around) break;
    const Bytes type = file.substr(at + 4, 4), content = file.substr(at + 8, *length);
    if (type == "eXIf") found.exif = content;
    if (type == "iTXt" && !after(content, "XML:com.adobe.xmp\0\0"sv).empty()) found.xmp = content;
    at += around + *length;
  }
  return found;
}

}  // namespace

int orientation_of(const std::vector<std::uint8_t>& file) {
  const Bytes bytes(reinterpret_cast<const char*>(file.data()), file.size());
  const Metadata found = bytes.substr(0, 2) == "\xFF\xD8" ? of_jpeg(bytes) : of_png(bytes);
  auto orientation = orientation_in_exif(found.exif);
  if (!orientation) orientation = orientation_in_xmp(found.xmp);
  return orientation && *orientation >= 1 && *orientation <= 8 ? *orientation : 1;
}

}  // namespace tinyvit
