#include "checkpoint/stats_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <mutex>
#include <set>

#include "checkpoint/file_descriptor.h"
#include "checkpoint/hdf5_handle.h"
#include "checkpoint/sha256.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {
/// HDF5 leaves the first bytes of a file to its user if asked: a power of two, 512 at least. They hold a digest of all that follows,
/// because the library crashes on some damaged files: what has not the digest it was written with never reaches it.
constexpr size_t kSealBytes = 512;

/// HDF5's serial library has global state, and the writer thread may save while the main thread reads.
std::mutex& hdf_mutex() {
  static std::mutex mutex;
  return mutex;
}

/// What the first bytes of a sound file are.
std::string seal_of(const std::string& path) {
  std::string seal = "ptq-runner statistics in HDF5; SHA-256 of everything from byte 512 on: ";
  seal.append(sha256_from(path, kSealBytes)).append("\n");
  seal.resize(kSealBytes, '\0');
  return seal;
}

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

/// Properties that keep the time of day out of the file, so that equal statistics are equal bytes.
HdfProperties timeless(const Hdf& hdf, hid_t kind) {
  auto properties = hdf.own<HdfProperties>(H5Pcreate(kind), "H5Pcreate");
  hdf.check(H5Pset_obj_track_times(properties.get(), false) >= 0, "H5Pset_obj_track_times");
  return properties;
}

void check_name(const std::string& name) {
  require(!name.empty() && name.find('\0') == std::string::npos, "the name of a statistic is empty or has a NUL");
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('/', begin), name.size());
    const std::string part = name.substr(begin, end - begin);
    require(!part.empty() && part != ".", "the name of a statistic has a part that is empty or '.'");
    begin = end + 1;
  }
}

void write_content(const Hdf& hdf, hid_t file, const Stats& stats) {
  const auto group_properties = timeless(hdf, H5P_GROUP_CREATE);
  const auto array_properties = timeless(hdf, H5P_DATASET_CREATE);
  std::set<std::string> groups;
  for (const auto& [name, values] : stats.arrays) {
    check_name(name);
    for (size_t slash = name.find('/'); slash != std::string::npos; slash = name.find('/', slash + 1)) {
      const std::string group = name.substr(0, slash);
      if (!groups.insert(group).second) continue;
      hdf.own<HdfGroup>(H5Gcreate2(file, group.c_str(), H5P_DEFAULT, group_properties.get(), H5P_DEFAULT), "H5Gcreate2");
    }
    const hsize_t extent = values.size();
    const auto space = hdf.own<HdfSpace>(H5Screate_simple(1, &extent, nullptr), "H5Screate_simple");
    const auto array = hdf.own<HdfDataset>(
        H5Dcreate2(file, name.c_str(), H5T_IEEE_F32LE, space.get(), H5P_DEFAULT, array_properties.get(), H5P_DEFAULT), "H5Dcreate2");
    if (extent == 0) continue;
    hdf.check(H5Dwrite(array.get(), H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) >= 0, "H5Dwrite");
  }

  const auto type = text_type(hdf);
  const auto scalar = hdf.own<HdfSpace>(H5Screate(H5S_SCALAR), "H5Screate");
  const auto put = [&](const std::string& name, const std::string& text) {
    require(!name.empty() && (name + text).find('\0') == std::string::npos, "an attribute of statistics has no name, or a NUL");
    const auto attribute =
        hdf.own<HdfAttribute>(H5Acreate2(file, name.c_str(), type.get(), scalar.get(), H5P_DEFAULT, H5P_DEFAULT), "H5Acreate2");
    const char* words = text.c_str();
    hdf.check(H5Awrite(attribute.get(), type.get(), &words) >= 0, "H5Awrite");
  };
  for (const auto& [name, text] : stats.attributes) put(name, text);
}

/// Collects the names of all links below the root, or of all attributes. Nothing may be thrown through HDF5's frames.
herr_t collect_link(hid_t, const char* name, const H5L_info_t*, void* out) noexcept {
  static_cast<std::vector<std::string>*>(out)->emplace_back(name);
  return 0;
}
herr_t collect_attribute(hid_t, const char* name, const H5A_info_t*, void* out) noexcept {
  static_cast<std::vector<std::string>*>(out)->emplace_back(name);
  return 0;
}

