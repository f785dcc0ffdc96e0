// What AutoQuantize's folds leave of tensors that are not quantized: the source's numbers, their exponents shifted.

#include <cmath>
#include <limits>
#include <map>
#include <optional>

#include "kernels/ops.h"
#include "runner/verify_judge.h"

namespace ptq::runner {

namespace {

using checkpoint::Reader;

/// Exponents by row or by column; kFree: whatever fits.
constexpr int kFree = std::numeric_limits<int>::min();
using Exponents = std::vector<int>;

Tensor floats(const Tensor& x) { return kernels::converted(x, DType::kF32); }

/// log2(now / before) if that is a whole number; nothing for other ratios. Zeros stay zeros: kFree.
std::optional<int> exponent_of(float now, float before) {
  if (before == 0) return now == 0 ? std::optional<int>(kFree) : std::nullopt;
  int exponent = 0;
  if (!std::isfinite(now) || std::frexp(now / before, &exponent) != 0.5f) return std::nullopt;
  return std::ldexp(before, exponent - 1) == now ? std::optional<int>(exponent - 1) : std::nullopt;
}

/// Is now [R, C] = before · 2^(rows[r] + columns[c])? Fills in the free ones; of one element not both are free.
bool fits(const Tensor& now, const Tensor& before, Exponents& rows, Exponents& columns) {
  const float *a = now.data<float>(), *b = before.data<float>();
  const auto width = static_cast<int64_t>(columns.size());
  for (int64_t i = 0; i < now.numel(); ++i) {
    const std::optional<int> exponent = exponent_of(a[i], b[i]);
    if (!exponent) return false;
    if (*exponent == kFree) continue;
    int &row = rows[static_cast<size_t>(i / width)], &column = columns[static_cast<size_t>(i % width)];
    if (row == kFree) row = *exponent - column;
    if (column == kFree) column = *exponent - row;
    if (row + column != *exponent) return false;
  }
  return true;
}

Exponents negated(Exponents exponents) {
  for (int& one : exponents)
    if (one != kFree) one = -one;
  return exponents;
}

class LayerScales {
 public:
  LayerScales(const layers::LayerSpec& layer, const std::vector<StoredLinear>& stored, const Reader& exported, const Reader& source,
              Judge& judge)
      : layer_(layer), stored_(stored), exported_(exported), source_(source), judge_(judge), groups_(layers::smoothing_groups(layer)) {}

  void check() {
    for (const auto& group : groups_) {
      if (group.fold.kind == layers::Fold::Kind::kRows) {
        makers_.insert({group.fold.linear, &group});
        for (const int linear : group.linears) inputs_[linear] = Exponents(width(linear), kFree);
        continue;
      }
      const Exponents given = norm(group);
      for (size_t i = 0; i < layer_.linears.size(); ++i)
        if (layer_.linears[i].is_routed() && layer_.linears[i].feeds_down && group.feeds_experts) inputs_[static_cast<int>(i)] = given;
      for (const int linear : group.linears) inputs_[linear] = given;
      if (group.feeds_experts)
        matrix(layer_.moe()->router.module + ".weight", Exponents(static_cast<size_t>(layer_.moe()->router.experts), 0), given);
    }
    for (size_t i = 0; i < layer_.linears.size(); ++i)
      if (!stored_[i].encoding.is_quantized()) linear(static_cast<int>(i));
    for (const auto& [maker, group] : makers_) compare(maker, *group);
  }

 private:
  size_t width(int linear) const { return static_cast<size_t>(layer_.linears[static_cast<size_t>(linear)].in); }

  /// What the norm gave up, so what its readers took.
  Exponents norm(const layers::SmoothingGroup& group) {
    const std::string name = group.fold.norm.module + ".weight";
    Exponents one{0}, taken(static_cast<size_t>(source_.at(name).shape.front()), kFree);
    if (group.fold.kind != layers::Fold::Kind::kNorm) return Exponents(taken.size(), 0);
    const Tensor now = floats(exported_.read(name)), before = floats(source_.read(name));
    judge_.claim(fits(now, before, one, taken), name + " is not the source's by powers of two");
    return negated(taken);
  }

  std::pair<Exponents, Exponents> matrix(const std::string& name, Exponents rows, Exponents columns) {
    const Tensor now = exported_.read(name), before = source_.read(name);
    judge_.claim(now.shape() == before.shape() && now.dtype() == before.dtype() && fits(floats(now), floats(before), rows, columns),
                 name + " is not the source's by the powers of two that its neighbours gave up");
    return {rows, columns};
  }

