// Scales of least error: every candidate's rounding errors d, a row in each lane, and d·G·dᵀ as a product with one half of G.

#include <algorithm>
#include <cmath>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/cpu_search_ops.h"
#include "kernels/cpu/lane_rows.h"
#include "kernels/cpu/panel_kernels.h"
#include "kernels/cpu/scratch.h"
#include "kernels/format/e4m3.h"

namespace ptq::kernels::cpu {

namespace {

constexpr int64_t kBlock = 112;  // columns of a group whose sums are made together, as in error_feedback.cpp
constexpr int64_t kMinPanels = 8, kMaxPanels = 64;
constexpr int64_t kPanelBytes = int64_t{1} << 20;  // errors of a task, where kMinPanels of them are not more
constexpr int64_t kNvfp4Block = 16;

struct Search {
  const PanelKernels& kernels;
  const float* w;     // [rows][columns]
  const float* gram;  // [columns][columns]
  int64_t rows, columns, group;
  Rounding rounding;
  float format_max;
  const std::vector<float>& ratios;
  float* scales;  // [rows][columns / group]

  int64_t ratio_count() const { return static_cast<int64_t>(ratios.size()); }
  float candidate(float amax, int64_t ratio) const {
    return amax == 0 ? 1.0f : std::max(ratios[static_cast<size_t>(ratio)] * amax, 0x1p-126f) / format_max;
  }
};

/// out[j][i], rows kBlock apart = the part of G that makes d·G·dᵀ = Σ_i d_i·Σ_{j<=i} out[j][i]·d_j: what is above the diagonal twice. Rows
/// [j0, j0 + depth) and columns [i0, i0 + count) of the block at `corner`.
void pack_half(const float* corner, int64_t stride, int64_t j0, int64_t depth, int64_t i0, int64_t count, float* out) {
  for (int64_t j = j0; j < j0 + depth; ++j, out += kBlock) {
    const float* const from = corner + j * stride + i0;
    const int64_t diagonal = std::clamp<int64_t>(j - i0, 0, count);
    std::fill_n(out, diagonal, 0.0f);
    for (int64_t i = diagonal; i < count; ++i) out[i] = 2.0f * from[i];
    if (j >= i0 && j < i0 + count) out[diagonal] = from[diagonal];
  }
}

/// losses[panel][lane] of the errors [panels][group][lanes]. `sums` has room for [panels][kBlock][lanes], `packed` for kPanelDepth·kBlock.
void add_losses(const Search& search, const float* corner, const float* errors, int64_t panels, float* sums, float* packed,
                double* losses) {
  const PanelKernels& kernels = search.kernels;
  const int64_t lanes = kernels.width, group = search.group;
  for (int64_t i0 = 0; i0 < group; i0 += kBlock) {
    const int64_t count = std::min(kBlock, group - i0), end = i0 + count;
    for (int64_t j0 = 0; j0 < end; j0 += kPanelDepth) {
      const int64_t depth = std::min(kPanelDepth, end - j0);
      pack_half(corner, search.columns, j0, depth, i0, count, packed);
      for (int64_t p = 0; p < panels; ++p) {
        const float* const of_panel = errors + p * group * lanes;
        float* const y = sums + (end > kPanelDepth ? p * kBlock * lanes : 0);  // one that stays near, where it needs not to wait
        if (j0 == 0) std::fill_n(y, count * lanes, 0.0f);
        for (int64_t i = 0; i < count; i += kernels.tokens) {
          const int64_t rows = std::min<int64_t>(kernels.tokens, count - i), steps = std::min(depth, i0 + i + rows - j0);
          if (steps > 0)
            kernels.tile_of_columns(static_cast<int>(rows), packed + i, kBlock, of_panel + j0 * lanes, steps, y + i * lanes, lanes);
        }
        if (j0 + depth == end) row_kernels().add_dots(of_panel + i0 * lanes, y, lanes, count, losses + p * lanes);
      }
    }
  }
}

/// The scales of one group of columns for rows [begin, end), `batch` ratios at a time.
void search_rows(const Search& search, int64_t group_index, int64_t begin, int64_t end, int64_t batch) {
  const int64_t lanes = search.kernels.width, group = search.group, row_groups = (end - begin + lanes - 1) / lanes;
  const int64_t across = search.columns / group, panels = row_groups * batch, first_column = group_index * group;
  thread_local Scratch scratch, loss_scratch;
  float* const w = scratch.floats((row_groups + panels) * group * lanes + panels * (kBlock + 1) * lanes + kPanelDepth * kBlock);
  float* const errors = w + row_groups * group * lanes;
  float* const sums = errors + panels * group * lanes;
  float* const candidates = sums + panels * kBlock * lanes;
  float* const packed = candidates + panels * lanes;
  auto* const losses = reinterpret_cast<double*>(loss_scratch.floats(2 * (panels + row_groups) * lanes));
  double* const best = losses + panels * lanes;

  for (int64_t g = 0; g < row_groups; ++g)
    rows_to_lanes(search.w + (begin + g * lanes) * search.columns + first_column, search.columns, std::min(lanes, end - begin - g * lanes),
                  group, lanes, 0.0f, w + g * group * lanes);
  for (int64_t first = 0; first < search.ratio_count(); first += batch) {
    const int64_t count = std::min(batch, search.ratio_count() - first);
    for (int64_t g = 0; g < row_groups; ++g) {
      const float* const of_group = w + g * group * lanes;
      float amaxes[kMaxPanelWidth] = {};
      for (int64_t c = 0; c < group; ++c)
        for (int64_t lane = 0; lane < lanes; ++lane) amaxes[lane] = std::max(amaxes[lane], std::fabs(of_group[c * lanes + lane]));
      for (int64_t r = 0; r < count; ++r)
        for (int64_t lane = 0; lane < lanes; ++lane) candidates[(g * count + r) * lanes + lane] = search.candidate(amaxes[lane], first + r);
      for (int64_t p = g * count; p < (g + 1) * count; ++p)
        row_kernels().rounding_errors(of_group, candidates + p * lanes, lanes, group, search.rounding, errors + p * group * lanes);
    }
    std::fill_n(losses, row_groups * count * lanes, 0.0);
    add_losses(search, search.gram + first_column * search.columns + first_column, errors, row_groups * count, sums, packed, losses);
    for (int64_t row = 0; row < end - begin; ++row) {
      const int64_t g = row / lanes, lane = row % lanes;
      for (int64_t r = 0; r < count; ++r) {
        const int64_t at = (g * count + r) * lanes + lane;
        if (first + r > 0 && !(losses[at] < best[row])) continue;
        best[row] = losses[at];
        search.scales[(begin + row) * across + group_index] = candidates[at];
      }
    }
  }
}

}  // namespace

void search_group_scales(const Tensor& w, const Tensor& gram, int64_t group, const FeedbackGrid& grid, float format_max,
                         const std::vector<float>& ratios, Tensor& scales) {
  require(w.rank() == 2 && gram.rank() == 2 && gram.dim(0) == w.dim(1) && gram.dim(1) == w.dim(1),
          "search_group_scales: w [O, C] and gram [C, C] do not fit");
  require(group > 0 && w.dim(1) % group == 0 && scales.numel() * group == w.numel(), "search_group_scales: scales are not [O, C/group]");
  require(!ratios.empty() && std::all_of(ratios.begin(), ratios.end(), [](float ratio) { return ratio > 0; }) && format_max > 0,
          "search_group_scales: no ratios, or one that is not positive");
  const Search search{panel_kernels(), w.data<float>(),   gram.data<float>(), w.dim(0), w.dim(1),
                      group,           rounding_of(grid), format_max,         ratios,   scales.data<float>()};

  // Candidates of a task share the packing of G: as many ratios as the caches hold, then more rows.
  const int64_t lanes = search.kernels.width, groups = w.dim(1) / group;
  const int64_t panels = std::clamp(kPanelBytes / (group * lanes * 4), kMinPanels, kMaxPanels);
  const int64_t batches = (search.ratio_count() + panels - 1) / panels, batch = (search.ratio_count() + batches - 1) / batches;
  const int64_t row_groups = (w.dim(0) + lanes - 1) / lanes, of_thread = groups * row_groups / (4 * num_threads());
  const int64_t rows = std::clamp<int64_t>(std::min(panels / batch, of_thread), 1, kMaxPanels) * lanes,
                pieces = (w.dim(0) + rows - 1) / rows;
  parallel_for(groups * pieces, [&](int64_t task) {
    const int64_t begin = task % pieces * rows;
    search_rows(search, task / pieces, begin, std::min(w.dim(0), begin + rows), batch);
  });
}

void search_nvfp4_scales(const Tensor& w, const Tensor& gram, float scale_2, const std::vector<float>& ratios, Tensor& block_scales) {
  require(w.rank() == 2 && gram.rank() == 2 && gram.dim(0) == w.dim(1) && gram.dim(1) == w.dim(1),
          "search_nvfp4_scales: w [O, C] and gram [C, C] do not fit");
  require(w.dim(1) % kNvfp4Block == 0 && block_scales.numel() * kNvfp4Block == w.numel(),
          "search_nvfp4_scales: the block of 16 does not divide the columns, or block_scales has a wrong shape");
  require(!ratios.empty() && std::all_of(ratios.begin(), ratios.end(), [](float ratio) { return ratio > 0; }) && scale_2 > 0,
          "search_nvfp4_scales: no ratios, or a number that is not positive");
  const int64_t rows = w.dim(0), columns = w.dim(1), blocks = columns / kNvfp4Block;
  const float *const values = w.data<float>(), *const g = gram.data<float>();
  auto* const codes = block_scales.data<uint8_t>();

  Scratch halves_scratch;
  float* const halves = halves_scratch.floats(columns * kNvfp4Block);
  parallel_ranges(columns, 256, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t block = row / kNvfp4Block * kNvfp4Block;
      for (int64_t j = 0; j < kNvfp4Block; ++j)
        halves[row * kNvfp4Block + j] = (block + j == row ? 1.0f : 2.0f) * g[row * columns + block + j];
    }
  });
  parallel_ranges(rows, kNvfp4Block, [&](int64_t begin, int64_t end) {
    constexpr int64_t kLanes = 16;
    thread_local Scratch scratch;
    float* const lanes = scratch.floats(columns * kLanes);
    rows_to_lanes(values + begin * columns, columns, end - begin, columns, kLanes, 0.0f, lanes);
    for (int64_t block = 0; block < blocks; ++block) {
      float scales[kLanes];
      row_kernels().search_nvfp4(lanes + block * kNvfp4Block * kLanes, halves + block * kNvfp4Block * kNvfp4Block, scale_2, ratios.data(),
                                 static_cast<int64_t>(ratios.size()), scales);
      for (int64_t row = begin; row < end; ++row) codes[row * blocks + block] = E4M3::encode(scales[row - begin]);
    }
  });
}

}  // namespace ptq::kernels::cpu
