#include "runner/megatron_model.h"

#include <algorithm>
#include <utility>

#include "checkpoint/reader.h"
#include "kernels/core/error.h"
#include "layers/config.h"
#include "layers/models/models.h"

namespace ptq::runner {

namespace {

using checkpoint::Json;

constexpr const char *kEmbedding = "embedding.word_embeddings.weight", *kHead = "output_layer.weight";
constexpr const char* kSameModel = "config.json and checkpoint must be of the same model";

const Json& language_config(const Json& config) {
  return config.contains("text_config") && config.at("text_config").is_object() ? config.at("text_config") : config;
}

/// The dtype that config.json names for the weights; the embedding's where it names none.
DType weight_dtype(const Json& config, DType embedding) {
  for (const Json* part : {&language_config(config), &config})
    for (const char* key : {"dtype", "torch_dtype"}) {
      if (!part->contains(key) || !part->at(key).is_string()) continue;
      const std::string word = part->at(key).get<std::string>();
      if (word == "bfloat16") return DType::kBF16;
      if (word == "float16") return DType::kF16;
      if (word == "float32") return DType::kF32;
    }
  return embedding;
}

/// The highest id of tokenizer.json and 1; 0 where there is no such file.
int64_t tokenizer_size(const std::string& folder) {
  const std::string path = folder + "/tokenizer.json";
  if (!checkpoint::exists(path)) return 0;
  const nlohmann::json words = nlohmann::json::parse(checkpoint::read_text(path), nullptr, false);
  if (!words.is_object()) return 0;  // calibration, where it needs the file, says what is wrong with it
  int64_t size = 0;
  const auto count = [&](const nlohmann::json& id) {
    if (id.is_number_integer()) size = std::max(size, id.get<int64_t>() + 1);
  };
  if (words.contains("model") && words["model"].is_object() && words["model"].contains("vocab") && words["model"]["vocab"].is_object())
    for (const auto& [token, id] : words["model"]["vocab"].items()) count(id);
  if (words.contains("added_tokens") && words["added_tokens"].is_array())
    for (const auto& token : words["added_tokens"])
      if (token.is_object() && token.contains("id")) count(token["id"]);
  return size;
}

SourceArray need(MegatronArrays& arrays, const std::string& name, const std::string& tensor) {
  if (const auto found = arrays.find(name)) return *found;
  throw data_error("the checkpoint has no array " + name + " (tensor " + tensor + ")", arrays.store().path(),
                   "give the checkpoint of the whole model, written by Megatron-core");
}

/// The first rows of an array of the padded vocabulary.
void map_vocabulary(MegatronMap& map, const std::string& name, const std::string& tensor, const layers::ModelSpec& spec) {
  const SourceArray array = need(map.arrays(), name, tensor);
  if (array.shape.size() != 2 || array.shape[1] != spec.hidden)
    throw data_error("array " + array.array->name + " has the shape " + to_string(array.shape) + ", but config.json says hidden_size " +
                         std::to_string(spec.hidden),
                     map.arrays().store().path(), kSameModel);
  if (array.shape[0] < spec.vocab)
    throw data_error("array " + array.array->name + " has " + std::to_string(array.shape[0]) +
                         " rows, padding included, but config.json says vocab_size " + std::to_string(spec.vocab),
                     map.arrays().store().path(), kSameModel);
  map.add_rows(tensor, array, {{0, spec.vocab}});
}

void check_tokenizer(MegatronArrays& arrays, const std::string& config_folder) {
  const int64_t rows = arrays.find(kEmbedding)->shape[0], ids = tokenizer_size(config_folder);
  if (ids > rows)
    throw user_error("the tokenizer has " + std::to_string(ids) + " ids, but the checkpoint's embedding has " + std::to_string(rows) +
                         " rows, padding included",
                     config_folder + "/tokenizer.json", "put the tokenizer that the model was trained with into that folder");
}

/// A tied model may store its embedding again as the head. Where first and last row differ, the model is not tied.
void check_tied_head(MegatronArrays& arrays, const layers::ModelSpec& spec) {
  const auto head = arrays.find(kHead), embedding = arrays.find(kEmbedding);
  if (!head) return;
  bool is_equal = head->shape == embedding->shape && head->array->dtype == embedding->array->dtype;
  for (const int64_t row : {int64_t{0}, spec.vocab - 1}) {
    if (!is_equal) break;
    std::vector<std::byte> one(static_cast<size_t>(spec.hidden * dtype_bytes(head->array->dtype))), other(one.size());
    arrays.store().read_box(*head->array, {row, 0}, {1, spec.hidden}, one.data());
    arrays.store().read_box(*embedding->array, {row, 0}, {1, spec.hidden}, other.data());
    is_equal = one == other;
  }
  if (!is_equal)
    throw data_error("config.json says that the embeddings are tied, but array " + head->array->name + " is not the embedding",
                     arrays.store().path(), "set tie_word_embeddings as the model was trained: " + std::string(kSameModel));
}

/// Families whose Hugging Face form repeats embedding and head in every layer of multi-token prediction; Megatron shares the model's own.
bool repeats_vocabulary(const layers::ModelSpec& spec) { return spec.family == "deepseek_v3" || spec.family == "glm4_moe"; }

/// Layers of multi-token prediction: what is around each, and inside a layer like the model's last.
void map_prediction(MegatronMap& map, const Json& config, const std::string& config_folder, const layers::ModelSpec& spec) {
  MegatronArrays& arrays = map.arrays();
  const std::string all = "mtp.layers.";
  int64_t count = 0;
  while (arrays.has_any(all + std::to_string(count) + ".")) ++count;
  if (count == 0) return;
  Json longer = config;
  Json& language = longer.contains("text_config") ? longer["text_config"] : longer;
  language["num_hidden_layers"] = static_cast<int64_t>(spec.layers.size()) + count;
  const layers::ModelSpec extended = layers::describe_model(layers::Config(longer, config_folder + "/config.json"));
  for (int64_t k = 0; k < count; ++k) {
    const layers::LayerSpec& layer = extended.layers[spec.layers.size() + static_cast<size_t>(k)];
    const std::string outer = all + std::to_string(k) + ".";
    const auto add = [&](const std::string& name, const std::string& part, const Shape& shape, bool is_norm) {
      const std::string tensor = layer.prefix + "." + part + ".weight";
      map.add(tensor, need(arrays, outer + name + ".weight", tensor), shape, is_norm);
    };
    add("enorm", "enorm", {spec.hidden}, true);
    add("hnorm", "hnorm", {spec.hidden}, true);
    add("eh_proj", "eh_proj", {spec.hidden, 2 * spec.hidden}, false);
    add("final_layernorm", "shared_head.norm", {spec.hidden}, true);
    if (repeats_vocabulary(spec)) {
      map_vocabulary(map, kEmbedding, layer.prefix + ".embed_tokens.weight", spec);
      map_vocabulary(map, spec.tied ? kEmbedding : kHead, layer.prefix + ".shared_head.head.weight", spec);
    }
    const bool is_newer = arrays.has_any(outer + "mtp_model_layer.");
    map_layer(map, {outer + (is_newer ? "mtp_model_layer." : "transformer_layer."), outer, k, count}, layer);
  }
}

}  // namespace

std::map<std::string, MappedTensor> map_megatron_model(MegatronArrays& arrays, const Json& config, const std::string& config_folder,
                                                       const layers::ModelSpec& spec) {
  const SourceArray embedding = need(arrays, kEmbedding, spec.embedding);
  MegatronMap map(arrays, weight_dtype(config, embedding.array->dtype));
  map_vocabulary(map, kEmbedding, spec.embedding, spec);
  check_tokenizer(arrays, config_folder);
  if (spec.tied)
    check_tied_head(arrays, spec);
  else
    map_vocabulary(map, kHead, spec.head_weight(), spec);
  const auto final_norm = [&](const std::string& part) {
    const std::string tensor = spec.final_norm.module + "." + part;
    map.add(tensor, need(arrays, "decoder.final_layernorm." + part, tensor), {spec.hidden}, true);
  };
  final_norm("weight");
  if (spec.final_norm.kind == layers::NormSpec::Kind::kLayerNorm1p) final_norm("bias");
  const std::string all = "decoder.layers.";
  const auto count = static_cast<int64_t>(spec.layers.size());
  for (const layers::LayerSpec& layer : spec.layers)
    map_layer(map, {all + std::to_string(layer.index) + ".", all, layer.index, count}, layer);
  map_prediction(map, config, config_folder, spec);
  if (const auto unused = arrays.unused(); !unused.empty())
    throw data_error("the checkpoint holds weights that config.json's model has no place for: " + checkpoint::first_names(unused),
                     arrays.store().path(), kSameModel);
  return map.tensors();
}

}  // namespace ptq::runner
