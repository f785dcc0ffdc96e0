#pragma once
// Calls of HDF5's serial library for one file of statistics: owned handles, failures as Errors, and the seal such a file begins with.
// Callers hold hdf_mutex().

#include <mutex>
#include <string>

#include "checkpoint/hdf5_handle.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

/// HDF5 leaves the first bytes of a file to its user if asked: a power of two, 512 at least. They hold a digest of all that follows,
/// because the library crashes on some damaged files: what has not the digest it was written with never reaches it.
constexpr size_t kSealBytes = 512;
/// What the first bytes of a sound file are.
std::string seal_of(const std::string& path);

/// HDF5's serial library has global state, and the writer thread may save while the main thread reads.
std::mutex& hdf_mutex();

/// Calls HDF5 for one file and turns what fails into Errors of one kind.
class Hdf {
 public:
  Hdf(const std::string& path, ErrorKind kind) : path_(path), kind_(kind) { H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr); }

  template <class Handle>
  Handle own(hid_t handle, const char* call) const {
    check(handle >= 0, call);
    return Handle(handle);
  }
  void check(bool succeeded, const std::string& call) const {
    if (!succeeded) fail(call + ": " + hdf_words());
  }
  [[noreturn]] void fail(const std::string& words) const {
    if (kind_ == ErrorKind::kData) throw data_error("not a sound statistics file: " + words, path_, "remove it and calibrate again");
    throw system_error(words, path_);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  ErrorKind kind_;
};

/// HDF5's own lock fails on network file systems without locks; a file that appears by rename needs none.
HdfProperties access_without_locks(const Hdf& hdf);
HdfType text_type(const Hdf& hdf);

/// The numbers of a list, as they are stored and in memory.
inline hid_t stored_type(float) { return H5T_IEEE_F32LE; }
inline hid_t stored_type(double) { return H5T_IEEE_F64LE; }
inline hid_t stored_type(int64_t) { return H5T_STD_I64LE; }
inline hid_t native_type(float) { return H5T_NATIVE_FLOAT; }
inline hid_t native_type(double) { return H5T_NATIVE_DOUBLE; }
inline hid_t native_type(int64_t) { return H5T_NATIVE_INT64; }

}  // namespace ptq::checkpoint
