#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/row_kernels.h"

namespace ptq::kernels::cpu {

namespace {

constexpr int64_t kTokensPerTask = 16;

/// Moves the `count` indices of the largest scores to the front, the best one first. NaN ranks above all numbers, as in PyTorch: a router
/// that is not a number is then chosen and seen, not passed over. Equal scores rank by index, so the order is total whatever the scores
/// are.
void select_largest(std::span<int32_t> indices, int64_t count, const float* scores) {
  std::partial_sort(indices.begin(), indices.begin() + count, indices.end(), [scores](int32_t a, int32_t b) {
    const float x = scores[a], y = scores[b];
    if (std::isnan(x) != std::isnan(y)) return std::isnan(x);
    return x > y || (!(x < y) && a < b);
  });
}

/// The routing of one task's tokens, and the memory for it.
class Router {
 public:
  Router(const RouteRule& rule, int64_t experts, const float* correction)
      : rule_(rule),
        experts_(experts),
        correction_(correction),
        scores_(static_cast<size_t>(experts)),
        choices_(static_cast<size_t>(experts)),
        group_scores_(static_cast<size_t>(rule.groups)),
        groups_(static_cast<size_t>(rule.groups)) {}

  /// experts, weights [K].
  void route(const float* logits, int32_t* experts, float* weights) {
    candidates_.resize(static_cast<size_t>(experts_));
    std::iota(candidates_.begin(), candidates_.end(), 0);
    switch (rule_.kind) {
      case RouteRule::Kind::kSoftmax:
        row_kernels().softmax(logits, experts_, scores_.data());
        choose(scores_.data(), experts);
        take(scores_.data(), experts, weights);
        if (rule_.normalize) normalize(weights, 0.0f);
        return;
      case RouteRule::Kind::kTopKSoftmax:
        choose(logits, experts);
        take(logits, experts, scores_.data());
        row_kernels().softmax(scores_.data(), rule_.top_k, weights);
        return;
      case RouteRule::Kind::kSigmoid:
        choose(logits, experts);
        take(logits, experts, scores_.data());
        row_kernels().sigmoid(scores_.data(), rule_.top_k, weights);
        return;
      case RouteRule::Kind::kGroupedSigmoid:
        row_kernels().sigmoid(logits, experts_, scores_.data());
        for (size_t e = 0; e < scores_.size(); ++e) choices_[e] = correction_ ? scores_[e] + correction_[e] : scores_[e];
        keep_best_groups();
        choose(choices_.data(), experts);
        take(scores_.data(), experts, weights);
        if (rule_.normalize) normalize(weights, 1e-20f);
        for (int64_t k = 0; k < rule_.top_k; ++k) weights[k] *= rule_.scaling;
        return;
    }
  }

 private:
  /// Leaves the experts of the best groups as candidates.
  void keep_best_groups() {
    if (rule_.top_groups == rule_.groups) return;
    const int64_t size = experts_ / rule_.groups;
    for (int64_t g = 0; g < rule_.groups; ++g) {
      const std::span<int32_t> members(candidates_.data() + g * size, static_cast<size_t>(size));
      select_largest(members, std::min<int64_t>(2, size), choices_.data());
      const float best = choices_[static_cast<size_t>(members[0])];
      group_scores_[static_cast<size_t>(g)] = size == 1 ? best : best + choices_[static_cast<size_t>(members[1])];
    }
    std::iota(groups_.begin(), groups_.end(), 0);
    select_largest(groups_, rule_.top_groups, group_scores_.data());
    candidates_.clear();
    for (int64_t g = 0; g < rule_.top_groups; ++g)
      for (int64_t i = 0; i < size; ++i) candidates_.push_back(static_cast<int32_t>(groups_[static_cast<size_t>(g)] * size + i));
  }
  /// The candidates with the largest scores, ascending.
  void choose(const float* scores, int32_t* experts) {
    select_largest(candidates_, rule_.top_k, scores);
    std::copy_n(candidates_.begin(), rule_.top_k, experts);
    std::sort(experts, experts + rule_.top_k);
  }
  void take(const float* from, const int32_t* experts, float* to) const {
    for (int64_t k = 0; k < rule_.top_k; ++k) to[k] = from[experts[k]];
  }
  void normalize(float* weights, float bias) const {
    float sum = 0.0f;
    for (int64_t k = 0; k < rule_.top_k; ++k) sum += weights[k];
    for (int64_t k = 0; k < rule_.top_k; ++k) weights[k] /= sum + bias;
  }

  const RouteRule& rule_;
  int64_t experts_;
  const float* correction_;
  std::vector<float> scores_, choices_, group_scores_;
  std::vector<int32_t> groups_, candidates_;
};

}  // namespace

void route(const Tensor& logits, const Tensor& correction, const RouteRule& rule, Tensor& experts, Tensor& weights) {
  require(logits.rank() == 2, "route: logits are not [T, E]");
  const int64_t tokens = logits.dim(0), count = logits.dim(1), top_k = rule.top_k;
  const bool grouped = rule.kind == RouteRule::Kind::kGroupedSigmoid;
  require(1 <= top_k && top_k <= count, "route: top_k is not within the experts");
  require(experts.shape() == Shape{tokens, top_k} && weights.shape() == experts.shape(), "route: experts or weights are not [T, K]");
  require(!correction.defined() || (grouped && correction.numel() == count), "route: correction is not [E], or the rule has none");
  require(!grouped || (1 <= rule.top_groups && rule.top_groups <= rule.groups && count % rule.groups == 0), "route: groups do not fit");
  require(!grouped || top_k <= rule.top_groups * (count / rule.groups), "route: the groups kept have fewer than top_k experts");
  Scratch scratch;
  const float* const bias = correction.defined() ? widened(correction, scratch) : nullptr;
  const float* const values = logits.data<float>();
  auto* const chosen = experts.data<int32_t>();
  float* const weight = weights.data<float>();
  parallel_ranges(tokens, kTokensPerTask, [&](int64_t begin, int64_t end) {
    Router router(rule, count, bias);
    for (int64_t t = begin; t < end; ++t) router.route(values + t * count, chosen + t * top_k, weight + t * top_k);
  });
}

}  // namespace ptq::kernels::cpu
