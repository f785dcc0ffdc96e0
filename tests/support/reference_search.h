#pragma once
// Plain loops that say what the ops of kernels/search_ops.h should give. For tests only: slow and single-threaded.

#include <cstdint>
#include <vector>

#include "kernels/search_ops.h"

namespace ptq::test {

/// XᵀX in f64, [C, C].
std::vector<double> gram_in_f64(const Tensor& x);

/// The number of the grid that x is rounded to, by search.
float nearest_of(const kernels::FeedbackGrid& grid, float x);

/// The M of feedback_factor for H = gram + damping·mean(diagonal), [C, C] in f64: column after column from the last one.
std::vector<double> feedback_in_f64(const std::vector<double>& gram, double damping);
/// a of error_feedback by its definition: one chain of fused multiply-adds for each element.
std::vector<float> error_feedback_by_fma(const Tensor& w, const Tensor& feedback, const Tensor& steps, const std::vector<int32_t>& step_of,
                                         const kernels::FeedbackGrid& grid);
/// GPTQ as it was published, in f64: the values q [O, C] that one row after the other is rounded to, column by column, with the remaining
/// columns corrected by the rows of the upper Cholesky factor of H⁻¹.
///   gram [C, C] with its damping; steps one per row of w
std::vector<float> gptq_in_f64(const Tensor& w, const std::vector<double>& gram, const std::vector<float>& steps,
                               const kernels::FeedbackGrid& grid);

/// q of descend_codes by its definition: one chain of fused multiply-adds for each element of each pass.
std::vector<float> descend_codes_by_fma(const Tensor& w, const Tensor& q, const Tensor& gram, const Tensor& steps,
                                        const std::vector<int32_t>& step_of, const kernels::FeedbackGrid& grid, int passes);
/// The same in f64, sums, quotients and all: only a weight at a tie may differ.
std::vector<double> descend_codes_in_f64(const Tensor& w, const Tensor& q, const Tensor& gram, const Tensor& steps,
                                         const std::vector<int32_t>& step_of, const kernels::FeedbackGrid& grid, int passes);
/// The step that StepGrid allows nearest to one, by search.
float nearest_step(const kernels::StepGrid& allowed, float step);
/// steps of refit_steps by its definition, and in f64 without any rounding but that of the steps.
std::vector<float> refit_steps_by_fma(const Tensor& w, const Tensor& q, const Tensor& gram, int64_t group, const kernels::StepGrid& allowed,
                                      int sweeps, const Tensor& steps);
std::vector<double> refit_steps_in_f64(const Tensor& w, const std::vector<double>& codes, const Tensor& gram, int64_t group, int sweeps,
                                       const Tensor& steps);
/// (w - q)·G·(w - q)ᵀ of every row, in f64.
std::vector<double> row_losses(const Tensor& w, const std::vector<double>& q, const Tensor& gram);

/// d·G·dᵀ in f64 of `count` columns from `begin` on, d = w - grid(w/scale)·scale.
double rounding_loss(const float* w, const Tensor& gram, int64_t begin, int64_t count, float scale, const kernels::FeedbackGrid& grid);

}  // namespace ptq::test
