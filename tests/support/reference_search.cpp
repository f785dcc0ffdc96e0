#include "tests/support/reference_search.h"

#include <algorithm>
#include <cmath>

#include "tests/support/reference_formats.h"
#include "tests/support/reference_ops.h"

namespace ptq::test {

namespace {
size_t index(int64_t row, int64_t column, int64_t columns) { return static_cast<size_t>(row * columns + column); }
}  // namespace

std::vector<double> gram_in_f64(const Tensor& x) {
  const int64_t tokens = x.dim(0), columns = x.dim(1);
  const std::vector<float> values = values_of(x);
  std::vector<double> gram(static_cast<size_t>(columns * columns));
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t i = 0; i < columns; ++i)
      for (int64_t j = 0; j < columns; ++j)
        gram[index(i, j, columns)] += static_cast<double>(values[index(t, i, columns)]) * static_cast<double>(values[index(t, j, columns)]);
  return gram;
}

float nearest_of(const kernels::FeedbackGrid& grid, float x) {
  using Kind = kernels::FeedbackGrid::Kind;
  switch (grid.kind) {
    case Kind::kInt4:
      return static_cast<float>(nearest_integer(x, grid.code_min, 7));
    case Kind::kInt8:
      return static_cast<float>(nearest_integer(x, grid.code_min, 127));
    case Kind::kE2M1:
      return e2m1_value(nearest_e2m1(x, Ties::kEven));
    case Kind::kE4M3:
      return e4m3_value(nearest_e4m3(x));
  }
  return 0;
}

std::vector<double> feedback_in_f64(const std::vector<double>& gram, double damping) {
  const auto columns = static_cast<int64_t>(std::lround(std::sqrt(static_cast<double>(gram.size()))));
  std::vector<double> h = gram, feedback(gram.size());
  double mean = 0;
  for (int64_t c = 0; c < columns; ++c) mean += gram[index(c, c, columns)] / static_cast<double>(columns);
  for (int64_t c = 0; c < columns; ++c) {
    double& diagonal = h[index(c, c, columns)];
    diagonal = diagonal == 0 ? 1 : diagonal + damping * mean;
  }
  for (int64_t k = columns - 1; k >= 0; --k) {
    const double pivot = h[index(k, k, columns)];
    for (int64_t i = 0; i < k; ++i) feedback[index(i, k, columns)] = h[index(i, k, columns)] / pivot;
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < k; ++j) h[index(i, j, columns)] -= feedback[index(i, k, columns)] * pivot * feedback[index(j, k, columns)];
  }
  return feedback;
}

std::vector<float> error_feedback_by_fma(const Tensor& w, const Tensor& feedback, const Tensor& steps, const std::vector<int32_t>& step_of,
                                         const kernels::FeedbackGrid& grid) {
  const int64_t rows = w.dim(0), columns = w.dim(1);
  const std::vector<float> before = values_of(w), m = values_of(feedback), all_steps = values_of(steps);
  std::vector<float> adjusted = before, errors(static_cast<size_t>(columns));
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t k = 0; k < columns; ++k) {
      float& a = adjusted[index(row, k, columns)];
      for (int64_t j = 0; j < k; ++j) a = std::fma(m[index(j, k, columns)], errors[static_cast<size_t>(j)], a);
      const float step = all_steps[index(row, step_of[static_cast<size_t>(k)], steps.dim(1))];
      errors[static_cast<size_t>(k)] = before[index(row, k, columns)] - nearest_of(grid, a / step) * step;
    }
  return adjusted;
}

std::vector<float> gptq_in_f64(const Tensor& w, const std::vector<double>& gram, const std::vector<float>& steps,
                               const kernels::FeedbackGrid& grid) {
  const int64_t rows = w.dim(0), columns = w.dim(1);
  // H⁻¹ by Gauss and Jordan, then its upper Cholesky factor U of H⁻¹ = UᵀU.
  std::vector<double> left = gram, inverse(gram.size()), upper(gram.size());
  for (int64_t c = 0; c < columns; ++c) inverse[index(c, c, columns)] = 1;
  for (int64_t c = 0; c < columns; ++c) {
    const double pivot = left[index(c, c, columns)];
    for (int64_t j = 0; j < columns; ++j) left[index(c, j, columns)] /= pivot, inverse[index(c, j, columns)] /= pivot;
    for (int64_t i = 0; i < columns; ++i) {
      const double factor = left[index(i, c, columns)];
      if (i == c) continue;
      for (int64_t j = 0; j < columns; ++j) {
        left[index(i, j, columns)] -= factor * left[index(c, j, columns)];
        inverse[index(i, j, columns)] -= factor * inverse[index(c, j, columns)];
      }
    }
  }
  for (int64_t i = 0; i < columns; ++i)
    for (int64_t j = i; j < columns; ++j) {
      double sum = inverse[index(i, j, columns)];
      for (int64_t k = 0; k < i; ++k) sum -= upper[index(k, i, columns)] * upper[index(k, j, columns)];
      upper[index(i, j, columns)] = i == j ? std::sqrt(sum) : sum / upper[index(i, i, columns)];
    }
  const std::vector<float> weights = values_of(w);
  std::vector<float> rounded(weights.size());
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<double> rest(weights.begin() + row * columns, weights.begin() + (row + 1) * columns);
    const float step = steps[static_cast<size_t>(row)];
    for (int64_t c = 0; c < columns; ++c) {
      const auto value = static_cast<float>(rest[static_cast<size_t>(c)]);
      const float q = nearest_of(grid, value / step) * step;
      rounded[index(row, c, columns)] = q;
      const double error = (rest[static_cast<size_t>(c)] - static_cast<double>(q)) / upper[index(c, c, columns)];
      for (int64_t j = c; j < columns; ++j) rest[static_cast<size_t>(j)] -= error * upper[index(c, j, columns)];
    }
  }
  return rounded;
}

