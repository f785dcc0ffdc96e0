#pragma once
// Factors on the channels that a group of linears reads: inputs are divided by them, weights multiplied, so that large channels cost less.
// Sources: SmoothQuant (Xiao et al. 2022), AWQ (Lin et al. 2023); losses are exact over all tokens through the Gram matrix.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "recipes/encoding.h"
#include "recipes/gram.h"

namespace ptq::recipes {

/// What a group of linears reads, over all tokens of all ranks.
struct InputStatistics {
  Tensor mean_abs, amax;        ///< [K] f32, by channel
  std::vector<GramBlock> gram;  ///< whole blocks; empty: not collected
  Tensor sample;                ///< [n, K] bf16 | f32: tokens for losses that count the rounding of activations; or undefined
  Tensor sample_weights;        ///< [n] f32: what each token's error is multiplied by; undefined: 1
  double sample_worth = 1;      ///< tokens that one of the sample stands for
};

/// This rank's rows of a weight that the factors multiply.
struct SmoothedWeight {
  Encoding encoding;
  Tensor rows;            ///< [this rank's rows, K] bf16 | f16 | f32
  int64_t first_row = 0;  ///< of `rows` in the weight
  int64_t out = 0;        ///< rows of the whole weight
  Tensor column_amax;     ///< [K] f32: of all weights that share its global scale, or of itself
};

/// Which factors are allowed.
struct FactorLimits {
  std::vector<int32_t> ties;  ///< by channel; channels with the same number, from 0, have the same factor; empty: none must
  int octaves = 0;            ///< n: powers of 2ⁿ alone, which change no significand; 0: any
};

/// How factors follow from magnitudes by channel.
enum class SmoothingRule {
  kAwq,         ///< x^alpha / w^beta with x = √(mean|x|·max|x|) and w = mean|w|: both exponents are searched
  kSmoothQuant  ///< max|x|^alpha / max|w|^(1 - alpha)
};
struct Exponents {
  double alpha = 0;
  double beta = 0;  ///< kAwq
};

/// The factors [K] f32 of these exponents, divided by the root of the product of their extremes. Channels that are always zero have 1.
/// weights [K] f32: mean|w| (kAwq) or max|w| (kSmoothQuant) by channel, over all weights that the factors multiply.
Tensor smoothing_factors(SmoothingRule rule, const InputStatistics& input, const Tensor& weights, const FactorLimits& limits,
                         Exponents exponents);

struct ChosenSmoothing {
  Exponents exponents;
  Tensor factors;
  double loss = 0, plain_loss = 0;  ///< with these factors and with the first exponents tried (AWQ: no smoothing)
};
/// Alphas that other_losses are given for, with beta 0.
std::vector<double> shared_alphas(int64_t grid);
/// The factors that lose least of exponents from 0 (no smoothing, for AWQ) to 1: a coarse grid first, then finer around the best, down to
/// 1/grid. other_losses: what else depends on the factors, one for each of shared_alphas, the same on every rank; only those are then
/// tried; empty: nothing else. Losses are sums over rows of all ranks in their order: every rank finds the same. Collective over `ranks`.
ChosenSmoothing choose_smoothing(SmoothingRule rule, const std::vector<SmoothedWeight>& weights, const InputStatistics& input,
                                 const Tensor& magnitudes, const FactorLimits& limits, int64_t grid,
                                 const std::vector<double>& other_losses, parallel::Communicator& ranks);

/// The losses of candidate factors for some rows of one weight: what choose_smoothing adds up.
class SmoothingLoss {
 public:
  SmoothingLoss(const SmoothedWeight& weight, const InputStatistics& input);
  /// Rows that are looked at, of the whole weight: a few hundred, by their numbers alone.
  int64_t searched_rows() const { return searched_; }
  /// losses[i] of the i-th searched row, written for this rank's rows only.
  void evaluate(const Tensor& factors, std::span<double> losses) const;

 private:
  const SmoothedWeight& weight_;
  const InputStatistics& input_;
  int64_t stride_ = 1, searched_ = 0, first_ = 0;
  Tensor rows_;     ///< searched rows of this rank, f32
  Tensor outputs_;  ///< what they give for the sample, [rows, n] f32
};

/// Formats whose rounding of activations is counted in the losses of a search.
bool counts_activations(Format format);

/// Non-negative values that one rank each has and the others hold as 0: afterwards all have all. Exact. Collective.
void merge_values(std::span<double> values, parallel::Communicator& ranks);

/// What the weights after a norm must be multiplied by when its weight changes from `before` to `after`, [K] f32: the ratio of the two, of
/// both plus one for norms around one; 1 where that is no positive number.
Tensor norm_ratio(const Tensor& before, const Tensor& after, bool around_one);

/// 1 / factors.
Tensor reciprocal(const Tensor& factors);

}  // namespace ptq::recipes
