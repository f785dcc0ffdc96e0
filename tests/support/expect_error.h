#pragma once
// Expecting a ptq::Error of one kind with certain words in its report.

#include <gtest/gtest.h>

#include <string>

#include "kernels/core/error.h"

namespace ptq::test {

/// Runs `body`, which must throw a ptq::Error of `kind` whose report contains `words`.
template <class Body>
void expect_error(ErrorKind kind, const std::string& words, const Body& body) {
  try {
    body();
    ADD_FAILURE() << "no error, expected one with: " << words;
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.kind()), static_cast<int>(kind)) << error.report();
    EXPECT_NE(error.report().find(words), std::string::npos) << "expected: " << words << "\nbut got:  " << error.report();
  }
}

}  // namespace ptq::test
