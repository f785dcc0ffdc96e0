#include "runner/folded_reader.h"

#include <cmath>
#include <cstring>

namespace ptq::runner {

namespace {

using checkpoint::Reader;
using checkpoint::TensorEntry;

void add_factors(std::vector<int8_t>& exponents, const Tensor& factors, int64_t stack, int64_t index) {
  const int64_t count = factors.numel();
  exponents.resize(static_cast<size_t>(stack * count), 0);
  int8_t* kept = exponents.data() + index * count;
  for (int64_t i = 0; i < count; ++i) {
    int exponent = 0;
    require(std::frexp(factors.data<float>()[i], &exponent) == 0.5f, "a factor that is no power of two");
    kept[i] = static_cast<int8_t>(kept[i] + exponent - 1);
  }
}

/// Whoever said nothing has fewer.
void add_all(std::vector<int8_t>& exponents, const std::vector<int8_t>& more) {
  exponents.resize(std::max(exponents.size(), more.size()), 0);
  for (size_t i = 0; i < more.size(); ++i) exponents[i] = static_cast<int8_t>(exponents[i] + more[i]);
}

std::vector<float> powers(const std::vector<int8_t>& exponents, int64_t begin, int64_t count) {
  std::vector<float> factors(static_cast<size_t>(count), 1.0f);
  if (exponents.empty()) return factors;
  for (int64_t i = 0; i < count; ++i) factors[static_cast<size_t>(i)] = std::ldexp(1.0f, exponents[static_cast<size_t>(begin + i)]);
  return factors;
}

/// values [rows, columns] of one dtype, in place.
template <class T, class ToFloat, class FromFloat>
void scale(T* values, const std::vector<float>& rows, const std::vector<float>& columns, ToFloat to, FromFloat from) {
  for (const float row : rows)
    for (const float column : columns) {
      *values = from(to(*values) * (row * column));
      ++values;
    }
}

class FoldedReader : public Reader {
 public:
  FoldedReader(std::unique_ptr<Reader> inner, FoldExponents exponents) : inner_(std::move(inner)), exponents_(std::move(exponents)) {
    folder_ = inner_->folder();
    tensors_ = inner_->tensors();
  }

  std::string format() const override { return inner_->format(); }
  std::vector<std::string> companion_files() const override { return inner_->companion_files(); }

  void read_rows(const TensorEntry& tensor, int64_t begin, int64_t end, std::byte* out) const override {
    inner_->read_rows(tensor, begin, end, out);
    bytes_read_ += (end - begin) * tensor.row_bytes();
    const TensorExponents* exponents = exponents_.find(tensor.name);
    if (!exponents) return;
    const int64_t columns = tensor.shape.back();
    // A vector is one row, of which a part is read.
    if (tensor.shape.size() == 1) return scale_piece(tensor, out, {1.0f}, powers(exponents->columns, begin, end - begin));
    if (tensor.shape.size() == 2)
      return scale_piece(tensor, out, powers(exponents->rows, begin, end - begin), powers(exponents->columns, 0, columns));
    const int64_t rows = tensor.shape[1];
    for (int64_t s = begin; s < end; ++s)
      scale_piece(tensor, out + (s - begin) * tensor.row_bytes(), powers(exponents->rows, s * rows, rows),
                  powers(exponents->columns, s * columns, columns));
  }

 private:
  static void scale_piece(const TensorEntry& tensor, std::byte* out, const std::vector<float>& rows, const std::vector<float>& columns) {
    const auto widen = [](auto x) { return to_float(x); };
    const auto same = [](float x) { return x; };
    if (tensor.dtype == DType::kBF16)
      scale(reinterpret_cast<BF16*>(out), rows, columns, widen, to_bf16);
    else if (tensor.dtype == DType::kF16)
      scale(reinterpret_cast<F16*>(out), rows, columns, widen, to_f16);
    else
      scale(reinterpret_cast<float*>(out), rows, columns, same, same);
  }

  std::unique_ptr<Reader> inner_;
  FoldExponents exponents_;
};

}  // namespace

void FoldExponents::scale_rows(const std::string& name, const Tensor& factors, int64_t stack, int64_t index) {
  add_factors(tensors_[name].rows, factors, stack, index);
}
void FoldExponents::scale_columns(const std::string& name, const Tensor& factors, int64_t stack, int64_t index) {
  add_factors(tensors_[name].columns, factors, stack, index);
}

const TensorExponents* FoldExponents::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

void FoldExponents::add(const std::string& name, const TensorExponents& more) {
  TensorExponents& kept = tensors_[name];
  add_all(kept.rows, more.rows);
  add_all(kept.columns, more.columns);
}
void FoldExponents::add(const FoldExponents& more) {
  for (const auto& [name, exponents] : more.tensors_) add(name, exponents);
}

std::unique_ptr<Reader> open_folded(std::unique_ptr<Reader> reader, FoldExponents exponents) {
  return std::make_unique<FoldedReader>(std::move(reader), std::move(exponents));
}

}  // namespace ptq::runner
