#include "runner/calibration_rows.h"

#include <algorithm>
#include <optional>

#include "checkpoint/text_data.h"

namespace ptq::runner {

std::vector<std::vector<int32_t>> read_rows(const recipes::Recipe& recipe, const SourceModel& source) {
  if (recipe.calibration_data.empty())
    throw user_error("'calibration.data' is missing, but this format needs to see activations", recipe.file + "  calibration.data",
                     "name a .jsonl, .txt or .safetensors file");
  std::optional<checkpoint::Tokenizer> tokenizer;
  const bool has_text = std::any_of(recipe.calibration_data.begin(), recipe.calibration_data.end(), [](const std::string& file) {
    return file.size() < 12 || file.substr(file.size() - 12) != ".safetensors";
  });
  if (const std::string folder = source.tokenizer_folder(); has_text && !folder.empty())
    tokenizer.emplace(checkpoint::Tokenizer::open(folder));
  checkpoint::TextRequest request;
  request.files = recipe.calibration_data;
  request.samples = recipe.samples;
  request.sequence_length = recipe.sequence_length;
  request.pack = recipe.pack;
  request.drop_short = recipe.drop_short;
  if (source.eos_id >= 0) request.eos_id = static_cast<int32_t>(source.eos_id);
  request.vocab_size = source.spec.vocab;
  return checkpoint::load_rows(request, tokenizer ? &*tokenizer : nullptr);
}

std::string rows_fingerprint(const std::vector<std::vector<int32_t>>& rows) {
  std::string bytes;
  for (const auto& row : rows) {
    bytes.append(reinterpret_cast<const char*>(row.data()), row.size() * sizeof(int32_t));
    bytes += '\n';
  }
  return checkpoint::sha256_text(bytes);
}

}  // namespace ptq::runner
