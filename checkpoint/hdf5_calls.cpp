#include "checkpoint/hdf5_calls.h"

#include "checkpoint/sha256.h"

namespace ptq::checkpoint {

std::mutex& hdf_mutex() {
  static std::mutex mutex;
  return mutex;
}

std::string seal_of(const std::string& path) {
  std::string seal = "ptq-runner statistics in HDF5; SHA-256 of everything from byte 512 on: ";
  seal.append(sha256_from(path, kSealBytes)).append("\n");
  seal.resize(kSealBytes, '\0');
  return seal;
}

HdfProperties access_without_locks(const Hdf& hdf) {
  auto access = hdf.own<HdfProperties>(H5Pcreate(H5P_FILE_ACCESS), "H5Pcreate");
  hdf.check(H5Pset_file_locking(access.get(), false, true) >= 0, "H5Pset_file_locking");
  return access;
}

HdfType text_type(const Hdf& hdf) {
  auto type = hdf.own<HdfType>(H5Tcopy(H5T_C_S1), "H5Tcopy");
  hdf.check(H5Tset_size(type.get(), H5T_VARIABLE) >= 0 && H5Tset_cset(type.get(), H5T_CSET_UTF8) >= 0, "H5Tset_size");
  return type;
}

}  // namespace ptq::checkpoint
