#include "recipes/formats.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"

namespace ptq::recipes {
namespace {

TEST(Formats, TheirNamesFindThem) {
  for (const FormatInfo& format : all_formats()) {
    EXPECT_EQ(find_format(format.name, "").format, format.format);
    EXPECT_EQ(&info(format.format), &format) << "the list is in the order of the enumeration";
  }
  test::expect_error(ErrorKind::kUser, "somewhere", [] { find_format("fp5", "somewhere"); });
  test::expect_error(ErrorKind::kUser, "fp8_pc_pt", [] { find_format("fp5", ""); });
  test::expect_error(ErrorKind::kUser, "format: int4 and method: awq", [] { find_format("int4_awq", ""); });
}

TEST(Presets, AreTheContractsWords) {
  struct Expected {
    const char *name, *format, *method;
  };
  for (const Expected& preset : std::vector<Expected>{{"none", "none", "minmax"},
                                                      {"fp8", "fp8", "minmax"},
                                                      {"fp8_pb_wo", "fp8_pb_wo", "minmax"},
                                                      {"fp8_pc_pt", "fp8_pc_pt", "minmax"},
                                                      {"nvfp4", "nvfp4", "minmax"},
                                                      {"nvfp4_awq", "nvfp4", "awq"},
                                                      {"w4a16_nvfp4", "w4a16_nvfp4", "awq"},
                                                      {"int8_sq", "int8", "smoothquant"},
                                                      {"int8_wo", "int8_wo", "minmax"},
                                                      {"int4_awq", "int4", "awq"},
                                                      {"w4a8_awq", "w4a8", "awq"},
                                                      {"mxfp8", "mxfp8", "minmax"},
                                                      {"mxfp4", "mxfp4", "minmax"},
                                                      {"auto", "none", "autoquantize"}}) {
    EXPECT_EQ(find_preset(preset.name, "").format, preset.format) << preset.name;
    EXPECT_EQ(find_preset(preset.name, "").method, preset.method) << preset.name;
  }
  test::expect_error(ErrorKind::kUser, "use one of: none, fp8,", [] { find_preset("int5", ""); });
}

TEST(Dialects, TheirNamesFindThem) {
  for (const Dialect dialect : {Dialect::kModelOpt, Dialect::kCompressedTensors, Dialect::kDeepseekFp8})
    EXPECT_EQ(find_dialect(dialect_name(dialect), ""), dialect);
  test::expect_error(ErrorKind::kUser, "use one of: modelopt, compressed-tensors, deepseek-fp8", [] { find_dialect("awq", ""); });
}

}  // namespace
}  // namespace ptq::recipes
