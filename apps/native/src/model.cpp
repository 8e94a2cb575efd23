#include "model.h"

#include <executorch/extension/tensor/tensor_ptr.h>
#include <executorch/runtime/platform/platform.h>

#include <algorithm>
#include <cmath>

#include "failure.h"

#if __has_include(<executorch/extension/threadpool/threadpool.h>)
#include <executorch/extension/threadpool/threadpool.h>
#else
// The wheel has the library and not this header. The two members that are called here, as
// ExecuTorch 1.5 declares them; neither is virtual, so what else the class holds does not matter.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool
#endif

namespace tinyvit {
namespace {

using executorch::aten::ScalarType;
using executorch::extension::Module;
using executorch::extension::threadpool::get_threadpool;
using executorch::runtime::Error;

std::string last_complaint;  // what the runtime logged last, for the one line of a failure

void remember(et_timestamp_t, et_pal_log_level_t level, const char*, const char*, size_t,
              const char* message, size_t length) {
  if (level == kError || level == kFatal) last_complaint.assign(message, length);
}

/// Keeps the runtime's log off the terminal: what a user has to know is in the exception.
void keep_log() {
  static const bool registered =
      executorch::runtime::register_pal(executorch::runtime::PalImpl::create(remember, __FILE__));
  static_cast<void>(registered);
}

[[noreturn]] void fail(const std::string& name, Error error, const char* remedy) {
  const std::string why = last_complaint.empty() ? "" : ": " + last_complaint;
  throw Failure(name + ": ExecuTorch says " + to_string(error) + why + "; " + remedy);
}

/// Whether a tensor of the program is float32 of this shape.
template <typename Info>
bool is_float(const Info& info, const std::vector<int>& shape) {
  return info.ok() && info->scalar_type() == ScalarType::Float &&
         std::equal(info->sizes().begin(), info->sizes().end(), shape.begin(), shape.end());
}

}  // namespace

Model::Model(const Bundle& bundle, int threads)
    : name_(bundle.artifact.string()), side_(bundle.contract.size) {
  keep_log();
  // Before loading, as the delegate keeps the pool that it is prepared with.
  if (threads > 0) get_threadpool()->_unsafe_reset_threadpool(static_cast<uint32_t>(threads));
  module_ = std::make_unique<Module>(name_, Module::LoadMode::Mmap);
  constexpr auto verification = executorch::runtime::Program::Verification::InternalConsistency;
  Error error = module_->load(verification);
  if (error == Error::Ok) error = module_->load_forward();
  if (error != Error::Ok) fail(name_, error, "export again, or use a precision that this CPU has");
  const auto meta = module_->method_meta("forward");
  const int classes = static_cast<int>(bundle.labels.size());
  if (!meta.ok() || meta->num_inputs() != 1 || meta->num_outputs() != 1 ||
      !is_float(meta->input_tensor_meta(0), {1, 3, side_, side_}) ||
      !is_float(meta->output_tensor_meta(0), {1, classes})) {
    throw Failure(name_ + ": its input and output are not those of the manifest; export again");
  }
}

std::vector<float> Model::run(std::vector<float>& tensor) {
  const auto input = executorch::extension::make_tensor_ptr({1, 3, side_, side_}, tensor.data());
  const auto outputs = module_->forward(input);
  if (!outputs.ok()) fail(name_, outputs.error(), "export again");
  const auto logits = outputs->at(0).toTensor();
  const float* values = logits.const_data_ptr<float>();
  std::vector<float> copied(values, values + logits.numel());  // (classes,)
  if (!std::all_of(copied.begin(), copied.end(), [](float x) { return std::isfinite(x); })) {
    throw Failure(name_ + ": logits are not finite; export again");
  }
  return copied;
}

int Model::threads() { return static_cast<int>(get_threadpool()->get_thread_count()); }

}  // namespace tinyvit
