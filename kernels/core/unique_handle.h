#pragma once
// A move-only owner of a C handle (file descriptor, MPI_Comm, hid_t): Traits say what is empty and how it is closed.

#include <utility>

namespace ptq {

/// Traits: `using type`, `static type empty()`, `static void close(type)`; close reports trouble itself and never throws.
template <class Traits>
class UniqueHandle {
 public:
  using Type = typename Traits::type;

  UniqueHandle() : handle_(Traits::empty()) {}
  explicit UniqueHandle(Type handle) : handle_(handle) {}
  UniqueHandle(UniqueHandle&& other) noexcept : handle_(std::exchange(other.handle_, Traits::empty())) {}
  UniqueHandle& operator=(UniqueHandle&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  UniqueHandle(const UniqueHandle&) = delete;
  UniqueHandle& operator=(const UniqueHandle&) = delete;
  ~UniqueHandle() { reset(); }

  Type get() const { return handle_; }
  explicit operator bool() const { return handle_ != Traits::empty(); }
  Type release() { return std::exchange(handle_, Traits::empty()); }
  void reset() {
    if (handle_ != Traits::empty()) Traits::close(std::exchange(handle_, Traits::empty()));
  }

 private:
  Type handle_;
};

}  // namespace ptq
