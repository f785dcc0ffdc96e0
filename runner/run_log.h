#pragma once
// What the user sees and what is kept of it: a progress bar or plain lines on stderr, and run.jsonl. Rank 0 only; silent elsewhere.

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

namespace ptq::runner {

enum class Verbosity { kQuiet, kNormal, kVerbose };

class RunLog {
 public:
  /// `speaks` is true on one rank.
  RunLog(bool speaks, Verbosity verbosity);

  /// From now on events also go to this file, those so far first.
  void keep_in(const std::string& path);
  /// One JSON object per line, with "seconds" since the start added.
  void event(const std::string& phase, const nlohmann::ordered_json& fields = nlohmann::ordered_json::object());
  /// A line for the user.
  void line(const std::string& text);
  void detail(const std::string& text);   ///< only with --verbose
  void warning(const std::string& text);  ///< even with --quiet, and kept as an event
  /// "layer 3/61 ..." as a bar that is drawn over itself on a terminal, a plain line elsewhere.
  void progress(int64_t done, int64_t total, const std::string& text);

  double seconds() const;

 private:
  void clear_bar();

  bool speaks_, terminal_, bar_drawn_ = false;
  Verbosity verbosity_;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  std::string pending_;
  std::ofstream file_;
};

}  // namespace ptq::runner
