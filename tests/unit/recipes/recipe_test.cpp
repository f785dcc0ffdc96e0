#include "recipes/recipe.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"

namespace ptq::recipes {
namespace {

constexpr const char* kSmallest = "model: {path: in}\nquantization: {preset: nvfp4}\noutput: {path: out}\n";

Recipe parse(const std::string& text, const std::vector<std::string>& overrides = {}) { return parse_recipe(text, "r.yaml", overrides); }

/// The smallest recipe with `more` lines after it; its own quantization and output are replaced through overrides where a test needs it.
void expect_refused(const std::string& text, const std::string& words, const std::vector<std::string>& overrides = {}) {
  SCOPED_TRACE(text);
  test::expect_error(ErrorKind::kUser, words, [&] { parse(text, overrides); });
}

TEST(Recipe, LeavesEverythingElseAtItsDefault) {
  const Recipe recipe = parse(kSmallest);

  EXPECT_EQ(recipe.file, "r.yaml");
  EXPECT_EQ(recipe.model_path, "in");
  EXPECT_EQ(recipe.output_path, "out");
  EXPECT_EQ(recipe.preset, "nvfp4");
  EXPECT_EQ(recipe.format, "nvfp4");
  EXPECT_EQ(recipe.method, "minmax");
  EXPECT_EQ(recipe.kv_cache, "none");
  EXPECT_EQ(recipe.ignore, std::vector<std::string>{"lm_head"});
  EXPECT_TRUE(recipe.rules.empty());
  EXPECT_EQ(recipe.fp8_quotient, "exact");
  EXPECT_TRUE(recipe.calibration_data.empty());
  EXPECT_EQ(recipe.samples, 512);
  EXPECT_EQ(recipe.sequence_length, 512);
  EXPECT_TRUE(recipe.pack);
  EXPECT_FALSE(recipe.drop_short);
  EXPECT_EQ(recipe.moe.min_tokens_per_expert, 64);
  EXPECT_EQ(recipe.moe.unseen, "peer_max");
  EXPECT_EQ(recipe.moe.fail_below_coverage, 0.0);
  EXPECT_FALSE(recipe.moe.force_route);
  EXPECT_EQ(recipe.tensor, 1);
  EXPECT_EQ(recipe.pipeline, 1);
  EXPECT_EQ(recipe.expert, 1);
  EXPECT_EQ(recipe.device, "auto");
  EXPECT_EQ(recipe.compute, "bf16");
  EXPECT_EQ(recipe.host_memory, 0);
  EXPECT_EQ(recipe.dialect, "modelopt");
  EXPECT_EQ(recipe.engine, "any");
  EXPECT_FALSE(recipe.overwrite);
  EXPECT_EQ(recipe.max_shard_size, 5'000'000'000);
  EXPECT_TRUE(recipe.verify);
  EXPECT_TRUE(recipe.report);
}

constexpr const char* kEverything = R"(model: {path: a/b, config: c/d}
calibration:
  data: [one.jsonl, two.txt]
  samples: 3
  sequence_length: 7
  pack: false
  drop_short: true
  seed: 9
quantization:
  format: fp8
  method: minmax
  kv_cache: fp8
  ignore: [lm_head, "*.mlp.*"]
  rules:
    - {match: "*.self_attn.*", format: nvfp4}
    - {match: "re:.*\\.o_proj", format: none}
  fp8_quotient: modelopt
moe: {min_tokens_per_expert: 5, unseen: fail, fail_below_coverage: 0.95, force_route: true}
parallel: {tensor: 2, pipeline: 3, expert: 4}
device: cpu
compute: fp32
memory: {host: 2GiB}
scratch: /tmp/s
output:
  path: c/d//
  engine: vllm
  overwrite: true
  max_shard_size: 100MB
  verify: false
  report: false
)";

TEST(Recipe, ReadsEveryKey) {
  const Recipe recipe = parse(kEverything);

  EXPECT_EQ(recipe.model_path, "a/b");
  EXPECT_EQ(recipe.model_config, "c/d");
  EXPECT_EQ(recipe.calibration_data, (std::vector<std::string>{"one.jsonl", "two.txt"}));
  EXPECT_EQ(recipe.samples, 3);
  EXPECT_EQ(recipe.sequence_length, 7);
  EXPECT_FALSE(recipe.pack);
  EXPECT_TRUE(recipe.drop_short);
  EXPECT_EQ(recipe.seed, 9);
  EXPECT_EQ(recipe.preset, "");
  EXPECT_EQ(recipe.format, "fp8");
  EXPECT_EQ(recipe.kv_cache, "fp8");
  EXPECT_EQ(recipe.ignore, (std::vector<std::string>{"lm_head", "*.mlp.*"}));
  ASSERT_EQ(recipe.rules.size(), 2u);
  EXPECT_EQ(recipe.rules[0].match, "*.self_attn.*");
  EXPECT_EQ(recipe.rules[0].format, "nvfp4");
  EXPECT_EQ(recipe.rules[1].match, "re:.*\\.o_proj");
  EXPECT_EQ(recipe.rules[1].where, "r.yaml:16  quantization.rules[1]");
  EXPECT_EQ(recipe.fp8_quotient, "modelopt");
  EXPECT_EQ(recipe.moe.min_tokens_per_expert, 5);
  EXPECT_EQ(recipe.moe.unseen, "fail");
  EXPECT_EQ(recipe.moe.fail_below_coverage, 0.95);
  EXPECT_TRUE(recipe.moe.force_route);
  EXPECT_EQ(recipe.tensor, 2);
  EXPECT_EQ(recipe.pipeline, 3);
  EXPECT_EQ(recipe.expert, 4);
  EXPECT_EQ(recipe.device, "cpu");
  EXPECT_EQ(recipe.compute, "fp32");
  EXPECT_EQ(recipe.host_memory, int64_t{2} << 30);
  EXPECT_EQ(recipe.scratch, "/tmp/s");
  EXPECT_EQ(recipe.output_path, "c/d") << "slashes at the end are no part of the name";
  EXPECT_EQ(recipe.engine, "vllm");
  EXPECT_TRUE(recipe.overwrite);
  EXPECT_EQ(recipe.max_shard_size, 100'000'000);
  EXPECT_FALSE(recipe.verify);
  EXPECT_FALSE(recipe.report);
  EXPECT_EQ(recipe.where("quantization.kv_cache"), "r.yaml:12  quantization.kv_cache");
  EXPECT_EQ(recipe.where("output.dialect"), "r.yaml  output.dialect") << "not written: no line";
}

TEST(Recipe, OneDataFileNeedsNoList) {
  EXPECT_EQ(parse(std::string(kSmallest) + "calibration: {data: x.jsonl}\n").calibration_data, std::vector<std::string>{"x.jsonl"});
}

TEST(Recipe, AnEmptyIgnoreListIgnoresNothing) {
  EXPECT_TRUE(parse("model: {path: in}\nquantization: {preset: fp8, ignore: []}\noutput: {path: out}\n").ignore.empty());
}

TEST(Recipe, AnUnknownKeyNamesItsLineAndTheNearestKey) {
  expect_refused(std::string(kSmallest) + "calibration:\n  sampels: 4\n", "unknown key 'sampels' in calibration");
  expect_refused(std::string(kSmallest) + "calibration:\n  sampels: 4\n", "r.yaml:5  calibration.sampels");
  expect_refused(std::string(kSmallest) + "calibration:\n  sampels: 4\n", "did you mean 'samples'?");
  expect_refused(std::string(kSmallest) + "\ncompte: bf16\n", "r.yaml:5");
  expect_refused(std::string(kSmallest) + "\ncompte: bf16\n", "did you mean 'compute'?");
  expect_refused(std::string(kSmallest) + "parallel: {zzzzzzzzz: 1}\n", "known keys here: tensor, pipeline, expert");
  expect_refused(
      "model: {path: in}\nquantization:\n  format: fp8\n  rules:\n    - {match: a, format: fp8}\n    - {match: a, fromat: fp8}\noutput: "
      "{path: out}\n",
      "r.yaml:6  quantization.rules[1].fromat");
}

TEST(Recipe, WrongTypesNameLineAndKey) {
  expect_refused(std::string(kSmallest) + "calibration: {samples: many}\n", "'calibration.samples' is not an integer");
  expect_refused(std::string(kSmallest) + "calibration: {samples: many}\n", "r.yaml:4  calibration.samples");
  expect_refused(std::string(kSmallest) + "calibration: {samples: 1.5}\n", "not an integer");
  expect_refused(std::string(kSmallest) + "calibration: {samples: [1]}\n", "not an integer");
  expect_refused(std::string(kSmallest) + "calibration: {pack: perhaps}\n", "not true or false");
  expect_refused(std::string(kSmallest) + "calibration: {data: {a: b}}\n", "not a text or a list of texts");
  expect_refused(std::string(kSmallest) + "scratch: [a]\n", "'scratch' is not a text");
  expect_refused(std::string(kSmallest) + "parallel: 3\n", "'parallel' is not a mapping");
  expect_refused(std::string(kSmallest) + "calibration: [a]\n", "'calibration' is not a mapping");
  expect_refused("model: {path: in}\nquantization: {format: fp8, rules: {a: b}}\noutput: {path: out}\n", "not a list of rules");
  expect_refused("model: {path: in}\nquantization: {format: fp8, rules: [x]}\noutput: {path: out}\n",
                 "'quantization.rules[0]' is not a mapping");
  expect_refused("model: {path: in}\nquantization: {format: fp8, rules: [{match: x}]}\noutput: {path: out}\n",
                 "a rule needs match and format");
}

TEST(Recipe, WhatIsNotARecipeIsRefused) {
  expect_refused("", "quantize");
  expect_refused("just a text", "not a mapping");
  expect_refused("- a\n- b\n", "not a mapping");
  expect_refused("model: {path: in}\nquantization: [\n", "not YAML");
  expect_refused("a: b\n  c: d\n", "r.yaml:2");
  expect_refused(std::string(kSmallest) + "[a, b]: c\n", "a key is not a text");
}

TEST(Recipe, AKeyWrittenTwiceIsRefused) {
  expect_refused(std::string(kSmallest) + "calibration: {samples: 3, samples: 4}\n", "key 'calibration.samples' is written twice");
  expect_refused(std::string(kSmallest) + "model: {path: other}\n", "r.yaml:4  model");
}

TEST(Recipe, AGroupSizeOtherThanTheFormatsIsRefused) {
  EXPECT_NO_THROW(parse(kSmallest, {"quantization.group_size=16"}));
  expect_refused(kSmallest, "nvfp4 always groups 16 inputs", {"quantization.group_size=32"});
  expect_refused(kSmallest, "fp8 has no groups", {"quantization.preset=fp8", "quantization.group_size=128"});
}

TEST(Recipe, MissingKeysAreAskedFor) {
  expect_refused("quantization: {preset: fp8}\noutput: {path: out}\n", "'model.path' is missing");
  expect_refused("model: {path: in}\nquantization: {preset: fp8}\n", "'output.path' is missing");
  expect_refused("model: {path: in}\noutput: {path: out}\n", "nothing says what to quantize to");
}

TEST(Recipe, ValuesOutsideTheListPrintTheList) {
  expect_refused("model: {path: in}\nquantization:\n  format: fp5\noutput: {path: out}\n", "number format 'fp5' is unknown");
  expect_refused("model: {path: in}\nquantization:\n  format: fp5\noutput: {path: out}\n", "r.yaml:3  quantization.format");
  expect_refused("model: {path: in}\nquantization:\n  format: fp5\noutput: {path: out}\n",
                 "use one of: none, fp8, fp8_pc_pt, fp8_pb_wo, int8,");
  expect_refused("model: {path: in}\nquantization: {preset: int5}\noutput: {path: out}\n", "preset 'int5' is unknown");
  expect_refused("model: {path: in}\nquantization: {format: fp8, rules: [{match: a, format: e9}]}\noutput: {path: out}\n",
                 "quantization.rules[0]");
  expect_refused(std::string(kSmallest) + "compute: fp64\n", "use one of: bf16, fp32");
  expect_refused(std::string(kSmallest) + "device: tpu\n", "use one of: auto, cpu, cuda");
  expect_refused(kSmallest, "use one of: any, vllm, sglang, tensorrt-llm", {"output.engine=vlm"});
  expect_refused(kSmallest, "use one of: every_window, recompute", {"resume.hidden_states=never"});
  expect_refused(kSmallest, "unknown value 'int3'", {"quantization.kv_cache=int3"});
}

TEST(Recipe, WhatALaterVersionBringsIsToldApartFromMistakes) {
  expect_refused(kSmallest, "no CUDA backend", {"device=cuda"});
  EXPECT_NO_THROW(parse(kSmallest, {"parallel.expert=1", "calibration.keep_gram=false", "moe={}"}));
}

TEST(Recipe, MethodsHaveTheirKeys) {
  const Recipe smooth = parse("model: {path: in}\nquantization: {preset: int8_sq, smoothquant: {alpha: 0.5}}\noutput: {path: out}\n");
  EXPECT_EQ(smooth.format, "int8");
  EXPECT_EQ(smooth.method, "smoothquant");
  EXPECT_EQ(smooth.smoothquant.alpha, 0.5);
  EXPECT_FALSE(smooth.smoothquant.alpha_auto);
  EXPECT_TRUE(parse(kSmallest, {"quantization.smoothquant.alpha=auto"}).smoothquant.alpha_auto);
  EXPECT_EQ(parse(kSmallest).smoothquant.alpha, 1.0);
  for (const char* alpha : {"-0.1", "1.1", "much", ".nan", "0.5x"})
    expect_refused(kSmallest, "neither a number from 0 to 1 nor auto", {std::string("quantization.smoothquant.alpha=") + alpha});

  const Recipe awq = parse(
      "model: {path: in}\ncalibration: {reuse: s.h5, keep_gram: true}\nquantization: {preset: w4a8_awq, group_size: 64, awq: {grid: 5, "
      "clip: false, error_feedback: false, fold: modelopt}}\noutput: {path: out}\n");
  EXPECT_EQ(awq.format, "w4a8");
  EXPECT_EQ(awq.method, "awq");
  EXPECT_EQ(awq.group_size, 64);
  EXPECT_EQ(awq.awq.grid, 5);
  EXPECT_FALSE(awq.awq.clip);
  EXPECT_FALSE(awq.awq.error_feedback);
  EXPECT_EQ(awq.awq.fold, "modelopt");
  EXPECT_EQ(awq.reuse, "s.h5");
  EXPECT_TRUE(awq.keep_gram);
  EXPECT_EQ(parse(kSmallest).awq.grid, 20);
  EXPECT_TRUE(parse(kSmallest).awq.clip);
  EXPECT_EQ(parse(kSmallest).awq.fold, "") << "the engine's own";
  expect_refused(kSmallest, "'quantization.awq.grid' is 0, less than 1", {"quantization.awq.grid=0"});
  expect_refused(kSmallest, "use one of: all, modelopt, none", {"quantization.awq.fold=some"});
  expect_refused(kSmallest, "did you mean 'clip'?", {"quantization.awq={clib: true}"});
}

TEST(Recipe, FoldsAllTheWayUnlessTensorRtLlmReadsTheFactors) {
  const auto fold = [](const std::string& preset, const std::string& engine, const std::string& words = "") {
    return parse("model: {path: in}\nquantization: {preset: " + preset + words + "}\noutput: {path: out, engine: " + engine + "}\n").fold();
  };
  for (const char* engine : {"any", "vllm", "sglang"}) EXPECT_EQ(fold("nvfp4_awq", engine), "all") << engine;
  for (const char* preset : {"int4_awq", "w4a8_awq", "nvfp4_awq"}) EXPECT_EQ(fold(preset, "tensorrt-llm"), "modelopt") << preset;
  EXPECT_EQ(fold("w4a16_nvfp4", "tensorrt-llm"), "all") << "no engine reads factors beside these weights";
  EXPECT_EQ(fold("int4_awq", "tensorrt-llm", ", awq: {fold: none}"), "none");
}

TEST(Recipe, AMethodMustFitAFormat) {
  const auto with = [](const std::string& words) { return "model: {path: in}\nquantization: {" + words + "}\noutput: {path: out}\n"; };
  for (const char* words : {"format: int8, method: smoothquant", "format: int8", "format: int4, method: awq", "format: nvfp4, method: awq",
                            "format: w4a16_nvfp4, method: minmax", "format: fp8, method: awq, rules: [{match: a, format: int4}]"})
    EXPECT_NO_THROW(parse(with(words))) << words;
  expect_refused(with("format: fp8, method: awq"), "use method: minmax");
  expect_refused(with("format: int8, method: awq"), "use method: smoothquant");
  expect_refused(with("format: int4, method: smoothquant"), "use method: awq");
  expect_refused(with("format: mxfp4, method: awq"), "use method: minmax");
  expect_refused(with("format: int4, method: gptq"), "use one of: minmax, smoothquant, awq, autoquantize");
  expect_refused(with("format: int4, method: autoquantize"), "autoquantize chooses the format of every linear");
  expect_refused(with("format: int4_awq"), "it is a preset");
}

TEST(Recipe, GroupsAreForInt4ToChoose) {
  const auto with = [](const std::string& words) { return "model: {path: in}\nquantization: {" + words + "}\noutput: {path: out}\n"; };
  EXPECT_EQ(parse(with("format: int4, group_size: 32")).group_size, 32);
  EXPECT_EQ(parse(with("format: fp8, group_size: 32, rules: [{match: a, format: w4a8}]")).group_size, 32);
  EXPECT_EQ(parse(with("format: nvfp4, group_size: 16")).group_size, 16);
  expect_refused(with("format: nvfp4, group_size: 32"), "always groups 16 inputs");
  expect_refused(with("format: fp8, group_size: 32"), "has no groups");
  for (const char* size : {"-128", "4", "100"})
    expect_refused(with(std::string("format: int4, group_size: ") + size), "not a positive multiple of 8");
}

TEST(Recipe, ADialectMustHaveTheWords) {
  const auto with = [](const std::string& format, const std::string& dialect, const std::string& kv_cache) {
    return "model: {path: in}\nquantization: {format: " + format + ", kv_cache: " + kv_cache +
           "}\noutput: {path: out, dialect: " + dialect + "}\n";
  };
  for (const char* kv_cache : {"none", "fp8", "nvfp4", "nvfp4_affine"}) EXPECT_NO_THROW(parse(with("fp8", "modelopt", kv_cache)));
  for (const char* kv_cache : {"none", "fp8"}) EXPECT_NO_THROW(parse(with("int4", "compressed-tensors", kv_cache)));
  EXPECT_NO_THROW(parse(with("fp8_pb_wo", "deepseek-fp8", "none")));
  expect_refused(with("fp8", "compressed-tensors", "nvfp4"), "has no words for kv_cache: nvfp4");
  expect_refused(with("fp8_pb_wo", "deepseek-fp8", "fp8"), "has no words for kv_cache: fp8");
  expect_refused(with("fp8", "deepseek-fp8", "none"), "use quantization.preset: fp8_pb_wo");
  expect_refused(with("fp8", "awq", "none"), "use one of: modelopt, compressed-tensors, deepseek-fp8");
}

TEST(Recipe, APresetStandsAlone) {
  expect_refused("model: {path: in}\nquantization: {preset: fp8, format: nvfp4}\noutput: {path: out}\n", "remove quantization.format");
  expect_refused("model: {path: in}\nquantization: {preset: fp8, method: minmax}\noutput: {path: out}\n", "remove quantization.method");
}

TEST(Recipe, RulesOrAKvCacheAloneAreEnough) {
  EXPECT_EQ(parse("model: {path: in}\nquantization: {kv_cache: fp8}\noutput: {path: out}\n").format, "none");
  EXPECT_EQ(parse("model: {path: in}\nquantization: {rules: [{match: a, format: fp8}]}\noutput: {path: out}\n").format, "none");
}

TEST(Recipe, NumbersBelowOneAreRefused) {
  for (const char* key : {"calibration.samples", "calibration.sequence_length", "parallel.tensor", "parallel.pipeline", "parallel.expert",
                          "output.max_shard_size"})
    expect_refused(kSmallest, std::string("'") + key + "' is 0, less than 1", {std::string(key) + "=0"});
  expect_refused(std::string(kSmallest) + "calibration:\n  samples: -3\n", "r.yaml:5  calibration.samples");
}

TEST(Recipe, MoeRulesHaveTheirRanges) {
  for (const char* fraction : {"0", "0.5", "1"}) EXPECT_NO_THROW(parse(kSmallest, {std::string("moe.fail_below_coverage=") + fraction}));
  for (const char* fraction : {"-0.01", "1.01", "95", ".nan", ".inf"})
    expect_refused(kSmallest, "'moe.fail_below_coverage' is not a fraction from 0 to 1",
                   {std::string("moe.fail_below_coverage=") + fraction});
  EXPECT_EQ(parse(kSmallest, {"moe.min_tokens_per_expert=0"}).moe.min_tokens_per_expert, 0);
  expect_refused(kSmallest, "'moe.min_tokens_per_expert' is -1, less than 0", {"moe.min_tokens_per_expert=-1"});
  expect_refused(kSmallest, "use one of: peer_max, fail", {"moe.unseen=zero"});
  expect_refused(kSmallest, "did you mean 'unseen'?", {"moe.unsen=fail"});
  expect_refused(kSmallest, "not true or false", {"moe.force_route=all"});
}

TEST(Overrides, ReplaceAddAndNest) {
  const Recipe recipe =
      parse(kSmallest, {"output.path=elsewhere", "calibration.samples=4", "calibration.data=[a, b]", "parallel={tensor: 8}",
                        "parallel.pipeline=2", "quantization.rules=[{match: x, format: fp8}]", "scratch=a=b"});

  EXPECT_EQ(recipe.output_path, "elsewhere");
  EXPECT_EQ(recipe.samples, 4);
  EXPECT_EQ(recipe.calibration_data, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(recipe.tensor, 8);
  EXPECT_EQ(recipe.pipeline, 2);
  ASSERT_EQ(recipe.rules.size(), 1u);
  EXPECT_EQ(recipe.rules[0].match, "x");
  EXPECT_EQ(recipe.scratch, "a=b") << "only the first = separates";
  EXPECT_EQ(recipe.model_path, "in");
}

TEST(Overrides, TheLastOneHolds) { EXPECT_EQ(parse(kSmallest, {"calibration.samples=4", "calibration.samples=5"}).samples, 5); }

TEST(Overrides, WhatIsNoneIsRefused) {
  expect_refused(kSmallest, "'quick' is neither an option nor key=value", {"quick"});
  expect_refused(kSmallest, "neither an option nor key=value", {"=3"});
  expect_refused(kSmallest, "is not YAML", {"calibration.data=[a"});
  expect_refused(std::string(kSmallest) + "compute: bf16\n", "'compute' is not a mapping", {"compute.kind=fp32"});
  expect_refused(kSmallest, "unknown key 'sampels'", {"calibration.sampels=3"});
}

TEST(Overrides, AMistakeInOneIsNotBlamedOnALineOfTheFile) {
  for (const auto& [text, where] : std::vector<std::pair<std::string, std::string>>{
           {"compute=fp64", "command line  compute"},
           {"calibration.samples=many", "command line  calibration.samples"},
           {"quantization.preset=fp5", "command line  quantization.preset"},
           {"quantization.rules=[{match: a, format: e9}]", "command line  quantization.rules[0]"},
           {"calibration={sampels: 3}", "command line  calibration.sampels"}})
    expect_refused(std::string(kSmallest) + "compute: bf16\n", where, {text});
  expect_refused(std::string(kSmallest) + "compute: fp64\n", "r.yaml:4  compute", {"calibration.samples=3"});
}

TEST(ToYaml, ReadBackGivesTheSame) {
  for (const std::string text :
       {kSmallest, kEverything, "model: {path: \"null\"}\nquantization: {preset: fp8, ignore: []}\noutput: {path: \"12: # x\"}\n"}) {
    const std::string yaml = to_yaml(parse(text), true);

    const Recipe again = parse(yaml);

    EXPECT_EQ(to_yaml(again, true), yaml);
    EXPECT_EQ(again.model_path, parse(text).model_path);
    EXPECT_EQ(again.model_config, parse(text).model_config);
    EXPECT_EQ(again.output_path, parse(text).output_path);
    EXPECT_EQ(again.ignore, parse(text).ignore);
    EXPECT_EQ(again.rules.size(), parse(text).rules.size());
    EXPECT_EQ(again.format, parse(text).format);
  }
}

TEST(ToYaml, KeepsTheKeysOfTheMethod) {
  const auto again = [](const std::string& words) {
    const std::string yaml = to_yaml(parse("model: {path: in}\nquantization: {" + words + "}\noutput: {path: out}\n"), true);
    EXPECT_EQ(to_yaml(parse(yaml), true), yaml);
    return parse(yaml);
  };

  const Recipe awq = again("preset: int4_awq, group_size: 64, awq: {grid: 7, clip: false, error_feedback: false, fold: none}");
  EXPECT_EQ(awq.method, "awq");
  EXPECT_EQ(awq.group_size, 64);
  EXPECT_EQ(awq.awq.grid, 7);
  EXPECT_FALSE(awq.awq.clip);
  EXPECT_FALSE(awq.awq.error_feedback);
  EXPECT_EQ(awq.awq.fold, "none");
  EXPECT_EQ(again("preset: int8_sq, smoothquant: {alpha: 0.25}").smoothquant.alpha, 0.25);
  EXPECT_TRUE(again("preset: int8_sq, smoothquant: {alpha: auto}").smoothquant.alpha_auto);
}

TEST(ToYaml, KeepsWhatWasChosen) {
  const Recipe again = parse(to_yaml(parse(kEverything), true));

  EXPECT_EQ(again.calibration_data, (std::vector<std::string>{"one.jsonl", "two.txt"}));
  EXPECT_EQ(again.samples, 3);
  EXPECT_EQ(again.sequence_length, 7);
  EXPECT_EQ(again.seed, 9);
  EXPECT_FALSE(again.pack);
  EXPECT_TRUE(again.drop_short);
  EXPECT_EQ(again.compute, "fp32");
  EXPECT_EQ(again.engine, "vllm");
  EXPECT_EQ(again.device, "cpu");
  EXPECT_EQ(again.kv_cache, "fp8");
  EXPECT_EQ(again.rules[1].match, "re:.*\\.o_proj");
  EXPECT_EQ(again.rules[1].format, "none");
  EXPECT_EQ(again.fp8_quotient, "modelopt");
  EXPECT_EQ(again.moe.min_tokens_per_expert, 5);
  EXPECT_EQ(again.moe.unseen, "fail");
  EXPECT_EQ(again.moe.fail_below_coverage, 0.95);
  EXPECT_TRUE(again.moe.force_route);
  EXPECT_EQ(again.tensor, 2);
  EXPECT_EQ(again.pipeline, 3);
  EXPECT_EQ(again.expert, 4);
  EXPECT_EQ(again.host_memory, int64_t{2} << 30);
  EXPECT_EQ(again.scratch, "/tmp/s");
  EXPECT_EQ(again.max_shard_size, 100'000'000);
  EXPECT_TRUE(again.overwrite);
  EXPECT_FALSE(again.verify);
  EXPECT_FALSE(again.report);
}

TEST(ToYaml, TheShortFormDoesNotSeeHowTheWorkIsDone) {
  const std::string base = to_yaml(parse(kSmallest), false);

  for (const char* key : {"parallel.tensor=2", "parallel.pipeline=2", "parallel.expert=2", "memory.host=1GiB", "scratch=x", "device=cpu",
                          "output.overwrite=true", "output.verify=false"})
    EXPECT_EQ(to_yaml(parse(kSmallest, {key}), false), base) << key;
  for (const char* key : {"calibration.samples=2", "quantization.kv_cache=fp8", "compute=fp32", "output.max_shard_size=1MB",
                          "quantization.ignore=[]", "quantization.fp8_quotient=modelopt", "calibration.pack=false", "output.path=x",
                          "moe.force_route=true", "moe.min_tokens_per_expert=1", "moe.unseen=fail", "moe.fail_below_coverage=0.1"})
    EXPECT_NE(to_yaml(parse(kSmallest, {key}), false), base) << key;
  EXPECT_EQ(to_yaml(parse("model: {path: in}\nquantization: {format: nvfp4}\noutput: {path: out}\n"), false), base)
      << "a preset is what it stands for";
}

TEST(ToYaml, WritesFractionsInAsFewDigitsAsTheyNeed) {
  EXPECT_NE(to_yaml(parse(kSmallest, {"moe.fail_below_coverage=0.1"}), false).find("fail_below_coverage: 0.1,"), std::string::npos);
  EXPECT_NE(to_yaml(parse(kSmallest), false).find("fail_below_coverage: 0,"), std::string::npos);
}

TEST(ParseBytes, KnowsBothKindsOfUnits) {
  EXPECT_EQ(parse_bytes("100000", ""), 100000);
  EXPECT_EQ(parse_bytes("7B", ""), 7);
  EXPECT_EQ(parse_bytes("5GB", ""), 5'000'000'000);
  EXPECT_EQ(parse_bytes("16GiB", ""), int64_t{16} << 30);
  EXPECT_EQ(parse_bytes("1.5 KiB", ""), 1536);
  EXPECT_EQ(parse_bytes("2TB", ""), 2'000'000'000'000);
  EXPECT_EQ(parse_bytes("3MiB", ""), 3 << 20);
}

TEST(ParseBytes, RefusesWhatIsNoSize) {
  for (const char* text : {"", "big", "5 apples", "-1GB", "inf", "nan", "1e30", "GB", "5gigabytes", "9999999TiB"})
    test::expect_error(ErrorKind::kUser, "here", [&] { parse_bytes(text, "here"); });
}

TEST(Nearest, FindsTheCandidateOfFewestEdits) {
  EXPECT_EQ(nearest("sampels", {"data", "samples", "seed"}), "samples");
  EXPECT_EQ(nearest("pah", {"path", "pack"}), "path");
  EXPECT_EQ(nearest("xyzxyz", {"path", "pack"}), "");
  EXPECT_EQ(nearest("x", {}), "");
}

}  // namespace
}  // namespace ptq::recipes
