#include "checkpoint/megatron_legacy_store.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "checkpoint/megatron_args.h"
#include "checkpoint/megatron_precore.h"
#include "checkpoint/megatron_ranks.h"
#include "checkpoint/megatron_shards.h"
#include "checkpoint/reader.h"
#include "checkpoint/torch_pickle.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {

constexpr std::string_view kLayers = "decoder.layers.";

std::string without_prefix(std::string_view name) {
  for (const std::string_view prefix : {"module.", "model.", "module."})
    if (name.starts_with(prefix)) name.remove_prefix(prefix.size());
  return std::string(name);
}

/// A name with a number in it: "decoder.layers." 3 ".mlp...".
struct Numbered {
  std::string head, tail;
  int64_t number = 0;
};

/// The number that follows `marker`, and ends the name or is followed by a '.'.
std::optional<Numbered> number_after(const std::string& name, std::string_view marker) {
  const size_t found = name.find(marker);
  if (found == std::string::npos) return std::nullopt;
  const size_t begin = found + marker.size();
  Numbered parts{name.substr(0, begin), "", 0};
  const auto parsed = std::from_chars(name.data() + begin, name.data() + name.size(), parts.number);
  const auto end = static_cast<size_t>(parsed.ptr - name.data());
  if (parsed.ec != std::errc() || parts.number < 0 || (end < name.size() && name[end] != '.')) return std::nullopt;
  parts.tail = name.substr(end);
  return parts;
}

using Tensors = std::map<std::string, TorchTensor>;

/// A state dict: its tensors, and the names of what else it holds.
struct RankModel {
  Tensors tensors;
  std::vector<std::string> others;
  std::set<uint32_t> seen;  ///< dictionaries gone through, by their node
};

/// Models from before Megatron-core: queries, keys and values are grouped as Megatron-core has them since version 2, and no version said is
/// version 0.
void check_precore(const TorchFile& file) {
  if (!file.find({"checkpoint_version"}))
    throw user_error("the checkpoint is of a model from before Megatron-core and does not say its checkpoint_version", file.slice().where(),
                     "load it with the Megatron that wrote it and save it again");
}

/// Adds what a dictionary holds, dictionaries in it only for models from before Megatron-core: there they make up the names.
void read_state(const TorchFile& file, const PickleValue& dict, const std::string& prefix, int depth, RankModel& read) {
  constexpr int kDeepest = 3;  // language_model, embedding, word_embeddings
  for (const auto& [key, value] : dict.entries()) {
    const std::string name = prefix.empty() ? without_prefix(key.text().value_or("")) : prefix + std::string(key.text().value_or(""));
    const bool is_precore = is_precore_name(name);
    if (is_precore && prefix.empty()) check_precore(file);
    if (is_precore && depth < kDeepest && !TorchFile::is_tensor(value) && !value.entries().empty() && read.seen.insert(value.node()).second)
      read_state(file, value, name + ".", depth + 1, read);
    else if (name.ends_with("_extra_state") || !TorchFile::is_tensor(value))
      read.others.push_back(name);
    else if (!read.tensors.emplace(core_name(name), file.tensor(value, name)).second)
      throw data_error("array " + quoted_name(name) + " is there twice", file.slice().where());
  }
}

/// The state dict of one rank, or each of its chunks where stages hold several: 'model', 'model0', 'model1', ...; NeMo's files are one.
std::vector<RankModel> read_models(const TorchFile& file) {
  std::vector<PickleValue> dicts;
  if (const PickleValue model = file.find({"model"})) dicts.push_back(model);
  for (int chunk = 0; dicts.size() == static_cast<size_t>(chunk); ++chunk)
    if (const PickleValue model = file.find({"model" + std::to_string(chunk)})) dicts.push_back(model);
  if (dicts.empty()) dicts.push_back(file.find({"state_dict"}) ? file.find({"state_dict"}) : file.root());
  std::vector<RankModel> models(dicts.size());
  for (size_t i = 0; i < dicts.size(); ++i) read_state(file, dicts[i], "", 0, models[i]);
  return models;
}

/// One more than the highest number after the marker.
int64_t count_of(const Tensors& tensors, std::string_view marker) {
  int64_t count = 0;
  for (const auto& [name, tensor] : tensors)
    if (const auto parts = number_after(name, marker)) count = std::max(count, parts->number + 1);
  return count;
}

/// The name in the whole model: layers and experts counted from the first rank's on, experts always as local_experts.E.
std::string global_name(const std::string& local, int64_t first_layer, int64_t expert_rank, const Tensors& tensors) {
  std::string name = local;
  if (name.starts_with(kLayers))
    if (const auto layer = number_after(name, kLayers)) name = layer->head + std::to_string(layer->number + first_layer) + layer->tail;
  constexpr std::string_view kExperts = "mlp.experts.", kOne = "local_experts.";
  for (const std::string_view marker : {"mlp.experts.local_experts.", "mlp.experts.linear_fc1.weight", "mlp.experts.linear_fc2.weight"}) {
    const auto expert = number_after(name, marker);
    if (!expert) continue;
    const std::string number = std::to_string(expert->number + expert_rank * count_of(tensors, marker));
    if (marker.ends_with(kOne)) return expert->head + number + expert->tail;
    const size_t linear = expert->head.find(kExperts) + kExperts.size();
    return expert->head.substr(0, linear) + std::string(kOne) + number + "." + expert->head.substr(linear);
  }
  return name;
}

}  // namespace

bool MegatronLegacyStore::accepts(const FileSet& files) {
  return std::any_of(files.begin(), files.end(), [](const auto& file) { return is_megatron_rank_file(file.first); });
}

std::unique_ptr<ArrayStore> MegatronLegacyStore::open(const FileSet& files, const std::string& path) {
  const auto first = std::find_if(files.begin(), files.end(), [](const auto& file) { return is_megatron_rank_file(file.first); });
  const MegatronArgs args = read_megatron_args(TorchFile(ByteSlice::of_slice(first->second)));
  const MegatronRanks ranks = find_megatron_ranks(files, args, path);
  std::vector<std::vector<RankModel>> models;  // by rank, by chunk
  size_t chunks = 0;
  for (const MegatronRank& rank : ranks.ranks) {
    models.push_back(read_models(TorchFile(ByteSlice::of_slice(rank.file))));
    chunks = std::max(chunks, models.back().size());
  }
  // Layers run through the first chunks of all stages, then through the second ones.
  MegatronParts parts;
  std::set<std::string> others;
  int64_t first_layer = 0;
  for (size_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t stage = 0; stage < ranks.pipeline; ++stage) {
      int64_t layers = 0;
      for (size_t r = 0; r < models.size(); ++r) {
        const MegatronRank& rank = ranks.ranks[r];
        if (rank.pipeline != stage || chunk >= models[r].size()) continue;
        const RankModel& model = models[r][chunk];
        const Tensors& tensors = model.tensors;
        layers = std::max(layers, count_of(tensors, kLayers));
        for (const auto& [local, tensor] : tensors) parts.add(global_name(local, first_layer, rank.expert, tensors), {tensor, rank});
        for (const std::string& local : model.others) others.insert(global_name(local, first_layer, rank.expert, tensors));
      }
      first_layer += layers;
    }
  std::unique_ptr<MegatronLegacyStore> store(new MegatronLegacyStore(path));  // make_unique cannot reach the private constructor
  for (auto& [array, shards] : parts.arrays(ranks, args.experts, path)) store->add_array(array, std::move(shards));
  store->left_out_.assign(others.begin(), others.end());
  return store;
}

}  // namespace ptq::checkpoint
