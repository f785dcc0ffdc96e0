#include "checkpoint/torch_pickle.h"

#include <algorithm>
#include <array>
#include <utility>

#include "checkpoint/reader.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {
constexpr const char* kDownloadAgain = "copy or download the checkpoint again";
constexpr size_t kMaxDimensions = 8;
/// Products of sizes stay below this, so that bytes fit 63 bits.
constexpr int64_t kMaxElements = int64_t{1} << 59;
/// What the first pickle of the older stream says: torch.serialization.MAGIC_NUMBER, little-endian.
constexpr std::string_view kStreamMagic("\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 10);
constexpr int64_t kStreamProtocol = 1001;
/// The pickle of a zip is read whole: this is more than any checkpoint of weights needs.
constexpr int64_t kMaxPickleBytes = int64_t{2} << 30;

struct TorchDType {
  std::string_view dtype, storage;
  DType means;
};
constexpr std::array kDTypes{
    TorchDType{"float64", "DoubleStorage", DType::kF64},
    TorchDType{"float32", "FloatStorage", DType::kF32},
    TorchDType{"float16", "HalfStorage", DType::kF16},
    TorchDType{"bfloat16", "BFloat16Storage", DType::kBF16},
    TorchDType{"int64", "LongStorage", DType::kI64},
    TorchDType{"int32", "IntStorage", DType::kI32},
    TorchDType{"int16", "ShortStorage", DType::kI16},
    TorchDType{"int8", "CharStorage", DType::kI8},
    TorchDType{"uint8", "ByteStorage", DType::kU8},
    TorchDType{"bool", "BoolStorage", DType::kBool},
    TorchDType{"float8_e4m3fn", "", DType::kF8E4M3},
    TorchDType{"float8_e5m2", "", DType::kF8E5M2},
    TorchDType{"float8_e8m0fnu", "", DType::kF8E8M0},
    TorchDType{"uint16", "", DType::kU16},
    TorchDType{"uint32", "", DType::kU32},
    TorchDType{"uint64", "", DType::kU64},
};

[[noreturn]] void fail(const ByteSlice& slice, const std::string& what) { throw data_error(what, slice.where(), kDownloadAgain); }
[[noreturn]] void fail_tensor(const ByteSlice& slice, const std::string& name, const std::string& what) {
  fail(slice, "tensor " + quoted_name(name) + " " + what);
}

/// A persistent id ('storage', class, key, location, elements), in the older stream with a sixth field.
struct StorageId {
  std::string key;
  bool is_untyped = false;
  std::optional<DType> dtype;  ///< nothing for untyped ones, and for types this program does not know
  int64_t elements = 0;        ///< bytes for untyped ones
  bool is_view = false;
};
std::optional<StorageId> storage_id(const PickleValue& persistent) {
  const PickleValue id = persistent[0], type = id[1];
  const auto key = id[2].text();
  const auto elements = id[4].integer();
  if (id[0].text() != "storage" || !key || !elements || *elements < 0 || !type.is(PickleKind::kGlobal)) return std::nullopt;
  StorageId found{.key = std::string(*key), .elements = *elements, .is_view = id[5] && !id[5].is(PickleKind::kNone)};
  found.is_untyped = type.is_global("torch.storage", "UntypedStorage") || type.is_global("torch.storage", "_UntypedStorage");
  if (type.module() == "torch" || type.module() == "torch.cuda")
    for (const TorchDType& known : kDTypes)
      if (!known.storage.empty() && known.storage == type.name()) found.dtype = known.means;
  return found;
}

/// What a tensor was rebuilt with, once wrappers (parameters, tensors with attributes) are taken off.
struct Rebuild {
  PickleValue function, args;
};
Rebuild unwrapped(const PickleValue& value) {
  constexpr int kMaxWrappers = 4;
  Rebuild rebuild{value.callable(), value.args()};
  for (int i = 0; i < kMaxWrappers; ++i) {
    const PickleValue type = rebuild.args[1];
    if (rebuild.function.is_global("torch._utils", "_rebuild_parameter") ||
        rebuild.function.is_global("torch._utils", "_rebuild_parameter_with_state"))
      rebuild = {rebuild.args[0].callable(), rebuild.args[0].args()};
    else if (rebuild.function.is_global("torch._tensor", "_rebuild_from_type_v2") &&
             (type.is_global("torch", "Tensor") || type.is_global("torch.nn.parameter", "Parameter")))
      rebuild = {rebuild.args[0], rebuild.args[2]};
    else
      break;
  }
  return rebuild;
}

bool is_row_major(const Shape& shape, const Shape& strides) {
  int64_t expected = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    if (shape[d] != 1 && strides[d] != expected) return false;
    expected *= shape[d];
  }
  return true;
}
}  // namespace

