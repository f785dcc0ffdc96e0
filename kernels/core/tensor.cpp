#include "kernels/core/tensor.h"

#include <cstdlib>
#include <cstring>

namespace ptq {

int64_t element_count(const Shape& shape) {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return count;
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

Tensor Tensor::empty(Shape shape, DType dtype, Device device) {
  require(device == Device::kCpu, "this build has no memory on that device");
  Tensor tensor;
  tensor.shape_ = std::move(shape);
  tensor.dtype_ = dtype;
  tensor.device_ = device;
  const auto bytes = static_cast<size_t>(tensor.bytes());
  const size_t padded = (bytes + 127) / 64 * 64;  // a tail that vector loads may touch
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(64, padded));
  if (!memory)
    throw system_error("out of memory: cannot allocate " + std::to_string(bytes) + " bytes", "", "lower memory.host or use more ranks");
  tensor.owner_ = std::shared_ptr<std::byte>(memory, [](std::byte* p) { std::free(p); });
  tensor.data_ = memory;
  return tensor;
}

Tensor Tensor::zeros(Shape shape, DType dtype) {
  Tensor tensor = empty(std::move(shape), dtype);
  std::memset(tensor.data_, 0, static_cast<size_t>(tensor.bytes()));
  return tensor;
}

int64_t Tensor::row_bytes() const {
  int64_t bytes = dtype_bytes(dtype_);
  for (size_t axis = 1; axis < shape_.size(); ++axis) bytes *= shape_[axis];
  return bytes;
}

Tensor Tensor::rows(int64_t begin, int64_t end) const {
  require(!shape_.empty() && 0 <= begin && begin <= end && end <= shape_[0], "rows outside the tensor");
  Tensor view = *this;
  view.data_ = data_ + begin * row_bytes();
  view.shape_[0] = end - begin;
  return view;
}

Tensor Tensor::reshaped(Shape shape) const {
  require(element_count(shape) == numel(), "reshape changes the number of elements");
  Tensor view = *this;
  view.shape_ = std::move(shape);
  return view;
}

Tensor Tensor::as(Shape shape, DType dtype) const {
  Tensor view = *this;
  view.shape_ = std::move(shape);
  view.dtype_ = dtype;
  require(view.bytes() <= bytes(), "scratch too small");
  return view;
}

}  // namespace ptq
