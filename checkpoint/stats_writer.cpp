#include "checkpoint/stats_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <set>

#include "checkpoint/file_descriptor.h"
#include "checkpoint/hdf5_calls.h"

namespace ptq::checkpoint {

namespace {

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

}  // namespace

struct StatsWriter::File {
  std::string path;
  Hdf hdf;
  HdfFile file;
  std::set<std::string> groups;

  /// The groups above a name.
  void make_groups(const std::string& name) {
    check_name(name);
    const auto properties = timeless(hdf, H5P_GROUP_CREATE);
    for (size_t slash = name.find('/'); slash != std::string::npos; slash = name.find('/', slash + 1)) {
      const std::string group = name.substr(0, slash);
      if (!groups.insert(group).second) continue;
      hdf.own<HdfGroup>(H5Gcreate2(file.get(), group.c_str(), H5P_DEFAULT, properties.get(), H5P_DEFAULT), "H5Gcreate2");
    }
  }
  template <class Number>
  void put(const std::string& name, std::span<const Number> values) {
    const std::lock_guard lock(hdf_mutex());
    make_groups(name);
    const auto properties = timeless(hdf, H5P_DATASET_CREATE);
    const hsize_t extent = values.size();
    const auto space = hdf.own<HdfSpace>(H5Screate_simple(1, &extent, nullptr), "H5Screate_simple");
    const auto array = hdf.own<HdfDataset>(
        H5Dcreate2(file.get(), name.c_str(), stored_type(Number()), space.get(), H5P_DEFAULT, properties.get(), H5P_DEFAULT), "H5Dcreate2");
    if (extent == 0) return;
    hdf.check(H5Dwrite(array.get(), native_type(Number()), H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) >= 0, "H5Dwrite");
  }
};

StatsWriter::StatsWriter(const std::string& path) {
  const std::lock_guard lock(hdf_mutex());
  const std::string temporary = path + ".tmp";
  file_ = std::make_unique<File>(File{path, Hdf(temporary, ErrorKind::kSystem), HdfFile(), {}});
  const Hdf& hdf = file_->hdf;
  const auto access = access_without_locks(hdf);
  const auto properties = timeless(hdf, H5P_FILE_CREATE);
  hdf.check(H5Pset_userblock(properties.get(), kSealBytes) >= 0, "H5Pset_userblock");
  file_->file = hdf.own<HdfFile>(H5Fcreate(temporary.c_str(), H5F_ACC_TRUNC, properties.get(), access.get()), "H5Fcreate");
}

StatsWriter::~StatsWriter() {
  const std::lock_guard lock(hdf_mutex());
  file_.reset();
}

void StatsWriter::put(const std::string& name, std::span<const float> values) { file_->put(name, values); }
void StatsWriter::put(const std::string& name, std::span<const int64_t> values) { file_->put(name, values); }
void StatsWriter::put(const std::string& name, std::span<const double> values) { file_->put(name, values); }

void StatsWriter::put_link(const std::string& name, const std::string& file) {
  const std::lock_guard lock(hdf_mutex());
  file_->make_groups(name);
  file_->hdf.check(H5Lcreate_external(file.c_str(), "/", file_->file.get(), name.c_str(), H5P_DEFAULT, H5P_DEFAULT) >= 0,
                   "H5Lcreate_external");
}

void StatsWriter::put_attribute(const std::string& name, const std::string& text) {
  const std::lock_guard lock(hdf_mutex());
  require(!name.empty() && (name + text).find('\0') == std::string::npos, "an attribute of statistics has no name, or a NUL");
  const Hdf& hdf = file_->hdf;
  const auto type = text_type(hdf);
  const auto scalar = hdf.own<HdfSpace>(H5Screate(H5S_SCALAR), "H5Screate");
  const auto attribute =
      hdf.own<HdfAttribute>(H5Acreate2(file_->file.get(), name.c_str(), type.get(), scalar.get(), H5P_DEFAULT, H5P_DEFAULT), "H5Acreate2");
  const char* words = text.c_str();
  hdf.check(H5Awrite(attribute.get(), type.get(), &words) >= 0, "H5Awrite");
}

void StatsWriter::finish() {
  const std::lock_guard lock(hdf_mutex());
  const Hdf& hdf = file_->hdf;
  // Closing writes what is still buffered: unlike an owner's quiet close, a failure here must be heard.
  hdf.check(H5Fflush(file_->file.get(), H5F_SCOPE_GLOBAL) >= 0, "H5Fflush");
  hdf.check(H5Fclose(file_->file.release()) >= 0, "H5Fclose");
  const std::string& temporary = hdf.path();
  const Fd fd = open_file(temporary, O_WRONLY);
  const std::string seal = seal_of(temporary);
  write_at(fd.get(), temporary, 0, seal.data(), kSealBytes);
  sync_file(fd.get(), temporary);
  if (::rename(temporary.c_str(), file_->path.c_str()) != 0) throw errno_error("rename to " + file_->path, temporary, errno);
  sync_folder(parent_folder(file_->path));
}

}  // namespace ptq::checkpoint
