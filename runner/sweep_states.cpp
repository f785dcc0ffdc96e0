// Hidden states and gradients of all tokens in a file that any mesh can begin with: row t is token t of all ranks' rows, in their order.

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <numeric>

#include "runner/sweep.h"

namespace ptq::runner {

namespace {

int64_t file_bytes(const TokenRows& rows, int64_t row_bytes) {
  return std::accumulate(rows.lengths.begin(), rows.lengths.end(), int64_t{0}) * row_bytes;
}

}  // namespace

void Sweep::for_runs(int64_t m, const Tensor& states, const std::function<void(int64_t, const Tensor&)>& move) const {
  std::vector<int64_t> positions;
  add_positions(m, positions);
  const auto count = static_cast<int64_t>(positions.size());
  for (int64_t begin = 0; begin < count;) {
    int64_t end = begin + 1;
    while (end < count && positions[static_cast<size_t>(end)] == positions[static_cast<size_t>(end - 1)] + 1) ++end;
    move(positions[static_cast<size_t>(begin)] * states.row_bytes(), states.rows(begin, end));
    begin = end;
  }
}

void Sweep::save(const HiddenStore* store, const std::string& path) {
  using namespace checkpoint;
  const int64_t row_bytes = model_.hidden * dtype_bytes(options_.hidden);
  mesh_.world().on_root([&] {
    const Fd file = open_file(path, O_WRONLY | O_CREAT | O_TRUNC);
    if (::ftruncate(file.get(), file_bytes(rows_, row_bytes)) != 0) throw errno_error("ftruncate", path, errno);
    sync_file(file.get(), path);
  });
  mesh_.world().together([&] {
    if (!store) return;
    const Fd file = open_file(path, O_WRONLY);
    for (int64_t m = 0; m < micro_batches(); ++m) {
      const Tensor states = store->load(m, workspace_.get("share", {token_share(m).size(), model_.hidden}, options_.hidden));
      for_runs(m, states, [&](int64_t offset, const Tensor& rows) { write_at(file.get(), path, offset, rows.raw(), rows.bytes()); });
    }
    sync_file(file.get(), path);
  });
}

void Sweep::load(HiddenStore& store, const std::string& path) {
  using namespace checkpoint;
  const Fd file = open_file(path, O_RDONLY);
  if (regular_file_bytes(file.get(), path) != file_bytes(rows_, model_.hidden * dtype_bytes(options_.hidden)))
    throw data_error("not the hidden states of this run: the file has another size", path, "start over with --restart");
  for (int64_t m = 0; m < micro_batches(); ++m) {
    const Tensor states = Tensor::empty({token_share(m).size(), model_.hidden}, options_.hidden);
    for_runs(m, states, [&](int64_t offset, const Tensor& rows) {
      if (read_at(file.get(), path, offset, rows.raw(), rows.bytes()) != rows.bytes())
        throw data_error("the file of hidden states ended early", path, "start over with --restart");
    });
    store.store(m, states);
  }
}

}  // namespace ptq::runner
