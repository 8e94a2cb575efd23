// tinyvit-classify: a bundle of tinyvit-edge on the command line of any device.

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>

#include "bench.h"
#include "check.h"
#include "failure.h"
#include "image.h"
#include "options.h"

namespace tinyvit {
namespace {

using json = nlohmann::ordered_json;

/// Escape sequences, empty where standard output is no terminal or the user wants none.
struct Colours {
  const char* red = "";
  const char* green = "";
  const char* off = "";
};

Colours colours() {
  if (isatty(STDOUT_FILENO) == 0 || std::getenv("NO_COLOR") != nullptr) return {};
  return {"\x1b[1;31m", "\x1b[32m", "\x1b[0m"};
}

/// File names and labels may hold any bytes, JSON only UTF-8.
std::string dumped(const json& value) {
  return value.dump(2, ' ', false, json::error_handler_t::replace);
}

Exit classify(const Options& options) {
  const Bundle bundle = read_bundle(options.bundle);
  Model model(bundle, options.bench.threads);
  json images = json::array();
  for (const auto& path : options.images) {
    std::vector<float> tensor = normalise(resize(decode(path), bundle.contract), bundle.contract);
    const auto logits = model.run(tensor);
    if (!options.json) std::printf("%s\n", path.c_str());
    json top = json::array();
    for (const auto& [index, probability] : top_k(softmax(logits), options.top)) {
      const std::string& label = bundle.labels[static_cast<std::size_t>(index)];
      if (!options.json) std::printf("  %6.2f %%  %s\n", 100.0 * probability, label.c_str());
      top.push_back({{"label", label}, {"index", index}, {"probability", probability}});
    }
    images.push_back({{"image", path.string()}, {"top", top}, {"logits", logits}});
  }
  if (options.json) {
    std::cout << dumped({{"bundle", bundle.name()}, {"images", images}}) << '\n';
  }
  return Exit::ok;
}

void print(const Checked& checked, const char* bundle) {
  const Colours colour = colours();
  for (const Gate& gate : checked.gates) {
    std::printf("%s%s  %s: %.6g, bound %s %.6g%s\n", gate.passed() ? colour.green : colour.red,
                gate.passed() ? "ok  " : "FAIL", gate.name.c_str(), gate.measured,
                gate.at_least ? ">=" : "<=", gate.bound, colour.off);
  }
  if (!checked.passed()) {
    std::printf("%s%s: this program and device do not give what the bundle records%s\n",
                colour.red, bundle, colour.off);
  }
}

Exit run_check(const Options& options) {
  const Bundle bundle = read_bundle(options.bundle);
  const auto goldens = read_goldens(bundle);
  Model model(bundle, options.bench.threads);
  const Checked checked = check(bundle, goldens, model);
  if (options.json) {
    std::cout << dumped(to_json(checked)) << '\n';
  } else {
    print(checked, options.bundle.c_str());
  }
  return checked.passed() ? Exit::ok : Exit::check_failed;
}

Exit run_bench(const Options& options) {
  const json report = bench(read_bundle(options.bundle), options.bench);
  std::cout << dumped(report) << '\n';
  return report["parity"]["passed"] ? Exit::ok : Exit::check_failed;
}

Exit act(const Options& options) {
  switch (options.action) {
    case Options::Action::classify:
      return classify(options);
    case Options::Action::check:
      return run_check(options);
    case Options::Action::bench:
      return run_bench(options);
    case Options::Action::help:
      break;
  }
  std::fputs(kUsage, stdout);
  return Exit::ok;
}

}  // namespace
}  // namespace tinyvit

int main(int count, char** arguments) {
  try {
    return static_cast<int>(tinyvit::act(tinyvit::parse_options(count, arguments)));
  } catch (const tinyvit::Failure& failure) {
    std::fprintf(stderr, "tinyvit-classify: %s\n", failure.what());
    return static_cast<int>(failure.code());
  } catch (const std::exception& error) {  // memory that is not there, a file that just went away
    std::fprintf(stderr, "tinyvit-classify: %s; close other programs and try again\n", error.what());
    return static_cast<int>(tinyvit::Exit::bad_input);
  }
}