std::vector<float> descend_codes_by_fma(const Tensor& w, const Tensor& q, const Tensor& gram, const Tensor& steps,
                                        const std::vector<int32_t>& step_of, const kernels::FeedbackGrid& grid, int passes) {
  const int64_t rows = w.dim(0), columns = w.dim(1);
  const std::vector<float> wanted = values_of(w), g = values_of(gram), all_steps = values_of(steps);
  std::vector<float> codes = values_of(q), errors = wanted;
  for (size_t i = 0; i < errors.size(); ++i) errors[i] -= codes[i];
  for (int pass = 0; pass < passes; ++pass)
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t k = 0; k < columns; ++k) {
        float sum = 0;
        for (int64_t i = k + 1; i < columns; ++i) sum = std::fma(errors[index(row, i, columns)], g[index(i, k, columns)], sum);
        for (int64_t i = 0; i < k; ++i) sum = std::fma(errors[index(row, i, columns)], g[index(i, k, columns)], sum);
        if (!(g[index(k, k, columns)] > 0)) continue;
        const float step = all_steps[index(row, step_of[static_cast<size_t>(k)], steps.dim(1))];
        const float best = wanted[index(row, k, columns)] + sum / g[index(k, k, columns)];
        codes[index(row, k, columns)] = nearest_of(grid, best / step) * step;
        errors[index(row, k, columns)] = wanted[index(row, k, columns)] - codes[index(row, k, columns)];
      }
  return codes;
}

std::vector<double> descend_codes_in_f64(const Tensor& w, const Tensor& q, const Tensor& gram, const Tensor& steps,
                                         const std::vector<int32_t>& step_of, const kernels::FeedbackGrid& grid, int passes) {
  const int64_t rows = w.dim(0), columns = w.dim(1);
  const std::vector<float> wanted = values_of(w), before = values_of(q), g = values_of(gram), all_steps = values_of(steps);
  std::vector<double> codes(before.begin(), before.end());
  for (int64_t row = 0; row < rows; ++row) {
    // As the text has it: R = (w - q)·G, kept up to date.
    std::vector<double> r(static_cast<size_t>(columns));
    const auto add = [&](int64_t column, double error) {
      for (int64_t k = 0; k < columns; ++k) r[static_cast<size_t>(k)] += error * static_cast<double>(g[index(column, k, columns)]);
    };
    for (int64_t c = 0; c < columns; ++c) add(c, static_cast<double>(wanted[index(row, c, columns)]) - codes[index(row, c, columns)]);
    for (int pass = 0; pass < passes; ++pass)
      for (int64_t k = 0; k < columns; ++k) {
        const auto diagonal = static_cast<double>(g[index(k, k, columns)]);
        if (!(diagonal > 0)) continue;
        double& code = codes[index(row, k, columns)];
        const auto step = static_cast<double>(all_steps[index(row, step_of[static_cast<size_t>(k)], steps.dim(1))]);
        const auto quotient = static_cast<float>((code + r[static_cast<size_t>(k)] / diagonal) / step);
        const double next = static_cast<double>(nearest_of(grid, quotient)) * step;
        add(k, code - next);
        code = next;
      }
  }
  return codes;
}

float nearest_step(const kernels::StepGrid& allowed, float step) {
  using Kind = kernels::StepGrid::Kind;
  if (allowed.kind == Kind::kF32) return step;
  if (allowed.kind == Kind::kBF16) return round_to_bf16(step);
  const float quotient = step / allowed.factor;
  return e4m3_value(nearest_e4m3(std::min(std::max(quotient, 0x1p-9f), 448.0f))) * allowed.factor;
}

