#include "runner/source_model.h"

#include <filesystem>
#include <utility>

#include "checkpoint/hf_shards.h"
#include "checkpoint/training_checkpoint.h"
#include "layers/models/models.h"
#include "runner/megatron_reader.h"
#include "runner/native_reader.h"

namespace ptq::runner {

namespace {

void check_tensor(const checkpoint::Reader& reader, const std::string& name, const Shape& shape) {
  const checkpoint::TensorEntry* entry = reader.find(name);
  if (!entry)
    throw data_error("the checkpoint has no tensor " + name + ", which its config.json asks for", reader.folder(),
                     "config.json and weights must be of the same model; check that the download is complete");
  if (entry->shape != shape)
    throw data_error("tensor " + name + " has the shape " + to_string(entry->shape) + ", but config.json says " + to_string(shape),
                     reader.folder() + "/" + entry->file, "config.json and weights must be of the same model");
  if (!is_float(entry->dtype))
    throw data_error(
        "tensor " + name + " is stored as " + std::string(dtype_name(entry->dtype)) + ", which cannot be a source of quantization",
        reader.folder() + "/" + entry->file, "start from the BF16, F16 or F32 checkpoint");
}

std::string fingerprint_of(const checkpoint::Reader& reader, const checkpoint::Json& config) {
  std::string text = config.dump() + "\n";
  for (const auto& [name, entry] : reader.tensors())
    text += name + " " + std::string(dtype_name(entry.dtype)) + " " + to_string(entry.shape) + " " + entry.file + " " +
            std::to_string(entry.offset) + "\n";
  // Weights changed in place keep their headers; the files' sizes and times tell.
  for (const std::string& file : reader.files()) {
    const std::filesystem::path path =
        file.empty() ? std::filesystem::path(reader.folder()) : std::filesystem::path(reader.folder()) / file;
    text += file + " " + std::to_string(std::filesystem::file_size(path)) + " " +
            std::to_string(std::filesystem::last_write_time(path).time_since_epoch().count()) + "\n";
  }
  return checkpoint::sha256_text(text);
}

void take_config(SourceModel& source, const std::string& folder) {
  source.config = checkpoint::read_json(folder + "/config.json");
  source.spec = layers::describe_model(layers::Config(source.config, folder + "/config.json"));
}

void take_companions(SourceModel& source, const std::string& folder, const std::vector<std::string>& names) {
  for (const std::string& name : names) source.companions.emplace(name, folder + "/" + name);
}

SourceModel open_hugging_face(const std::string& folder, const std::string& config) {
  SourceModel source;
  source.reader = checkpoint::open_checkpoint(folder);
  const bool has_config = checkpoint::exists(folder + "/config.json");
  if (has_config && !config.empty())
    throw user_error("'model.config' is for checkpoints without a config.json, and this one has its own", folder, "leave out model.config");
  if (!has_config && config.empty())
    throw user_error("the checkpoint has no config.json", folder, "put the config.json that was published with it into this folder");
  if (!has_config && !checkpoint::exists(config + "/config.json"))
    throw user_error("the folder has no config.json", config, "set model.config to the folder of the model's config.json and tokenizer");
  take_config(source, has_config ? folder : config);
  take_companions(source, folder, source.reader->companion_files());
  if (!has_config) take_companions(source, config, checkpoint::hf_companion_files(config));
  return source;
}

SourceModel open_training(const checkpoint::TrainingCheckpoint& training, const std::string& config) {
  const std::string folder = config.empty() ? training.weights : config;
  if (!checkpoint::exists(folder + "/config.json"))
    throw user_error(
        config.empty() ? "a " + training.container + " checkpoint, which carries no config.json" : "the folder has no config.json", folder,
        "set model.config to a folder with the config.json and the tokenizer of this model in Hugging Face's format; beside a recipe: "
        "--config");
  SourceModel source;
  take_config(source, folder);
  std::string format;
  auto arrays = checkpoint::open_arrays(training, format);
  source.reader = open_megatron(std::move(arrays), format, folder, source.config, source.spec);
  take_companions(source, folder, source.reader->companion_files());
  if (!training.tokenizer_folder.empty() && source.tokenizer_folder().empty())
    take_companions(source, training.tokenizer_folder, checkpoint::hf_companion_files(training.tokenizer_folder));
  return source;
}

/// The end of a text as generation_config.json has it, or -1.
int64_t generated_eos(const SourceModel& source) {
  const auto file = source.companions.find("generation_config.json");
  if (file == source.companions.end()) return -1;
  const checkpoint::Json generation = checkpoint::read_json(file->second);
  if (!generation.contains("eos_token_id")) return -1;
  const auto& eos = generation.at("eos_token_id");
  if (eos.is_number_integer()) return eos.get<int64_t>();
  return eos.is_array() && !eos.empty() && eos[0].is_number_integer() ? eos[0].get<int64_t>() : -1;
}

}  // namespace

bool is_float(DType dtype) { return dtype == DType::kBF16 || dtype == DType::kF16 || dtype == DType::kF32; }

float read_scalar(const checkpoint::Reader& reader, const std::string& name) {
  const Tensor value = reader.read(name);
  if (value.dtype() != DType::kF32 || value.numel() != 1) throw data_error("tensor " + name + " is not an F32 scalar", reader.folder());
  return *reinterpret_cast<const float*>(value.raw());
}

std::string SourceModel::tokenizer_folder() const {
  const auto found = companions.find("tokenizer.json");
  return found == companions.end() ? "" : std::filesystem::path(found->second).parent_path().string();
}

SourceModel open_source(const std::string& path, const std::string& config, Shown shown) {
  const auto training = checkpoint::find_training_checkpoint(path);
  const bool has_export = !training.export_folder.empty() && config.empty();
  SourceModel source = training.container.empty() || has_export ? open_hugging_face(has_export ? training.export_folder : path, config)
                                                                : open_training(training, config);
  source.fingerprint = fingerprint_of(*source.reader, source.config);
  source.ignored = source.reader->ignored();
  for (const auto& [name, entry] : source.reader->tensors()) source.weight_bytes += entry.bytes;
  if (shown == Shown::kAsMeant || (shown == Shown::kFp8Blocks && native_quantization(source.config) != "fp8"))
    source.reader = open_native(std::move(source.reader), source.config, source.spec);
  source.eos_id = source.spec.eos_id >= 0 ? source.spec.eos_id : generated_eos(source);
  return source;
}

bool is_plain(const SourceModel& source) { return quantized_by(source.config).empty() || !native_quantization(source.config).empty(); }

std::string ignored_words(const std::vector<std::string>& ignored) {
  struct Kind {
    std::string first;
    int64_t count = 0;
  };
  std::map<std::string, Kind> kinds;  // by the last part of the name, or the first one of an optimizer's
  for (const std::string& name : ignored) {
    const bool is_optimizer = name.starts_with("optimizer.") || name.starts_with("chained_");
    const std::string last = name.substr(name.rfind('.') + 1);
    Kind& kind = kinds[is_optimizer ? "optimizer" : last.substr(0, last.find('/'))];  // "_extra_state/shard_0_2"
    if (kind.count++ == 0) kind.first = name;
  }
  constexpr size_t kShown = 4;
  std::string words = std::to_string(ignored.size()) + " arrays or objects that only training needs";
  size_t shown = 0;
  for (const auto& [word, kind] : kinds) {
    if (shown++ == kShown) break;
    words += (shown == 1 ? ": " : ", ") + std::to_string(kind.count) + " " + word + " (" + kind.first + (kind.count > 1 ? ", ...)" : ")");
  }
  return kinds.size() > kShown ? words + " and more kinds" : words;
}

void check_tensors(const SourceModel& source) {
  const layers::ModelSpec& model = source.spec;
  if (!is_plain(source))
    throw data_error("the checkpoint is quantized already, by " + quantized_by(source.config), source.reader->folder(),
                     "start from the checkpoint it was made from: BF16, F16, F32, or the publisher's own FP8 blocks or MXFP4");
  check_tensor(*source.reader, model.embedding, {model.vocab, model.hidden});
  check_tensor(*source.reader, model.final_norm.module + ".weight", {model.hidden});
  if (model.final_norm.kind == layers::NormSpec::Kind::kLayerNorm1p)
    check_tensor(*source.reader, model.final_norm.module + ".bias", {model.hidden});
  check_tensor(*source.reader, model.head_weight(), {model.vocab, model.hidden});
  for (const auto& layer : model.layers)
    for (const auto& tensor : layer.tensors) check_tensor(*source.reader, tensor.name, tensor.shape);
}

}  // namespace ptq::runner
