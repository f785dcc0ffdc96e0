#include "checkpoint/megatron_shards.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "checkpoint/megatron_replicas.h"
#include "checkpoint/reader.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {

/// All experts of a rank in one tensor, for a grouped product; stored input by output, unlike every other weight.
constexpr std::string_view kGroupedUp = "mlp.experts.weight1", kGroupedDown = "mlp.experts.weight2";

bool ends_with_any(const std::string& name, const std::vector<std::string_view>& endings) {
  return std::any_of(endings.begin(), endings.end(), [&](std::string_view ending) { return name.ends_with(ending); });
}

bool is_grouped(const std::string& name) { return ends_with_any(name, {kGroupedUp, kGroupedDown}); }

bool is_of_experts(const std::string& name) { return name.find("mlp.experts.") != std::string::npos; }

/// Rows are shared by the tensor ranks.
bool is_by_rows(const std::string& name) {
  return ends_with_any(name, {"word_embeddings.weight", "output_layer.weight", "linear_qkv.weight", "linear_qkv.bias",
                              "linear_q_proj.weight", "linear_q_up_proj.weight", "linear_kv_up_proj.weight", "linear_fc1.weight",
                              "linear_fc1.bias", "eh_proj.weight", "core_attention.softmax_offset"});
}

bool is_by_columns(const std::string& name) { return ends_with_any(name, {"linear_proj.weight", "linear_fc2.weight"}); }

Shard shard_of(const MegatronPart& part, Shape begin) {
  const FileSlice& file = part.rank.file;
  return {{std::move(begin), part.tensor.shape}, part.tensor.strides, file.path, file.offset + part.tensor.offset};
}

/// Parts beside one another along dimension `axis`.
std::vector<Shard> side_by_side(const std::vector<MegatronPart>& parts, size_t axis) {
  std::vector<Shard> shards;
  for (const MegatronPart& part : parts) {
    Shape begin(part.tensor.shape.size(), 0);
    begin[axis] = part.rank.tensor * part.tensor.shape[axis];
    shards.push_back(shard_of(part, std::move(begin)));
  }
  return shards;
}

/// Each part holds rows of the gate above as many of up; the whole has all of the gate above all of up.
std::vector<Shard> gate_and_up(const std::vector<MegatronPart>& parts, int64_t ranks) {
  std::vector<Shard> shards;
  for (const MegatronPart& part : parts) {
    const int64_t half = part.tensor.shape[0] / 2;
    for (const int64_t side : {0, 1}) {
      Shape begin(part.tensor.shape.size(), 0);
      begin[0] = (side * ranks + part.rank.tensor) * half;
      Shard shard = shard_of(part, std::move(begin));
      shard.box.sizes[0] = half;
      shard.offset += side * half * part.tensor.strides[0] * dtype_bytes(part.tensor.dtype);
      shards.push_back(std::move(shard));
    }
  }
  return shards;
}

/// Experts in one contiguous tensor, [experts, in, out] in memory whatever its shape says, shown as [experts, out, in]. `sides` is 2 where
/// the outputs are those of the gate and then those of up.
std::vector<Shard> grouped(const std::vector<MegatronPart>& parts, int64_t experts, int64_t in, int64_t out, int64_t sides, bool by_columns,
                           int64_t ranks) {
  std::vector<Shard> shards;
  const int64_t width = out / sides;
  for (const MegatronPart& part : parts)
    for (int64_t side = 0; side < sides; ++side) {
      Shard shard = shard_of(part, {});
      const int64_t rank = part.rank.tensor;
      shard.box.begin = {part.rank.expert * experts, by_columns ? 0 : (side * ranks + rank) * width, by_columns ? rank * in : 0};
      shard.box.sizes = {experts, width, in};
      shard.strides = {in * out, 1, out};
      shard.offset += side * width * dtype_bytes(part.tensor.dtype);
      shards.push_back(std::move(shard));
    }
  return shards;
}

}  // namespace

void MegatronParts::add(const std::string& name, MegatronPart part) {
  std::vector<MegatronPart>& parts = parts_[name];
  if (is_of_experts(name)) {
    part.rank.tensor = part.rank.expert_tensor;
  } else {
    const auto is_held = [&](const MegatronPart& other) {
      return other.rank.pipeline == part.rank.pipeline && other.rank.tensor == part.rank.tensor && other.rank.expert != part.rank.expert;
    };
    if (std::any_of(parts.begin(), parts.end(), is_held)) return;
  }
  if (name.ends_with("word_embeddings.weight") && !parts.empty() && parts.front().rank.pipeline != part.rank.pipeline) return;
  parts.push_back(std::move(part));
}

