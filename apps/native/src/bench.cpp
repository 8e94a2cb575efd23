#include "bench.h"

#include <algorithm>
#include <chrono>

#include "check.h"
#include "device.h"
#include "image.h"
#include "sha256.h"
#include "statistics.h"

namespace tinyvit {
namespace {

using json = nlohmann::ordered_json;

template <typename Work>
double milliseconds(const Work& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
      .count();
}

/// The first call, and what later ones take once caches are warm.
template <typename Work>
json timed(const Work& work, const BenchOptions& options) {
  const double first = milliseconds(work);
  for (int i = 1; i < options.warmup; ++i) work();  // the first was one
  std::vector<double> times;
  for (int i = 0; i < options.runs; ++i) times.push_back(milliseconds(work));
  return {{"first", first},
          {"median", quantile(times, 0.5)},
          {"p90", quantile(times, 0.9)},
          {"count", std::max(options.warmup, 1) + options.runs}};
}

json described(const Device& device) {
  return {{"kind", device.kind},
          {"cpu", device.cpu},
          {"os", device.os},
          {"machine", device.machine},
          {"logical_cores", device.logical_cores}};
}

json described(const Bundle& bundle) {
  return {{"name", bundle.name()},
          {"target", "executorch"},
          {"precision", bundle.precision},
          {"image_size", bundle.contract.size},
          {"artifact_sha256", sha256(read_file(bundle.artifact))},
          {"artifact_bytes", std::filesystem::file_size(bundle.artifact)}};
}

}  // namespace

json bench(const Bundle& bundle, const BenchOptions& options) {
  const auto goldens = read_goldens(bundle);
  std::optional<Model> model;
  const double load = milliseconds([&] { model.emplace(bundle, options.threads); });
  std::vector<float> tensor;
  const json preprocess = timed(
      [&] {
        const Pixels pixels = options.image ? decode(*options.image) : goldens[0].decoded;
        tensor = normalise(resize(pixels, bundle.contract), bundle.contract);
      },
      options);
  const json inference = timed([&] { model->run(tensor); }, options);
  return {{"schema_version", 1},
          {"app", {{"name", "tinyvit-classify"}, {"version", TINYVIT_VERSION}}},
          {"device", described(this_device())},
          {"bundle", described(bundle)},
          {"backend", "executorch"},
          {"threads", Model::threads()},
          {"image", options.image ? options.image->filename().string() : goldens[0].name},
          {"decodes", options.image.has_value()},
          {"latency_ms", {{"load", load}, {"preprocess", preprocess}, {"inference", inference}}},
          {"parity", to_parity(check(bundle, goldens, *model))}};
}

}  // namespace tinyvit
