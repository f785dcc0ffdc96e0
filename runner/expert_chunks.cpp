#include "runner/expert_chunks.h"

#include <algorithm>
#include <cstring>

namespace ptq::runner {

using parallel::even_share;
using parallel::Range;

namespace {

Range shifted(Range range, int64_t by) { return {range.begin + by, range.end + by}; }

/// Shape of one expert's tensor: a stacked one keeps its first dimension, of size 1.
Shape expert_shape(const layers::TensorSpec& spec, const checkpoint::TensorEntry& entry) {
  Shape shape = entry.shape;
  if (spec.expert == layers::kAllExperts) shape[0] = 1;
  return shape;
}

/// Tensors lie at multiples of this many bytes in the buffer that replicas exchange.
constexpr int64_t kAlign = 64;

int64_t padded(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

int64_t packed_bytes(const std::vector<layers::TensorSpec>& specs, const checkpoint::Reader& reader) {
  int64_t bytes = 0;
  for (const auto& spec : specs) {
    const checkpoint::TensorEntry& entry = reader.at(spec.name);
    bytes += padded(element_count(expert_shape(spec, entry)) * dtype_bytes(entry.dtype));
  }
  return bytes;
}

}  // namespace

std::vector<std::vector<layers::TensorSpec>> group_by_expert(const layers::MoeSpec& moe, const std::vector<layers::TensorSpec>& specs) {
  std::vector<std::vector<layers::TensorSpec>> groups(moe.experts.size());
  for (const auto& spec : specs) {
    if (spec.expert >= 0) groups[static_cast<size_t>(spec.expert)].push_back(spec);
    if (spec.expert == layers::kAllExperts)
      for (auto& group : groups) group.push_back(spec);
  }
  return groups;
}

std::vector<Range> cut_experts(int64_t experts, int64_t per_rank, const parallel::Mesh& mesh) {
  const int64_t step = per_rank * mesh.shape().expert;
  std::vector<Range> chunks;
  for (int64_t begin = 0; begin < experts; begin += step) chunks.push_back({begin, std::min(experts, begin + step)});
  return chunks;
}

ExpertChunk place_chunk(const layers::LayerSpec& layer, Range experts, const std::vector<std::vector<layers::TensorSpec>>& specs,
                        const parallel::Mesh& mesh) {
  ExpertChunk chunk;
  chunk.layer = &layer;
  chunk.experts = experts;
  chunk.mine = shifted(even_share(experts.size(), mesh.shape().expert, mesh.experts().rank()), experts.begin);
  chunk.owned = shifted(even_share(chunk.mine.size(), mesh.replicas().size(), mesh.replicas().rank()), chunk.mine.begin);
  chunk.specs.assign(specs.begin() + chunk.mine.begin, specs.begin() + chunk.mine.end);
  chunk.tensors.resize(chunk.specs.size());
  return chunk;
}

LoadUnit chunk_unit(const ExpertChunk& chunk, const checkpoint::Reader& reader) {
  LoadUnit unit;
  for (int64_t e = chunk.owned.begin; e < chunk.owned.end; ++e)
    for (const auto& spec : chunk.specs_of(e)) {
      const checkpoint::TensorEntry& entry = reader.at(spec.name);
      unit.push_back({&entry, spec.expert == layers::kAllExperts ? Range{e, e + 1} : Range{0, entry.rows()}});
    }
  return unit;
}

void fill_chunk(ExpertChunk& chunk, std::vector<Tensor> tensors) {
  size_t next = 0;
  for (int64_t e = chunk.owned.begin; e < chunk.owned.end; ++e) {
    auto& mine = chunk.tensors[static_cast<size_t>(e - chunk.mine.begin)];
    for (size_t i = 0; i < chunk.specs_of(e).size(); ++i) mine.push_back(std::move(tensors[next++]));
  }
}

void gather_chunk(ExpertChunk& chunk, const checkpoint::Reader& reader, const parallel::Mesh& mesh) {
  const int replicas = mesh.replicas().size();
  if (replicas == 1 || chunk.mine.size() == 0) return;
  std::vector<int64_t> bytes(static_cast<size_t>(replicas), 0);
  int64_t total = 0, own_start = 0;
  for (int r = 0; r < replicas; ++r) {
    const Range owned = even_share(chunk.mine.size(), replicas, r);
    if (r == mesh.replicas().rank()) own_start = total;
    for (int64_t i = owned.begin; i < owned.end; ++i)
      bytes[static_cast<size_t>(r)] += packed_bytes(chunk.specs[static_cast<size_t>(i)], reader);
    total += bytes[static_cast<size_t>(r)];
  }
  const Tensor all = Tensor::empty({total}, DType::kU8);
  std::byte* at = all.raw() + own_start;
  if (chunk.broken) std::memset(at, 0, static_cast<size_t>(bytes[static_cast<size_t>(mesh.replicas().rank())]));
  for (int64_t e = chunk.owned.begin; e < chunk.owned.end && !chunk.broken; ++e)
    for (const Tensor& tensor : chunk.of(e)) {
      std::memcpy(at, tensor.raw(), static_cast<size_t>(tensor.bytes()));
      at += padded(tensor.bytes());
    }
  mesh.replicas().all_gather(all.raw() + own_start, bytes, all.raw());
  if (chunk.broken) return;
  int64_t offset = 0;
  for (size_t i = 0; i < chunk.specs.size(); ++i) {
    const bool owned =
        chunk.owned.begin <= chunk.mine.begin + static_cast<int64_t>(i) && chunk.mine.begin + static_cast<int64_t>(i) < chunk.owned.end;
    for (const auto& spec : chunk.specs[i]) {
      const checkpoint::TensorEntry& entry = reader.at(spec.name);
      const Shape shape = expert_shape(spec, entry);
      const int64_t size = element_count(shape) * dtype_bytes(entry.dtype);
      if (!owned) chunk.tensors[i].push_back(all.rows(offset, offset + size).as(shape, entry.dtype));
      offset += padded(size);
    }
  }
}

int64_t expert_bytes(const std::vector<layers::TensorSpec>& specs, const checkpoint::Reader& reader) { return packed_bytes(specs, reader); }

}  // namespace ptq::runner
