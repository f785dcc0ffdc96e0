#pragma once
// Memory of a thread that is kept from call to call. Owned as a thread_local by the function that uses it.

#include "kernels/core/tensor.h"

namespace ptq::kernels::cpu {

class Scratch {
 public:
  /// Room for `count` floats, 64-byte aligned, contents undefined; valid until the next call.
  float* floats(int64_t count) {
    if (!memory_.defined() || memory_.numel() < count) memory_ = Tensor::empty({count}, DType::kF32);
    return memory_.data<float>();
  }
  /// All of the room, for views of other shapes and dtypes.
  const Tensor& tensor() const { return memory_; }

 private:
  Tensor memory_;
};

}  // namespace ptq::kernels::cpu
