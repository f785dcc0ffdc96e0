#include "runner/source_model.h"

#include <filesystem>

#include "layers/models/models.h"
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
    const auto path = std::filesystem::path(reader.folder()) / file;
    text += file + " " + std::to_string(std::filesystem::file_size(path)) + " " +
            std::to_string(std::filesystem::last_write_time(path).time_since_epoch().count()) + "\n";
  }
  return checkpoint::sha256_text(text);
}

}  // namespace

bool is_float(DType dtype) { return dtype == DType::kBF16 || dtype == DType::kF16 || dtype == DType::kF32; }

float read_scalar(const checkpoint::Reader& reader, const std::string& name) {
  const Tensor value = reader.read(name);
  if (value.dtype() != DType::kF32 || value.numel() != 1) throw data_error("tensor " + name + " is not an F32 scalar", reader.folder());
  return *reinterpret_cast<const float*>(value.raw());
}

SourceModel open_source(const std::string& path, bool as_stored) {
  SourceModel source;
  source.reader = checkpoint::open_checkpoint(path);
  const std::string folder = source.reader->folder();
  if (!checkpoint::exists(folder + "/config.json"))
    throw user_error("the checkpoint has no config.json", folder, "put the config.json that was published with it into this folder");
  source.config = checkpoint::read_json(folder + "/config.json");
  source.spec = layers::describe_model(layers::Config(source.config, folder + "/config.json"));
  source.fingerprint = fingerprint_of(*source.reader, source.config);
  for (const auto& [name, entry] : source.reader->tensors()) source.weight_bytes += entry.bytes;
  if (!as_stored || native_quantization(source.config) != "fp8")
    source.reader = open_native(std::move(source.reader), source.config, source.spec);
  source.eos_id = source.spec.eos_id;
  if (source.eos_id < 0 && checkpoint::exists(folder + "/generation_config.json")) {
    const checkpoint::Json generation = checkpoint::read_json(folder + "/generation_config.json");
    if (generation.contains("eos_token_id")) {
      const auto& eos = generation.at("eos_token_id");
      if (eos.is_number_integer()) source.eos_id = eos.get<int64_t>();
      if (eos.is_array() && !eos.empty() && eos[0].is_number_integer()) source.eos_id = eos[0].get<int64_t>();
    }
  }
  return source;
}

bool is_plain(const SourceModel& source) { return quantized_by(source.config).empty() || !native_quantization(source.config).empty(); }

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
