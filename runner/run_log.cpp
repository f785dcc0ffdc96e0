#include "runner/run_log.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>

namespace ptq::runner {

RunLog::RunLog(bool speaks, Verbosity verbosity) : speaks_(speaks), terminal_(speaks && isatty(STDERR_FILENO)), verbosity_(verbosity) {}

double RunLog::seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count(); }

void RunLog::keep_in(const std::string& path) {
  if (!speaks_) return;
  file_.open(path, std::ios::app);
  file_ << pending_ << std::flush;
  pending_.clear();
}

void RunLog::event(const std::string& phase, const nlohmann::ordered_json& fields) {
  if (!speaks_) return;
  nlohmann::ordered_json event{{"phase", phase}, {"seconds", std::round(seconds() * 1000) / 1000}};
  event.update(fields);
  const std::string text = event.dump() + "\n";
  if (file_.is_open())
    file_ << text << std::flush;
  else
    pending_ += text;
}

void RunLog::clear_bar() {
  if (bar_drawn_) std::fputs("\r\033[K", stderr);
  bar_drawn_ = false;
}

void RunLog::line(const std::string& text) {
  if (!speaks_ || verbosity_ == Verbosity::kQuiet) return;
  clear_bar();
  fmt::print(stderr, "{}\n", text);
}

void RunLog::detail(const std::string& text) {
  if (verbosity_ == Verbosity::kVerbose) line(text);
}

void RunLog::warning(const std::string& text) {
  if (!speaks_) return;
  clear_bar();
  fmt::print(stderr, "warning: {}\n", text);
  event("warning", {{"message", text}});
}

void RunLog::progress(int64_t done, int64_t total, const std::string& text) {
  if (!speaks_ || verbosity_ == Verbosity::kQuiet) return;
  if (!terminal_) {
    line(fmt::format("layer {}/{}  {}", done, total, text));
    return;
  }
  constexpr int64_t kWidth = 24;
  const int64_t filled = total > 0 ? done * kWidth / total : 0;
  std::string bar;
  for (int64_t i = 0; i < kWidth; ++i) bar += i < filled ? "━" : "─";
  fmt::print(stderr, "\r\033[K{} layer {}/{}  {}", bar, done, total, text);
  std::fflush(stderr);
  bar_drawn_ = true;
  if (done == total) {
    std::fputs("\n", stderr);
    bar_drawn_ = false;
  }
}

}  // namespace ptq::runner
