#include "runner/reused_statistics.h"

#include <filesystem>

#include "checkpoint/files.h"
#include "recipes/kv_cache.h"
#include "runner/run_identity.h"

namespace ptq::runner {

namespace {

namespace fs = std::filesystem;

/// calibration.h5 as the recipe names it: itself, its folder, or the output whose folder ptq-runner it lies in.
std::string find_file(const recipes::Recipe& recipe) {
  const std::string where = recipe.where("calibration.reuse") + " = " + recipe.reuse;
  std::error_code failed;
  if (!fs::exists(recipe.reuse, failed))
    throw user_error("there are no statistics to reuse: no such file or folder", where,
                     "name the ptq-runner/calibration.h5 of an earlier run, or its output folder");
  if (!fs::is_directory(recipe.reuse, failed)) return recipe.reuse;
  for (const char* name : {"/calibration.h5", "/ptq-runner/calibration.h5"})
    if (fs::exists(recipe.reuse + name, failed)) return recipe.reuse + name;
  throw user_error("there are no statistics to reuse: the folder has neither calibration.h5 nor ptq-runner/calibration.h5", where,
                   "name the output folder of a run that calibrated");
}

/// The path of a layer's file. Throws a data Error when it is not there.
std::string existing(const std::string& path) {
  if (!checkpoint::exists(path))
    throw data_error("statistics are missing that belong to calibration.h5", path,
                     "copy calibration.h5 and the folder calibration beside it together, or calibrate again without calibration.reuse");
  return path;
}

}  // namespace

ReusedStatistics::ReusedStatistics(recipes::Recipe& recipe, const std::string& source_fingerprint, bool searches) {
  path_ = find_file(recipe);
  files_.folder = fs::path(path_).parent_path().string();
  if (files_.folder.empty()) files_.folder = ".";
  stats_ = checkpoint::read_stats(path_);
  const auto attribute = [&](const std::string& name) {
    const auto found = stats_.attributes.find(name);
    return found == stats_.attributes.end() ? std::string() : found->second;
  };
  const std::string where = recipe.where("calibration.reuse") + " = " + path_;
  if (attribute("statistics") != "1")
    throw user_error("these statistics are of another version of the program, which kept others", where,
                     "calibrate again: remove calibration.reuse and name calibration.data");
  rows_ = std::stoll("0" + attribute("rows"));
  tokens_ = std::stoll("0" + attribute("tokens"));
  if (tokens_ == 0)
    throw user_error("these statistics are of a run that saw no activations: its format needed none", where,
                     "name the statistics of a run with an activation format or a KV cache format, or calibrate again");
  if (attribute("source_fingerprint") != source_fingerprint)
    throw user_error("these statistics are of another model: the checkpoint's fingerprint is not the one they were taken of",
                     where + ", " + recipe.where("model.path") + " = " + recipe.model_path,
                     "name the model they are of, unchanged, or calibrate again without calibration.reuse");
  adopt_calibration_keys(stats_.attributes, path_, recipe);
  const bool has_grams = attribute("keep_gram") == "true";
  if (!has_grams && searches)
    throw user_error(
        "these statistics cannot serve a search: they hold no Gram matrices, which method awq and smoothquant's alpha: auto need", where,
        "calibrate once with calibration.keep_gram: true and reuse that run, or calibrate again without calibration.reuse");
  if (!has_grams && recipe.keep_gram)
    throw user_error("calibration.keep_gram asks for Gram matrices, but the statistics that are reused hold none",
                     recipe.where("calibration.keep_gram") + ", " + path_, "remove calibration.keep_gram, or calibrate again");
  if (recipes::kv_format(recipe.kv_cache) == recipes::KvFormat::kNvfp4Affine && stats_.integers.empty())
    throw user_error("these statistics do not have keys and values by channel, which kv_cache nvfp4_affine needs", where,
                     "calibrate once with quantization.kv_cache: nvfp4_affine, or use kv_cache: nvfp4 or fp8");
  run_ = attribute("run");
  operand_ = recipe.compute == "fp32" ? DType::kF32 : DType::kBF16;
}

const std::vector<float>& ReusedStatistics::array(const std::string& name) const {
  const auto found = stats_.arrays.find(name);
  if (found == stats_.arrays.end() || found->second.empty())
    throw data_error("the statistics have no '" + name + "'", path_, "calibrate again without calibration.reuse");
  return found->second;
}

void ReusedStatistics::load(const layers::LayerSpec& layer, bool checks_grams) {
  loaded_[layer.index] = read_channels(existing(files_.layer(layer.index)), run_, layer);
  recipes::LayerStatistics unused;
  fill(layer, unused);  // later nobody expects an error
  if (!checks_grams) return;
  const checkpoint::StatsReader reader(existing(files_.grams(layer.index)));
  check_run(reader, run_);
}

void ReusedStatistics::fill(const layers::LayerSpec& layer, recipes::LayerStatistics& statistics) const {
  for (const layers::LinearSpec& linear : layer.linears)
    if (!linear.is_routed()) statistics.input_amax[linear.input_group] = array(linear.module + "/input_amax").front();
  if (const auto* moe = layer.moe()) {
    const auto of_experts = [&](const char* what) {
      const std::vector<float>& values = array(moe->module + "/" + what);
      if (values.size() != moe->experts.size())
        throw data_error("the statistics are not of as many experts as " + moe->module + " has", path_, "calibrate again");
      return &values;
    };
    const auto *tokens = of_experts("tokens"), *forced = of_experts("forced_tokens"), *up = of_experts("up_input_amax"),
               *down = of_experts("down_input_amax");
    statistics.experts.clear();
    for (size_t e = 0; e < moe->experts.size(); ++e)
      statistics.experts.push_back({static_cast<int64_t>((*tokens)[e]), static_cast<int64_t>((*forced)[e]), (*up)[e], (*down)[e]});
  }
  const layers::AttentionHeads* attention = layer.attention();
  if (!attention) return;
  statistics.key_amax = array(attention->module + "/key_amax").front();
  statistics.value_amax = array(attention->module + "/value_amax").front();
  statistics.value_channel_amax = loaded_.at(layer.index).value_amax;
  for (const auto& [what, channels] : {std::pair("key", &statistics.key_channels), std::pair("value", &statistics.value_channels)}) {
    const std::string name = attention->module + "/" + what + "_channel_";
    const auto sums = stats_.integers.find(name + "sums");
    if (sums == stats_.integers.end()) continue;
    *channels = {sums->second, array(name + "minima"), array(name + "maxima")};
  }
}

float ReusedStatistics::head_input_amax(const layers::LinearSpec& head) const { return array(head.module + "/input_amax").front(); }

recipes::InputStatistics ReusedStatistics::channels(const layers::LayerSpec& layer, int input_group) {
  return loaded_.at(layer.index).groups.at(input_group);
}

recipes::InputStatistics ReusedStatistics::take(const layers::LayerSpec& layer, int input_group, const recipes::InputNeeds& needs) {
  recipes::InputStatistics input = channels(layer, input_group);
  if (!needs.gram && !needs.sample) return input;
  const checkpoint::StatsReader reader(files_.grams(layer.index), checkpoint::StatsReader::Digest::kKnown);
  for (const layers::SmoothingGroup& group : layers::smoothing_groups(layer))
    if (group.input_group == input_group) read_group(reader, group_name(layer, group), input.amax.numel(), operand_, needs, input);
  return input;
}

/// Magnitudes from what is loaded of the layer, the rest from a file an expert.
class ReusedStatistics::Experts : public ExpertInputs {
 public:
  Experts(const ReusedStatistics& all, const layers::LayerSpec& layer) : all_(all), layer_(layer) {
    for (const float tokens : all.array(layer.moe()->module + "/tokens")) tokens_.push_back(static_cast<int64_t>(tokens));
  }
  int64_t tokens(int expert) const override { return tokens_.at(static_cast<size_t>(expert)); }
  recipes::InputStatistics read(int expert, bool down, const recipes::InputNeeds& needs) const override {
    recipes::InputStatistics input;
    const layers::MoeSpec& moe = *layer_.moe();
    const int64_t channels = down ? moe.intermediate : layer_.linears[static_cast<size_t>(feeding_linears(moe, expert).front())].in;
    if (needs.channels) {
      const auto& experts = all_.loaded_.at(layer_.index).experts;
      input.amax = (down ? experts.down : experts.up).rows(expert, expert + 1).reshaped({channels});
    }
    if (!needs.gram && !needs.sample) return input;
    const checkpoint::StatsReader reader(existing(all_.files_.expert(layer_.index, expert)));
    check_run(reader, all_.run_);
    read_expert(reader, down, channels, tokens(expert), all_.operand_, needs, input);
    return input;
  }
  void drop(int) override {}

 private:
  const ReusedStatistics& all_;
  const layers::LayerSpec& layer_;
  std::vector<int64_t> tokens_;
};

std::unique_ptr<ExpertInputs> ReusedStatistics::experts(const layers::LayerSpec& layer) { return std::make_unique<Experts>(*this, layer); }

}  // namespace ptq::runner
