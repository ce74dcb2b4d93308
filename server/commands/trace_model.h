// A loaded model as traces describe it.
#pragma once

#include <filesystem>

#include "engine/experts/trace.h"
#include "engine/model/model.h"

namespace sluice {

// path: what the model was loaded from; of a pack every expert's own size is known.
TraceModel DescribeModel(const std::filesystem::path& path, const Model& model);

}  // namespace sluice
