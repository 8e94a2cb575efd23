#include "image.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <string_view>

#include "failure.h"
#include "orientation.h"

namespace tinyvit {
namespace {

using Decoder = Pixels (*)(const std::vector<std::uint8_t>&);

struct Format {
  std::string_view signature;
  Decoder decoder;
};

#ifdef TINYVIT_DECODERS
constexpr Format kFormats[] = {{"\xFF\xD8\xFF", decode_jpeg}, {"\x89PNG\r\n\x1A\n", decode_png}};
#endif

Decoder decoder_of(const std::vector<std::uint8_t>& file, const std::string& name) {
#ifdef TINYVIT_DECODERS
  const std::string_view bytes(reinterpret_cast<const char*>(file.data()), file.size());
  for (const Format& format : kFormats) {
    if (bytes.substr(0, format.signature.size()) == format.signature) return format.decoder;
  }
  throw Failure(name + ": neither JPEG nor PNG; convert it to one of them");
#else
  static_cast<void>(file);
  throw Failure(name + ": this program was built without decoders; build it with "
                       "-DTINYVIT_DECODERS=ON",
                Exit::unsupported);
#endif
}

}  // namespace

std::vector<std::uint8_t> read_file(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  std::error_code ignored;
  if (!stream || std::filesystem::is_directory(path, ignored)) {
    throw Failure(path.string() + ": cannot be read; check the path");
  }
  return {std::istreambuf_iterator<char>(stream), {}};
}

Pixels decode(const std::filesystem::path& path) {
  const auto file = read_file(path);
  if (file.empty()) {
    throw Failure(path.string() + ": the image is empty (0 bytes); remove or replace it");
  }
  const Decoder decoder = decoder_of(file, path.string());
  try {
    return orient(decoder(file), orientation_of(file));
  } catch (const std::runtime_error& error) {
    throw Failure(path.string() + ": the image cannot be decoded (" + error.what() +
                  "); replace or remove it");
  }
}

void check_dimensions(std::uint32_t width, std::uint32_t height) {
  const std::int64_t pixels = std::int64_t{width} * height;
  if (pixels == 0) throw std::runtime_error("it has no pixels");
  if (pixels > kMaxPixels) {
    throw std::runtime_error("more than " + std::to_string(kMaxPixels) +
                             " pixels, taken for a decompression bomb");
  }
}

}  // namespace tinyvit
