#include "server/commands/trace_model.h"

#include <algorithm>
#include <vector>

#include "engine/formats/pack.h"

namespace sluice {

TraceModel DescribeModel(const std::filesystem::path& path, const Model& model) {
  TraceModel result;
  result.name = path.filename().string();
  result.space = {model.config().num_layers(), model.config().router.num_experts};
  result.experts_per_token = model.config().router.experts_per_token;
  if (std::filesystem::is_regular_file(path)) {
    if (const Result<PackReader> pack = PackReader::Open(path)) {
      for (int i = 0; i < result.space.size(); ++i) {
        const ExpertId id = result.space.id(i);
        const PackExpert* expert = pack->FindExpert(id.layer, id.index);
        result.expert_bytes.push_back(expert == nullptr ? 0 : expert->bytes(expert->sets.size()));
      }
      const std::vector<uint64_t>& sizes = result.expert_bytes;
      if (std::equal(sizes.begin() + 1, sizes.end(), sizes.begin())) result.expert_bytes.resize(1);
      return result;
    }
  }
  result.expert_bytes = {model.footprint().expert_bytes};
  return result;
}

}  // namespace sluice
