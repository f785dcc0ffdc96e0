// The tensors of a finished export: codes and scales one by one, and those that servers take for one.

#include <cmath>
#include <map>
#include <set>

#include "kernels/ops.h"
#include "runner/verify_judge.h"

namespace ptq::runner {

namespace {

using checkpoint::TensorEntry;
using recipes::EncodedTensor;
using recipes::Encoding;
using recipes::Format;

/// Every part that some format has beside the weight.
constexpr const char* kParts[] = {".weight_packed",       ".weight_scale",       ".weight_scale_2", ".weight_scale_inv", ".weight_shape",
                                  ".weight_global_scale", ".input_global_scale", ".input_scale",    ".pre_quant_scale"};

bool is_scale(float value) { return std::isfinite(value) && value > 0; }

/// Calls look(value) for every element of an F32 or BF16 tensor.
template <class Look>
void for_values(const checkpoint::Reader& reader, const TensorEntry& entry, const Look& look) {
  for_pieces(reader, entry, [&](int64_t, int64_t, const std::vector<std::byte>& bytes) {
    const auto count = bytes.size() / static_cast<size_t>(dtype_bytes(entry.dtype));
    for (size_t i = 0; i < count; ++i)
      look(entry.dtype == DType::kF32 ? reinterpret_cast<const float*>(bytes.data())[i]
                                      : to_float(reinterpret_cast<const BF16*>(bytes.data())[i]));
  });
}

/// One tensor of rows: of FP8 codes none is NaN, of scales none is zero, negative, NaN or infinite. Returns the largest scale.
float check_rows(const checkpoint::Reader& reader, const EncodedTensor& part, const Encoding& encoding, Judge& judge) {
  const TensorEntry& entry = reader.at(part.tensor.name);
  const bool is_weight = part.part == ".weight" || part.part == ".weight_packed";
  float largest = 0;
  if (!is_weight && (entry.dtype == DType::kF32 || entry.dtype == DType::kBF16)) {
    bool sound = true;
    for_values(reader, entry, [&](float value) {
      sound = sound && is_scale(value);
      largest = std::max(largest, value);
    });
    judge.claim(sound, entry.name + " holds a scale that is not a positive finite number");
    return largest;
  }
  std::vector<int64_t> seen(256, 0);
  for_pieces(reader, entry, [&](int64_t, int64_t, const std::vector<std::byte>& bytes) {
    for (const std::byte byte : bytes) ++seen[static_cast<uint8_t>(byte)];
  });
  const auto count = [&](const auto& is_bad) {
    int64_t bad = 0;
    for (int code = 0; code < 256; ++code) bad += is_bad(code) ? seen[static_cast<size_t>(code)] : 0;
    return bad;
  };
  if (entry.dtype == DType::kF8E4M3) {
    judge.claim(count([](int code) { return (code & 0x7f) == 0x7f; }) == 0, entry.name + " holds NaN codes");
    if (!is_weight)
      judge.claim(count([](int code) { return code == 0 || code >= 0x80; }) == 0,
                  entry.name + " holds a block scale that is zero or negative");
  } else if (!is_weight) {
    judge.claim(seen[255] == 0, entry.name + " holds a NaN exponent");
  } else if (encoding.format == Format::kInt4Fp8 && encoding.dialect == recipes::Dialect::kModelOpt) {
    judge.claim(count([](int code) { return (code & 15) == 8 || code >> 4 == 8; }) == 0, entry.name + " holds codes of -8, below -7");
  }
  return largest;
}

}  // namespace

void check_linear(const checkpoint::Reader& reader, const StoredLinear& stored, Judge& judge) {
  const layers::LinearSpec& linear = *stored.linear;
  const Encoding& encoding = stored.encoding;
  const auto parts = encoding.is_quantized() ? recipes::encoded_tensors(encoding, linear) : std::vector<EncodedTensor>{};
  std::set<std::string> expected;
  for (const auto& part : parts) expected.insert(part.tensor.name);
  for (const char* part : kParts) {
    const std::string name = linear.tensor(part);
    if (!expected.count(name))
      judge.claim(!reader.find(name), linear.module +
                                          (encoding.is_quantized() ? " is quantized to " + recipes::info(encoding.format).name
                                                                   : std::string(" is not quantized")) +
                                          " but has " + name);
  }
  float largest_scale = 0;
  for (const auto& part : parts) {
    if (part.kind == EncodedTensor::Kind::kRows) largest_scale = std::max(largest_scale, check_rows(reader, part, encoding, judge));
    if (part.kind == EncodedTensor::Kind::kVector) {
      bool sound = true;
      for_values(reader, reader.at(part.tensor.name), [&](float value) { sound = sound && is_scale(value); });
      judge.claim(sound, part.tensor.name + " holds a factor that is not a positive finite number");
    }
    if (part.kind == EncodedTensor::Kind::kShape) {
      const Tensor shape = reader.read(part.tensor.name);
      judge.claim(shape.data<int64_t>()[0] == linear.out && shape.data<int64_t>()[1] == linear.in,
                  part.tensor.name + " is not the shape of the weight");
    }
    if (part.part == ".weight_scale_2" && encoding.format == Format::kInt4Fp8)
      judge.claim(largest_scale * 7 <= read_scalar(reader, part.tensor.name) * 448 * 1.01f,
                  part.tensor.name + " is too small for the scales beside it");
  }
}

void check_shared(const StoredEncodings& encodings, const std::vector<StoredLinear>& layer, Judge& judge) {
  // Fused by servers: the members of a scale group, and all routed experts of the layer.
  enum class Shares { kFormat, kExpertFormat, kGroups, kWeightScale, kInput, kExpertInput };
  struct Leader {
    const StoredLinear* first;
    float value;
  };
  std::map<std::pair<Shares, int>, Leader> leaders;
  const auto claim_shared = [&](Shares what, int group, const StoredLinear& stored, float value, const std::string& otherwise) {
    const Leader& leader = leaders.try_emplace({what, group}, Leader{&stored, value}).first->second;
    judge.claim(leader.first == &stored || leader.value == value,
                leader.first->linear->module + " and " + stored.linear->module + otherwise);
  };
  for (const StoredLinear& stored : layer) {
    const layers::LinearSpec& linear = *stored.linear;
    const Encoding& encoding = stored.encoding;
    const bool routed = linear.is_routed();
    claim_shared(routed ? Shares::kExpertFormat : Shares::kFormat, routed ? 0 : linear.scale_group, stored,
                 static_cast<float>(encoding.format), " are fused by servers but have different formats");
    if (!encoding.is_quantized()) continue;
    claim_shared(Shares::kGroups, linear.scale_group, stored, static_cast<float>(recipes::group_size(encoding)),
                 " are fused by servers but have different group sizes");
    const recipes::LinearScales scales = encodings.scales(encoding, linear);
    for (const auto& part : recipes::encoded_tensors(encoding, linear)) {
      if (part.kind != EncodedTensor::Kind::kScalar) continue;
      const bool is_input = part.part.starts_with(".input");
      const float value = is_input ? scales.input_scale : scales.weight_scale;
      judge.claim(is_scale(value), part.tensor.name + " is " + std::to_string(value) + ", not a positive finite scale");
      const std::string otherwise = " do not share " + part.part.substr(1);
      if (is_input)
        claim_shared(routed ? Shares::kExpertInput : Shares::kInput, routed ? linear.feeds_down : linear.scale_group, stored, value,
                     otherwise);
      else if (routed || recipes::info(encoding.format).shares_weight_scale)
        claim_shared(Shares::kWeightScale, linear.scale_group, stored, value, otherwise);
    }
  }
}

void check_kv(const checkpoint::Reader& reader, recipes::Dialect dialect, recipes::KvFormat format, const layers::AttentionHeads& attention,
              Judge& judge) {
  std::set<std::string> wanted;
  for (const auto& tensor : recipes::kv_tensors(dialect, format, attention)) {
    wanted.insert(tensor.name);
    const TensorEntry* entry = reader.find(tensor.name);
    judge.claim(entry != nullptr, tensor.name + " is missing");
    if (!entry) continue;
    if (tensor.dtype != DType::kF32) {
      bool finite = entry->dtype == tensor.dtype && entry->shape == tensor.shape;
      if (finite) for_values(reader, *entry, [&](float value) { finite = finite && std::isfinite(value); });
      judge.claim(finite, tensor.name + " is not a finite BF16 bias of every channel");
      continue;
    }
    const float value = entry->dtype == DType::kF32 && entry->shape == tensor.shape ? read_scalar(reader, tensor.name) : -1.0f;
    judge.claim(is_scale(value), tensor.name + " is not a positive finite F32 scalar");
  }
  for (const char letter : {'k', 'v'})
    for (const char* part : {"scale", "bias"}) {
      const std::string name = recipes::kv_tensor(dialect, attention.module, letter, part);
      if (!wanted.count(name))
        judge.claim(!reader.find(name),
                    name + " is there without a quantized KV cache" + (format == recipes::KvFormat::kNone ? "" : " that has it"));
    }
}

}  // namespace ptq::runner
