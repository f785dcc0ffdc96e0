#pragma once
// The switch on the device. For kernels/*ops.cpp alone.

#include "kernels/core/error.h"
#include "kernels/core/tensor.h"

namespace ptq::kernels {

/// The function for the device. Throws a user Error for a device this build has no kernels for.
template <class Function>
Function* on(Device device, Function* cpu_function) {
  if (device != Device::kCpu)
    throw user_error("this build computes on the CPU only", "device", "build with the preset 'cuda', or choose the device cpu");
  return cpu_function;
}

}  // namespace ptq::kernels
