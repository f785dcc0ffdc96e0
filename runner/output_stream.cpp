#include "runner/output_stream.h"

#include <exception>

namespace ptq::runner {

OutputStream::OutputStream(checkpoint::ShardWriter writer, int64_t queue_bytes)
    : writer_(std::move(writer)), queue_bytes_(queue_bytes), thread_([this] { run(); }) {}

OutputStream::~OutputStream() { finish(); }

void OutputStream::push(std::string name, int64_t offset, Tensor data) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return queue_.empty() || queued_bytes_ + data.bytes() <= queue_bytes_; });
  queued_bytes_ += data.bytes();
  queue_.push_back({std::move(name), offset, std::move(data)});
  changed_.notify_all();
}

std::optional<Error> OutputStream::error() {
  const std::lock_guard lock(mutex_);
  return error_;
}

void OutputStream::flush() {
  std::unique_lock lock(mutex_);
  flushing_ = true;
  changed_.notify_all();
  changed_.wait(lock, [&] { return !flushing_; });
}

void OutputStream::finish() {
  {
    const std::lock_guard lock(mutex_);
    if (done_) return;
    closing_ = true;
    changed_.notify_all();
  }
  thread_.join();
  done_ = true;
}

void OutputStream::run() {
  const auto guarded = [&](const auto& work) {
    std::optional<Error> error;
    try {
      work();
    } catch (const Error& caught) {
      error = caught;
    } catch (const std::exception& caught) {
      error = bug(caught.what());
    }
    if (!error) return;
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = error;
  };
  for (;;) {
    Piece piece;
    bool failed = false;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return closing_ || flushing_ || !queue_.empty(); });
      if (queue_.empty() && flushing_) {
        lock.unlock();
        if (!error()) guarded([&] { writer_.sync(); });
        lock.lock();
        flushing_ = false;
        changed_.notify_all();
        continue;
      }
      if (queue_.empty()) break;
      piece = std::move(queue_.front());
      failed = error_.has_value();
    }
    if (!failed) guarded([&] { writer_.write(piece.name, piece.offset, piece.data.raw(), piece.data.bytes()); });
    const int64_t bytes = piece.data.bytes();
    piece = Piece{};
    const std::lock_guard lock(mutex_);
    queue_.pop_front();
    queued_bytes_ -= bytes;
    changed_.notify_all();
  }
  if (!error()) guarded([&] { writer_.sync(); });
}

}  // namespace ptq::runner
