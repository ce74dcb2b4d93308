// Watches the activations of a forward pass: what calibration learns from. Given to a model when it
// is loaded (ModelOptions::observer); a model without one does no work for it.
//
// Calls come on the thread of Forward, layer after layer, in the order of the computation. Pointers
// are valid during the call only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sluice {

// Row i is at x + i * cols.
struct ActivationRows {
  const float* x = nullptr;
  int rows = 0;
  int cols = 0;
};

// One SwiGLU network and the tokens of a step that went through it.
struct ExpertActivations {
  int layer = 0;
  int expert = 0;  // -1: the layer's shared expert, or its only network when the layer is dense
  int count = 0;   // tokens, at least 1
  int hidden = 0;
  int intermediate = 0;
  const float* x = nullptr;            // inputs of gate and up: [.., hidden]
  const int32_t* rows = nullptr;       // [count] rows of x; null: 0, 1, 2, ...
  const float* down_inputs = nullptr;  // [count, intermediate]
  const float* outputs = nullptr;      // [count, hidden], before the weight
  const float* weights = nullptr;      // [count] the factor that each token's sum gives the output

  const float* input(int i) const {
    return x + static_cast<ptrdiff_t>(rows != nullptr ? rows[i] : i) * hidden;
  }
};

class ForwardObserver {
 public:
  virtual ~ForwardObserver() = default;

  // Inputs of q, k and v, past the norm.
  virtual void OnAttentionInputs(int layer, const ActivationRows& x) = 0;
  // Inputs of the output projection. In the last layer only of tokens that logits are wanted for,
  // as all that follows.
  virtual void OnAttentionOutputs(int layer, const ActivationRows& x) = 0;
  virtual void OnExpert(const ExpertActivations& activations) = 0;
  // Inputs of the output head, past the final norm.
  virtual void OnHeadInputs(const ActivationRows& x) = 0;
};

}  // namespace sluice
