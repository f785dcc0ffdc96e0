#include "recipes/sensitivity.h"

#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "checkpoint/stats_file.h"

namespace ptq::recipes {

namespace {

using Json = nlohmann::json;

constexpr const char* kKind = "autoquantize scores";
constexpr const char* kVersion = "1";

/// One file being read: what is missing or wrong is a data Error.
class ScoresFile {
 public:
  explicit ScoresFile(const std::string& path) : reader_(path), attributes_(reader_.attributes()) {
    const auto kind = attributes_.find("kind");
    if (kind == attributes_.end() || kind->second != kKind)
      throw data_error("a file of statistics, but not one of AutoQuantize's scores", path, "name the scores.h5 of a run with preset: auto");
    if (text("version") != kVersion) fail("it is of another version of this program");
  }

  [[noreturn]] void fail(const std::string& words) const {
    throw data_error("not a sound file of scores: " + words, reader_.path(), "remove it and run the recipe again");
  }
  void expect(bool claim, const char* words) const {
    if (!claim) fail(words);
  }
  const std::string& text(const std::string& name) const {
    const auto found = attributes_.find(name);
    if (found == attributes_.end()) fail("it has no '" + name + "'");
    return found->second;
  }
  Json json(const std::string& name) const {
    Json value = Json::parse(text(name), nullptr, false);
    expect(value.is_array(), "a list of names is not one");
    return value;
  }
  int64_t count(const std::string& name) const {
    const std::string& digits = text(name);
    const bool is_count = !digits.empty() && digits.size() < 16 && digits.find_first_not_of("0123456789") == std::string::npos;
    if (!is_count) fail("'" + name + "' is not a number");
    return std::stoll(digits);
  }
  std::vector<int64_t> integers(const std::string& name) const { return reader_.integers(name); }
  std::vector<double> doubles(const std::string& name) const { return reader_.doubles(name); }
  bool has(const std::string& name) const { return attributes_.count(name) > 0; }

