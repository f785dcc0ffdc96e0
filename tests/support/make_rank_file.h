#pragma once
// Files of Megatron's ranks (mp_rank_00/model_optim_rng.pt) for tests, put together from args and state dicts.

#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/make_torch_file.h"

namespace ptq::test {

/// The args of the training run; 0: an arg that is not there.
struct RankArgs {
  int64_t tensor = 1, pipeline = 1, expert = 1, experts = 0, expert_tensor = 0;
};

struct RankTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::string bytes;  ///< row-major
  std::string storage = "torch ByteStorage";
};

inline std::string pickled_args(const RankArgs& args) {
  std::vector<std::string> entries;
  const auto add = [&](const char* name, int64_t value) {
    if (value == 0) return;
    entries.push_back(pickled(std::string(name)));
    entries.push_back(pickled(value));
  };
  add("tensor_model_parallel_size", args.tensor);
  add("pipeline_model_parallel_size", args.pipeline);
  add("expert_model_parallel_size", args.expert);
  add("num_experts", args.experts);
  add("expert_tensor_parallel_size", args.expert_tensor);
  return pickled_object("argparse Namespace", pickled_dict(entries));
}

/// A tensor with a storage of its own, behind those there are.
inline std::string pickled_rank_tensor(const RankTensor& tensor, std::vector<std::string>& storages) {
  int64_t elements = 1;
  for (const int64_t size : tensor.shape) elements *= size;
  std::vector<int64_t> strides(tensor.shape.size(), 1);
  for (size_t d = tensor.shape.size(); d-- > 1;) strides[d - 1] = strides[d] * tensor.shape[d];
  storages.push_back(tensor.bytes);
  return pickled_tensor(pickled_storage(tensor.storage, std::to_string(storages.size() - 1), elements), 0, tensor.shape, strides);
}

inline std::string pickled_state(const std::vector<RankTensor>& tensors, std::vector<std::string>& storages) {
  std::vector<std::string> entries;
  for (const RankTensor& tensor : tensors) {
    entries.push_back(pickled(tensor.name));
    entries.push_back(pickled_rank_tensor(tensor, storages));
  }
  return pickled_dict(entries);
}

/// One rank's file of one state dict, or of several chunks.
inline std::string rank_file(const RankArgs& args, const std::vector<std::vector<RankTensor>>& chunks) {
  std::vector<std::string> storages, entries{pickled(std::string("args")), pickled_args(args)};
  for (size_t i = 0; i < chunks.size(); ++i) {
    entries.push_back(pickled(chunks.size() == 1 ? std::string("model") : "model" + std::to_string(i)));
    entries.push_back(pickled_state(chunks[i], storages));
  }
  return torch_file(pickled_dict(entries), storages);
}

/// One rank's file of a model from before Megatron-core. `tensors`: names below language_model. `is_nested`: embedding, encoder and output
/// layer are dictionaries of their own, as Megatron saves them; else names are whole. `version`: 0 for none said.
inline std::string precore_rank_file(const RankArgs& args, const std::vector<RankTensor>& tensors, bool is_nested, int64_t version) {
  std::vector<std::string> storages, embedding, encoder, output, flat;
  const auto add = [](std::vector<std::string>& entries, const std::string& name, const std::string& value) {
    entries.push_back(pickled(name));
    entries.push_back(value);
  };
  for (const RankTensor& tensor : tensors) {
    const std::string value = pickled_rank_tensor(tensor, storages), &name = tensor.name;
    if (!is_nested)
      add(flat, "language_model." + name, value);
    else if (name.starts_with("encoder."))
      add(encoder, name.substr(name.find('.') + 1), value);
    else
      add(name.starts_with("embedding.") ? embedding : output, name.substr(name.rfind('.') + 1), value);
  }
  std::vector<std::string> model, entries;
  add(model, "word_embeddings", pickled_dict(embedding));
  const std::string embeddings = pickled_dict(model);
  model.clear();
  add(model, "embedding", embeddings);
  add(model, "encoder", pickled_dict(encoder));
  add(model, "output_layer", pickled_dict(output));
  add(entries, "args", pickled_args(args));
  if (version > 0) add(entries, "checkpoint_version", pickled(version));
  add(entries, "model",
      pickled_dict(is_nested ? std::vector<std::string>{pickled(std::string("language_model")), pickled_dict(model)} : flat));
  return torch_file(pickled_dict(entries), storages);
}

}  // namespace ptq::test
