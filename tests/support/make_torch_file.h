#pragma once
// Files of torch.save for tests, put together from their parts so that every part can be wrong.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/make_pickle.h"

namespace ptq::test {

struct ZipPart {
  std::string name, bytes;
  uint64_t flags = 0x0808;
  uint64_t method = 0;
  int64_t offset_shift = 0;  ///< added to the offset that the directory gives
  uint64_t extra_bytes = 0;  ///< filler between local header and data
};

struct ZipFaults {
  uint64_t disk = 0;
  int64_t directory_shift = 0;
  bool zip64 = true;  ///< whether there is a zip64 end record, as torch writes one
};

/// A zip as torch.save writes it: local headers without sizes, data descriptors, a zip64 end record.
inline std::string make_zip(const std::vector<ZipPart>& parts, const ZipFaults& faults = {}) {
  std::string bytes, directory;
  for (const ZipPart& part : parts) {
    const uint64_t offset = bytes.size() + static_cast<uint64_t>(part.offset_shift);
    const std::string kind = little_endian(part.flags, 2) + little_endian(part.method, 2);
    bytes += "PK\3\4" + little_endian(0, 2) + kind + little_endian(0, 16) + little_endian(part.name.size(), 2) +
             little_endian(part.extra_bytes, 2) + part.name + std::string(part.extra_bytes, 'Z') + part.bytes;
    bytes += "PK\7\x08" + little_endian(0, 4) + little_endian(part.bytes.size(), 4) + little_endian(part.bytes.size(), 4);
    directory += "PK\1\2" + little_endian(0, 4) + kind + little_endian(0, 8) + little_endian(part.bytes.size(), 4) +
                 little_endian(part.bytes.size(), 4) + little_endian(part.name.size(), 2) + little_endian(0, 4) +
                 little_endian(faults.disk, 2) + little_endian(0, 6) + little_endian(offset, 4) + part.name;
  }
  const uint64_t begin = bytes.size() + static_cast<uint64_t>(faults.directory_shift), end64 = bytes.size() + directory.size();
  bytes += directory;
  if (faults.zip64) {
    bytes += "PK\6\6" + little_endian(44, 8) + little_endian(0, 4) + little_endian(faults.disk, 4) + little_endian(faults.disk, 4) +
             little_endian(parts.size(), 8) + little_endian(parts.size(), 8) + little_endian(directory.size(), 8) + little_endian(begin, 8);
    bytes += "PK\6\7" + little_endian(0, 4) + little_endian(end64, 8) + little_endian(1, 4);
  }
  return bytes + "PK\5\6" + little_endian(faults.disk, 2) + little_endian(faults.disk, 2) + little_endian(parts.size(), 2) +
         little_endian(parts.size(), 2) + little_endian(directory.size(), 4) + little_endian(begin, 4) + little_endian(0, 2);
}

/// A storage id: ('storage', class, key, 'cpu', elements).
inline std::string pickled_storage(const std::string& type, const std::string& key, int64_t elements) {
  return pickled_tuple({pickled("storage"), pickled_global(type), pickled(key), pickled("cpu"), pickled(elements)}) + "Q";
}
inline std::string pickled_tensor(const std::string& storage, int64_t offset, const std::vector<int64_t>& shape,
                                  const std::vector<int64_t>& strides) {
  return pickled_call("torch._utils _rebuild_tensor_v2", {storage, pickled(offset), pickled_ints(shape), pickled_ints(strides), "\x89",
                                                          pickled_call("collections OrderedDict", {})});
}

/// A zip of torch.save around one pickled value and the bytes of its storages "0", "1", ...
inline std::string torch_file(const std::string& value, const std::vector<std::string>& storages) {
  std::vector<ZipPart> parts{{.name = "archive/data.pkl", .bytes = whole_pickle(value)}, {.name = "archive/byteorder", .bytes = "little"}};
  for (size_t i = 0; i < storages.size(); ++i)
    parts.push_back({.name = "archive/data/" + std::to_string(i), .bytes = storages[i], .extra_bytes = 7});
  return make_zip(parts);
}

/// The same around one row-major tensor of bytes.
inline std::string torch_file_of_bytes(const std::vector<int64_t>& shape, const std::string& bytes) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t d = shape.size(); d-- > 1;) strides[d - 1] = strides[d] * shape[d];
  return torch_file(pickled_tensor(pickled_storage("torch ByteStorage", "0", static_cast<int64_t>(bytes.size())), 0, shape, strides),
                    {bytes});
}

}  // namespace ptq::test
