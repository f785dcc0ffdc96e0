#pragma once
// A sweep that only takes tokens through the model: nothing is observed, nothing written.

#include "runner/sweep.h"

namespace ptq::runner {

class PlainClient : public SweepClient {
 public:
  /// `forms`: as SweepClient::expansion.
  explicit PlainClient(double forms = 1.0) : forms_(forms) {}
  layers::LayerHooks& hooks() override { return hooks_; }
  double expansion() const override { return forms_; }

 private:
  double forms_;
  layers::LayerHooks hooks_;
};

}  // namespace ptq::runner
