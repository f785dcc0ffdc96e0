#include "runner/loss_head.h"

#include <algorithm>

#include "kernels/backward_ops.h"
#include "layers/layer.h"
#include "runner/placement.h"

namespace ptq::runner {

namespace {

/// Rows of logits computed at a time, so that the vocabulary costs tens of megabytes and not T·V.
int64_t logit_rows(int64_t vocab) { return std::max<int64_t>(16, (int64_t{32} << 20) / (4 * vocab)); }

}  // namespace

LossHead::LossHead(const SourceModel& source, const parallel::Mesh& mesh, DType operand) : source_(source), operand_(operand) {
  const layers::ModelSpec& model = source.spec;
  const checkpoint::TensorEntry& entry = source.reader->at(model.head_weight());
  head_ = Tensor::empty(entry.shape, entry.dtype);
  const parallel::Range share = world_share(entry.shape[0], mesh);
  mesh.world().together([&] {
    for (const char* suffix : {".weight", ".bias"}) {
      const std::string name = model.final_norm.module + suffix;
      if (source.reader->find(name)) vectors_[name] = source.reader->read(name);
    }
    if (share.size() > 0) source.reader->read_rows(entry, share.begin, share.end, head_.rows(share.begin, share.end).raw());
  });
  std::vector<int64_t> bytes;
  for (int r = 0; r < mesh.world().size(); ++r)
    bytes.push_back(parallel::even_share(entry.shape[0], mesh.world().size(), r).size() * head_.row_bytes());
  mesh.world().all_gather(head_.raw() + share.begin * head_.row_bytes(), bytes, head_.raw());
  transposed_ = Tensor::empty({head_.dim(1), head_.dim(0)}, head_.dtype());
  kernels::transpose(head_, transposed_);
}

Tensor LossHead::gradient(const Tensor& hidden, const std::function<Tensor(const Tensor&, int64_t)>& labels, float factor) const {
  const layers::NormSpec& norm = source_.spec.final_norm;
  const int64_t tokens = hidden.dim(0), vocab = head_.dim(0), step = std::min(tokens, logit_rows(vocab));
  Tensor states = Tensor::empty(hidden.shape(), operand_), gradient = Tensor::empty(hidden.shape(), DType::kF32);
  layers::apply_norm(norm, vectors_, hidden, states);
  Tensor logits = Tensor::empty({step, vocab}, DType::kF32);
  for (int64_t begin = 0; begin < tokens; begin += step) {
    const int64_t end = std::min(tokens, begin + step);
    Tensor part = logits.rows(0, end - begin), back = gradient.rows(begin, end);
    kernels::matmul(states.rows(begin, end), head_, Tensor(), part);
    kernels::cross_entropy_backward(part, labels(part, begin), factor);
    kernels::matmul(kernels::converted(part, operand_), transposed_, Tensor(), back);
  }
  const Tensor& weight = vectors_.at(norm.module + ".weight");
  if (norm.kind == layers::NormSpec::Kind::kRms)
    kernels::rms_norm_backward(hidden, weight, norm.eps, gradient, gradient);
  else
    kernels::layer_norm_1p_backward(hidden, weight, norm.eps, gradient, gradient);
  return gradient;
}

Tensor LossHead::drawn_gradient(const Tensor& hidden, const Tensor& chances) const {
  return gradient(
      hidden,
      [&](const Tensor& logits, int64_t begin) {
        Tensor labels = Tensor::empty({logits.dim(0)}, DType::kI32);
        kernels::draw_labels(logits, chances.rows(begin, begin + logits.dim(0)), labels);
        return labels;
      },
      1.0f);
}

float chance(int64_t seed, int64_t row, int64_t position) {
  // Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, its finalizer over the three in turn.
  uint64_t state = 0;
  for (const int64_t part : {seed, row, position}) {
    state = (state ^ static_cast<uint64_t>(part)) + 0x9e3779b97f4a7c15u;
    state = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9u;
    state = (state ^ (state >> 27)) * 0x94d049bb133111ebu;
    state ^= state >> 31;
  }
  return static_cast<float>(state >> 40) * 0x1p-24f;
}

}  // namespace ptq::runner
