#pragma once
// Gives a reader of untrusted bytes damaged files, from a fixed seed: each is read or refused with a data Error, in little time and with
// memory in proportion to it. $PTQ_FUZZ_SECONDS says how long each reader is tried (default 20). The file that was being read when a
// reader crashed lies in the build folder as fuzz-READER.input: its length, 8 bytes, then itself.

#include <functional>
#include <string>
#include <vector>

namespace ptq::test {

/// The corpus files whose names begin with `beginning` and a '.', in the order of their names.
std::vector<std::string> corpus(const std::string& beginning);

/// Gives `read` inputs of `next` until the time is over. It returns normally or throws a data Error; anything else fails the test.
void fuzz(const std::string& reader, const std::function<std::string()>& next, const std::function<void(const std::string&)>& read);

}  // namespace ptq::test