std::optional<DType> dtype_of_torch(std::string_view name) {
  for (const TorchDType& known : kDTypes)
    if (known.dtype == name) return known.means;
  return std::nullopt;
}

std::optional<Shape> shape_of_torch(const PickleValue& value) {
  const PickleValue sizes = value.is_call("torch", "Size") ? value.args()[0] : value;
  if (value.is_call("torch", "Size") && value.args().size() == 0) return Shape{};
  if ((!sizes.is(PickleKind::kTuple) && !sizes.is(PickleKind::kList)) || sizes.size() > kMaxDimensions) return std::nullopt;
  Shape shape;
  int64_t elements = 1;
  for (size_t d = 0; d < sizes.size(); ++d) {
    const auto size = sizes[d].integer();
    if (!size || *size < 0 || *size > kMaxElements) return std::nullopt;
    if (*size > 0 && elements > kMaxElements / *size) return std::nullopt;
    elements *= std::max<int64_t>(*size, 1);  // a zero must not hide an overflow of the others
    shape.push_back(*size);
  }
  return shape;
}

bool TorchFile::accepts(const ByteSlice& slice) {
  if (TorchZip::accepts(slice)) return true;
  constexpr int64_t kBegin = 4 + static_cast<int64_t>(kStreamMagic.size());
  return slice.bytes() >= kBegin && slice.text(0, 1) == "\x80" && slice.text(2, kBegin - 2) == "\x8a\x0a" + std::string(kStreamMagic);
}

TorchFile::TorchFile(ByteSlice slice) : slice_(std::move(slice)) {
  if (!accepts(slice_)) fail(slice_, "not a file of torch.save");
  if (!TorchZip::accepts(slice_)) {
    open_stream();
    return;
  }
  zip_.emplace(slice_);
  const TorchZip::Place pickle = zip_->place(slice_, "data.pkl");
  if (pickle.bytes > kMaxPickleBytes) fail(slice_, "its pickle has " + std::to_string(pickle.bytes) + " bytes, more than any checkpoint's");
  tree_ = parse_pickle(slice_.text(pickle.offset, pickle.bytes), slice_.where());
}

/// Five pickles in a row: magic, protocol, machine, the object, the keys of its storages; then per key the number of elements (i64) and
/// their bytes. How long the pickles are is only known once they are read, so that ever more of the file is tried.
void TorchFile::open_stream() {
  constexpr int64_t kFirstTry = int64_t{1} << 20;
  enum { kMagic, kProtocol, kMachine, kObject, kKeys, kPickles };
  std::vector<PickleTree> trees;
  int64_t at = 0;
  for (int64_t tried = kFirstTry; trees.size() < kPickles; tried *= 2) {
    const std::string text = slice_.text(0, std::min(tried, slice_.bytes()));
    while (trees.size() < kPickles) {
      std::optional<ParsedPickle> parsed = parse_pickle_prefix(std::string_view(text).substr(static_cast<size_t>(at)), slice_.where());
      if (!parsed) break;
      trees.push_back(std::move(parsed->tree));
      at += static_cast<int64_t>(parsed->bytes);
    }
    if (trees.size() < kPickles && tried >= slice_.bytes()) fail(slice_, "the file is truncated: it ends inside its pickles");
  }
  if (trees[kMagic].root().data() != kStreamMagic || trees[kProtocol].root().integer() != kStreamProtocol)
    fail(slice_, "not a file of torch.save");
  if (trees[kMachine].root().find("little_endian").integer() != 1) fail(slice_, "its numbers are not little-endian");

  std::map<std::string, StorageId> ids;
  for (const PickleValue& persistent : trees[kObject].persistent())
    if (const auto id = storage_id(persistent)) ids.emplace(id->key, *id);
  const PickleValue keys = trees[kKeys].root();
  for (size_t i = 0; i < keys.size(); ++i) {
    const auto id = ids.find(std::string(keys[i].text().value_or("")));
    if (id == ids.end() || !id->second.dtype) fail(slice_, "a storage is there of which the object does not say what it is");
    int64_t elements = -1;
    slice_.read(at, &elements, 8);
    at += 8;
    const int64_t item_bytes = dtype_bytes(*id->second.dtype);
    if (elements != id->second.elements || elements > (slice_.bytes() - at) / item_bytes)
      fail(slice_, "storage " + quoted_name(id->first) + " is not as long as the object says, or the file is truncated");
    if (!streamed_.emplace(id->first, TorchZip::Place{at, elements * item_bytes}).second)
      fail(slice_, "storage " + quoted_name(id->first) + " is there twice");
    at += elements * item_bytes;
  }
  if (at != slice_.bytes()) fail(slice_, "the file goes on behind its last storage");
  tree_ = std::move(trees[kObject]);
}

