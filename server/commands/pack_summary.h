// What a pack holds, counted: the report of `sluice inspect`.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/formats/pack.h"

namespace sluice {

// The report as `sluice inspect --json` prints it. Reads no weights. Bits per weight count all
// bytes that are read for a weight: scales, and padding of plane sets.
//   path, version, file_bytes, align
//   model: family and sizes; with "error" instead when the pack's config.json is not served
//   totals: weights, bytes, bits_per_weight; the same of experts with count, and bits: how many
//     experts have which code bits ("4", or "4/4/3" where gate, up and down differ)
//   ladder: for each precision, what all experts take in memory, and the bytes that it adds
//   kinds: tensors, weights, bytes, bits_per_weight and formats of embedding, attention, ...
//   layers: the same by layer, with bits as above
//   files: bytes of each; provenance: as written
nlohmann::ordered_json PackSummary(const PackReader& pack);

// Reads everything in the order of the file and returns one sentence per damaged tensor or plane
// set. `progress` is called with fractions of the bytes.
std::vector<std::string> DamagedParts(const PackReader& pack,
                                      const std::function<void(double)>& progress);

}  // namespace sluice
