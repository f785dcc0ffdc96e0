#include "checkpoint/open_files.h"

#include "kernels/core/error.h"

namespace ptq::checkpoint {

std::shared_ptr<const WeightFile> OpenFiles::open(const std::string& file) {
  const std::lock_guard lock(mutex_);
  const auto found = known_.find(file);
  if (found != known_.end() && found->second.opened) {
    open_.splice(open_.begin(), open_, found->second.recently_used);
    return found->second.opened;
  }
  auto opened = std::make_shared<const WeightFile>(path(file));
  Known& known = known_.try_emplace(file, Known{.bytes = opened->bytes()}).first->second;
  if (opened->bytes() != known.bytes)
    throw data_error("the file was changed: it had " + std::to_string(known.bytes) + " bytes when the run began and has " +
                         std::to_string(opened->bytes()) + " now",
                     path(file), "leave the checkpoint alone while it is read; if it was cut short, copy it again");
  if (open_.size() >= most_open_) {
    known_[open_.back()].opened.reset();  // whoever reads from it still keeps it open
    open_.pop_back();
  }
  known.opened = opened;
  known.recently_used = open_.insert(open_.begin(), file);
  return opened;
}

}  // namespace ptq::checkpoint
