#pragma once

#include <executorch/extension/module/module.h>

#include <memory>
#include <vector>

#include "bundle.h"

namespace tinyvit {

/// A bundle's artifact in ExecuTorch's runtime.
class Model {
 public:
  /// Loads the artifact and prepares its method, so that `run` does nothing but infer.
  /// @param threads of the runtime's pool, which is the process's; 0 leaves the runtime's choice.
  /// @throws Failure the artifact is damaged, cannot run on this CPU, or is not the manifest's.
  Model(const Bundle& bundle, int threads);

  /// Runs one image.
  /// @param tensor float32 (3, S, S); the runtime takes it as mutable and does not change it.
  /// @return logits, (classes,), finite.
  /// @throws Failure the runtime fails, or a logit is not finite.
  std::vector<float> run(std::vector<float>& tensor);

  /// Threads of the runtime's pool.
  static int threads();

 private:
  std::string name_;
  int side_;
  std::unique_ptr<executorch::extension::Module> module_;
};

}  // namespace tinyvit
