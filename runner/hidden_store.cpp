#include "runner/hidden_store.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace ptq::runner {

namespace {

/// pread or pwrite of the whole range, whatever pieces the system does it in.
template <class Call, class Pointer>
void transfer(Call call, const char* name, const std::string& path, int fd, Pointer data, int64_t bytes, int64_t offset) {
  for (int64_t done = 0; done < bytes;) {
    const auto moved = call(fd, data + done, static_cast<size_t>(std::min<int64_t>(bytes - done, 1 << 30)), offset + done);
    if (moved < 0 && errno == EINTR) continue;
    if (moved < 0) throw errno_error(name, path, errno);
    if (moved == 0) throw system_error(std::string(name) + ": the spill file ended early", path);
    done += moved;
  }
}

}  // namespace

HiddenStore HiddenStore::open(std::vector<int64_t> rows, int64_t width, DType dtype, const std::string& spill_folder) {
  HiddenStore store;
  store.width_ = width;
  store.dtype_ = dtype;
  for (const int64_t count : rows) {
    store.offsets_.push_back(store.bytes_);
    store.bytes_ += count * width * dtype_bytes(dtype);
  }
  store.rows_ = std::move(rows);
  if (spill_folder.empty()) {
    for (const int64_t count : store.rows_) store.memory_.push_back(Tensor::empty({count, width}, dtype));
    return store;
  }
  std::string path = spill_folder + "/hidden.XXXXXX";
  store.file_ = checkpoint::Fd(::mkstemp(path.data()));
  if (!store.file_) throw errno_error("mkstemp", path, errno);
  ::unlink(path.c_str());  // gone with the process, however that ends
  store.path_ = path;
  const int full = ::posix_fallocate(store.file_.get(), 0, std::max<int64_t>(store.bytes_, 1));
  if (full == ENOSPC || full == EDQUOT) throw errno_error("posix_fallocate", path, full);
  return store;
}

Tensor HiddenStore::load(int64_t m, const Tensor& scratch) const {
  const auto i = static_cast<size_t>(m);
  if (!spilled()) return memory_[i];
  Tensor states = scratch.as({rows_[i], width_}, dtype_);
  transfer(::pread, "pread", path_, file_.get(), reinterpret_cast<char*>(states.raw()), states.bytes(), offsets_[i]);
  return states;
}

void HiddenStore::store(int64_t m, const Tensor& states) {
  const auto i = static_cast<size_t>(m);
  require(states.dtype() == dtype_ && states.numel() == rows_[i] * width_, "hidden states of another shape");
  if (spilled())
    transfer(::pwrite, "pwrite", path_, file_.get(), reinterpret_cast<const char*>(states.raw()), states.bytes(), offsets_[i]);
  else if (memory_[i].raw() != states.raw())
    std::memcpy(memory_[i].raw(), states.raw(), static_cast<size_t>(states.bytes()));
}

}  // namespace ptq::runner