PickleValue TorchFile::find(const std::vector<std::string>& path) const {
  PickleValue value = root();
  for (const std::string& key : path) {
    const bool has_entries = value.is(PickleKind::kDict) || value.is_call("collections", "OrderedDict");
    value = has_entries ? value.find(key) : value.state().find(key);
  }
  return value;
}

bool TorchFile::is_tensor(const PickleValue& value) {
  const PickleValue function = value.callable();
  return (function.module() == "torch._utils" || function.module() == "torch._tensor") && function.name().starts_with("_rebuild_");
}

TorchFile::Storage TorchFile::storage(const PickleValue& persistent, const std::string& name) const {
  const auto id = storage_id(persistent);
  if (!id || id->is_view) fail_tensor(slice_, name, "has a storage that cannot be understood");
  if (!id->dtype && !id->is_untyped)
    fail_tensor(slice_, name, "has numbers of a type that is not read: " + std::string(persistent[0][1].name()));
  Storage storage{.dtype = id->dtype};
  if (zip_) {
    if (!zip_->has("data/" + id->key)) fail_tensor(slice_, name, "needs storage " + quoted_name(id->key) + ", which is not there");
    storage.place = zip_->place(slice_, "data/" + id->key);
  } else {
    const auto found = streamed_.find(id->key);
    if (found == streamed_.end()) fail_tensor(slice_, name, "needs storage " + quoted_name(id->key) + ", which is not there");
    storage.place = found->second;
  }
  const int64_t item_bytes = id->dtype ? dtype_bytes(*id->dtype) : 1;
  if (storage.place.bytes % item_bytes != 0 || storage.place.bytes / item_bytes != id->elements)
    fail_tensor(slice_, name, "has a storage that is not as long as it should be");
  return storage;
}

TorchTensor TorchFile::tensor(const PickleValue& value, const std::string& name) const {
  const Rebuild rebuild = unwrapped(value);
  const bool says_dtype = rebuild.function.is_global("torch._utils", "_rebuild_tensor_v3");
  if (!says_dtype && !rebuild.function.is_global("torch._utils", "_rebuild_tensor_v2") &&
      !rebuild.function.is_global("torch._utils", "_rebuild_tensor"))
    throw data_error("tensor " + quoted_name(name) + " is of a kind that is not read (" +
                         (rebuild.function ? std::string(rebuild.function.name()) : "no tensor") + ")",
                     slice_.where(), "save the model with plain dense tensors");

  const Storage stored = storage(rebuild.args[0], name);
  const auto dtype = says_dtype ? dtype_of_torch(rebuild.args[6].name()) : stored.dtype;
  if (!dtype || (says_dtype && stored.dtype && *stored.dtype != *dtype))
    fail_tensor(slice_, name, "has numbers of a type that is not read: " + std::string(rebuild.args[6].name()));
  const auto shape = shape_of_torch(rebuild.args[2]);
  const auto first = rebuild.args[1].integer();
  const PickleValue strides = rebuild.args[3];
  if (!shape || !first || *first < 0 || strides.size() != shape->size()) fail_tensor(slice_, name, "has an impossible shape");

  TorchTensor tensor{
      .dtype = *dtype, .shape = *shape, .storage = std::string(*rebuild.args[0][0][2].text()), .offset = stored.place.offset};
  for (size_t d = 0; d < shape->size(); ++d) {
    const auto stride = strides[d].integer();
    if (!stride || *stride < 0) fail_tensor(slice_, name, "has an impossible stride");
    tensor.strides.push_back(*stride);
  }
  const int64_t numbers = element_count(*shape), room = stored.place.bytes / dtype_bytes(*dtype);
  tensor.is_contiguous = numbers == 0 || is_row_major(*shape, tensor.strides);
  if (numbers == 0) return tensor;
  // The last element's place, each step checked so that nothing overflows.
  int64_t last = *first;
  for (size_t d = 0; d < shape->size() && last < room; ++d) {
    if (tensor.strides[d] > 0 && (*shape)[d] - 1 > (room - 1 - last) / tensor.strides[d])
      last = room;
    else
      last += ((*shape)[d] - 1) * tensor.strides[d];
  }
  if (last >= room) fail_tensor(slice_, name, "reaches beyond its storage");
  if (numbers > room) fail_tensor(slice_, name, "repeats its numbers, which no weight does");
  tensor.offset += *first * dtype_bytes(*dtype);
  return tensor;
}

}  // namespace ptq::checkpoint