std::vector<float> refit_steps_by_fma(const Tensor& w, const Tensor& q, const Tensor& gram, int64_t group, const kernels::StepGrid& allowed,
                                      int sweeps, const Tensor& steps) {
  const int64_t rows = w.dim(0), columns = w.dim(1), across = columns / group;
  const std::vector<float> wanted = values_of(w), rounded = values_of(q), g = values_of(gram);
  std::vector<float> result = values_of(steps);
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<float> codes(static_cast<size_t>(columns)), errors(codes.size());
    const auto find_errors = [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c)
        errors[static_cast<size_t>(c)] =
            wanted[index(row, c, columns)] - codes[static_cast<size_t>(c)] * result[index(row, c / group, across)];
    };
    for (int64_t c = 0; c < columns; ++c)
      codes[static_cast<size_t>(c)] = round_to_bf16(rounded[index(row, c, columns)] / result[index(row, c / group, across)]);
    find_errors(0, columns);
    for (int sweep = 0; sweep < sweeps; ++sweep)
      for (int64_t begin = 0; begin < columns; begin += group) {
        double dot = 0, curvature = 0;
        for (int64_t k = begin; k < begin + group; ++k) {
          float sum = 0, of_codes = 0;
          for (int64_t n = 0; n < columns; ++n) {
            const int64_t i = (begin + n) % columns;
            sum = std::fma(errors[static_cast<size_t>(i)], g[index(i, k, columns)], sum);
            if (n < group) of_codes = std::fma(codes[static_cast<size_t>(i)], g[index(i, k, columns)], of_codes);
          }
          dot += static_cast<double>(codes[static_cast<size_t>(k)]) * static_cast<double>(sum);
          curvature += static_cast<double>(codes[static_cast<size_t>(k)]) * static_cast<double>(of_codes);
        }
        float& step = result[index(row, begin / group, across)];
        const auto best = static_cast<float>(static_cast<double>(step) + dot / curvature);
        if (!(curvature > 0) || !(best > 0) || !std::isfinite(best)) continue;
        const float next = nearest_step(allowed, best);
        const double change = static_cast<double>(next) - static_cast<double>(step);
        if (!(next > 0) || !std::isfinite(next) || !(change * change * curvature < 2 * change * dot)) continue;
        step = next;
        find_errors(begin, begin + group);
      }
  }
  return result;
}

std::vector<double> refit_steps_in_f64(const Tensor& w, const std::vector<double>& codes, const Tensor& gram, int64_t group, int sweeps,
                                       const Tensor& steps) {
  const int64_t rows = w.dim(0), columns = w.dim(1), across = columns / group;
  const std::vector<float> wanted = values_of(w), g = values_of(gram), before = values_of(steps);
  std::vector<double> result(before.begin(), before.end());
  for (int sweep = 0; sweep < sweeps; ++sweep)
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t begin = 0; begin < columns; begin += group) {
        double dot = 0, curvature = 0;
        for (int64_t k = begin; k < begin + group; ++k)
          for (int64_t i = 0; i < columns; ++i) {
            const double by = codes[index(row, k, columns)] * static_cast<double>(g[index(i, k, columns)]);
            const double q = codes[index(row, i, columns)] * result[index(row, i / group, across)];
            dot += by * (static_cast<double>(wanted[index(row, i, columns)]) - q);
            if (i >= begin && i < begin + group) curvature += by * codes[index(row, i, columns)];
          }
        double& step = result[index(row, begin / group, across)];
        if (curvature > 0 && step + dot / curvature > 0) step += dot / curvature;
      }
  return result;
}

std::vector<double> row_losses(const Tensor& w, const std::vector<double>& q, const Tensor& gram) {
  const int64_t rows = w.dim(0), columns = w.dim(1);
  const std::vector<float> wanted = values_of(w), g = values_of(gram);
  std::vector<double> losses(static_cast<size_t>(rows));
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < columns; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < columns; ++j)
        sum += (static_cast<double>(wanted[index(row, j, columns)]) - q[index(row, j, columns)]) *
               static_cast<double>(g[index(i, j, columns)]);
      losses[static_cast<size_t>(row)] += (static_cast<double>(wanted[index(row, i, columns)]) - q[index(row, i, columns)]) * sum;
    }
  return losses;
}

double rounding_loss(const float* w, const Tensor& gram, int64_t begin, int64_t count, float scale, const kernels::FeedbackGrid& grid) {
  std::vector<double> d(static_cast<size_t>(count));
  for (int64_t c = 0; c < count; ++c)
    d[static_cast<size_t>(c)] = static_cast<double>(w[begin + c] - nearest_of(grid, w[begin + c] / scale) * scale);
  double loss = 0;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < count; ++j)
      loss += d[static_cast<size_t>(i)] * static_cast<double>(gram.data<float>()[(begin + i) * gram.dim(1) + begin + j]) *
              d[static_cast<size_t>(j)];
  return loss;
}

}  // namespace ptq::test
