// tinyvit-preprocess CONTRACT IMAGE...: for every image writes IMAGE.decoded, IMAGE.resized and
// IMAGE.tensor, raw arrays as in a bundle's golden folder, beside it. What fails is one line on
// standard error, and the next image is taken.

#include <cstdio>
#include <fstream>

#include "bundle.h"
#include "failure.h"
#include "image.h"

namespace {

template <typename Value>
void write(const std::string& path, const std::vector<Value>& values) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(values.data()),
             static_cast<std::streamsize>(values.size() * sizeof(Value)));
}

void preprocess(const std::string& image, const tinyvit::Contract& contract) {
  const tinyvit::Pixels decoded = tinyvit::decode(image);
  write(image + ".decoded", decoded.rgb);
  const tinyvit::Pixels resized = tinyvit::resize(decoded, contract);
  write(image + ".resized", resized.rgb);
  write(image + ".tensor", tinyvit::normalise(resized, contract));
}

}  // namespace

int main(int count, char** arguments) {
  int code = 0;
  for (int i = 2; i < count; ++i) {
    try {
      preprocess(arguments[i], tinyvit::read_contract(arguments[1]));
    } catch (const tinyvit::Failure& failure) {
      std::fprintf(stderr, "%s\n", failure.what());
      code = static_cast<int>(failure.code());
    }
  }
  return code;
}
