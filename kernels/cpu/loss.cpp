#include <algorithm>
#include <cmath>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/row_kernels.h"

namespace ptq::kernels::cpu {

void token_losses(const Tensor& logits, const Tensor& labels, std::vector<double>& losses) {
  require(logits.rank() == 2 && labels.numel() == logits.dim(0), "token_losses: logits [T, V] and labels [T] do not fit");
  const int64_t vocabulary = logits.dim(1);
  const float* const values = logits.data<float>();
  const auto* const label = labels.data<int32_t>();
  losses.assign(static_cast<size_t>(logits.dim(0)), 0.0);
  parallel_for(logits.dim(0), [&](int64_t t) {
    if (label[t] < 0) return;
    require(label[t] < vocabulary, "token_losses: a label outside the vocabulary");
    const float* const row = values + t * vocabulary;
    const float max = row_kernels().max(row, vocabulary);
    const double below_max = static_cast<double>(max) - static_cast<double>(row[label[t]]);
    losses[static_cast<size_t>(t)] = std::log(row_kernels().sum_exp(row, vocabulary, max)) + below_max;
  });
}

void token_agreement(const Tensor& reference, const Tensor& logits, std::vector<TokenAgreement>& result) {
  require(logits.rank() == 2 && reference.shape() == logits.shape(), "token_agreement: shapes differ");
  const int64_t vocabulary = logits.dim(1);
  const float *const ours = logits.data<float>(), *const theirs = reference.data<float>();
  result.assign(static_cast<size_t>(logits.dim(0)), {});
  parallel_for(logits.dim(0), [&](int64_t t) {
    const float *const x = ours + t * vocabulary, *const r = theirs + t * vocabulary;
    AgreementSums sums{row_kernels().max(r, vocabulary), row_kernels().max(x, vocabulary), 0, 0, 0};
    row_kernels().agreement(r, x, vocabulary, sums);
    // log p_ref - log p of a token is (r - r_max) - (x - x_max) less the difference of the two logs of sums.
    const double kl = sums.cross / sums.reference_sum - std::log(sums.reference_sum / sums.sum);
    const bool same = std::find(r, r + vocabulary, sums.reference_max) - r == std::find(x, x + vocabulary, sums.max) - x;
    result[static_cast<size_t>(t)] = {kl, same};
  });
}

}  // namespace ptq::kernels::cpu
