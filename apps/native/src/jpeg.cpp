#include <cstdio>  // jpeglib.h needs it before itself

#include <jerror.h>
#include <jpeglib.h>

#include <csetjmp>
#include <memory>
#include <stdexcept>

#include "image.h"

namespace tinyvit {
namespace {

/// libjpeg's error manager with a way out: exceptions may not cross its C frames.
struct Errors {
  jpeg_error_mgr base;  // first, so that a pointer to it is one to all of this
  std::jmp_buf out;
  char message[JMSG_LENGTH_MAX];
};

[[noreturn]] void leave(j_common_ptr info) {
  auto* errors = reinterpret_cast<Errors*>(info->err);
  info->err->format_message(info, errors->message);
  std::longjmp(errors->out, 1);
}

void warn(j_common_ptr info, int level) {
  // libjpeg goes on with grey where a file ends too early; Pillow refuses, and so does this.
  if (level < 0 && info->err->msg_code == JWRN_JPEG_EOF) leave(info);
}

/// Appends a row of grey, RGB or CMYK as RGB.
void append(const std::vector<std::uint8_t>& row, int components, std::vector<std::uint8_t>& rgb) {
  if (components == 1) {
    for (std::uint8_t value : row) rgb.insert(rgb.end(), 3, value);
  } else if (components == 3) {
    rgb.insert(rgb.end(), row.begin(), row.end());
  } else {
    // Adobe's CMYK is stored inverted: (255 - C) * (255 - K) / 255, rounded
    for (std::size_t i = 0; i < row.size(); i += 4) {
      for (std::size_t c = 0; c < 3; ++c) {
        rgb.push_back(static_cast<std::uint8_t>((row[i + c] * row[i + 3] + 127) / 255));
      }
    }
  }
}

/// Decodes into `out`, with room for a row in `row`. Both are the caller's: what a longjmp crosses
/// here has no destructor, and nothing that changes after setjmp is local.
/// @throws std::runtime_error what libjpeg or `check_dimensions` says; `info` is the caller's, too.
void read_image(jpeg_decompress_struct& info, Errors& errors, const std::vector<std::uint8_t>& file,
                std::vector<std::uint8_t>& row, Pixels& out) {
  if (setjmp(errors.out) != 0) throw std::runtime_error(errors.message);
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, file.data(), file.size());
  jpeg_read_header(&info, TRUE);
  if (info.num_components == 4) info.out_color_space = JCS_CMYK;
  check_dimensions(info.image_width, info.image_height);
  jpeg_start_decompress(&info);
  out.width = static_cast<int>(info.output_width);
  out.height = static_cast<int>(info.output_height);
  row.resize(std::size_t{info.output_width} * static_cast<unsigned>(info.output_components));
  out.rgb.reserve(std::size_t{3} * info.output_width * info.output_height);
  while (info.output_scanline < info.output_height) {
    JSAMPROW line = row.data();
    jpeg_read_scanlines(&info, &line, 1);
    append(row, info.output_components, out.rgb);
  }
  jpeg_finish_decompress(&info);
}

}  // namespace

Pixels decode_jpeg(const std::vector<std::uint8_t>& file) {
  jpeg_decompress_struct info{};
  Errors errors{};
  info.err = jpeg_std_error(&errors.base);
  errors.base.error_exit = leave;
  errors.base.emit_message = warn;
  const std::unique_ptr<jpeg_decompress_struct, void (*)(jpeg_decompress_struct*)> destroyed(
      &info, [](jpeg_decompress_struct* held) { jpeg_destroy_decompress(held); });
  Pixels out;
  std::vector<std::uint8_t> row;
  read_image(info, errors, file, row, out);
  return out;
}

}  // namespace tinyvit
