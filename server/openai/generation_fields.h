// The part of parsing that completions and chat share.
#pragma once

#include "server/openai/fields.h"
#include "server/openai/requests.h"

namespace sluice::openai {

// Reads every shared field except max_tokens (whose name and default differ). Faults stay in
// `fields`.
GenerationFields ReadGenerationFields(Fields& fields);

}  // namespace sluice::openai