 private:
  checkpoint::StatsReader reader_;
  std::map<std::string, std::string> attributes_;
};

std::vector<std::string> texts_of(const ScoresFile& file, const Json& list) {
  std::vector<std::string> texts;
  file.expect(list.is_array(), "a list of names is not one");
  for (const Json& item : list) {
    file.expect(item.is_string(), "a name is not a text");
    texts.push_back(item.get<std::string>());
  }
  return texts;
}

/// Groups, options and scores of a decision among `candidates`.
struct Decisions {
  std::vector<std::string>& candidates;
  std::vector<DecisionGroup>& groups;
  std::vector<std::vector<double>>& scores;
};

void read_groups(const ScoresFile& file, const std::string& list, const std::string& folder, Decisions decisions) {
  const auto layers = file.integers(folder + "groups/layer"), weights = file.integers(folder + "groups/weights"),
             factors = file.integers(folder + "groups/factor");
  const Json groups = file.json(list);
  file.expect(groups.size() == layers.size() && groups.size() == weights.size() && groups.size() == factors.size(),
              "its lists of groups have different lengths");
  for (size_t g = 0; g < groups.size(); ++g) {
    const Json& words = groups[g];
    file.expect(words.is_object() && words.contains("name") && words.contains("modules") && words["name"].is_string(),
                "a group has no name and modules");
    file.expect(layers[g] >= 0 && weights[g] >= 0 && factors[g] > 0, "a group's numbers are negative");
    decisions.groups.push_back({words["name"].get<std::string>(), texts_of(file, words["modules"]), layers[g], weights[g], factors[g], {}});
    decisions.scores.emplace_back();
  }
}

void read_options(const ScoresFile& file, const std::string& folder, Decisions decisions) {
  const auto groups = file.integers(folder + "options/group"), candidates = file.integers(folder + "options/candidate"),
             bits = file.integers(folder + "options/bits");
  const std::vector<double> scores = file.doubles(folder + "options/score");
  file.expect(groups.size() == candidates.size() && groups.size() == bits.size() && groups.size() == scores.size(),
              "its lists of options have different lengths");
  double dearest = 0;
  for (size_t i = 0; i < groups.size(); ++i) {
    file.expect(groups[i] >= (i > 0 ? groups[i - 1] : 0) && groups[i] < static_cast<int64_t>(decisions.groups.size()),
                "an option is of no group");
    DecisionGroup& group = decisions.groups[static_cast<size_t>(groups[i])];
    file.expect(candidates[i] >= 0 && candidates[i] < static_cast<int64_t>(decisions.candidates.size()), "an option is no candidate");
    file.expect(bits[i] >= 0 && std::isfinite(scores[i]) && scores[i] >= 0, "an option's numbers are negative or infinite");
    dearest += static_cast<double>(group.factor) * static_cast<double>(bits[i]);
    group.options.push_back({static_cast<int>(candidates[i]), bits[i]});
    decisions.scores[static_cast<size_t>(groups[i])].push_back(scores[i]);
  }
  file.expect(dearest < 0x1p60, "its costs are immense");
  for (const DecisionGroup& group : decisions.groups) file.expect(!group.options.empty(), "a group has no options");
}

/// The lists of one decision below `folder`; returns the JSON of its groups.
std::string put_decisions(checkpoint::StatsWriter& writer, const std::string& folder, const std::vector<DecisionGroup>& all,
                          const std::vector<std::vector<double>>& all_scores, const std::vector<int>& choices) {
  Json words = Json::array();
  std::vector<int64_t> layers, weights, factors, groups, candidates, bits;
  std::vector<double> scores;
  require(all.size() == all_scores.size(), "scores of other groups");
  for (size_t g = 0; g < all.size(); ++g) {
    const DecisionGroup& group = all[g];
    require(group.options.size() == all_scores[g].size(), "scores of other options");
    words.push_back({{"name", group.name}, {"modules", group.modules}});
    layers.push_back(group.layer);
    weights.push_back(group.weights);
    factors.push_back(group.factor);
    for (size_t o = 0; o < group.options.size(); ++o) {
      groups.push_back(static_cast<int64_t>(g));
      candidates.push_back(group.options[o].candidate);
      bits.push_back(group.options[o].bits);
      scores.push_back(all_scores[g][o]);
    }
  }
  writer.put(folder + "groups/layer", std::span<const int64_t>(layers));
  writer.put(folder + "groups/weights", std::span<const int64_t>(weights));
  writer.put(folder + "groups/factor", std::span<const int64_t>(factors));
  writer.put(folder + "options/group", std::span<const int64_t>(groups));
  writer.put(folder + "options/candidate", std::span<const int64_t>(candidates));
  writer.put(folder + "options/bits", std::span<const int64_t>(bits));
  writer.put(folder + "options/score", std::span<const double>(scores));
  if (choices.empty()) return words.dump();
  require(choices.size() == all.size(), "choices of other groups");
  const std::vector<int64_t> chosen(choices.begin(), choices.end());
  writer.put(folder + "groups/choice", std::span<const int64_t>(chosen));
  return words.dump();
}

}  // namespace

void write_scores(const std::string& path, const Sensitivity& sensitivity, const Choices& choices) {
  const SensitivityIdentity& identity = sensitivity.identity;
  checkpoint::StatsWriter writer(path);
  const std::string groups = put_decisions(writer, "", sensitivity.groups, sensitivity.scores, choices.options);
  writer.put_attribute("kind", kKind);
  writer.put_attribute("version", kVersion);
  writer.put_attribute("model_fingerprint", identity.model_fingerprint);
  writer.put_attribute("data_fingerprint", identity.data_fingerprint);
  writer.put_attribute("candidates", identity.candidates);
  writer.put_attribute("cost", identity.cost);
  writer.put_attribute("expert_granularity", identity.expert_granularity);
  writer.put_attribute("rows", std::to_string(identity.rows));
  writer.put_attribute("presets", Json(sensitivity.presets).dump());
  writer.put_attribute("groups", groups);
  if (!sensitivity.kv.groups.empty()) {
    writer.put_attribute("kv_formats", Json(sensitivity.kv.formats).dump());
    writer.put_attribute("kv_groups", put_decisions(writer, "kv/", sensitivity.kv.groups, sensitivity.kv.scores, choices.kv_options));
  }
  writer.finish();
}

Sensitivity read_scores(const std::string& path) {
  std::error_code failed;
  if (!std::filesystem::is_regular_file(path, failed))
    throw user_error("there are no scores: no such file", path, "name the ptq-runner/scores.h5 of a run with preset: auto");
  const ScoresFile file(path);
  Sensitivity sensitivity;
  sensitivity.identity = {file.text("model_fingerprint"),  file.text("data_fingerprint"),
                          file.text("candidates"),         file.text("cost"),
                          file.text("expert_granularity"), file.count("rows")};
  sensitivity.presets = texts_of(file, file.json("presets"));
  const Decisions linears{sensitivity.presets, sensitivity.groups, sensitivity.scores};
  read_groups(file, "groups", "", linears);
  read_options(file, "", linears);
  if (!file.has("kv_groups")) return sensitivity;
  sensitivity.kv.formats = texts_of(file, file.json("kv_formats"));
  const Decisions caches{sensitivity.kv.formats, sensitivity.kv.groups, sensitivity.kv.scores};
  read_groups(file, "kv_groups", "kv/", caches);
  read_options(file, "kv/", caches);
  return sensitivity;
}

void check_identity(const SensitivityIdentity& found, const SensitivityIdentity& expected, const std::string& path,
                    const std::string& where) {
  const auto expect_same = [&](const char* what, const std::string& theirs, const std::string& ours) {
    if (theirs == ours) return;
    throw user_error(std::string("the scores in ") + path + " are of " + what + ": theirs is " + theirs + ", this run's " + ours, where,
                     "remove the key to measure again, or make the recipe as it was for that run");
  };
  expect_same("another model", found.model_fingerprint, expected.model_fingerprint);
  expect_same("other calibration data", found.data_fingerprint, expected.data_fingerprint);
  expect_same("other candidates", found.candidates, expected.candidates);
  expect_same("another cost model", found.cost, expected.cost);
  expect_same("another expert granularity", found.expert_granularity, expected.expert_granularity);
  expect_same("another number of rows", std::to_string(found.rows), std::to_string(expected.rows));
}

}  // namespace ptq::recipes
