#include "engine/text/post_processor.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "engine/text/bpe.h"
#include "engine/text/json_fields.h"

namespace sluice::text {
namespace {

constexpr size_t kMaxTemplateParts = 64;

}  // namespace

Result<PostProcessor> PostProcessor::FromJson(const nlohmann::json& component,
                                              std::string_view place) {
  PostProcessor result;
  if (component.is_null()) return result;
  if (Result<void> added = result.Add(component, place, 0); !added) return added.error();
  return result;
}

Result<void> PostProcessor::Add(const nlohmann::json& component, std::string_view place,
                                int depth) {
  if (Result<void> object = ExpectObject(component, place); !object) return object.error();
  Result<std::string> type = GetRequiredString(component, place, "type");
  if (!type) return type.error();
  if (depth > kMaxComponentDepth || templates_.size() >= kMaxComponentSteps) {
    return Unsupported(std::string(place) + " has too many or too deeply nested post-processors");
  }
  if (*type == "ByteLevel") return {};
  if (*type == "TemplateProcessing") return AddTemplate(component, place);
  if (*type == "Sequence") {
    Result<const nlohmann::json*> parts = GetRequiredArray(component, place, "processors");
    if (!parts) return parts.error();
    for (size_t i = 0; i < (*parts)->size(); ++i) {
      Result<void> added = Add((**parts)[i], Indexed(place, "processors", i), depth + 1);
      if (!added) return added.error();
    }
    return {};
  }
  return Unsupported(std::string(place) + ": the post-processor \"" + *type +
                     "\" is not supported");
}

Result<void> PostProcessor::AddTemplate(const nlohmann::json& component, std::string_view place) {
  Result<const nlohmann::json*> single = GetRequiredArray(component, place, "single");
  if (!single) return single.error();
  if ((*single)->size() > kMaxTemplateParts) {
    return Unsupported(std::string(place) + ".single has too many parts");
  }
  const nlohmann::json* specials = FindMember(component, "special_tokens");
  Template parts;
  int sequences = 0;
  for (size_t i = 0; i < (*single)->size(); ++i) {
    const nlohmann::json& piece = (**single)[i];
    const std::string here = Indexed(place, "single", i);
    if (const nlohmann::json* sequence = FindMember(piece, "Sequence")) {
      Result<std::string> id = GetRequiredString(*sequence, here + ".Sequence", "id");
      if (!id) return id.error();
      if (*id != "A" || ++sequences > 1) {
        return Unsupported(here + ": a template must hold the sequence \"A\" once and no other");
      }
      parts.push_back({true, {}});
      continue;
    }
    const nlohmann::json* special = FindMember(piece, "SpecialToken");
    if (special == nullptr) {
      return Corrupt(here + " must have the member \"Sequence\" or \"SpecialToken\"");
    }
    Result<std::string> name = GetRequiredString(*special, here + ".SpecialToken", "id");
    if (!name) return name.error();
    const nlohmann::json* token =
        specials == nullptr ? nullptr : FindMember(*specials, name->c_str());
    const nlohmann::json* ids = token == nullptr ? nullptr : FindMember(*token, "ids");
    if (ids == nullptr || !ids->is_array() || ids->size() > kMaxTemplateParts) {
      return Corrupt(std::string(place) + ".special_tokens has no (short) list of ids for \"" +
                     *name + "\"");
    }
    Part part{false, {}};
    for (const nlohmann::json& id : *ids) {
      if (!id.is_number_unsigned() || id.get<uint64_t>() > kMaxTokenId) {
        return Corrupt(std::string(place) + ".special_tokens: \"" + *name + "\" has a bad id");
      }
      part.ids.push_back(static_cast<int32_t>(id.get<uint64_t>()));
      largest_id_ = std::max(largest_id_, part.ids.back());
    }
    parts.push_back(std::move(part));
  }
  templates_.push_back(std::move(parts));
  return {};
}

void PostProcessor::Apply(bool add_special_tokens, std::vector<int32_t>* ids) const {
  for (const Template& parts : templates_) {
    std::vector<int32_t> result;
    result.reserve(ids->size() + parts.size());
    for (const Part& part : parts) {
      if (part.is_sequence) {
        result.insert(result.end(), ids->begin(), ids->end());
      } else if (add_special_tokens) {
        result.insert(result.end(), part.ids.begin(), part.ids.end());
      }
    }
    *ids = std::move(result);
  }
}

}  // namespace sluice::text