std::vector<float> read_array(const Hdf& hdf, hid_t array, const std::string& name, int64_t file_bytes) {
  const auto type = hdf.own<HdfType>(H5Dget_type(array), "H5Dget_type");
  const auto space = hdf.own<HdfSpace>(H5Dget_space(array), "H5Dget_space");
  if (H5Tequal(type.get(), H5T_IEEE_F32LE) <= 0 || H5Sget_simple_extent_ndims(space.get()) != 1)
    hdf.fail("'" + name + "' is not a list of 32-bit floats");
  hsize_t extent = 0;
  hdf.check(H5Sget_simple_extent_dims(space.get(), &extent, nullptr) == 1, "H5Sget_simple_extent_dims");
  // Before allocating: a damaged extent asks for any amount. Our arrays are stored plainly, so the file is never smaller than they are.
  if (extent > static_cast<hsize_t>(file_bytes) / sizeof(float)) hdf.fail("'" + name + "' has more values than the file has room for");
  std::vector<float> values(extent);
  if (extent == 0) return values;
  hdf.check(H5Dread(array, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) >= 0, "H5Dread of '" + name + "'");
  return values;
}

std::string read_attribute(const Hdf& hdf, hid_t file, const std::string& name) {
  const auto attribute = hdf.own<HdfAttribute>(H5Aopen(file, name.c_str(), H5P_DEFAULT), "H5Aopen");
  const auto stored = hdf.own<HdfType>(H5Aget_type(attribute.get()), "H5Aget_type");
  const auto space = hdf.own<HdfSpace>(H5Aget_space(attribute.get()), "H5Aget_space");
  if (H5Tis_variable_str(stored.get()) <= 0 || H5Sget_simple_extent_npoints(space.get()) != 1)
    hdf.fail("attribute '" + name + "' is not a text");
  const auto type = text_type(hdf);
  char* words = nullptr;
  hdf.check(H5Aread(attribute.get(), type.get(), &words) >= 0, "H5Aread of '" + name + "'");
  const std::string text = words ? words : "";
  H5free_memory(words);
  return text;
}
}  // namespace

void write_stats(const std::string& path, const Stats& stats) {
  const std::lock_guard lock(hdf_mutex());
  const std::string temporary = path + ".tmp";
  {
    const Hdf hdf(temporary, ErrorKind::kSystem);
    const auto access = access_without_locks(hdf);
    const auto properties = timeless(hdf, H5P_FILE_CREATE);
    hdf.check(H5Pset_userblock(properties.get(), kSealBytes) >= 0, "H5Pset_userblock");
    auto file = hdf.own<HdfFile>(H5Fcreate(temporary.c_str(), H5F_ACC_TRUNC, properties.get(), access.get()), "H5Fcreate");
    write_content(hdf, file.get(), stats);
    // Closing writes what is still buffered: unlike an owner's quiet close, a failure here must be heard.
    hdf.check(H5Fflush(file.get(), H5F_SCOPE_GLOBAL) >= 0, "H5Fflush");
    hdf.check(H5Fclose(file.release()) >= 0, "H5Fclose");
  }
  const Fd fd = open_file(temporary, O_WRONLY);
  const std::string seal = seal_of(temporary);
  write_at(fd.get(), temporary, 0, seal.data(), kSealBytes);
  sync_file(fd.get(), temporary);
  if (::rename(temporary.c_str(), path.c_str()) != 0) throw errno_error("rename to " + path, temporary, errno);
  sync_folder(parent_folder(path));
}

Stats read_stats(const std::string& path) {
  const std::lock_guard lock(hdf_mutex());
  const Hdf hdf(path, ErrorKind::kData);
  const Fd fd = open_file(path, O_RDONLY | O_NONBLOCK);
  const int64_t file_bytes = regular_file_bytes(fd.get(), path);
  std::string seal(kSealBytes, '\0');
  if (read_at(fd.get(), path, 0, seal.data(), kSealBytes) != static_cast<int64_t>(kSealBytes) || seal != seal_of(path))
    hdf.fail("its content does not agree with the digest at its beginning");
  const auto access = access_without_locks(hdf);
  const auto file = hdf.own<HdfFile>(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), "H5Fopen");

  Stats stats;
  std::vector<std::string> links, attributes;
  hdf.check(H5Lvisit(file.get(), H5_INDEX_NAME, H5_ITER_INC, collect_link, &links) >= 0, "H5Lvisit");
  for (const std::string& name : links) {
    const auto object = hdf.own<HdfObject>(H5Oopen(file.get(), name.c_str(), H5P_DEFAULT), "H5Oopen");
    const H5I_type_t kind = H5Iget_type(object.get());
    if (kind == H5I_DATASET)
      stats.arrays[name] = read_array(hdf, object.get(), name, file_bytes);
    else if (kind != H5I_GROUP)
      hdf.fail("'" + name + "' is neither a group nor a list of numbers");
  }
  hsize_t next = 0;
  hdf.check(H5Aiterate2(file.get(), H5_INDEX_NAME, H5_ITER_INC, &next, collect_attribute, &attributes) >= 0, "H5Aiterate2");
  for (const std::string& name : attributes) stats.attributes[name] = read_attribute(hdf, file.get(), name);
  return stats;
}

}  // namespace ptq::checkpoint
