#pragma once
// The same recipe at other numbers of ranks and with less memory: the same bytes however experts, heads, layers and tokens are split, and
// however few experts fit into memory.

#include "tests/e2e/recipe_runs.h"

namespace ptq::test {

/// One way to run a recipe.
struct Way {
  const char* name;
  int ranks;
  std::vector<std::string> words;
};

/// A phase's event in run.jsonl.
inline Json event(const std::string& output, const std::string& phase) {
  std::istringstream text(read_file(output + "/ptq-runner/run.jsonl"));
  for (std::string line; std::getline(text, line);)
    if (Json found = Json::parse(line); found.at("phase") == phase) return found;
  return Json::object();
}

/// One recipe run in many ways, which must all give the same bytes.
class Ways : public RecipeRuns {
 protected:
  /// The recipe at one rank and one thread, and in these ways, all in folders of their names.
  void expect_same_bytes(const std::vector<Way>& ways, const std::vector<std::string>& words) {
    std::vector<Way> all{{"one", 1, {"--threads", "1"}}};
    all.insert(all.end(), ways.begin(), ways.end());
    const std::vector<ProgramResult> results = run_ways(all, words);
    for (size_t i = 0; i < all.size(); ++i) {
      SCOPED_TRACE(all[i].name);
      expect_success(results[i]);
      if (results[0].exit_code != 0 || results[i].exit_code != 0) continue;
      expect_same_output(folder_ / "one", folder_ / all[i].name);
      EXPECT_EQ(report_of(folder_ / "one"), report_of(folder_ / all[i].name));
    }
  }

  /// null where the run had nothing to report.
  static Json report_of(const std::string& output) {
    const std::string path = output + "/ptq-runner/report.json";
    return std::filesystem::exists(path) ? read_json_file(path) : Json();
  }

  /// The model at folder_ / "model", whole and with experts streamed: at one rank, at two expert ranks, at two that share all experts and
  /// in two stages. Returns the bytes read of the source: with all experts in memory, and streamed.
  std::pair<int64_t, int64_t> expect_same_bytes_when_streamed(std::vector<std::string> words = {}) {
    folder_.write("data.jsonl", random_documents(6, 48, 128));
    write_recipe(folder_ / "model", folder_ / "data.jsonl", 6, 48);
    words.insert(words.end(), {"calibration.pack=false", "output.verify=false"});
    const std::string whole = quantize("whole", 1, words);
    EXPECT_EQ(last_.err.find("at a time"), std::string::npos) << last_.report();

    // The least memory there can be is in the refusal; a little more is enough for some experts, and not for all.
    const std::vector<Way> streamed{{"streamed", 1, {}},
                                    {"streamed_expert_2", 2, {"parallel.expert=2"}},
                                    {"streamed_data_2", 2, {}},
                                    {"streamed_pipeline_2", 2, {"parallel.pipeline=2"}}};
    std::vector<Way> scarce = streamed;
    for (Way& way : scarce) way.words.emplace_back("memory.host=1MiB");
    const std::vector<ProgramResult> refusals = run_ways(scarce, words);
    std::vector<int64_t> mebibytes;
    for (size_t i = 0; i < scarce.size(); ++i) {
      const size_t at = refusals[i].err.find("this rank needs ");
      if (at == std::string::npos) {
        ADD_FAILURE() << refusals[i].report();
        return {};
      }
      mebibytes.push_back(static_cast<int64_t>(std::stod(refusals[i].err.substr(at + 16))) + 4);
      scarce[i].words.back() = "memory.host=" + std::to_string(mebibytes.back()) + "MiB";
    }
    const std::vector<ProgramResult> results = run_ways(scarce, words);
    for (size_t i = 0; i < scarce.size(); ++i) {
      SCOPED_TRACE(scarce[i].name);
      expect_success(results[i]);
      EXPECT_NE(results[i].err.find("a layer's experts did not fit into memory.host: "), std::string::npos) << results[i].report();
      EXPECT_NE(results[i].err.find(" at a time"), std::string::npos) << results[i].report();
      if (results[i].exit_code != 0) continue;
      expect_same_output(whole, folder_ / scarce[i].name);
      EXPECT_LE(event(folder_ / scarce[i].name, "finished").at("peak_bytes_of_any_rank").get<int64_t>(), (mebibytes[i] + 1) << 20);
    }
    if (HasFailure()) return {};
    return {event(whole, "transferred").at("bytes_read").get<int64_t>(),
            event(folder_ / "streamed", "transferred").at("bytes_read").get<int64_t>()};
  }

 private:
  /// Some at a time: most of what mpirun takes is waiting.
  std::vector<ProgramResult> run_ways(const std::vector<Way>& ways, const std::vector<std::string>& words) {
    std::vector<ProgramCall> calls;
    for (const Way& way : ways) {
      calls.push_back({{folder_ / "recipe.yaml", "output.path=" + folder_ / way.name}, {.ranks = way.ranks}});
      for (const auto* more : {&words, &way.words}) calls.back().arguments.insert(calls.back().arguments.end(), more->begin(), more->end());
    }
    return run_programs(calls, 3);
  }
};

}  // namespace ptq::test
