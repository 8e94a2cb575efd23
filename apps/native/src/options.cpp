#include "options.h"

#include <charconv>
#include <string_view>

#include "failure.h"

namespace tinyvit {

const char* const kUsage =
    R"(usage: tinyvit-classify [--json] [--top K] [--threads N] BUNDLE IMAGE...
       tinyvit-classify --check [--json] [--threads N] BUNDLE
       tinyvit-classify --bench [--runs N] [--warmup N] [--threads N] BUNDLE [IMAGE]

Classifies JPEG and PNG files with a bundle of the target executorch.

  --check      take the bundle's golden vectors through this program and judge what comes out
  --bench      load, preprocessing and inference times, as JSON
  --json       results as JSON
  --top K      classes an image (5)
  --threads N  threads of the runtime; its own choice if absent
  --runs N     timed runs of --bench (50)
  --warmup N   runs before those, the first of which is reported apart (5)

Exit codes: 0 ok, 1 a check failed, 2 usage or bad input, 3 built without image decoders.
)";

namespace {

constexpr int kMost = 1'000'000;
constexpr const char* kHelp = "; see tinyvit-classify --help";

/// An option with a number, and where it goes.
struct Counted {
  std::string_view name;
  int* value;
};

int positive(std::string_view name, const char* text) {
  int value = 0;
  const std::string_view digits = text == nullptr ? "" : text;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end != digits.data() + digits.size() || value < 1 || value > kMost) {
    throw Failure(std::string(name) + " is '" + std::string(digits) +
                  "'; give a number from 1 to " + std::to_string(kMost));
  }
  return value;
}

void check_images(const Options& options, std::size_t positionals) {
  if (positionals == 0) throw Failure(std::string("no bundle was given") + kHelp);
  const std::size_t images = options.images.size();
  const bool fits = options.action == Options::Action::classify ? images > 0
                    : options.action == Options::Action::check  ? images == 0
                                                                : images <= 1;
  if (!fits) {
    throw Failure(std::to_string(images) + " images were given, which does not fit" + kHelp);
  }
}

}  // namespace

Options parse_options(int count, char** arguments) {
  Options options;
  const Counted counted[] = {{"--top", &options.top},
                             {"--threads", &options.bench.threads},
                             {"--runs", &options.bench.runs},
                             {"--warmup", &options.bench.warmup}};
  std::vector<std::filesystem::path> positionals;
  for (int i = 1; i < count; ++i) {
    const std::string_view argument = arguments[i];
    bool known = argument.substr(0, 2) != "--";
    if (known) positionals.emplace_back(argument);
    for (const auto& [name, value] : counted) {
      if (argument != name) continue;
      *value = positive(name, ++i < count ? arguments[i] : nullptr);
      known = true;
    }
    if (argument == "--help") return {Options::Action::help, false, 0, {}, {}, {}};
    if (argument == "--check") options.action = Options::Action::check, known = true;
    if (argument == "--bench") options.action = Options::Action::bench, known = true;
    if (argument == "--json") options.json = known = true;
    if (!known) throw Failure("unknown option " + std::string(argument) + kHelp);
  }
  if (!positionals.empty()) {
    options.bundle = positionals.front();
    options.images.assign(positionals.begin() + 1, positionals.end());
  }
  check_images(options, positionals.size());
  if (!options.images.empty()) options.bench.image = options.images.front();
  return options;
}

}  // namespace tinyvit
