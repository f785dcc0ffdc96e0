#pragma once
// What the end-to-end tests share: where the models are, recipes as text, and the checks that every successful run must pass.

#include <gtest/gtest.h>

#include <filesystem>
#include <iostream>

#include <string>
#include <vector>

#include "tests/support/model_files.h"
#include "tests/support/program.h"
#include "tests/support/shared_folder.h"
#include "tests/support/temporary_folder.h"

namespace ptq::test {

inline std::string shipped_llama() { return std::string(PTQ_SOURCE_DIR) + "/tests/fixtures/llama"; }
inline std::string shipped_text() { return std::string(PTQ_SOURCE_DIR) + "/tests/fixtures/selfgen.jsonl"; }

/// model.path, calibration.data, samples, sequence_length and preset; the rest by key=value.
inline std::string recipe_text(const std::string& model, const std::string& data, const std::string& output, int samples = 8,
                               int length = 128, const std::string& preset = "nvfp4") {
  return "model: {path: " + model + "}\ncalibration: {data: " + data + ", samples: " + std::to_string(samples) +
         ", sequence_length: " + std::to_string(length) + "}\nquantization: {preset: " + preset + "}\noutput: {path: " + output + "}\n";
}

inline void expect_success(const ProgramResult& result) {
  EXPECT_EQ(result.exit_code, 0) << result.report();
  EXPECT_FALSE(result.is_timed_out);
}

/// What `evaluate --json` prints.
inline Json evaluate(std::vector<std::string> arguments, const ProgramOptions& options = {}) {
  arguments.insert(arguments.begin(), "evaluate");
  arguments.emplace_back("--json");
  const ProgramResult result = run_program(arguments, options);
  expect_success(result);
  const Json json = Json::parse(result.out, nullptr, false);
  EXPECT_TRUE(json.is_object()) << result.report();
  return json.is_object() ? json : Json{{"perplexity", 0.0}, {"kl", 1e9}};
}

}  // namespace ptq::test
