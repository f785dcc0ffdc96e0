#pragma once
// A group of ranks that can exchange bytes. Never knows what they mean. Only a rank's main thread may call it (MPI FUNNELED); every call
// that all members must make says so.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/core/error.h"

namespace ptq::parallel {

/// An Error that every rank of the group has thrown alike: main prints it on one rank and all leave in order.
class AgreedError : public Error {
 public:
  explicit AgreedError(const Error& error) : Error(error) {}
};

/// A transfer under way; wait() before its buffer is touched again. Must be waited for.
class Transfer {
 public:
  virtual ~Transfer() = default;
  virtual void wait() = 0;
};

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// Collective. recv = the members' buffers one after the other in rank order; bytes[r] is what rank r gives (the same list everywhere).
  /// send may lie at its own place inside recv.
  virtual void all_gather(const void* send, std::span<const int64_t> bytes, void* recv) = 0;
  /// Collective. Element-wise maximum, exact and order-free. No NaN may be in it.
  virtual void all_reduce_max(std::span<float> values) = 0;
  virtual void all_reduce_max(std::span<int64_t> values) = 0;
  /// Collective. Integers only: a sum of floats would depend on the order of ranks.
  virtual void all_reduce_sum(std::span<int64_t> values) = 0;
  /// Collective.
  virtual void broadcast(void* data, int64_t bytes, int root) = 0;
  virtual void barrier() = 0;

  /// Point to point, matched by (peer, tag) in order.
  virtual std::unique_ptr<Transfer> send(const void* data, int64_t bytes, int peer, int tag) = 0;
  virtual std::unique_ptr<Transfer> receive(void* data, int64_t bytes, int peer, int tag) = 0;

  /// A new group per color, members ordered by key. Collective.
  virtual std::unique_ptr<Communicator> split(int color, int key) = 0;

  /// Collective. Every member passes its own error or none; if any has one, all throw the lowest failing rank's as an AgreedError.
  void agree(const std::optional<Error>& mine);
  /// Collective. Runs `work` (which must not communicate) on every member and agrees on its outcome.
  void together(const std::function<void()>& work);
  /// Collective. Runs `work` on rank 0 alone and agrees on its outcome.
  void on_root(const std::function<void()>& work);
  /// Collective. Rank r gets send_bytes[r] bytes, taken from `send` one rank after the other; `recv` gets what the ranks gave, one after
  /// the other, recv_bytes[r] from rank r: what r passes as send_bytes[this rank].
  void all_to_all(const void* send, std::span<const int64_t> send_bytes, void* recv, std::span<const int64_t> recv_bytes);
  /// Collective. values[r] goes to rank r; the result's [r] came from rank r.
  std::vector<int64_t> all_to_all(const std::vector<int64_t>& values);
  /// Collective. Everyone's text, in rank order.
  std::vector<std::string> gather_texts(const std::string& mine);
};

/// The group of one rank, without MPI.
std::unique_ptr<Communicator> make_self_communicator();

}  // namespace ptq::parallel
