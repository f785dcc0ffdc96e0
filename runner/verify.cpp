#include "runner/verify.h"

#include <fnmatch.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

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
  const Json file = checkpoint::read_json(folder + "/hf_quant_config.json");
  const Json& words = config.at("quantization_config");
  const Json quantization = file.value("quantization", Json::object());
  judge.claim(file.contains("producer") && file.at("producer").value("name", "") == "modelopt",
              "hf_quant_config.json: producer.name is not modelopt");
  judge.claim(words.value("quant_method", "") == "modelopt", "config.json: quant_method is not modelopt");
  judge.claim(
      quantization.contains("quant_algo") && words.contains("quant_algo") && quantization.at("quant_algo") == words.at("quant_algo"),
      "the two JSON files name different quant_algo");
  judge.claim(quantization.contains("kv_cache_quant_algo"), "hf_quant_config.json: kv_cache_quant_algo is missing");
  const Json excluded = quantization.value("exclude_modules", Json::array()), ignored = words.value("ignore", Json::array());
  judge.claim(excluded == ignored, "exclude_modules and ignore differ");
  judge.claim(std::is_sorted(excluded.begin(), excluded.end()) && std::adjacent_find(excluded.begin(), excluded.end()) == excluded.end(),
              "exclude_modules is not sorted and unique");
  const bool kv_null = !quantization.contains("kv_cache_quant_algo") || quantization.at("kv_cache_quant_algo").is_null();
  judge.claim(kv_null != words.contains("kv_cache_scheme"), "kv_cache_scheme and kv_cache_quant_algo disagree");
}

/// Would a server that reads this pattern leave `module` unquantized?
bool excludes(const std::string& pattern, const std::string& module) {
  if (fnmatch(pattern.c_str(), module.c_str(), 0) == 0) return true;
  return module.find(pattern) != std::string::npos;  // vLLM also matches any substring
}

struct Export {
  const SourceModel& model;
  std::vector<const layers::LinearSpec*> linears;
  std::map<std::string, recipes::Format> formats;
};

void check_linear(const Export& exported, const layers::LinearSpec& linear, Judge& judge) {
  const checkpoint::Reader& reader = *exported.model.reader;
  const recipes::Format format = exported.formats.at(linear.module);
  if (format == recipes::Format::kNone) {
    for (const char* suffix : {".weight_scale", ".weight_scale_2", ".input_scale"})
      judge.claim(!reader.find(linear.module + suffix), linear.module + " is not quantized but has " + suffix);
    return;
  }
  for (const auto& part : recipes::encoded_tensors(format, linear)) {
    const std::string name = linear.module + part.suffix;
    const TensorEntry& entry = reader.at(name);
    if (part.row_elements == 0) {
      const float value = read_scalar(reader, name);
      judge.claim(std::isfinite(value) && value > 0, name + " is " + std::to_string(value) + ", not a positive finite scale");
    } else if (part.dtype == DType::kF8E4M3) {
      const bool is_scale = part.suffix != ".weight";
      bool finite = true, positive = true;
      for_pieces(reader, entry, [&](int64_t, int64_t, const std::vector<std::byte>& bytes) {
        for (const std::byte byte : bytes) {
          const auto code = static_cast<uint8_t>(byte);
          finite = finite && (code & 0x7f) != 0x7f;
          positive = positive && code != 0 && code < 0x80;
        }
      });
      judge.claim(finite, name + " holds NaN codes");
      if (is_scale) judge.claim(positive, name + " holds a block scale that is zero or negative");
    }
  }
}

void check_groups(const Export& exported, const layers::LayerSpec& layer, Judge& judge) {
  const checkpoint::Reader& reader = *exported.model.reader;
  for (size_t i = 0; i < layer.linears.size(); ++i)
    for (size_t j = i + 1; j < layer.linears.size(); ++j) {
      const auto &a = layer.linears[i], &b = layer.linears[j];
      const recipes::Format format = exported.formats.at(a.module);
      if (a.scale_group != b.scale_group) continue;
      judge.claim(format == exported.formats.at(b.module),
                  a.module + " and " + b.module + " are fused by servers but have different formats");
      if (format == recipes::Format::kNone || format != exported.formats.at(b.module)) continue;
      if (recipes::info(format).shares_weight_scale)
        judge.claim(read_scalar(reader, a.module + ".weight_scale_2") == read_scalar(reader, b.module + ".weight_scale_2"),
                    a.module + " and " + b.module + " do not share weight_scale_2");
      if (recipes::info(format).quantizes_activations)
        judge.claim(read_scalar(reader, a.module + ".input_scale") == read_scalar(reader, b.module + ".input_scale"),
                    a.module + " and " + b.module + " do not share input_scale");
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
}

void judge_share(const std::string& folder, const std::string& source, const checkpoint::OutputLayout* expected, int64_t ranks,
                 int64_t rank, Judge& judge) {
  const SourceModel model = open_source(folder);
  Export exported{model, {}, {}};
  for (const auto& layer : model.spec.layers)
    for (const auto& linear : layer.linears) exported.linears.push_back(&linear);
  if (!model.spec.tied) exported.linears.push_back(&model.spec.lm_head);
  std::set<std::string> encoded;
  for (const auto* linear : exported.linears) {
    const recipes::Format format = stored_format(*model.reader, *linear);
    exported.formats[linear->module] = format;
    if (format == recipes::Format::kNone) continue;
    for (const auto& part : recipes::encoded_tensors(format, *linear)) encoded.insert(linear->module + part.suffix);
  }
  const Json words = model.config.value("quantization_config", Json::object());
  const bool kv_wanted = words.contains("kv_cache_scheme");
  for (const auto& layer : model.spec.layers)
    if (layer.attention())
      for (const char* suffix : {".k_proj.k_scale", ".v_proj.v_scale"}) encoded.insert(layer.attention()->module + suffix);

  if (rank == 0) {
    check_json(folder, model.config, judge);
    if (expected) check_layout(*model.reader, *expected, judge);
    for (const auto* linear : exported.linears)
      for (const auto& pattern : words.value("ignore", Json::array()))
        judge.claim(exported.formats.at(linear->module) == recipes::Format::kNone || !excludes(pattern.get<std::string>(), linear->module),
                    linear->module + " is quantized but matches the exclude pattern " + pattern.get<std::string>());
  }
  for (size_t i = 0; i < exported.linears.size(); ++i)
    if (static_cast<int64_t>(i) % ranks == rank) check_linear(exported, *exported.linears[i], judge);
  for (size_t i = 0; i < model.spec.layers.size(); ++i) {
    if (static_cast<int64_t>(i) % ranks != rank) continue;
    check_groups(exported, model.spec.layers[i], judge);
    check_kv(exported, model.spec.layers[i], kv_wanted, judge);
  }
  if (!source.empty()) check_copies(exported, *checkpoint::open_checkpoint(source), encoded, ranks, rank, judge);
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
