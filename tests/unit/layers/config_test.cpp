#include "layers/config.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"

namespace ptq::layers {
namespace {

Config config(const char* json) { return {nlohmann::ordered_json::parse(json), "folder/config.json"}; }

TEST(Config, ReadsValuesOfEveryType) {
  const Config c = config(R"({"integer": 7, "number": 0.5, "flag": true, "text": "silu", "nothing": null})");

  EXPECT_EQ(c.integer("integer"), 7);
  EXPECT_EQ(c.number("number"), 0.5);
  EXPECT_EQ(c.number("integer"), 7.0);
  EXPECT_TRUE(c.flag_or("flag", false));
  EXPECT_EQ(c.text_or("text", ""), "silu");
}

TEST(Config, NullIsLikeMissing) {
  const Config c = config(R"({"nothing": null})");

  EXPECT_FALSE(c.has("nothing"));
  EXPECT_EQ(c.integer_or("nothing", 3), 3);
  EXPECT_EQ(c.number_or("nothing", 1.5), 1.5);
  EXPECT_TRUE(c.flag_or("nothing", true));
  EXPECT_EQ(c.text_or("nothing", "x"), "x");
  test::expect_error(ErrorKind::kData, "'nothing' is missing", [&] { (void)c.integer("nothing"); });
}

TEST(Config, ErrorsNameFileAndKey) {
  const Config c = config(R"({"a": "7", "b": 1.5, "c": 1})");

  test::expect_error(ErrorKind::kData, "folder/config.json", [&] { (void)c.integer("missing"); });
  test::expect_error(ErrorKind::kData, "'a' is not an integer", [&] { (void)c.integer("a"); });
  test::expect_error(ErrorKind::kData, "'b' is not an integer", [&] { (void)c.integer_or("b", 0); });
  test::expect_error(ErrorKind::kData, "'a' is not a number", [&] { (void)c.number_or("a", 0); });
  test::expect_error(ErrorKind::kData, "'c' is not true or false", [&] { (void)c.flag_or("c", false); });
  test::expect_error(ErrorKind::kData, "'c' is not a string", [&] { (void)c.text_or("c", ""); });
  test::expect_error(ErrorKind::kData, "not a JSON object", [] { config("[1, 2]"); });
}

TEST(Config, TheArchitectureGoesBeforeTheModelType) {
  EXPECT_EQ(config(R"({"architectures": ["A", "B"], "model_type": "c"})").architecture(), "A");
  EXPECT_EQ(config(R"({"architectures": null, "model_type": "c"})").architecture(), "c");
  test::expect_error(ErrorKind::kData, "architectures", [] { (void)config("{}").architecture(); });
  test::expect_error(ErrorKind::kData, "architectures", [] { (void)config(R"({"architectures": []})").architecture(); });
  test::expect_error(ErrorKind::kData, "architectures", [] { (void)config(R"({"architectures": [3]})").architecture(); });
}

}  // namespace
}  // namespace ptq::layers
