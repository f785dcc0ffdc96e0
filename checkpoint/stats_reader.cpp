#include "checkpoint/stats_reader.h"

#include <fcntl.h>
#include <unistd.h>

#include "checkpoint/file_descriptor.h"
#include "checkpoint/hdf5_calls.h"

namespace ptq::checkpoint {

namespace {

/// Collects the names of all links below the root that stay in the file, or of all attributes. Nothing may be thrown through HDF5's frames.
herr_t collect_link(hid_t, const char* name, const H5L_info_t* link, void* out) noexcept {
  if (link->type != H5L_TYPE_EXTERNAL) static_cast<std::vector<std::string>*>(out)->emplace_back(name);
  return 0;
}
herr_t collect_attribute(hid_t, const char* name, const H5A_info_t*, void* out) noexcept {
  static_cast<std::vector<std::string>*>(out)->emplace_back(name);
  return 0;
}

const char* words_of(float) { return "32-bit floats"; }
const char* words_of(double) { return "64-bit floats"; }
const char* words_of(int64_t) { return "64-bit integers"; }

template <class Number>
bool holds(const Hdf& hdf, hid_t array) {
  const auto type = hdf.own<HdfType>(H5Dget_type(array), "H5Dget_type");
  return H5Tequal(type.get(), stored_type(Number())) > 0;
}

/// How many values an array has. Throws unless it is a list of this kind of number.
template <class Number>
size_t extent_of(const Hdf& hdf, hid_t array, const std::string& name, int64_t file_bytes) {
  const auto space = hdf.own<HdfSpace>(H5Dget_space(array), "H5Dget_space");
  if (!holds<Number>(hdf, array) || H5Sget_simple_extent_ndims(space.get()) != 1)
    hdf.fail("'" + name + "' is not a list of " + words_of(Number()));
  hsize_t extent = 0;
  hdf.check(H5Sget_simple_extent_dims(space.get(), &extent, nullptr) == 1, "H5Sget_simple_extent_dims");
  // Before allocating: a damaged extent asks for any amount. Our arrays are stored plainly, so the file is never smaller than they are.
  if (extent > static_cast<hsize_t>(file_bytes) / sizeof(Number)) hdf.fail("'" + name + "' has more values than the file has room for");
  return extent;
}

template <class Number>
void read_values(const Hdf& hdf, hid_t array, const std::string& name, std::span<Number> values) {
  if (values.empty()) return;
  hdf.check(H5Dread(array, native_type(Number()), H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) >= 0, "H5Dread of '" + name + "'");
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

struct StatsReader::File {
  Hdf hdf;
  int64_t bytes = 0;
  HdfFile file;

  HdfDataset open(const std::string& name) const {
    if (H5Lexists(file.get(), name.c_str(), H5P_DEFAULT) <= 0) hdf.fail("it has no '" + name + "'");
    return hdf.own<HdfDataset>(H5Dopen2(file.get(), name.c_str(), H5P_DEFAULT), "H5Dopen2");
  }
  template <class Number>
  std::vector<Number> read(const std::string& name) const {
    const std::lock_guard lock(hdf_mutex());
    const HdfDataset array = open(name);
    std::vector<Number> values(extent_of<Number>(hdf, array.get(), name, bytes));
    read_values(hdf, array.get(), name, std::span<Number>(values));
    return values;
  }
};

StatsReader::StatsReader(const std::string& path, Digest digest) {
  const std::lock_guard lock(hdf_mutex());
  file_ = std::make_unique<File>(File{Hdf(path, ErrorKind::kData), 0, HdfFile()});
  const Hdf& hdf = file_->hdf;
  const Fd fd = open_file(path, O_RDONLY | O_NONBLOCK);
  file_->bytes = regular_file_bytes(fd.get(), path);
  std::string seal(kSealBytes, '\0');
  const bool has_seal = read_at(fd.get(), path, 0, seal.data(), kSealBytes) == static_cast<int64_t>(kSealBytes);
  if (!has_seal || (digest == Digest::kChecked && seal != seal_of(path)))
    hdf.fail("its content does not agree with the digest at its beginning");
  const auto access = access_without_locks(hdf);
  file_->file = hdf.own<HdfFile>(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), "H5Fopen");
}

StatsReader::~StatsReader() {
  const std::lock_guard lock(hdf_mutex());
  file_.reset();
}

const std::string& StatsReader::path() const { return file_->hdf.path(); }

std::vector<std::string> StatsReader::names() const {
  const std::lock_guard lock(hdf_mutex());
  const Hdf& hdf = file_->hdf;
  std::vector<std::string> links, names;
  hdf.check(H5Lvisit(file_->file.get(), H5_INDEX_NAME, H5_ITER_INC, collect_link, &links) >= 0, "H5Lvisit");
  for (const std::string& name : links) {
    const auto object = hdf.own<HdfObject>(H5Oopen(file_->file.get(), name.c_str(), H5P_DEFAULT), "H5Oopen");
    const H5I_type_t kind = H5Iget_type(object.get());
    if (kind == H5I_DATASET)
      names.push_back(name);
    else if (kind != H5I_GROUP)
      hdf.fail("'" + name + "' is neither a group nor a list of numbers");
  }
  return names;
}

bool StatsReader::has(const std::string& name) const {
  const std::lock_guard lock(hdf_mutex());
  // A name is only asked for below groups that are there.
  for (size_t slash = name.find('/'); slash != std::string::npos; slash = name.find('/', slash + 1))
    if (H5Lexists(file_->file.get(), name.substr(0, slash).c_str(), H5P_DEFAULT) <= 0) return false;
  return H5Lexists(file_->file.get(), name.c_str(), H5P_DEFAULT) > 0;
}

bool StatsReader::has_integers(const std::string& name) const {
  if (!has(name)) return false;
  const std::lock_guard lock(hdf_mutex());
  return holds<int64_t>(file_->hdf, file_->open(name).get());
}

std::vector<float> StatsReader::floats(const std::string& name) const { return file_->read<float>(name); }
std::vector<int64_t> StatsReader::integers(const std::string& name) const { return file_->read<int64_t>(name); }
std::vector<double> StatsReader::doubles(const std::string& name) const { return file_->read<double>(name); }

void StatsReader::floats(const std::string& name, std::span<float> values) const {
  const std::lock_guard lock(hdf_mutex());
  const HdfDataset array = file_->open(name);
  if (extent_of<float>(file_->hdf, array.get(), name, file_->bytes) != values.size())
    file_->hdf.fail("'" + name + "' has not " + std::to_string(values.size()) + " values");
  read_values(file_->hdf, array.get(), name, values);
}

std::map<std::string, std::string> StatsReader::attributes() const {
  const std::lock_guard lock(hdf_mutex());
  const Hdf& hdf = file_->hdf;
  std::vector<std::string> names;
  hsize_t next = 0;
  hdf.check(H5Aiterate2(file_->file.get(), H5_INDEX_NAME, H5_ITER_INC, &next, collect_attribute, &names) >= 0, "H5Aiterate2");
  std::map<std::string, std::string> attributes;
  for (const std::string& name : names) attributes[name] = read_attribute(hdf, file_->file.get(), name);
  return attributes;
}

}  // namespace ptq::checkpoint
