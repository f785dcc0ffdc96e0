#pragma once
// How much quality a quantized model lost: KL to the unquantized one on text it was not calibrated on.

#include <algorithm>

#include "tests/e2e/fixtures.h"

namespace ptq::test {

/// The highest KL that a test takes.
struct Bar {
  const char *model, *preset;
  double kl;
  const char* dialect = "modelopt";
};

inline std::ostream& operator<<(std::ostream& out, const Bar& bar) { return out << bar.model << " " << bar.preset; }

inline std::string name_of(const ::testing::TestParamInfo<Bar>& info) {
  std::string name = std::string(info.param.model) + "_" + info.param.preset;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

/// KL to the source, on `documents` of the evaluation text, after calibration on `samples`. `words` go to the recipe.
inline double measure_kl(const std::string& shared, const Bar& bar, int samples, int documents,
                         const std::vector<std::string>& words = {}) {
  const TemporaryFolder folder;
  const std::string model = shared + "/fixtures/models/" + bar.model, output = folder / "out";
  std::vector<std::string> run{
      folder.write("recipe.yaml", recipe_text(model, shared + "/fixtures/text/calib.jsonl", output, samples, 512, bar.preset)),
      "calibration.pack=false", "calibration.drop_short=true", std::string("output.dialect=") + bar.dialect};
  run.insert(run.end(), words.begin(), words.end());
  const ProgramResult quantized = run_program(run);
  expect_success(quantized);
  if (quantized.exit_code != 0) return 1e9;

  const Json result = evaluate({"--model", output, "--reference", model, "--text", shared + "/fixtures/text/eval.jsonl", "--compute",
                                "fp32", "--samples", std::to_string(documents)});
  const double kl = result.at("kl");
  ::testing::Test::RecordProperty("kl", std::to_string(kl));
  std::cout << bar << ": KL " << kl << ", perplexity " << result.at("perplexity") << " (unquantized "
            << result.value("reference_perplexity", 0.0) << "), " << quantized.seconds << " s\n";
  return kl;
}

}  // namespace ptq::test
