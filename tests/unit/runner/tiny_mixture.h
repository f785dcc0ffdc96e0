#pragma once
// A mixture of experts of a few elements, as it lies in a checkpoint.

#include <string>
#include <vector>

#include "runner/expert_chunks.h"
#include "tests/support/memory_reader.h"
#include "tests/support/reference_ops.h"

namespace ptq::test {

/// A mixture of `experts`, one by one or stacked, with biases, a router and a shared expert, and its tensors in memory.
struct Mixture {
  layers::LayerSpec layer;
  MemoryReader reader;

  Mixture(int experts, bool stacked, DType dtype = DType::kBF16) {
    layer.prefix = "l";
    layers::MoeSpec moe;
    const auto add = [&](const std::string& name, int64_t out, int64_t in, int expert) {
      return add_linear(layer, {"l.experts" + name, out, in, true, layers::Split::kWhole, 0, 0, expert, stacked ? experts : 0});
    };
    add_linear(layer, {"l.shared.up", 4, 6});
    layers::ExpertLinears stack;
    if (stacked) stack = {.gate_up = add(".gate_up", 10, 6, layers::kAllExperts), .down = add(".down", 6, 5, layers::kAllExperts)};
    for (int e = 0; e < experts; ++e) {
      const std::string name = "." + std::to_string(e);
      moe.experts.push_back(stacked ? stack
                                    : layers::ExpertLinears{.gate = add(name + ".gate", 5, 6, e),
                                                            .up = add(name + ".up", 5, 6, e),
                                                            .down = add(name + ".down", 6, 5, e)});
    }
    layer.tensors.push_back({"l.router.weight", {experts, 6}});
    layer.blocks.push_back({{}, std::move(moe)});
    uint64_t seed = 0;
    for (const auto& spec : layer.tensors) reader.add(spec.name, test::random_tensor(spec.shape, dtype, ++seed));
  }

  std::vector<std::vector<layers::TensorSpec>> specs() const { return runner::group_by_expert(*layer.moe(), layer.tensors); }
};

/// The expert's tensors as they are in the checkpoint.
inline std::vector<Tensor> tensors_of(const Mixture& mixture, int64_t expert) {
  std::vector<Tensor> tensors;
  const auto specs = mixture.specs();
  for (const auto& spec : specs[static_cast<size_t>(expert)]) {
    const Tensor whole = mixture.reader.read(spec.name);
    tensors.push_back(spec.expert == layers::kAllExperts ? whole.rows(expert, expert + 1) : whole);
  }
  return tensors;
}

}  // namespace ptq::test
