#include "runner/calibration_result.h"

#include <algorithm>
#include <cstring>
#include <tuple>

#include "checkpoint/files.h"

namespace ptq::runner {

namespace {

using checkpoint::Json;

template <class T>
Json binary(const std::vector<T>& values) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(values.data());
  return Json::binary({bytes, bytes + values.size() * sizeof(T)});
}

template <class T>
std::vector<T> values_of(const Json& json) {
  const auto& bytes = json.get_binary();
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

template <class T>
Json lists(const std::map<std::string, std::vector<T>>& all) {
  Json json = Json::object();
  for (const auto& [name, values] : all) json[name] = binary(values);
  return json;
}

template <class T>
void add_lists(std::map<std::string, std::vector<T>>& all, const std::map<std::string, std::vector<T>>& more) {
  for (const auto& [name, values] : more) {
    std::vector<T>& kept = all[name];
    kept.insert(kept.end(), values.begin(), values.end());
  }
}

}  // namespace

void CalibrationResult::add(const CalibrationResult& more) {
  add_lists(statistics.arrays, more.statistics.arrays);
  add_lists(statistics.integers, more.statistics.integers);
  const auto key = [](const recipes::ScaleNote& note) { return std::tie(note.module, note.note); };
  notes.insert(notes.end(), more.notes.begin(), more.notes.end());
  std::sort(notes.begin(), notes.end(), [&](const auto& a, const auto& b) { return key(a) < key(b); });
  notes.erase(std::unique(notes.begin(), notes.end(), [&](const auto& a, const auto& b) { return key(a) == key(b); }), notes.end());
  const auto by_layer = [](const auto& a, const auto& b) { return a.layer < b.layer; };
  coverage.insert(coverage.end(), more.coverage.begin(), more.coverage.end());
  std::stable_sort(coverage.begin(), coverage.end(), by_layer);
  choices.insert(choices.end(), more.choices.begin(), more.choices.end());
  std::stable_sort(choices.begin(), choices.end(), by_layer);
  folds.add(more.folds);
}

std::string pack(const CalibrationResult& result) {
  Json notes = Json::array(), coverage = Json::array(), choices = Json::array(), folds = Json::object();
  for (const auto& note : result.notes) notes.push_back({note.module, note.note});
  for (const auto& layer : result.coverage)
    coverage.push_back({layer.layer, layer.module, layer.experts, layer.starved, layer.tokens, layer.forced});
  for (const GroupChoice& choice : result.choices)
    choices.push_back({choice.layer, choice.module, choice.exponents.alpha, choice.exponents.beta, choice.loss, choice.plain_loss});
  for (const auto& [name, exponents] : result.folds.tensors()) folds[name] = {binary(exponents.rows), binary(exponents.columns)};
  const Json all{{"arrays", lists(result.statistics.arrays)},
                 {"integers", lists(result.statistics.integers)},
                 {"notes", notes},
                 {"coverage", coverage},
                 {"choices", choices},
                 {"folds", folds}};
  const std::vector<uint8_t> bytes = Json::to_cbor(all);
  return {bytes.begin(), bytes.end()};
}

CalibrationResult unpack(const std::string& packed, const std::string& where) {
  CalibrationResult result;
  try {
    const Json all = Json::from_cbor(packed);
    for (const auto& [name, values] : all.at("arrays").items()) result.statistics.arrays[name] = values_of<float>(values);
    for (const auto& [name, values] : all.at("integers").items()) result.statistics.integers[name] = values_of<int64_t>(values);
    for (const Json& note : all.at("notes")) result.notes.push_back({note.at(0).get<std::string>(), note.at(1).get<std::string>()});
    for (const Json& layer : all.at("coverage"))
      result.coverage.push_back({layer.at(0).get<int64_t>(), layer.at(1).get<std::string>(), layer.at(2).get<int64_t>(),
                                 layer.at(3).get<std::vector<int>>(), layer.at(4).get<std::vector<int64_t>>(),
                                 layer.at(5).get<std::vector<int64_t>>()});
    for (const Json& choice : all.at("choices"))
      result.choices.push_back({choice.at(0).get<int64_t>(),
                                choice.at(1).get<std::string>(),
                                {choice.at(2).get<double>(), choice.at(3).get<double>()},
                                choice.at(4).get<double>(),
                                choice.at(5).get<double>()});
    for (const auto& [name, exponents] : all.at("folds").items())
      result.folds.add(name, {values_of<int8_t>(exponents.at(0)), values_of<int8_t>(exponents.at(1))});
  } catch (const nlohmann::json::exception&) {
    throw data_error("not what a run kept of its calibration", where, "start over with --restart");
  }
  return result;
}

CalibrationResult gather(parallel::Communicator& world, const CalibrationResult& mine) {
  CalibrationResult all;
  for (const std::string& text : world.gather_texts(pack(mine))) all.add(unpack(text, "a rank's statistics"));
  return all;
}

}  // namespace ptq::runner
