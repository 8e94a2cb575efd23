#include <png.h>

#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "image.h"

namespace tinyvit {
namespace {

/// Where the next bytes come from, and what went wrong.
struct Reader {
  const std::vector<std::uint8_t>& file;
  std::size_t at = 0;
  char message[128] = "";
};

void read(png_structp png, png_bytep to, std::size_t count) {
  auto* reader = static_cast<Reader*>(png_get_io_ptr(png));
  if (reader->file.size() - reader->at < count) png_error(png, "it is truncated");
  std::memcpy(to, reader->file.data() + reader->at, count);
  reader->at += count;
}

[[noreturn]] void leave(png_structp png, png_const_charp message) {
  auto* reader = static_cast<Reader*>(png_get_error_ptr(png));
  std::snprintf(reader->message, sizeof reader->message, "%s", message);
  png_longjmp(png, 1);
}

void ignore(png_structp, png_const_charp) {}

/// Asks libpng for 8-bit RGB as the contract has it: the high byte of 16, alpha dropped.
void ask_for_rgb(png_structp png, png_infop info) {
  const int colour = png_get_color_type(png, info);
  if (colour == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(png);
  if (colour == PNG_COLOR_TYPE_GRAY) png_set_expand_gray_1_2_4_to_8(png);
  if ((colour & PNG_COLOR_MASK_COLOR) == 0) png_set_gray_to_rgb(png);
  png_set_strip_16(png);
  png_set_strip_alpha(png);
  png_set_interlace_handling(png);
  png_read_update_info(png, info);
}

/// libpng's two structures, released together.
struct Handle {
  png_structp png = nullptr;
  png_infop info = nullptr;

  explicit Handle(Reader& reader)
      : png(png_create_read_struct(PNG_LIBPNG_VER_STRING, &reader, leave, ignore)),
        info(png == nullptr ? nullptr : png_create_info_struct(png)) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() { png_destroy_read_struct(&png, &info, nullptr); }
};

/// Decodes into `out`, with `rows` as pointers into it. All are the caller's: what a longjmp
/// crosses here has no destructor, and nothing that changes after setjmp is local.
/// @throws std::runtime_error what libpng or `check_dimensions` says.
void read_image(const Handle& handle, Reader& reader, std::vector<png_bytep>& rows, Pixels& out) {
  if (setjmp(png_jmpbuf(handle.png)) != 0) throw std::runtime_error(reader.message);
  png_set_read_fn(handle.png, &reader, read);
  png_read_info(handle.png, handle.info);
  check_dimensions(png_get_image_width(handle.png, handle.info),
                   png_get_image_height(handle.png, handle.info));
  out.width = static_cast<int>(png_get_image_width(handle.png, handle.info));
  out.height = static_cast<int>(png_get_image_height(handle.png, handle.info));
  ask_for_rgb(handle.png, handle.info);
  const std::size_t stride = std::size_t{3} * static_cast<unsigned>(out.width);
  out.rgb.resize(stride * static_cast<unsigned>(out.height));
  for (std::size_t at = 0; at < out.rgb.size(); at += stride) rows.push_back(&out.rgb[at]);
  png_read_image(handle.png, rows.data());
}

}  // namespace

Pixels decode_png(const std::vector<std::uint8_t>& file) {
  Reader reader{file};
  const Handle handle(reader);
  if (handle.info == nullptr) throw std::runtime_error("libpng cannot be set up");
  Pixels out;
  std::vector<png_bytep> rows;
  read_image(handle, reader, rows, out);
  return out;
}

}  // namespace tinyvit
