#include "runner/verify.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "recipes/exclusions.h"
#include "recipes/export_metadata.h"
#include "runner/publication.h"
#include "runner/source_model.h"

namespace ptq::runner {

namespace {

using checkpoint::Json;
using checkpoint::TensorEntry;

constexpr int64_t kPiece = int64_t{8} << 20;

class Judge {
 public:
  explicit Judge(VerifyResult& result) : result_(result) {}
  void claim(bool holds, const std::string& otherwise) {
    ++result_.checks;
    if (!holds && result_.failures.size() < 100) result_.failures.push_back(otherwise);
  }
  void claims(size_t checks, const std::vector<std::string>& failures) {
    for (const auto& failure : failures) claim(false, failure);
    result_.checks += static_cast<int64_t>(checks - std::min(checks, failures.size()));
  }

 private:
  VerifyResult& result_;
};

/// Walks the bytes of a tensor in pieces of whole rows.
template <class Visit>
void for_pieces(const checkpoint::Reader& reader, const TensorEntry& entry, const Visit& visit) {
  const int64_t rows = entry.shape.empty() ? 1 : entry.shape[0];
  const int64_t row_bytes = rows > 0 ? entry.bytes / rows : 0;
  const int64_t step = std::max<int64_t>(1, row_bytes > 0 ? kPiece / row_bytes : rows);
  std::vector<std::byte> buffer;
  for (int64_t begin = 0; begin < rows; begin += step) {
    const int64_t end = std::min(rows, begin + step);
    buffer.resize(static_cast<size_t>((end - begin) * row_bytes));
    reader.read_rows(entry, begin, end, buffer.data());
    visit(begin, end, buffer);
  }
}

void check_json(const std::string& folder, const Json& config, Judge& judge) {
  const bool has_quantization = config.contains("quantization_config");
  const bool has_file = checkpoint::exists(folder + "/hf_quant_config.json");
  judge.claim(has_quantization == has_file, "config.json and hf_quant_config.json disagree about whether the model is quantized");
  if (!has_quantization || !has_file) return;
  constexpr size_t kClaims = 8;
  judge.claims(kClaims,
               recipes::metadata_faults(checkpoint::read_json(folder + "/hf_quant_config.json"), config.at("quantization_config")));
}

/// A linear as it is stored. `key` is the module that servers know it by: a layer's routed experts are one.
struct StoredLinear {
  const layers::LinearSpec* linear;
  std::string key;
  recipes::Format format;
};

struct Export {
  const SourceModel& model;
  std::vector<std::vector<StoredLinear>> layers;  ///< and one more, of the head
};

Export read_export(const SourceModel& model) {
  Export exported{model, {}};
  for (const auto& layer : model.spec.layers) {
    exported.layers.emplace_back();
    for (const auto& linear : layer.linears)
      exported.layers.back().push_back(
          {&linear, linear.is_routed() && layer.moe() ? layer.moe()->module : linear.module, stored_format(*model.reader, linear)});
  }
  exported.layers.emplace_back();
  if (!model.spec.tied) {
    const layers::LinearSpec& head = model.spec.lm_head;
    exported.layers.back().push_back({&head, head.module, stored_format(*model.reader, head)});
  }
  return exported;
}

/// One format for all: what is not quantized, and only that, is under exclude_modules.
void check_excluded(const Export& exported, const std::vector<std::string>& patterns, Judge& judge) {
  std::set<std::string> quantized, plain;
  for (const auto& layer : exported.layers)
    for (const auto& [linear, key, format] : layer) {
      if (format == recipes::Format::kNone)
        plain.insert(linear->module);
      else
        quantized.insert({linear->module, key});
    }
  // Routers, and whatever has no place in the spec: multi-token prediction, a vision tower.
  for (const auto& [name, entry] : exported.model.reader->tensors())
    if (entry.shape.size() == 2 && name.ends_with(".weight") && name != exported.model.spec.embedding &&
        !exported.model.reader->find(name + "_scale"))
      plain.insert(name.substr(0, name.rfind('.')));
  judge.claims(quantized.size() + plain.size(), recipes::exclusion_faults(patterns, quantized, plain));
}

/// MIXED_PRECISION: what is quantized, and only that, is under quantized_layers.
void check_mixture(const Export& exported, const Json& quantized_layers, Judge& judge) {
  std::map<std::string, std::string> algorithms;
  for (const auto& [module, entry] : quantized_layers.items()) algorithms[module] = entry.value("quant_algo", "");
  for (const auto& layer : exported.layers)
    for (const auto& [linear, key, format] : layer) {
      const auto found = algorithms.find(key);
      judge.claim((found == algorithms.end() ? "" : found->second) == recipes::info(format).quant_algo,
                  linear->module + " is stored as " + recipes::info(format).name + ", but quantized_layers says otherwise");
    }
}

/// The codes of a linear, or that there are none.
void check_codes(const checkpoint::Reader& reader, const StoredLinear& stored, Judge& judge) {
  const layers::LinearSpec& linear = *stored.linear;
  if (stored.format == recipes::Format::kNone) {
    for (const char* part : {".weight_scale", ".weight_scale_2", ".input_scale"})
      judge.claim(!reader.find(linear.tensor(part)), linear.module + " is not quantized but has " + linear.tensor(part));
    return;
  }
  for (const auto& part : recipes::encoded_tensors(stored.format, linear)) {
    if (part.is_scalar || part.tensor.dtype != DType::kF8E4M3) continue;
    bool finite = true, positive = true;
    for_pieces(reader, reader.at(part.tensor.name), [&](int64_t, int64_t, const std::vector<std::byte>& bytes) {
      for (const std::byte byte : bytes) {
        const auto code = static_cast<uint8_t>(byte);
        finite = finite && (code & 0x7f) != 0x7f;
        positive = positive && code != 0 && code < 0x80;
      }
    });
    judge.claim(finite, part.tensor.name + " holds NaN codes");
    if (part.part != ".weight") judge.claim(positive, part.tensor.name + " holds a block scale that is zero or negative");
  }
}

/// The scalars of one layer's linears, each read once, and which of them servers take for one.
void check_scales(const checkpoint::Reader& reader, const std::vector<StoredLinear>& layer, Judge& judge) {
  // Fused by servers: the members of a scale group, and all routed experts of the layer.
  enum class Shares { kFormat, kExpertFormat, kWeightScale, kInput, kExpertInput };
  struct Leader {
    const StoredLinear* first;
    float value;
  };
  std::map<std::pair<Shares, int>, Leader> leaders;
  const auto claim_shared = [&](Shares what, int group, const StoredLinear& stored, float value, const std::string& otherwise) {
    const Leader& leader = leaders.try_emplace({what, group}, Leader{&stored, value}).first->second;
    judge.claim(leader.first == &stored || leader.value == value,
                leader.first->linear->module + " and " + stored.linear->module + otherwise);
  };
  for (const StoredLinear& stored : layer) {
    const layers::LinearSpec& linear = *stored.linear;
    const bool routed = linear.is_routed();
    claim_shared(routed ? Shares::kExpertFormat : Shares::kFormat, routed ? 0 : linear.scale_group, stored,
                 static_cast<float>(stored.format), " are fused by servers but have different formats");
    if (stored.format == recipes::Format::kNone) continue;
    for (const auto& part : recipes::encoded_tensors(stored.format, linear)) {
      if (!part.is_scalar) continue;
      const float value = read_scalar(reader, part.tensor.name);
      judge.claim(std::isfinite(value) && value > 0, part.tensor.name + " is " + std::to_string(value) + ", not a positive finite scale");
      const std::string otherwise = " do not share " + part.part.substr(1);
      if (part.part == ".input_scale")
        claim_shared(routed ? Shares::kExpertInput : Shares::kInput, routed ? linear.feeds_down : linear.scale_group, stored, value,
                     otherwise);
      else if (routed || recipes::info(stored.format).shares_weight_scale)
        claim_shared(Shares::kWeightScale, linear.scale_group, stored, value, otherwise);
    }
  }
}

void check_kv(const Export& exported, const layers::LayerSpec& layer, bool wanted, Judge& judge) {
  if (!layer.attention()) return;
  for (const char* suffix : {".k_proj.k_scale", ".v_proj.v_scale"}) {
    const std::string name = layer.attention()->module + suffix;
    const TensorEntry* entry = exported.model.reader->find(name);
    judge.claim((entry != nullptr) == wanted, wanted ? name + " is missing" : name + " is there without a quantized KV cache");
    if (!entry) continue;
    const float value = entry->dtype == DType::kF32 && entry->shape.empty() ? read_scalar(*exported.model.reader, name) : -1.0f;
    judge.claim(std::isfinite(value) && value > 0, name + " is not a positive finite F32 scalar");
  }
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
    judge.claim(reader.find(name) || (spec.tied && name == spec.lm_head.tensor(".weight")), name + " is in the source but not here");
}

void judge_share(const std::string& folder, const std::string& source, const checkpoint::OutputLayout* expected, int64_t ranks,
                 int64_t rank, Judge& judge) {
  const SourceModel model = open_source(folder);
  const Export exported = read_export(model);
  const Json words = model.config.value("quantization_config", Json::object());
  const bool kv_wanted = words.contains("kv_cache_scheme");
  std::set<std::string> encoded;
  for (const auto& layer : exported.layers)
    for (const auto& stored : layer)
      if (stored.format != recipes::Format::kNone)
        for (const auto& part : recipes::encoded_tensors(stored.format, *stored.linear)) encoded.insert(part.tensor.name);
  for (const auto& layer : model.spec.layers)
    if (layer.attention())
      for (const char* suffix : {".k_proj.k_scale", ".v_proj.v_scale"}) encoded.insert(layer.attention()->module + suffix);

  if (rank == 0) {
    check_json(folder, model.config, judge);
    if (expected) check_layout(*model.reader, *expected, judge);
    const bool has_algorithm = words.contains("quant_algo") && words.at("quant_algo").is_string();
    if (has_algorithm && words.at("quant_algo") == "MIXED_PRECISION")
      check_mixture(exported, words.value("quantized_layers", Json::object()), judge);
    else if (has_algorithm)
      check_excluded(exported, words.value("ignore", std::vector<std::string>()), judge);
  }
  int64_t turn = 0;
  for (size_t i = 0; i < exported.layers.size(); ++i) {
    for (const auto& stored : exported.layers[i])
      if (turn++ % ranks == rank) check_codes(*model.reader, stored, judge);
    if (static_cast<int64_t>(i) % ranks != rank) continue;
    check_scales(*model.reader, exported.layers[i], judge);
    if (i < model.spec.layers.size()) check_kv(exported, model.spec.layers[i], kv_wanted, judge);
  }
  // The source as open_source shows it: weights that its publisher quantized are the bf16 ones they stand for.
  if (!source.empty()) check_copies(exported, *open_source(source).reader, encoded, ranks, rank, judge);
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

VerifyResult verify_export(const std::string& folder, const std::string& source, const checkpoint::OutputLayout* expected,
                           parallel::Communicator& world) {
  VerifyResult mine;
  Judge judge(mine);
  try {
    judge_share(folder, source, expected, world.size(), world.rank(), judge);
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
