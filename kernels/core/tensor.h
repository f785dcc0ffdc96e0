#pragma once
// A contiguous row-major array with a shape, a dtype and a device. Copies share the memory; rows() and reshaped() are views.

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/dtype.h"
#include "kernels/core/error.h"

namespace ptq {

enum class Device : uint8_t { kCpu, kCuda };

using Shape = std::vector<int64_t>;

/// Product of the dimensions; 1 for a scalar's empty shape.
int64_t element_count(const Shape& shape);
/// "[3, 4]", for messages.
std::string to_string(const Shape& shape);

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::kF32;
};
template <>
struct DTypeOf<BF16> {
  static constexpr DType value = DType::kBF16;
};
template <>
struct DTypeOf<F16> {
  static constexpr DType value = DType::kF16;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::kI32;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::kI64;
};

class Tensor {
 public:
  Tensor() = default;

  /// Uninitialised memory, 64-byte aligned. Throws a system Error when there is none left.
  static Tensor empty(Shape shape, DType dtype, Device device = Device::kCpu);
  static Tensor zeros(Shape shape, DType dtype);

  bool defined() const { return data_ != nullptr; }
  const Shape& shape() const { return shape_; }
  int64_t dim(int axis) const { return shape_[static_cast<size_t>(axis < 0 ? axis + static_cast<int>(shape_.size()) : axis)]; }
  int rank() const { return static_cast<int>(shape_.size()); }
  int64_t numel() const { return element_count(shape_); }
  int64_t bytes() const { return numel() * dtype_bytes(dtype_); }
  /// Bytes of one step along dimension 0, also where there is none.
  int64_t row_bytes() const;
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }

  std::byte* raw() const { return data_; }
  /// The elements. Throws a bug when T is not the dtype (uint8_t reads every one-byte dtype).
  template <class T>
  T* data() const {
    if constexpr (sizeof(T) == 1)
      require(dtype_bytes(dtype_) == 1, "tensor read as a one-byte type it is not");
    else
      require(dtype_ == DTypeOf<T>::value, "tensor read as a dtype it is not");
    return reinterpret_cast<T*>(data_);
  }

  /// View of rows [begin, end) of dimension 0.
  Tensor rows(int64_t begin, int64_t end) const;
  /// View of the same elements under another shape.
  Tensor reshaped(Shape shape) const;
  /// View of the first elements of the memory under another shape and dtype that need no more bytes: for reusing scratch.
  Tensor as(Shape shape, DType dtype) const;

 private:
  std::shared_ptr<std::byte> owner_;
  std::byte* data_ = nullptr;
  Shape shape_;
  DType dtype_ = DType::kF32;
  Device device_ = Device::kCpu;
};

}  // namespace ptq
