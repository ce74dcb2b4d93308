#include "engine/experts/expert_predictor.h"

#include <string>

#include "engine/experts/predictor_activation_path.h"
#include "engine/experts/predictor_cross_layer.h"

namespace sluice {

Result<std::unique_ptr<ExpertPredictor>> MakeExpertPredictor(std::string_view name,
                                                             ExpertSpace space,
                                                             int experts_per_token,
                                                             const ExpertPrior& prior) {
  constexpr CrossLayerOptions kCounted[] = {
      {}, {"previous-token", false, StreamHistory::kLastChose}, {"prior", false, 0}};
  for (const CrossLayerOptions& options : kCounted) {
    if (name != options.name) continue;
    return std::unique_ptr<ExpertPredictor>(
        new CrossLayerPredictor(options, space, experts_per_token, prior));
  }
  if (name == "activation-path") {
    return std::unique_ptr<ExpertPredictor>(
        new ActivationPathPredictor(space, experts_per_token, prior));
  }
  return InvalidArgument("unknown expert predictor \"" + std::string(name) +
                         "\"; there are cross-layer, activation-path, previous-token and prior");
}

}  // namespace sluice