  void linear(int index) {
    const layers::LinearSpec& spec = layer_.linears[static_cast<size_t>(index)];
    const std::string name = spec.tensor(".weight");
    const bool is_expert_maker =
        spec.is_routed() && spec.feeds_down && layers::expert_fold(layer_, std::max(0, spec.expert)).linear == index;
    const bool reads_expert = spec.is_routed() && !spec.feeds_down;
    Exponents rows(static_cast<size_t>(spec.out), makers_.count(index) || is_expert_maker ? kFree : 0);
    Exponents columns(width(index), reads_expert ? kFree : 0);
    if (const auto found = inputs_.find(index); found != inputs_.end()) columns = found->second;
    // A channel whose norm is zero tells nothing: whatever its readers took is multiplied by zero.
    for (int& column : columns)
      if (column == kFree && rows.front() == kFree) column = 0;
    if (spec.is_stacked()) {  // [stack, in, out]
      const Tensor now = exported_.read(name), before = source_.read(name);
      bool all = now.shape() == before.shape() && now.dtype() == before.dtype();
      for (int64_t e = 0; all && e < spec.stack; ++e) {
        Exponents in = columns, out = rows;
        const auto slice = [&](const Tensor& x) { return floats(x.rows(e, e + 1).reshaped({spec.in, spec.out})); };
        all = fits(slice(now), slice(before), in, out);
      }
      judge_.claim(all, name + " is not the source's by the powers of two that its neighbours gave up");
      return;
    }
    auto [took_rows, took_columns] = matrix(name, std::move(rows), std::move(columns));
    rows_[index] = took_rows;
    columns_[index] = took_columns;
    if (spec.has_bias && makers_.count(index)) {
      Exponents one{0}, bias = took_rows;
      const std::string bias_name = spec.tensor(".bias");
      judge_.claim(fits(floats(exported_.read(bias_name)), floats(source_.read(bias_name)), one, bias),
                   bias_name + " did not take the factors of its rows");
    }
  }

  /// Rows that took factors against the columns that gave them.
  void compare(int maker, const layers::SmoothingGroup& group) {
    if (!rows_.count(maker)) return;
    for (const int reader : group.linears) {
      if (!columns_.count(reader)) continue;
      bool same = true;
      for (size_t c = 0; c < columns_.at(reader).size(); ++c) {
        const int row = rows_.at(maker)[static_cast<size_t>(group.fold.rows[c])], column = columns_.at(reader)[c];
        same = same && (row == kFree || column == kFree || static_cast<float>(row) == -group.fold.power * static_cast<float>(column));
      }
      judge_.claim(same, layer_.linears[static_cast<size_t>(reader)].module + " did not take what " +
                             layer_.linears[static_cast<size_t>(maker)].module + " gave up");
    }
  }

  const layers::LayerSpec& layer_;
  const std::vector<StoredLinear>& stored_;
  const Reader &exported_, &source_;
  Judge& judge_;
  std::vector<layers::SmoothingGroup> groups_;
  std::map<int, Exponents> inputs_;          ///< by linear: what its columns took
  std::map<int, Exponents> rows_, columns_;  ///< of plain linears
  std::multimap<int, layers::SmoothingGroup const*> makers_;
};

}  // namespace

std::vector<std::string> scaled_names(const layers::LayerSpec& layer, const std::vector<StoredLinear>& stored) {
  std::vector<std::string> names;
  for (const auto& group : layers::smoothing_groups(layer)) {
    if (group.fold.kind == layers::Fold::Kind::kNorm) names.push_back(group.fold.norm.module + ".weight");
    if (group.feeds_experts) names.push_back(layer.moe()->router.module + ".weight");
    if (group.fold.kind != layers::Fold::Kind::kRows) continue;
    const auto& maker = layer.linears[static_cast<size_t>(group.fold.linear)];
    if (maker.has_bias) names.push_back(maker.tensor(".bias"));
  }
  for (size_t i = 0; i < layer.linears.size(); ++i)
    if (!stored[i].encoding.is_quantized()) names.push_back(layer.linears[i].tensor(".weight"));
  return names;
}

void check_scaled(const layers::LayerSpec& layer, const std::vector<StoredLinear>& stored, const Reader& exported, const Reader& source,
                  Judge& judge) {
  for (const std::string& name : scaled_names(layer, stored)) {
    const bool there = exported.find(name) && source.find(name) && exported.at(name).shape == source.at(name).shape;
    judge.claim(there, name + " is missing, or of another shape");
    if (!there) return;
  }
  LayerScales(layer, stored, exported, source, judge).check();
}

}  // namespace ptq::runner
