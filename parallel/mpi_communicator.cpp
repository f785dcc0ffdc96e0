#include "parallel/mpi_communicator.h"

#include <algorithm>
#include <cstring>

namespace ptq::parallel {

void check_mpi(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw system_error(std::string(call) + ": " + std::string(text, static_cast<size_t>(length)));
}

void MpiCommTraits::close(type comm) { MPI_Comm_free(&comm); }

namespace {

constexpr int64_t kPiece = int64_t{1} << 30;

class MpiTransfer : public Transfer {
 public:
  explicit MpiTransfer(std::vector<MPI_Request> requests) : requests_(std::move(requests)) {}
  void wait() override {
    check_mpi(MPI_Waitall(static_cast<int>(requests_.size()), requests_.data(), MPI_STATUSES_IGNORE), "MPI_Waitall");
    requests_.clear();
  }

 private:
  std::vector<MPI_Request> requests_;
};

class MpiCommunicator : public Communicator {
 public:
  explicit MpiCommunicator(UniqueHandle<MpiCommTraits> comm) : comm_(std::move(comm)) {
    MPI_Comm_set_errhandler(comm_.get(), MPI_ERRORS_RETURN);
    MPI_Comm_rank(comm_.get(), &rank_);
    MPI_Comm_size(comm_.get(), &size_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void all_gather(const void* send, std::span<const int64_t> bytes, void* recv) override {
    require(static_cast<int>(bytes.size()) == size_, "all_gather needs one size per rank");
    auto* out = static_cast<char*>(recv);
    std::vector<int64_t> starts(bytes.size() + 1, 0);
    for (size_t r = 0; r < bytes.size(); ++r) starts[r + 1] = starts[r] + bytes[r];
    const auto self = static_cast<size_t>(rank_);
    if (bytes[self] > 0 && send != out + starts[self]) std::memmove(out + starts[self], send, static_cast<size_t>(bytes[self]));
    if (size_ == 1 || starts.back() == 0) return;
    if (starts.back() <= kPiece) {
      std::vector<int> counts(bytes.begin(), bytes.end()), displacements(starts.begin(), starts.end() - 1);
      check_mpi(MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_BYTE, out, counts.data(), displacements.data(), MPI_BYTE, comm_.get()),
                "MPI_Allgatherv");
      return;
    }
    for (int root = 0; root < size_; ++root) broadcast(out + starts[static_cast<size_t>(root)], bytes[static_cast<size_t>(root)], root);
  }

  void all_reduce_max(std::span<float> values) override { reduce(values.data(), values.size(), MPI_FLOAT, MPI_MAX); }
  void all_reduce_max(std::span<int64_t> values) override { reduce(values.data(), values.size(), MPI_INT64_T, MPI_MAX); }
  void all_reduce_sum(std::span<int64_t> values) override { reduce(values.data(), values.size(), MPI_INT64_T, MPI_SUM); }

  void broadcast(void* data, int64_t bytes, int root) override {
    if (size_ == 1) return;
    auto* at = static_cast<char*>(data);
    for (int64_t done = 0; done < bytes; done += kPiece)
      check_mpi(MPI_Bcast(at + done, static_cast<int>(std::min(kPiece, bytes - done)), MPI_BYTE, root, comm_.get()), "MPI_Bcast");
  }

  void barrier() override { check_mpi(MPI_Barrier(comm_.get()), "MPI_Barrier"); }

  std::unique_ptr<Transfer> send(const void* data, int64_t bytes, int peer, int tag) override {
    const auto* at = static_cast<const char*>(data);
    std::vector<MPI_Request> requests;
    for (int64_t done = 0; done < std::max<int64_t>(bytes, 1); done += kPiece) {
      requests.emplace_back();
      const int count = static_cast<int>(std::min(kPiece, bytes - done));
      check_mpi(MPI_Isend(at + done, count, MPI_BYTE, peer, tag, comm_.get(), &requests.back()), "MPI_Isend");
    }
    return std::make_unique<MpiTransfer>(std::move(requests));
  }

  std::unique_ptr<Transfer> receive(void* data, int64_t bytes, int peer, int tag) override {
    auto* at = static_cast<char*>(data);
    std::vector<MPI_Request> requests;
    for (int64_t done = 0; done < std::max<int64_t>(bytes, 1); done += kPiece) {
      requests.emplace_back();
      const int count = static_cast<int>(std::min(kPiece, bytes - done));
      check_mpi(MPI_Irecv(at + done, count, MPI_BYTE, peer, tag, comm_.get(), &requests.back()), "MPI_Irecv");
    }
    return std::make_unique<MpiTransfer>(std::move(requests));
  }

  std::unique_ptr<Communicator> split(int color, int key) override {
    MPI_Comm part = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split(comm_.get(), color, key, &part), "MPI_Comm_split");
    return make_mpi_communicator(UniqueHandle<MpiCommTraits>(part));
  }

 private:
  void reduce(void* values, size_t count, MPI_Datatype type, MPI_Op op) {
    if (size_ == 1 || count == 0) return;
    int width = 0;
    MPI_Type_size(type, &width);
    auto* at = static_cast<char*>(values);
    const auto piece = static_cast<size_t>(kPiece / 8);
    for (size_t done = 0; done < count; done += piece)
      check_mpi(MPI_Allreduce(MPI_IN_PLACE, at + done * static_cast<size_t>(width), static_cast<int>(std::min(piece, count - done)), type,
                              op, comm_.get()),
                "MPI_Allreduce");
  }

  UniqueHandle<MpiCommTraits> comm_;
  int rank_ = 0, size_ = 1;
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(UniqueHandle<MpiCommTraits> comm) {
  return std::make_unique<MpiCommunicator>(std::move(comm));
}

}  // namespace ptq::parallel
