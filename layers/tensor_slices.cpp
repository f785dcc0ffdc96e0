#include "layers/tensor_slices.h"

namespace ptq::layers {

using parallel::even_share;
using parallel::Range;

Range tensor_slice(const LinearSpec& linear, const AttentionHeads* attention, int64_t ranks, int64_t rank) {
  switch (linear.split) {
    case Split::kWhole:
      return {0, linear.out};
    case Split::kRows:
      return even_share(linear.out, ranks, rank);
    case Split::kQueryHeads: {
      const Range heads = even_share(attention->heads, ranks, rank);
      const int64_t width = linear.out / attention->heads;
      return {heads.begin * width, heads.end * width};
    }
    case Split::kKeyValueHeads: {
      const int64_t width = linear.out / attention->kv_heads;
      if (attention->kv_heads < ranks) {
        const int64_t head = rank * attention->kv_heads / ranks;
        return {head * width, (head + 1) * width};
      }
      const Range heads = even_share(attention->kv_heads, ranks, rank);
      return {heads.begin * width, heads.end * width};
    }
  }
  throw bug("unknown split");
}

Range distinct_slice(const LinearSpec& linear, const AttentionHeads* attention, int64_t ranks, int64_t rank) {
  const Range mine = tensor_slice(linear, attention, ranks, rank);
  if (rank > 0 && mine == tensor_slice(linear, attention, ranks, rank - 1)) return {mine.end, mine.end};
  return mine;
}

bool slices_partition(Split split, const AttentionHeads* attention, int64_t ranks) {
  if (split == Split::kWhole) return ranks == 1;
  return split != Split::kKeyValueHeads || attention->kv_heads >= ranks;
}

void check_tensor_ranks(const ModelSpec& model, int64_t ranks) {
  for (const LayerSpec& layer : model.layers) {
    const AttentionHeads* attention = layer.attention();
    if (!attention) continue;
    const std::string where = "parallel.tensor = " + std::to_string(ranks);
    if (attention->heads % ranks != 0)
      throw user_error("the " + std::to_string(attention->heads) + " attention heads of " + layer.prefix + " cannot be split over " +
                           std::to_string(ranks) + " tensor ranks",
                       where, "choose a number that divides " + std::to_string(attention->heads));
    if (attention->kv_heads % ranks != 0 && ranks % attention->kv_heads != 0)
      throw user_error("the " + std::to_string(attention->kv_heads) + " kv heads of " + layer.prefix + " cannot be split over " +
                           std::to_string(ranks) + " tensor ranks",
                       where, "choose a divisor or a multiple of " + std::to_string(attention->kv_heads));
  }
}

}  // namespace ptq::layers
