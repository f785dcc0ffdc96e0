#pragma once
// Owned HDF5 handles, and failed HDF5 calls turned into text. HDF5's serial library is not thread-safe: callers hold a lock of theirs.

#include <hdf5.h>

#include <cstdio>
#include <string>
#include <utility>

#include "kernels/core/unique_handle.h"

namespace ptq::checkpoint {

/// One traits type per kind of handle, as each is closed by a call of its own.
template <herr_t (*Close)(hid_t)>
struct HdfTraits {
  using type = hid_t;
  static hid_t empty() { return H5I_INVALID_HID; }
  static void close(hid_t handle) {
    if (Close(handle) < 0) std::fprintf(stderr, "warning: an HDF5 handle could not be closed\n");
  }
};
using HdfFile = UniqueHandle<HdfTraits<H5Fclose>>;
using HdfGroup = UniqueHandle<HdfTraits<H5Gclose>>;
using HdfDataset = UniqueHandle<HdfTraits<H5Dclose>>;
using HdfSpace = UniqueHandle<HdfTraits<H5Sclose>>;
using HdfType = UniqueHandle<HdfTraits<H5Tclose>>;
using HdfAttribute = UniqueHandle<HdfTraits<H5Aclose>>;
using HdfProperties = UniqueHandle<HdfTraits<H5Pclose>>;
using HdfObject = UniqueHandle<HdfTraits<H5Oclose>>;

/// The words of the innermost failure of the last HDF5 call that failed, which are the ones that say what happened.
inline std::string hdf_words() {
  std::string words = "unknown HDF5 failure";
  const auto take = [](unsigned depth, const H5E_error2_t* error, void* out) -> herr_t {
    if (depth == 0 && error->desc) *static_cast<std::string*>(out) = error->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take, &words);
  return words;
}

}  // namespace ptq::checkpoint
