#include "parallel/communicator.h"

#include <cstring>
#include <exception>
#include <limits>
#include <new>
#include <numeric>

namespace ptq::parallel {

namespace {

/// What `work` threw, as an Error; nothing if it threw nothing.
std::optional<Error> outcome(const std::function<void()>& work) {
  try {
    work();
  } catch (const AgreedError&) {
    throw;
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return system_error("out of memory", "", "lower memory.host or use more ranks");
  } catch (const std::exception& error) {
    return bug(error.what());
  }
  return std::nullopt;
}

}  // namespace

std::vector<std::string> Communicator::gather_texts(const std::string& mine) {
  std::vector<int64_t> lengths(static_cast<size_t>(size()));
  const std::vector<int64_t> length_bytes(lengths.size(), static_cast<int64_t>(sizeof(int64_t)));
  const auto own_length = static_cast<int64_t>(mine.size());
  all_gather(&own_length, length_bytes, lengths.data());
  std::string all(static_cast<size_t>(std::accumulate(lengths.begin(), lengths.end(), int64_t{0})), '\0');
  all_gather(mine.data(), lengths, all.data());
  std::vector<std::string> texts;
  size_t at = 0;
  for (const int64_t length : lengths) {
    texts.push_back(all.substr(at, static_cast<size_t>(length)));
    at += static_cast<size_t>(length);
  }
  return texts;
}

void Communicator::all_to_all(const void* send_data, std::span<const int64_t> send_bytes, void* recv_data,
                              std::span<const int64_t> recv_bytes) {
  require(static_cast<int>(send_bytes.size()) == size() && static_cast<int>(recv_bytes.size()) == size(),
          "all_to_all needs one size per rank");
  constexpr int kTag = 7;
  const auto* from = static_cast<const char*>(send_data);
  auto* to = static_cast<char*>(recv_data);
  std::vector<std::unique_ptr<Transfer>> transfers;
  std::vector<const char*> starts;
  for (const int64_t bytes : send_bytes) {
    starts.push_back(from);
    from += bytes;
  }
  for (int r = 0; r < size(); ++r) {
    const int64_t bytes = recv_bytes[static_cast<size_t>(r)];
    if (r == rank() && bytes > 0) std::memcpy(to, starts[static_cast<size_t>(r)], static_cast<size_t>(bytes));
    if (r != rank() && bytes > 0) transfers.push_back(receive(to, bytes, r, kTag));
    to += bytes;
  }
  // Every rank begins with another peer, so that they do not all send to the first one at once.
  for (int step = 1; step < size(); ++step) {
    const auto r = static_cast<size_t>((rank() + step) % size());
    if (send_bytes[r] > 0) transfers.push_back(send(starts[r], send_bytes[r], static_cast<int>(r), kTag));
  }
  for (auto& transfer : transfers) transfer->wait();
}

std::vector<int64_t> Communicator::all_to_all(const std::vector<int64_t>& values) {
  const std::vector<int64_t> bytes(values.size(), static_cast<int64_t>(sizeof(int64_t)));
  std::vector<int64_t> received(values.size());
  all_to_all(values.data(), bytes, received.data(), bytes);
  return received;
}

void Communicator::agree(const std::optional<Error>& mine) {
  // Negated so that the maximum is the lowest failing rank.
  int64_t failed = mine ? -static_cast<int64_t>(rank()) : std::numeric_limits<int64_t>::min();
  all_reduce_max(std::span<int64_t>(&failed, 1));
  if (failed == std::numeric_limits<int64_t>::min()) return;
  const int root = static_cast<int>(-failed);
  int64_t kind = mine ? static_cast<int64_t>(mine->kind()) : 0;
  broadcast(&kind, sizeof(kind), root);
  std::string parts[3];
  if (mine) {
    parts[0] = mine->message();
    parts[1] = mine->where();
    parts[2] = mine->fix();
  }
  for (auto& part : parts) {
    auto length = static_cast<int64_t>(part.size());
    broadcast(&length, sizeof(length), root);
    part.resize(static_cast<size_t>(length));
    broadcast(part.data(), length, root);
  }
  throw AgreedError(Error(static_cast<ErrorKind>(kind), parts[0], parts[1], parts[2]));
}

void Communicator::together(const std::function<void()>& work) { agree(outcome(work)); }

void Communicator::on_root(const std::function<void()>& work) { agree(rank() == 0 ? outcome(work) : std::nullopt); }

}  // namespace ptq::parallel
