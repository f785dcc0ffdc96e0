// The forward pass against transformers: logits of the built program beside those that PyTorch computed in float32.

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "tests/e2e/fixtures.h"

namespace ptq::test {
namespace {

/// Runs evaluate on input_ids and returns the logits of the last `positions` tokens of each row, [B * positions, V].
std::vector<double> last_logits(const std::string& model, const StoredTensor& ids, const std::string& compute, int64_t positions,
                                int ranks = 1, std::string* file = nullptr) {
  const TemporaryFolder folder;
  write_tensors(folder / "ids.safetensors", {{"input_ids", ids}});
  const ProgramResult result = run_program({"evaluate", "--model", model, "--input-ids", folder / "ids.safetensors", "--logits",
                                            folder / "logits.safetensors", "--compute", compute},
                                           {.ranks = ranks});
  expect_success(result);
  if (result.exit_code != 0) return {};
  if (file) *file = read_file(folder / "logits.safetensors");
  const StoredTensor logits = read_tensors(folder / "logits.safetensors").at("logits");
  EXPECT_EQ(logits.dtype, "F32");
  EXPECT_EQ(logits.shape.size(), 3u);
  EXPECT_EQ(std::vector<int64_t>(logits.shape.begin(), logits.shape.begin() + 2), ids.shape);
  const std::vector<double> all = logits.values();
  const int64_t rows = logits.shape[0], length = logits.shape[1], vocab = logits.shape[2];
  std::vector<double> last;
  for (int64_t b = 0; b < rows; ++b)
    last.insert(last.end(), all.begin() + (b * length + length - positions) * vocab, all.begin() + (b + 1) * length * vocab);
  return last;
}

/// max |a - b| / max |b|
double relative_distance(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return 1e9;
  double distance = 0, largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::fabs(a[i] - b[i]);
    if (!(difference <= distance)) distance = difference;  // NaN counts
    largest = std::max(largest, std::fabs(b[i]));
  }
  return distance / largest;
}

/// Mean over rows of V logits of KL(softmax(reference) || softmax(model)).
double mean_kl(const std::vector<double>& reference, const std::vector<double>& model, size_t vocab) {
  if (reference.size() != model.size() || reference.empty()) return 1e9;
  const auto log_sum = [vocab](const double* row) {
    const double highest = *std::max_element(row, row + vocab);
    double sum = 0;
    for (size_t i = 0; i < vocab; ++i) sum += std::exp(row[i] - highest);
    return highest + std::log(sum);
  };
  double total = 0;
  for (size_t at = 0; at < reference.size(); at += vocab) {
    const double *p = reference.data() + at, *q = model.data() + at, p_sum = log_sum(p), q_sum = log_sum(q);
    for (size_t i = 0; i < vocab; ++i) total += std::exp(p[i] - p_sum) * ((p[i] - p_sum) - (q[i] - q_sum));
  }
  return total / static_cast<double>(reference.size() / vocab);
}

/// A mixture's bf16 pass sends some tokens to other experts, which moves their logits by more than rounding does.
constexpr double kDenseKl = 2e-4, kMixtureKl = 5e-4;

void expect_reference_logits(const std::string& model, double bf16_kl = kDenseKl) {
  const StoredTensors reference = read_tensors(model + "/reference.safetensors");
  const StoredTensor &ids = reference.at("input_ids"), &logits = reference.at("logits");
  const std::vector<double> wanted = logits.values();

  const double distance = relative_distance(last_logits(model, ids, "fp32", logits.shape[1]), wanted);
  EXPECT_LE(distance, 1e-4);
  const double kl = mean_kl(wanted, last_logits(model, ids, "bf16", logits.shape[1]), static_cast<size_t>(logits.shape[2]));
  EXPECT_LE(kl, bf16_kl);
  std::cout << "fp32: max |difference| / max |logit| = " << distance << ", bf16: KL = " << kl << "\n";
}

void expect_tiny_logits(const std::string& family) {
  PTQ_NEEDS_SHARED(shared);
  const std::string model = shared + "/fixtures/input_formats/hf/" + family;
  const StoredTensors reference = read_tensors(model + "/reference_logits.safetensors");
  const StoredTensor& ids = reference.at("input_ids");

  const double distance = relative_distance(last_logits(model, ids, "fp32", ids.shape[1]), reference.at("logits_f32").values());
  EXPECT_LE(distance, 1e-4);
  std::cout << "fp32: max |difference| / max |logit| = " << distance << "\n";
}

TEST(Logits, OfTheShippedLlamaAreThoseOfTransformers) { expect_reference_logits(shipped_llama()); }

TEST(Logits, OfQwen3AreThoseOfTransformers) {
  PTQ_NEEDS_SHARED(shared);
  expect_reference_logits(shared + "/fixtures/models/qwen3");
}

TEST(Logits, OfNemotronNasAreThoseOfTransformers) {
  PTQ_NEEDS_SHARED(shared);
  expect_reference_logits(shared + "/fixtures/models/nemotron-nas");
}

TEST(Logits, OfQwen3MoeAreThoseOfTransformers) {
  PTQ_NEEDS_SHARED(shared);
  expect_reference_logits(shared + "/fixtures/models/qwen3-moe", kMixtureKl);
}

TEST(Logits, OfMixtralAreThoseOfTransformers) {
  PTQ_NEEDS_SHARED(shared);
  expect_reference_logits(shared + "/fixtures/models/mixtral", kMixtureKl);
}

TEST(Logits, OfDeepseekV3InFp8BlocksAreThoseOfTransformers) {
  PTQ_NEEDS_SHARED(shared);
  expect_reference_logits(shared + "/fixtures/models/deepseek-v3", kMixtureKl);
}

TEST(Logits, OfLlama4AreThoseOfTransformers) {
  PTQ_NEEDS_SHARED(shared);
  expect_reference_logits(shared + "/fixtures/models/llama4", kMixtureKl);
}

TEST(Logits, OfATinyLlamaAreThoseOfTransformers) { expect_tiny_logits("llama"); }
TEST(Logits, OfATinyQwen2AreThoseOfTransformers) { expect_tiny_logits("qwen2"); }
TEST(Logits, OfATinyNemotronAreThoseOfTransformers) { expect_tiny_logits("nemotron"); }
TEST(Logits, OfATinyQwen3MoeAreThoseOfTransformers) { expect_tiny_logits("qwen3_moe"); }
TEST(Logits, OfATinyMixtralAreThoseOfTransformers) { expect_tiny_logits("mixtral"); }
TEST(Logits, OfATinyDeepseekV3AreThoseOfTransformers) { expect_tiny_logits("deepseek_v3"); }
TEST(Logits, OfATinyGlm4MoeAreThoseOfTransformers) { expect_tiny_logits("glm4_moe"); }
TEST(Logits, OfATinyLlama4AreThoseOfTransformers) { expect_tiny_logits("llama4"); }
TEST(Logits, OfATinyGptOssAreThoseOfTransformers) { expect_tiny_logits("gpt_oss"); }

TEST(Logits, AreTheSameBytesAtTwoRanks) {
  const StoredTensor ids = read_tensors(shipped_llama() + "/reference.safetensors").at("input_ids");
  for (const std::string compute : {"bf16", "fp32"}) {
    std::string one, two;
    last_logits(shipped_llama(), ids, compute, 1, 1, &one);
    last_logits(shipped_llama(), ids, compute, 1, 2, &two);
    EXPECT_FALSE(one.empty());
    EXPECT_TRUE(one == two) << compute;
  }
}

}  // namespace
}  // namespace ptq::test
