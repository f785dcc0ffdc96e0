#include "kernels/search_ops.h"

#include <cmath>

#include "kernels/cpu/cpu_search_ops.h"
#include "kernels/dispatch.h"

namespace ptq::kernels {

void column_amax(const Tensor& x, Tensor& amaxes) { on(x.device(), cpu::column_amax)(x, amaxes); }
void column_sums(const Tensor& x, bool absolute, std::span<int64_t> sums) { on(x.device(), cpu::column_sums)(x, absolute, sums); }
double magnitude_edge(size_t bin) {
  if (bin == 0) return 0;
  const auto step = static_cast<int>(bin) - 1;
  return std::ldexp(1.0 + (step % 16) / 16.0, step / 16 - 32);
}
void count_magnitudes(const Tensor& x, std::span<int64_t> counts) { on(x.device(), cpu::count_magnitudes)(x, counts); }
void row_dots(const Tensor& a, const Tensor& b, std::span<double> dots) { on(a.device(), cpu::row_dots)(a, b, dots); }
void gram_add(const Tensor& x, int64_t begin, int64_t end, Tensor& gram) { on(x.device(), cpu::gram_add)(x, begin, end, gram); }
void gram_complete(Tensor& gram) { on(gram.device(), cpu::gram_complete)(gram); }
void scale_gram(Tensor& gram, const Tensor& factors) { on(gram.device(), cpu::scale_gram)(gram, factors); }
void feedback_factor(Tensor& gram, float damping) { on(gram.device(), cpu::feedback_factor)(gram, damping); }
void error_feedback(Tensor& w, const Tensor& feedback, const Tensor& steps, const std::vector<int32_t>& step_of, const FeedbackGrid& grid) {
  on(w.device(), cpu::error_feedback)(w, feedback, steps, step_of, grid);
}
void descend_codes(const Tensor& w, Tensor& q, const Tensor& gram, const Tensor& steps, const std::vector<int32_t>& step_of,
                   const FeedbackGrid& grid, int passes) {
  on(w.device(), cpu::descend_codes)(w, q, gram, steps, step_of, grid, passes);
}
void refit_steps(const Tensor& w, const Tensor& q, const Tensor& gram, int64_t group, const StepGrid& allowed, int sweeps, Tensor& steps) {
  on(w.device(), cpu::refit_steps)(w, q, gram, group, allowed, sweeps, steps);
}
void search_group_scales(const Tensor& w, const Tensor& gram, int64_t group, const FeedbackGrid& grid, float format_max,
                         const std::vector<float>& ratios, Tensor& scales) {
  on(w.device(), cpu::search_group_scales)(w, gram, group, grid, format_max, ratios, scales);
}
void search_nvfp4_scales(const Tensor& w, const Tensor& gram, float scale_2, const std::vector<float>& ratios, Tensor& block_scales) {
  on(w.device(), cpu::search_nvfp4_scales)(w, gram, scale_2, ratios, block_scales);
}

}  // namespace ptq::kernels
