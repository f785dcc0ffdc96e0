#include "runner/weight_loader.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <new>
#include <numeric>
#include <tuple>

namespace ptq::runner {

namespace {

int64_t unit_bytes(const LoadUnit& unit) {
  int64_t bytes = 0;
  for (const RowRequest& request : unit) {
    const int64_t rows = request.tensor->shape.empty() ? 1 : request.tensor->shape[0];
    if (rows > 0) bytes += request.tensor->bytes / rows * request.rows.size();
  }
  return bytes;
}

constexpr int64_t kPiece = int64_t{16} << 20;

/// Rows of one tensor that one reader thread fetches at a time.
struct Piece {
  size_t request;
  parallel::Range rows;
};

/// Pieces of about kPiece bytes in file order, so that the disk sees one long read where tensors lie side by side.
std::vector<Piece> cut(const LoadUnit& unit) {
  std::vector<size_t> order(unit.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const auto &x = *unit[a].tensor, &y = *unit[b].tensor;
    return std::tie(x.file, x.offset, unit[a].rows.begin) < std::tie(y.file, y.offset, unit[b].rows.begin);
  });
  std::vector<Piece> pieces;
  for (const size_t i : order) {
    const parallel::Range rows = unit[i].rows;
    const int64_t step = std::max<int64_t>(1, kPiece / std::max<int64_t>(1, unit[i].tensor->row_bytes()));
    for (int64_t begin = rows.begin; begin < rows.end; begin += step) pieces.push_back({i, {begin, std::min(rows.end, begin + step)}});
  }
  return pieces;
}

/// Several reads at once keep a disk or a parallel file system busy; more would only wait for one another, and a small unit needs but one.
constexpr int64_t kMostReaders = 3;

std::vector<Tensor> read_unit(const checkpoint::Reader& reader, const LoadUnit& unit) {
  std::vector<Tensor> tensors;
  for (const RowRequest& request : unit) {
    Shape shape = request.tensor->shape;
    if (!shape.empty()) shape[0] = request.rows.size();
    tensors.push_back(Tensor::empty(shape, request.tensor->dtype));
  }
  const std::vector<Piece> pieces = cut(unit);
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  const auto read = [&] {
    for (size_t p; (p = next.fetch_add(1)) < pieces.size();) {
      const auto& [request, rows] = pieces[p];
      try {
        reader.read_rows(*unit[request].tensor, rows.begin, rows.end,
                         tensors[request].raw() + (rows.begin - unit[request].rows.begin) * unit[request].tensor->row_bytes());
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
        next = pieces.size();
      }
    }
  };
  std::vector<std::thread> helpers;
  for (int64_t i = 1; i < std::min(kMostReaders, unit_bytes(unit) / kPiece); ++i) helpers.emplace_back(read);
  read();
  for (auto& helper : helpers) helper.join();
  if (failure) std::rethrow_exception(failure);
  return tensors;
}

}  // namespace

WeightLoader::WeightLoader(const checkpoint::Reader& reader, std::vector<LoadUnit> units, int64_t ahead_bytes)
    : reader_(reader), units_(std::move(units)), ahead_bytes_(ahead_bytes), thread_([this] { run(); }) {}

WeightLoader::~WeightLoader() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void WeightLoader::run() {
  for (const LoadUnit& unit : units_) {
    const int64_t bytes = unit_bytes(unit);
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || ready_.empty() || ready_bytes_ + bytes <= ahead_bytes_; });
      if (stopping_) return;
    }
    std::optional<Error> error;
    std::vector<Tensor> tensors;
    try {
      tensors = read_unit(reader_, unit);
    } catch (const Error& caught) {
      error = caught;
    } catch (const std::bad_alloc&) {
      error = system_error("out of memory while reading weights", "", "lower memory.host or use more ranks");
    } catch (const std::exception& caught) {
      error = bug(caught.what());
    }
    const std::lock_guard lock(mutex_);
    error_ = error;
    ready_.push_back(std::move(tensors));
    ready_bytes_ += bytes;
    changed_.notify_all();
    if (error_) return;
  }
}

std::vector<Tensor> WeightLoader::take() {
  const auto begin = std::chrono::steady_clock::now();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !ready_.empty(); });
  waited_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (error_ && ready_.size() == 1) throw Error(*error_);
  std::vector<Tensor> tensors = std::move(ready_.front());
  ready_.pop_front();
  for (const Tensor& tensor : tensors) ready_bytes_ -= tensor.bytes();
  changed_.notify_all();
  return tensors;
}

}  // namespace ptq::runner
