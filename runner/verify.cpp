#include "runner/verify.h"

#include <map>
#include <set>

#include "recipes/exclusions.h"
#include "recipes/export_metadata.h"
#include "runner/publication.h"
#include "runner/verify_judge.h"

namespace ptq::runner {

namespace {

using checkpoint::Json;
using checkpoint::TensorEntry;

/// The words of config.json against those of hf_quant_config.json, which ModelOpt's dialect alone has, and against themselves.
void check_json(const std::string& folder, const Json& config, recipes::Dialect dialect, Judge& judge) {
  const bool has_quantization = config.contains("quantization_config");
  const bool has_file = checkpoint::exists(folder + "/hf_quant_config.json");
  constexpr size_t kClaims = 15;
  if (dialect == recipes::Dialect::kModelOpt) {
    judge.claim(has_quantization == has_file, "config.json and hf_quant_config.json disagree about whether the model is quantized");
    if (has_quantization && has_file)
      judge.claims(kClaims,
                   recipes::metadata_faults(checkpoint::read_json(folder + "/hf_quant_config.json"), config.at("quantization_config")));
    return;
  }
  judge.claim(!has_file, "hf_quant_config.json is there, which no dialect but ModelOpt's has");
  const Json& words = config.at("quantization_config");
  judge.claims(kClaims,
               dialect == recipes::Dialect::kCompressedTensors ? recipes::compressed_faults(words) : recipes::deepseek_faults(words));
}

struct Export {
  const SourceModel& model;
  StoredEncodings encodings;
  std::vector<std::vector<StoredLinear>> layers;  ///< and one more, of the head
};

Export read_export(const SourceModel& model) {
  Export exported{model, StoredEncodings(model), {}};
  for (const auto& layer : model.spec.layers) {
    exported.layers.emplace_back();
    for (const auto& linear : layer.linears)
      exported.layers.back().push_back(
          {&linear, linear.is_routed() && layer.moe() ? layer.moe()->module : linear.module, exported.encodings.of(linear)});
  }
  exported.layers.emplace_back();
  if (!model.spec.tied) {
    const layers::LinearSpec& head = model.spec.lm_head;
    exported.layers.back().push_back({&head, head.module, exported.encodings.of(head)});
  }
  return exported;
}

/// Modules that own a matrix: those of quantized linears with the modules servers know them by, and all others but the embedding: routers,
/// and whatever has no place in the spec (multi-token prediction, a vision tower).
struct MatrixModules {
  std::set<std::string> quantized, plain;
};
MatrixModules matrix_modules(const Export& exported) {
  MatrixModules modules;
  for (const auto& layer : exported.layers)
    for (const auto& [linear, key, encoding] : layer) {
      if (encoding.is_quantized())
        modules.quantized.insert({linear->module, key});
      else
        modules.plain.insert(linear->module);
    }
  const checkpoint::Reader& reader = *exported.model.reader;
  const bool has_blocks = exported.encodings.dialect() == recipes::Dialect::kDeepseekFp8;  // also of what the publisher quantized
  for (const auto& [name, entry] : reader.tensors())
    if (entry.shape.size() == 2 && name.ends_with(".weight") && name != exported.model.spec.embedding && !reader.find(name + "_scale") &&
        !(has_blocks && reader.find(name + "_scale_inv")))
      modules.plain.insert(name.substr(0, name.rfind('.')));
  return modules;
}

/// MIXED_PRECISION: what is quantized, and only that, is under quantized_layers.
void check_mixture(const Export& exported, const Json& quantized_layers, Judge& judge) {
  std::map<std::string, std::string> algorithms;
  for (const auto& [module, entry] : quantized_layers.items()) algorithms[module] = entry.value("quant_algo", "");
  for (const auto& layer : exported.layers)
    for (const auto& [linear, key, encoding] : layer) {
      const auto found = algorithms.find(key);
      judge.claim((found == algorithms.end() ? "" : found->second) == recipes::quant_algo(encoding),
                  linear->module + " is stored as " + recipes::info(encoding.format).name + ", but quantized_layers says otherwise");
    }
}

/// The words of compressed-tensors give every linear the format it is stored in, and nothing else one.
void check_groups(const Export& exported, const Json& words, Judge& judge) {
  const recipes::CompressedFormats formats(words);
  for (const auto& layer : exported.layers)
    for (const auto& [linear, key, encoding] : layer)
      judge.claim(formats.of(linear->module) == encoding.format,
                  linear->module + " is stored as " + recipes::info(encoding.format).name + ", but config_groups and ignore say otherwise");
  for (const std::string& module : matrix_modules(exported).plain)
    judge.claim(formats.of(module) == recipes::Format::kNone, module + " is not quantized, but config_groups and ignore say it is");
}

/// modules_to_not_convert names what is not quantized, by itself or by a module that it is part of, and nothing else.
void check_kept(const Export& exported, const Json& words, Judge& judge) {
  std::set<std::string> kept;
  for (const Json& name : words.value("modules_to_not_convert", Json::array())) kept.insert(name.get<std::string>());
  const auto is_kept = [&](const std::string& module) {
    for (size_t dot = module.find('.'); dot != std::string::npos; dot = module.find('.', dot + 1))
      if (kept.count(module.substr(0, dot))) return true;
    return kept.count(module) > 0;
  };
  const MatrixModules modules = matrix_modules(exported);
  for (const std::string& module : modules.quantized)
    judge.claim(!is_kept(module), module + " is quantized but modules_to_not_convert has it");
  for (const std::string& module : modules.plain)
    judge.claim(is_kept(module), module + " is not quantized, but modules_to_not_convert lacks it");
}

/// Do the words say of every module what it is?
void check_modules(const Export& exported, const Json& words, Judge& judge) {
  if (exported.encodings.dialect() == recipes::Dialect::kCompressedTensors) return check_groups(exported, words, judge);
  if (exported.encodings.dialect() == recipes::Dialect::kDeepseekFp8) return check_kept(exported, words, judge);
  if (!words.contains("quant_algo") || !words.at("quant_algo").is_string()) return;
  const auto algorithm = words.at("quant_algo").get<std::string>();
  if (algorithm == "MIXED_PRECISION") return check_mixture(exported, words.value("quantized_layers", Json::object()), judge);
  const MatrixModules modules = matrix_modules(exported);
  judge.claims(modules.quantized.size() + modules.plain.size(),
               recipes::exclusion_faults(words.value("ignore", std::vector<std::string>()), modules.quantized, modules.plain));
  for (const auto& layer : exported.layers)
    for (const auto& [linear, key, encoding] : layer)
      if (encoding.is_quantized() && !(encoding.format == recipes::Format::kNvfp4 && algorithm == "NVFP4_AWQ"))
        judge.claim(recipes::quant_algo(encoding) == algorithm,
                    linear->module + " is stored as " + recipes::info(encoding.format).name + ", but quant_algo is " + algorithm);
}

void check_layout(const checkpoint::Reader& reader, const checkpoint::OutputLayout& expected, Judge& judge) {
  judge.claim(reader.tensors().size() == expected.places().size(), "the folder does not hold as many tensors as were planned");
  for (const auto& shard : expected.shards())
    for (const auto& tensor : shard.tensors) {
      const TensorEntry* entry = reader.find(tensor.name);
      judge.claim(entry != nullptr, tensor.name + " is missing");
      if (!entry) continue;
      judge.claim(entry->dtype == tensor.dtype && entry->shape == tensor.shape && entry->file == shard.name &&
                      entry->offset == expected.place(tensor.name).offset,
                  tensor.name + " is not stored as planned");
    }
}

void check_copies(const Export& exported, const checkpoint::Reader& source, const std::set<std::string>& encoded, int64_t ranks,
                  int64_t rank, Judge& judge) {
  const checkpoint::Reader& reader = *exported.model.reader;
  const layers::ModelSpec& spec = exported.model.spec;
  int64_t turn = 0;
  for (const auto& [name, entry] : reader.tensors()) {
    if (encoded.count(name) || turn++ % ranks != rank) continue;
    const TensorEntry* original = source.find(name);
    const bool alike = original && original->dtype == entry.dtype && original->shape == entry.shape;
    judge.claim(alike, name + " is not in the source with that dtype and shape");
    if (!alike) continue;
    bool equal = true;
    for_pieces(reader, entry, [&](int64_t begin, int64_t end, const std::vector<std::byte>& bytes) {
      std::vector<std::byte> other(bytes.size());
      source.read_rows(*original, begin, end, other.data());
      equal = equal && bytes == other;
    });
    judge.claim(equal, name + " differs from the source though it is not quantized");
  }
  if (rank != 0) return;
  for (const auto& [name, entry] : source.tensors())
    judge.claim(reader.find(name) || encoded.count(name) || (spec.tied && name == spec.lm_head.tensor(".weight")),
                name + " is in the source but not here");
}

void judge_share(const std::string& folder, const std::string& source, const std::string& source_config,
                 const checkpoint::OutputLayout* expected, int64_t ranks, int64_t rank, Judge& judge) {
  const SourceModel model = open_source(folder, "", Shown::kFp8Blocks);
  const Export exported = read_export(model);
  const recipes::Dialect dialect = exported.encodings.dialect();
  const Json words = model.config.value("quantization_config", Json::object());
  const recipes::KvFormats kv = stored_kv_formats(model.config, model.spec);
  std::set<std::string> encoded;
  for (const auto& layer : exported.layers)
    for (const auto& stored : layer)
      if (stored.encoding.is_quantized()) {
        encoded.insert(stored.linear->tensor(".weight"));
        for (const auto& part : recipes::encoded_tensors(stored.encoding, *stored.linear)) encoded.insert(part.tensor.name);
      }
  for (const auto& layer : model.spec.layers)
    if (layer.attention())
      for (const auto& tensor : recipes::kv_tensors(dialect, recipes::KvFormat::kNvfp4Affine, *layer.attention()))
        encoded.insert(tensor.name);

  if (rank == 0) {
    check_json(folder, model.config, dialect, judge);
    if (expected) check_layout(*model.reader, *expected, judge);
    check_modules(exported, words, judge);
  }
  int64_t turn = 0;
  for (size_t i = 0; i < exported.layers.size(); ++i) {
    for (const auto& stored : exported.layers[i])
      if (turn++ % ranks == rank) check_linear(*model.reader, stored, judge);
    if (static_cast<int64_t>(i) % ranks != rank) continue;
    check_shared(exported.encodings, exported.layers[i], judge);
    if (i < model.spec.layers.size()) check_stored_factors(model.spec.layers[i], exported.layers[i], judge);
    if (i < model.spec.layers.size() && model.spec.layers[i].attention())
      check_kv(*model.reader, dialect, kv.at(model.spec.layers[i].attention()->module), *model.spec.layers[i].attention(), judge);
  }
  if (source.empty()) return;
  // The source as open_source shows it: weights that its publisher quantized are the bf16 ones they stand for.
  const SourceModel original = open_source(source, source_config);
  if (rank == 0) check_companions(folder, model, original, judge);
  const std::string method = method_of(folder);
  const bool is_scaled = method == "autoquantize", may_fold = method != "minmax" && !is_scaled;
  for (size_t i = 0; (may_fold || is_scaled) && i < model.spec.layers.size(); ++i) {
    const layers::LayerSpec& layer = model.spec.layers[i];
    for (const std::string& name : is_scaled ? scaled_names(layer, exported.layers[i]) : folded_names(layer, exported.layers[i]))
      encoded.insert(name);
    if (static_cast<int64_t>(i) % ranks != rank) continue;
    (is_scaled ? check_scaled : check_folds)(layer, exported.layers[i], *model.reader, *original.reader, judge);
  }
  check_copies(exported, *original.reader, encoded, ranks, rank, judge);
}

/// The files of a finished output against the sums in its manifest. Collective.
void check_sums(const std::string& folder, parallel::Communicator& world, Judge& judge) {
  const std::string path = folder + "/ptq-runner/manifest.json";
  int64_t finished = checkpoint::exists(path) ? 1 : 0;
  world.all_reduce_max(std::span<int64_t>(&finished, 1));
  if (!finished) return;
  const Json files = hash_files(world, folder);
  if (world.rank() != 0) return;
  Json listed = Json::object();
  try {
    listed = checkpoint::read_json(path).at("files");
  } catch (const std::exception& error) {
    judge.claim(false, std::string("ptq-runner/manifest.json cannot be read: ") + error.what());
    return;
  }
  for (const auto& [name, sum] : listed.items())
    judge.claim(files.value(name, "") == sum.get<std::string>(),
                name + (files.contains(name) ? " is not the file whose SHA-256 the manifest keeps" : " is missing"));
  for (const auto& [name, sum] : files.items()) judge.claim(listed.contains(name), name + " is not in the manifest");
}

}  // namespace

VerifyResult verify_export(const std::string& folder, const std::string& source, const std::string& source_config,
                           const checkpoint::OutputLayout* expected, parallel::Communicator& world) {
  VerifyResult mine;
  Judge judge(mine);
  try {
    judge_share(folder, source, source_config, expected, world.size(), world.rank(), judge);
  } catch (const Error& error) {
    // What cannot even be read has failed verification; the reader's own words say why.
    mine.failures.emplace_back(error.what());
  } catch (const nlohmann::json::exception& error) {
    mine.failures.emplace_back("config.json or hf_quant_config.json is not as ModelOpt writes it: " + checkpoint::json_words(error));
  }
  check_sums(folder, world, judge);
  std::string text;
  for (const auto& failure : mine.failures) text += failure + "\n";
  VerifyResult all;
  std::set<std::string> seen;
  for (const std::string& part : world.gather_texts(text)) {
    size_t begin = 0;
    for (size_t end; (end = part.find('\n', begin)) != std::string::npos; begin = end + 1)
      if (seen.insert(part.substr(begin, end - begin)).second) all.failures.push_back(part.substr(begin, end - begin));
  }
  all.checks = mine.checks;
  world.all_reduce_sum(std::span<int64_t>(&all.checks, 1));
  return all;
}

}  // namespace ptq::runner