std::vector<std::pair<ArrayEntry, std::vector<Shard>>> MegatronParts::arrays(const MegatronRanks& ranks, int64_t experts,
                                                                             const std::string& path) const {
  std::vector<std::pair<ArrayEntry, std::vector<Shard>>> arrays;
  for (const auto& [name, parts] : parts_) {
    const TorchTensor& first = parts.front().tensor;
    const auto damaged = [&](const std::string& what) {
      return data_error("array " + quoted_name(name) + " " + what, path, "copy the checkpoint again, with the folders of all ranks");
    };
    const int64_t shares = is_of_experts(name) ? ranks.expert_tensor : ranks.tensor;
    const int64_t wanted = shares * (is_grouped(name) ? ranks.expert : 1);
    if (static_cast<int64_t>(parts.size()) != wanted)
      throw damaged("is in the files of " + std::to_string(parts.size()) + " ranks, where " + std::to_string(wanted) + " should have it");
    for (const MegatronPart& part : parts)
      if (part.tensor.shape != first.shape || part.tensor.dtype != first.dtype)
        throw damaged("has the shape " + to_string(first.shape) + " on one rank and " + to_string(part.tensor.shape) + " on another");
    ArrayEntry array{name, first.dtype, first.shape};
    std::vector<Shard> shards;
    if (is_grouped(name)) {
      const std::string stem = name.substr(0, name.size() - kGroupedUp.size());
      const auto up = parts_.find(stem + std::string(kGroupedUp)), down = parts_.find(stem + std::string(kGroupedDown));
      const int64_t own = experts / ranks.expert;
      if (up == parts_.end() || down == parts_.end() || own == 0 || up->second.front().tensor.shape.size() != 2 || !first.is_contiguous)
        throw damaged("holds experts, but not as weight1 and weight2 of as many as the checkpoint's args say");
      const int64_t hidden = up->second.front().tensor.shape[0], in_up = element_count(up->second.front().tensor.shape),
                    in_down = element_count(down->second.front().tensor.shape), width = in_down / own / std::max<int64_t>(1, hidden);
      const int64_t sides = in_down > 0 ? in_up / in_down : 0;
      if ((sides != 1 && sides != 2) || sides * in_down != in_up || width * own * hidden != in_down)
        throw damaged("holds experts of shapes that do not fit one another");
      const bool is_up = name.ends_with(kGroupedUp);
      array.name = stem + "mlp.experts.experts." + (is_up ? "linear_fc1.weight" : "linear_fc2.weight");
      const int64_t all = width * shares;
      array.shape = is_up ? Shape{experts, sides * all, hidden} : Shape{experts, hidden, all};
      shards =
          is_up ? grouped(parts, own, hidden, sides * width, sides, false, shares) : grouped(parts, own, width, hidden, 1, true, shares);
    } else if (is_by_columns(name) && first.shape.size() == 2) {
      array.shape[1] *= shares;
      shards = side_by_side(parts, 1);
    } else if (is_by_rows(name) && !first.shape.empty()) {
      array.shape[0] *= shares;
      const size_t fc1 = name.rfind("linear_fc1.");
      const auto fc2 = fc1 == std::string::npos ? parts_.end() : parts_.find(name.substr(0, fc1) + "linear_fc2.weight");
      const bool is_gated =
          fc2 != parts_.end() && fc2->second.front().tensor.shape.size() == 2 && first.shape[0] == 2 * fc2->second.front().tensor.shape[1];
      shards = is_gated ? gate_and_up(parts, shares) : side_by_side(parts, 0);
    } else {
      // Counters of a rank's own tokens are no weights.
      if (ends_with_any(name, {"weight", "bias"})) check_replicas(name, parts, path);
      shards.push_back(shard_of(parts.front(), Shape(first.shape.size(), 0)));  // every rank has it whole
    }
    arrays.emplace_back(std::move(array), std::move(shards));
  }
  return arrays;
}

}  // namespace ptq::checkpoint
