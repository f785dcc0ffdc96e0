#pragma once
// The ops of kernels/search_ops.h on tensors in host memory; shapes and rules are stated there. Called by kernels/search_ops.cpp only.

#include "kernels/cpu/row_kernels.h"
#include "kernels/search_ops.h"

namespace ptq::kernels::cpu {

void column_amax(const Tensor& x, Tensor& amaxes);
void column_sums(const Tensor& x, bool absolute, std::span<int64_t> sums);
void count_magnitudes(const Tensor& x, std::span<int64_t> counts);
void row_dots(const Tensor& a, const Tensor& b, std::span<double> dots);
void gram_add(const Tensor& x, int64_t begin, int64_t end, Tensor& gram);
void gram_complete(Tensor& gram);
void scale_gram(Tensor& gram, const Tensor& factors);
void feedback_factor(Tensor& gram, float damping);
void error_feedback(Tensor& w, const Tensor& feedback, const Tensor& steps, const std::vector<int32_t>& step_of, const FeedbackGrid& grid);
void descend_codes(const Tensor& w, Tensor& q, const Tensor& gram, const Tensor& steps, const std::vector<int32_t>& step_of,
                   const FeedbackGrid& grid, int passes);
void refit_steps(const Tensor& w, const Tensor& q, const Tensor& gram, int64_t group, const StepGrid& allowed, int sweeps, Tensor& steps);
void search_group_scales(const Tensor& w, const Tensor& gram, int64_t group, const FeedbackGrid& grid, float format_max,
                         const std::vector<float>& ratios, Tensor& scales);
void search_nvfp4_scales(const Tensor& w, const Tensor& gram, float scale_2, const std::vector<float>& ratios, Tensor& block_scales);

/// The grid as row kernels take it. Throws a bug for a code_min that its format lacks.
Rounding rounding_of(const FeedbackGrid& grid);

}  // namespace ptq::kernels::cpu
