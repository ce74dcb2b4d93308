#include "engine/text/template/json.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "engine/text/template/operators.h"
#include "engine/text/template/unicode.h"

namespace sluice::jinja {
namespace {

void CheckText(const std::string& text) {
  if (!IsValidUtf8(text)) Fail("a string that the chat template was given is not valid UTF-8");
}

class JsonWriter {
 public:
  JsonWriter(Runtime& rt, const JsonStyle& style) : rt_(rt), style_(style), out_(rt) {}

  std::string Run(const Value& v) {
    Write(v, 0);
    return out_.Take();
  }

 private:
  void Write(const Value& v, size_t level) {
    rt_.Step();
    const Runtime::Depth depth(rt_);
    switch (v.kind()) {
      case Kind::kNone:
        return out_.Append("null");
      case Kind::kBool:
        return out_.Append(v.integer() != 0 ? "true" : "false");
      case Kind::kInt:
        return out_.Append(std::to_string(v.integer()));
      case Kind::kFloat:
        return out_.Append(Number(v.real()));
      case Kind::kString:
        return WriteText(Text(v));
      case Kind::kList:
      case Kind::kTuple:
        return WriteList(v.As<ListObject>().items, level);
      case Kind::kDict:
        return WriteDict(v.As<DictObject>(), level);
      default:
        Fail("object of type " + std::string(TypeName(v)) + " is not JSON serializable");
    }
  }

  static std::string Number(double d) {
    if (std::isnan(d)) return "NaN";
    if (std::isinf(d)) return d < 0 ? "-Infinity" : "Infinity";
    return FloatRepr(d);
  }

  void NewLine(size_t level) {
    if (!style_.pretty) return;
    out_.Append("\n");
    for (size_t i = 0; i < level; ++i) out_.Append(style_.indent);
  }

  void WriteList(const Values& items, size_t level) {
    if (items.empty()) return out_.Append("[]");
    out_.Append("[");
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out_.Append(style_.item_separator);
      NewLine(level + 1);
      Write(items[i], level + 1);
    }
    NewLine(level);
    out_.Append("]");
  }

  void WriteDict(const DictObject& dict, size_t level) {
    if (dict.entries().empty()) return out_.Append("{}");
    std::vector<const DictObject::Entry*> order;
    rt_.Step(dict.entries().size() / 8);
    for (const auto& entry : dict.entries()) order.push_back(&entry);
    if (style_.sort_keys) {
      std::stable_sort(order.begin(), order.end(), [this](const auto* a, const auto* b) {
        return Less(rt_, a->first, b->first);
      });
    }
    out_.Append("{");
    for (size_t i = 0; i < order.size(); ++i) {
      if (i > 0) out_.Append(style_.item_separator);
      NewLine(level + 1);
      WriteText(Key(order[i]->first));
      out_.Append(style_.key_separator);
      Write(order[i]->second, level + 1);
    }
    NewLine(level);
    out_.Append("}");
  }

  std::string Key(const Value& key) {
    switch (key.kind()) {
      case Kind::kString:
        return std::string(Text(key));
      case Kind::kNone:
        return "null";
      case Kind::kBool:
        return key.integer() != 0 ? "true" : "false";
      case Kind::kInt:
        return std::to_string(key.integer());
      case Kind::kFloat:
        return Number(key.real());
      default:
        Fail("keys must be str, int, float, bool or None, not " + std::string(TypeName(key)));
    }
  }

  void Escaped(char32_t c) {
    static constexpr char kHex[] = "0123456789abcdef";
    const char text[] = {'\\',        'u', kHex[c >> 12 & 15], kHex[c >> 8 & 15], kHex[c >> 4 & 15],
                         kHex[c & 15]};
    out_.Append(std::string_view(text, sizeof(text)));
  }

  void WriteText(std::string_view text) {
    out_.Append("\"");
    size_t plain = 0;  // start of the part that needs no escape
    for (size_t pos = 0; pos < text.size();) {
      const size_t begin = pos;
      const char32_t c = DecodeNext(text, &pos);
      const bool escape = c < 0x20 || c == '"' || c == '\\' || (style_.ensure_ascii && c >= 0x7F);
      if (!escape) continue;
      out_.Append(text.substr(plain, begin - plain));
      plain = pos;
      switch (c) {
        case '"':
          out_.Append("\\\"");
          break;
        case '\\':
          out_.Append("\\\\");
          break;
        case '\n':
          out_.Append("\\n");
          break;
        case '\r':
          out_.Append("\\r");
          break;
        case '\t':
          out_.Append("\\t");
          break;
        case '\f':
          out_.Append("\\f");
          break;
        case '\b':
          out_.Append("\\b");
          break;
        default:
          if (c >= 0x10000) {
            Escaped(0xD800 + ((c - 0x10000) >> 10));
            Escaped(0xDC00 + ((c - 0x10000) & 0x3FF));
          } else {
            Escaped(c);
          }
      }
    }
    out_.Append(text.substr(plain));
    out_.Append("\"");
  }

  Runtime& rt_;
  const JsonStyle& style_;
  TextBuilder out_;
};

}  // namespace

Value FromJson(Runtime& rt, const nlohmann::ordered_json& json) {
  const Runtime::Depth depth(rt);
  switch (json.type()) {
    case nlohmann::ordered_json::value_t::null:
      return Value::None();
    case nlohmann::ordered_json::value_t::boolean:
      return Value::Bool(json.get<bool>());
    case nlohmann::ordered_json::value_t::number_integer:
      return Value::Int(json.get<int64_t>());
    case nlohmann::ordered_json::value_t::number_unsigned:
      if (json.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
        Fail("the integer " + std::to_string(json.get<uint64_t>()) +
             " is too large for the chat template (64 bits, signed)");
      }
      return Value::Int(json.get<int64_t>());
    case nlohmann::ordered_json::value_t::number_float:
      return Value::Float(json.get<double>());
    case nlohmann::ordered_json::value_t::string: {
      const auto& text = json.get_ref<const std::string&>();
      CheckText(text);
      return rt.String(text);
    }
    case nlohmann::ordered_json::value_t::array: {
      Values items;
      items.reserve(json.size());
      for (const auto& item : json) items.push_back(FromJson(rt, item));
      return rt.List(std::move(items));
    }
    case nlohmann::ordered_json::value_t::object: {
      auto* dict = new DictObject(rt);
      Value result = Value::Of(Kind::kDict, dict);
      for (const auto& [key, item] : json.items()) {
        CheckText(key);
        dict->Put(key, FromJson(rt, item));
      }
      return result;
    }
    default:
      Fail("the chat template was given a value that is not JSON");
  }
}

std::string ToJson(Runtime& rt, const Value& v, const JsonStyle& style) {
  return JsonWriter(rt, style).Run(v);
}

}  // namespace sluice::jinja
